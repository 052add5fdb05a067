"use strict";
// The sample browser. What comes from records is put on the page as text nodes only.
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent).suites;
  const suites = data.filter((suite) => suite.prompts.id.length);
  const at = (id) => document.getElementById(id);
  const SHOWN = 6; // methods, before anyone has chosen
  const MARK = "#samples?"; // of an address that holds a view
  const BASELINE = ""; // method B: the baseline, the start checkpoint's answer to the prompt
  const UNSEEN = /[\p{Cs}\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
  if (!suites.length) return;

  // -- state: all of it is in the address ------------------------------------------------------------------------------
  let view, suite, order = [];
  const rowNames = () => suite.rows.map((row) => row.name);
  const defaults = (title) => {
    const found = suites.find((s) => s.title === title) || suites[0];
    const names = found.rows.map((row) => row.name);
    return {
      suite: found.title, seed: "", q: "", a: names.find((name) => name !== "start") || names[0], o: "any", b: BASELINE,
      sort: "order", dir: "up", p: found.prompts.id[0], rows: names.slice(0, SHOWN),
    };
  };
  const read = () => {
    if (!location.hash.startsWith(MARK)) return defaults();
    const asked = new URLSearchParams(location.hash.slice(MARK.length));
    const state = defaults(asked.get("suite"));
    for (const key of Object.keys(state)) if (asked.has(key) && key !== "rows" && key !== "suite") state[key] = asked.get(key);
    if (asked.has("rows")) state.rows = asked.getAll("rows").filter((name) => name !== "");
    return state;
  };
  const write = () => {
    const told = new URLSearchParams(), usual = defaults(view.suite);
    for (const key of Object.keys(view)) {
      if (key === "rows" || (view[key] === usual[key] && key !== "suite" && key !== "p")) continue;
      told.set(key, view[key]);
    }
    if (view.rows.join("\n") !== usual.rows.join("\n")) for (const name of view.rows.length ? view.rows : [""]) told.append("rows", name);
    history.replaceState(null, "", MARK + told);
  };

  // -- the figures -----------------------------------------------------------------------------------------------------
  const runOf = (name) => {
    const row = suite.rows.find((r) => r.name === name);
    return row && (view.seed === "" ? row.runs[0] : row.runs.find((run) => String(run.seed) === view.seed));
  };
  const figure = (name, column, i) => {
    if (name === BASELINE) return (suite.prompts[column] || [])[i] ?? null;
    const run = runOf(name);
    return run ? run[column][i] ?? null : null;
  };
  const outcome = (a, b, i) => {
    const ours = figure(a, "gold", i), theirs = figure(b, "gold", i);
    if (ours === null || theirs === null) return null;
    return ours > theirs ? "beats" : ours < theirs ? "loses" : "ties";
  };
  const ranks = (values) => { // shares of the others below, ties half
    const known = values.filter((v) => v !== null).sort((x, y) => x - y), place = new Map();
    known.forEach((v, i) => { const own = place.get(v) || [i, i]; own[1] = i; place.set(v, own); });
    return values.map((v) => (v === null ? null : (place.get(v)[0] + place.get(v)[1]) / 2 / Math.max(1, known.length - 1)));
  };
  const sortKeys = () => {
    const all = suite.prompts.id.map((_, i) => i);
    if (view.sort === "gold") return all.map((i) => minus(figure(view.a, "gold", i), figure(view.b, "gold", i)));
    if (view.sort === "over") {
      const proxy = ranks(all.map((i) => figure(view.a, "proxy", i))), gold = ranks(all.map((i) => figure(view.a, "gold", i)));
      return all.map((i) => minus(proxy[i], gold[i]));
    }
    if (view.sort === "kl" || view.sort === "length") return all.map((i) => figure(view.a, view.sort, i));
    return all;
  };
  const minus = (x, y) => (x === null || y === null ? null : x - y);
  const found = (i, words) => {
    if (!words) return true;
    const texts = [suite.prompts.id[i], suite.prompts.prompt[i], suite.prompts.baseline[i], ...view.rows.map((name) => figure(name, "answer", i))];
    return texts.some((text) => text !== null && text !== undefined && String(text).toLowerCase().includes(words));
  };
  const choose = () => {
    const keys = sortKeys(), words = view.q.toLowerCase(), sign = view.dir === "down" ? -1 : 1;
    const kept = suite.prompts.id.map((_, i) => i).filter((i) => (view.o === "any" || outcome(view.a, view.b, i) === view.o) && found(i, words));
    return kept.sort((i, j) => {
      if (keys[i] === null || keys[j] === null) return (keys[i] === null) - (keys[j] === null) || i - j;
      return sign * (keys[i] - keys[j]) || i - j;
    });
  };

  // -- building --------------------------------------------------------------------------------------------------------
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) put(element, text);
    return element;
  };
  const escaped = (c) => { const n = c.codePointAt(0); return n < 0x10000 ? "\\u" + n.toString(16).padStart(4, "0") : "\\u{" + n.toString(16) + "}"; };
  const plain = (text) => String(text).replace(UNSEEN, escaped);
  const put = (element, value) => { // text, with what is not seen written out
    const text = String(value);
    let from = 0;
    for (const match of text.matchAll(UNSEEN)) {
      element.append(document.createTextNode(text.slice(from, match.index)));
      const control = document.createElement("span");
      control.className = "ctl";
      control.textContent = escaped(match[0]);
      element.append(control);
      from = match.index + match[0].length;
    }
    element.append(document.createTextNode(text.slice(from)));
  };
  const body = (text) => {
    const element = make("div", "text");
    element.dir = "auto";
    if (text === null || text === undefined) { element.classList.add("empty"); put(element, "no answer kept"); }
    else if (text === "") { element.classList.add("empty"); put(element, "(empty)"); }
    else put(element, text);
    return element;
  };
  const number = (value, digits = 3) => (value === null || value === undefined ? "-" : typeof value === "number" ? String(Number(value.toFixed(digits))) : String(value));
  const WORDS = { beats: ["\u25b2 wins", "win"], ties: ["= ties", "tie"], loses: ["\u25bc loses", "lose"] };
  const badge = (result) => (result ? make("span", "badge " + WORDS[result][1], WORDS[result][0]) : make("span", "badge tie", "no score"));
  const figures = (pairs) => {
    const list = make("dl", "figures");
    for (const [name, value] of pairs) { const box = make("div"); box.append(make("dt", "", name), make("dd", "", value)); list.append(box); }
    return list;
  };
  const card = (name, i) => {
    const result = outcome(name, BASELINE, i), run = runOf(name);
    const element = make("article", "card" + (result === "beats" ? " w" : result === "loses" ? " l" : "") + (name === view.a || name === view.b ? " picked" : ""));
    const head = make("h4");
    head.append(make("span", "", name));
    if (run) head.append(badge(result));
    element.append(head);
    if (!run) { element.append(make("p", "empty", "no run with seed " + view.seed)); return element; }
    const ended = figure(name, "ended", i);
    element.append(body(figure(name, "answer", i)), figures([
      ["gold", number(figure(name, "gold", i))], ["proxy", number(figure(name, "proxy", i))], ["KL", number(figure(name, "kl", i), 2)],
      ["length", number(figure(name, "length", i))], ["ended", ended === null ? "-" : ended ? "yes" : "no, cut"], ["seed", String(run.seed)],
    ]));
    return element;
  };
  const showDetail = () => {
    const detail = at("detail"), i = suite.prompts.id.indexOf(view.p);
    detail.replaceChildren();
    if (!order.length) { detail.append(make("p", "empty", "No prompt is like this.")); return; }
    const ask = make("div", "ask"), baseline = make("article", "card" + (view.b === BASELINE ? " picked" : "")), head = make("h4");
    ask.append(make("h3", "", "Prompt " + view.p), body(suite.prompts.prompt[i]));
    head.append(make("span", "", "baseline"), make("span", "badge tie", "reference"));
    baseline.append(head, body(suite.prompts.baseline[i]), figures([["gold", number(suite.prompts.gold[i])], ["proxy", number(suite.prompts.proxy[i])]]));
    const cards = make("div", "cards");
    cards.append(baseline, ...view.rows.map((name) => card(name, i)));
    detail.append(ask, cards);
  };
  const showList = () => {
    const items = order.map((i) => {
      const item = make("li"), name = make("div", "name"), result = outcome(view.a, view.b, i), snippet = make("div", "snippet");
      item.id = "prompt-" + i;
      item.setAttribute("role", "option");
      name.append(make("span", "", suite.prompts.id[i]), make("span", "", result ? WORDS[result][0] : ""));
      snippet.dir = "auto";
      put(snippet, String(suite.prompts.prompt[i]).slice(0, 160));
      item.append(name, snippet);
      item.addEventListener("click", () => select(i));
      return item;
    });
    at("list").replaceChildren(...items);
  };
  const label = (name) => (name === BASELINE ? "baseline" : name);
  const showCount = () => {
    const of = { beats: 0, ties: 0, loses: 0 };
    suite.prompts.id.forEach((_, i) => { const result = outcome(view.a, view.b, i); if (result) of[result] += 1; });
    at("count").textContent = order.length + " of " + suite.prompts.id.length + " prompts";
    at("tally").textContent = plain(view.a + " against " + label(view.b)) + ": " + of.beats + " won, " + of.ties + " tied, " + of.loses + " lost";
  };
  const mark = () => {
    const list = at("list"), chosen = suite.prompts.id.indexOf(view.p);
    for (const item of list.children) item.setAttribute("aria-selected", String(item.id === "prompt-" + chosen));
    const item = at("prompt-" + chosen);
    if (!item) { list.removeAttribute("aria-activedescendant"); return; }
    list.setAttribute("aria-activedescendant", item.id);
    if (item.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop;
    else if (item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = item.offsetTop + item.offsetHeight - list.clientHeight;
  };
  const select = (i) => { view.p = suite.prompts.id[i]; mark(); showDetail(); write(); };
  const step = (by) => {
    if (!order.length) return;
    const now = order.indexOf(suite.prompts.id.indexOf(view.p));
    select(order[Math.min(order.length - 1, Math.max(0, now + by))]);
  };
  const update = () => { // after any choice but that of a prompt
    order = choose();
    if (order.length && !order.includes(suite.prompts.id.indexOf(view.p))) view.p = suite.prompts.id[order[0]];
    showList();
    showCount();
    mark();
    showDetail();
    at("rows-count").textContent = view.rows.length + " of " + suite.rows.length;
  };

  // -- controls --------------------------------------------------------------------------------------------------------
  const fill = (id, choices, value) => {
    at(id).replaceChildren(...choices.map(([key, text]) => { const option = document.createElement("option"); option.value = key; option.textContent = plain(text); return option; }));
    at(id).value = value;
  };
  const fillRows = () => {
    const boxes = rowNames().map((name) => {
      const box = document.createElement("input"), own = make("label");
      box.type = "checkbox";
      box.value = name;
      box.checked = view.rows.includes(name);
      box.addEventListener("change", () => { setRows(rowNames().filter((n) => (n === name ? box.checked : view.rows.includes(n)))); });
      own.append(box, make("span", "", name));
      return own;
    });
    const all = make("button", "", "all"), none = make("button", "", "none");
    for (const [button, names] of [[all, rowNames()], [none, []]]) { button.type = "button"; button.addEventListener("click", () => { setRows(names); fillRows(); }); }
    at("rows").replaceChildren(at("rows").firstElementChild, ...boxes, all, none);
  };
  const setRows = (names) => { view.rows = names; update(); write(); };
  const show = () => { // everything, from the state
    suite = suites.find((s) => s.title === view.suite);
    const names = rowNames(), seeds = [...new Set(suite.rows.flatMap((row) => row.runs.map((run) => run.seed)))].sort((x, y) => x - y);
    const methods = names.map((name) => [name, name]);
    if (!names.includes(view.a)) view.a = defaults(view.suite).a;
    if (view.b !== BASELINE && !names.includes(view.b)) view.b = BASELINE;
    if (view.seed !== "" && !seeds.includes(Number(view.seed))) view.seed = "";
    view.rows = names.filter((name) => view.rows.includes(name));
    fill("suite", suites.map((s) => [s.title, s.title]), view.suite);
    fill("seed", [["", "each row's first"], ...seeds.map((seed) => [String(seed), String(seed)])], view.seed);
    fill("a", methods, view.a);
    fill("b", [[BASELINE, "baseline"], ...methods], view.b);
    for (const id of ["o", "sort", "dir"]) { at(id).value = view[id]; if (at(id).selectedIndex < 0) { view[id] = defaults()[id]; at(id).value = view[id]; } }
    at("q").value = view.q;
    at("suite-label").hidden = suites.length < 2;
    at("seed-label").hidden = seeds.length < 2;
    fillRows();
    update();
  };
  for (const id of ["seed", "a", "o", "b", "sort", "dir"]) at(id).addEventListener("change", () => { view[id] = at(id).value; update(); write(); });
  at("q").addEventListener("input", () => { view.q = at("q").value; update(); write(); });
  at("suite").addEventListener("change", () => { view = defaults(at("suite").value); show(); write(); });
  at("reset").addEventListener("click", () => { view = defaults(view.suite); show(); write(); });
  at("help").addEventListener("click", () => at("keys").showModal());
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", () => { if (location.hash.startsWith(MARK)) { view = read(); show(); } });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || at("keys").open) return;
    const target = event.target, list = at("list");
    if (event.key === "Escape" && target === at("q")) { list.focus(); event.preventDefault(); return; }
    if (target.closest("input:not([type=checkbox]), select, textarea")) return;
    const inside = at("browser").contains(target);
    const moves = { j: 1, k: -1, ...(inside ? { ArrowDown: 1, ArrowUp: -1 } : {}), ...(target === list ? { Home: -Infinity, End: Infinity } : {}) };
    if (event.key in moves) step(moves[event.key]);
    else if (event.key === "/") { at("q").focus(); at("q").select(); }
    else if (event.key === "?") at("keys").showModal();
    else return;
    event.preventDefault();
  });

  // -- printing: what is folded is printed too -------------------------------------------------------------------------
  let folded = [];
  window.addEventListener("beforeprint", () => { folded = [...document.querySelectorAll("main details:not([open])")]; for (const d of folded) d.open = true; });
  window.addEventListener("afterprint", () => { for (const d of folded) d.open = false; });

  at("browser").hidden = false;
  view = read();
  show();
  if (location.hash.startsWith(MARK)) at("samples-heading").scrollIntoView({ behavior: "instant" });
})();
