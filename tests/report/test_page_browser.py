"""The report page in a real browser, opened from disk: what the sample browser shows, keys, views,
hostile text.
"""

import os
import re
import shutil
import time
from urllib.parse import parse_qs

import pytest

from harness.report.page.html import HERE

from ..helpers import pages

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
HOW = "no chromium with chromedriver: apt-get install chromium chromium-driver"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=HOW)]

BASELINE = {s["prompt_id"]: s["baseline_gold"] for s in pages.samples("start", 0)}
IDS = list(BASELINE)


def gold(method, seed=0):
    return {s["prompt_id"]: s["gold"] for s in pages.samples(method, seed)}


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="pip install 'alignment-harness[test]'"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return pages.write_page(pages.study(folder), folder / "a page.html", study="mine")


@pytest.fixture
def view(chrome, file):
    """The page, freshly opened on the suite `toy`."""
    return View(chrome, file).open("suite=toy")


class View:
    """What a person can see of the sample browser and do with it."""

    def __init__(self, chrome, file):
        self.chrome, self.url = chrome, file.as_uri()

    def open(self, asked=""):
        self.chrome.get("about:blank")
        self.chrome.get_log("browser")
        self.chrome.get(self.url + (f"#samples?{asked}" if asked else ""))
        return self

    def run(self, script, *arguments):
        return self.chrome.execute_script(script, *arguments)

    def complaints(self, seconds=0.5):
        """What the console has complained of; what comes late is waited for."""
        found, until = [], time.monotonic() + seconds
        while time.monotonic() < until and not found:
            found = [
                entry["message"]
                for entry in self.chrome.get_log("browser")
                if entry["level"] == "SEVERE"
            ]
            time.sleep(0.05)
        return found

    def choose(self, **values):
        for name, value in values.items():
            self.run(
                "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
                "e.dispatchEvent(new Event(e.id === 'q' ? 'input' : 'change', {bubbles: true}))",
                name,
                value,
            )
        return self

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.chrome).send_keys(*keys).perform()
        return self

    def listed(self):
        return self.run(
            "return [...document.querySelectorAll('#list .name > :first-child')].map((e) =>"
            " e.textContent)"
        )

    def chosen(self):
        return self.run(
            "return document.querySelector('#list [aria-selected=true] .name > span')?.textContent"
            " ?? null"
        )

    def text(self, where):
        return self.run("return document.querySelector(arguments[0]).textContent", where)

    def cards(self):
        """{name: (badge, answer, figures)} of the cards."""
        found = self.run(
            "return [...document.querySelectorAll('.card')].map((c) => [c.querySelector('h4 >"
            " span').textContent,c.querySelector('.badge')?.textContent ?? '',"
            " c.querySelector('.text')?.textContent ??"
            " '',Object.fromEntries([...c.querySelectorAll('dl > div')].map((d) =>"
            " [...d.children].map((e) => e.textContent)))])"
        )
        return {name: tuple(rest) for name, *rest in found}

    def address(self):
        hash = self.run("return location.hash")
        return {
            k: v if len(v) > 1 else v[0] for k, v in parse_qs(hash.partition("?")[2], True).items()
        }


# -- what is shown ---------------------------------------------------------------------------------


def test_page_opens_from_disk_without_errors_or_requests(chrome, file):
    chrome.get_log("performance")
    assert View(chrome, file).open().complaints() == []
    sent = [
        e["message"]
        for e in chrome.get_log("performance")
        if "Network.requestWillBeSent" in e["message"]
    ]
    urls = set(re.findall(r'"url":"((?:http|ws|ftp)[^"]*)"', " ".join(sent)))
    assert urls == set()


def test_console_errors_have_a_negative_control(chrome, file, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        file.read_text(encoding="utf-8").replace('"use strict";', '"use strict"; '),
        encoding="utf-8",
    )
    complaint = (
        View(chrome, broken).open().complaints(10)
    )  # the policy knows the script by its hash
    assert "Content Security Policy" in complaint[0]
    assert chrome.execute_script("return document.getElementById('browser').hidden")


def test_browser_shows_the_first_prompt_and_every_method(view):
    assert view.listed() == IDS and view.chosen() == "test/0"
    assert view.text("#count") == f"{len(IDS)} of {len(IDS)} prompts"
    cards, truth = view.cards(), pages.samples("dpo", 0)[0]
    assert list(cards)[:2] == ["baseline", "start"] and set(cards) == {
        "baseline",
        "start",
        pages.LABEL,
        pages.DPO,
    }
    badge, answer, figures = cards[pages.DPO]
    assert (
        answer == truth["answer"]
        and badge.split()[1] == {1.0: "wins", 0.5: "ties", 0.0: "loses"}[truth["win"]]
    )
    assert float(figures["gold"]) == truth["gold"] and figures["length"] == str(truth["length"])
    assert float(figures["KL"]) == pytest.approx(truth["kl"], abs=0.006)
    assert float(figures["proxy"]) == pytest.approx(truth["proxy"], abs=6e-4) and figures["ended"][
        :2
    ] in ("ye", "no")


def test_browser_hides_unchecked_methods(view):
    view.run(
        "[...document.querySelectorAll('#rows input')].find((b) => b.value ==="
        f" '{pages.DPO}').click()"
    )
    assert set(view.cards()) == {"baseline", "start", pages.LABEL}
    assert view.address()["rows"] == ["start", pages.LABEL]
    view.run(
        "[...document.querySelectorAll('#rows button')].find((b) => b.textContent ==="
        " 'none').click()"
    )
    assert set(view.cards()) == {"baseline"} and view.address()["rows"] == ""


def test_browser_shows_the_answers_of_a_seed(view):
    view.choose(seed="1")
    assert view.cards()[pages.LABEL][1] == pages.samples("ppo", 1)[0]["answer"]
    assert view.cards()[pages.DPO][1] == "" and view.chosen() == "test/0"


# -- filter and sort -------------------------------------------------------------------------------

RELATIONS = {"loses": lambda x, y: x < y, "ties": lambda x, y: x == y, "beats": lambda x, y: x > y}


def expected(relation, ours, theirs):
    return [i for i in IDS if RELATIONS[relation](ours[i], theirs[i])]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(
    ("b", "theirs"), [("", BASELINE), (pages.DPO, gold("dpo"))], ids=["baseline", "dpo"]
)
def test_filter_selects_exactly_the_prompts(view, relation, b, theirs):
    right = expected(relation, gold("ppo"), theirs)
    assert 0 < len(right) < len(IDS)
    view.choose(a=pages.LABEL, o=relation, b=b)
    assert view.listed() == right and view.chosen() in right
    assert view.text("#count") == f"{len(right)} of {len(IDS)} prompts"
    tally = [len(expected(r, gold("ppo"), theirs)) for r in ("beats", "ties", "loses")]
    assert view.text("#tally").endswith(": {} won, {} tied, {} lost".format(*tally))


def test_filter_has_a_negative_control(chrome, file, tmp_path, monkeypatch):
    wrong = altered(file, tmp_path, "ours > theirs", "ours >= theirs")
    view = View(chrome, wrong).open("suite=toy").choose(a=pages.LABEL, o="beats")
    assert view.listed() != expected("beats", gold("ppo"), BASELINE) and len(view.listed()) > 0


def altered(file, folder, old, new):
    """A page whose script is another one, and may run."""
    text, made = file.read_text(encoding="utf-8"), folder / "altered.html"
    assert text.count(old) == 1
    made.write_text(re.sub(r"<meta http-equiv.*?>", "", text).replace(old, new), encoding="utf-8")
    return made


def test_sort_by_difference_of_gold(view):
    ours, theirs = gold("ppo"), gold("dpo")
    view.choose(a=pages.LABEL, b=pages.DPO, sort="gold")
    assert view.listed() == sorted(IDS, key=lambda i: ours[i] - theirs[i])
    view.choose(dir="down")
    assert view.listed() == sorted(IDS, key=lambda i: theirs[i] - ours[i])


@pytest.mark.parametrize("figure", ["kl", "length"])
def test_sort_by_a_figure(view, figure):
    values = {s["prompt_id"]: s[figure] for s in pages.samples("dpo", 0)}
    assert view.choose(a=pages.DPO, sort=figure).listed() == sorted(IDS, key=values.get)
    assert view.choose(sort="order").listed() == IDS


def test_sort_by_over_optimisation(view):
    rows = pages.samples("dpo", 0)

    def rank(name, i):
        return sum(
            (s[name] > t[name]) + 0.5 * (s[name] == t[name]) for t in rows for s in [rows[i]]
        )

    over = {s["prompt_id"]: rank("proxy", i) - rank("gold", i) for i, s in enumerate(rows)}
    found = view.choose(a=pages.DPO, sort="over", dir="down").listed()
    assert [over[i] for i in found] == sorted(over.values(), reverse=True) and found != IDS


def test_search_covers_prompts_and_answers(view):
    view.choose(q="PROMPT 7:")
    assert view.listed() == ["test/7"]
    assert view.choose(q="dpo 0 says 11").listed() == ["test/11"]
    assert (
        view.choose(q="no such thing").listed() == []
        and view.text("#detail") == "No prompt is like this."
    )
    assert view.text("#count") == f"0 of {len(IDS)} prompts"


# -- keys and views --------------------------------------------------------------------------------


def test_keys_move_between_prompts(view):
    from selenium.webdriver.common.keys import Keys

    assert view.press("j", "j").chosen() == "test/2"
    assert view.press("k").chosen() == "test/1" and view.text("#detail h3") == "Prompt test/1"
    assert view.press("k", "k", "k").chosen() == "test/0"
    view.run("document.getElementById('list').focus()")
    assert (
        view.press(Keys.ARROW_DOWN).chosen() == "test/1"
        and view.press(Keys.END).chosen() == IDS[-1]
    )
    assert (
        view.run("return document.getElementById('list').getAttribute('aria-activedescendant')")
        == "prompt-23"
    )
    inside = "const l = document.getElementById('list').getBoundingClientRect();"
    inside += "const o = document.querySelector('[aria-selected=true]').getBoundingClientRect();"
    assert view.run(inside + "return o.top >= l.top - 1 && o.bottom <= l.bottom + 1")
    assert view.press(Keys.HOME, Keys.ARROW_UP).chosen() == "test/0"


def test_keys_follow_the_filter(view):
    right = expected("loses", gold("ppo"), BASELINE)
    assert view.choose(a=pages.LABEL, o="loses").press("j").chosen() == right[1]


def test_slash_key_opens_the_search(view):
    from selenium.webdriver.common.keys import Keys

    view.press("/")
    assert view.run("return document.activeElement.id") == "q"
    view.press("j", "k")
    assert view.run("return document.getElementById('q').value") == "jk" and view.listed() == []
    view.press(Keys.ESCAPE)
    assert view.run("return document.activeElement.id") == "list"


def test_question_mark_key_shows_the_keys(view):
    from selenium.webdriver.common.keys import Keys

    view.press("?")
    assert (
        view.run("return document.getElementById('keys').open")
        and view.press("j").chosen() == "test/0"
    )
    view.press(Keys.ESCAPE)
    assert (
        not view.run("return document.getElementById('keys').open")
        and view.press("j").chosen() == "test/1"
    )


def test_address_restores_the_view(view, chrome, file):
    view.choose(seed="1", a=pages.LABEL, o="loses", b="", sort="kl", dir="down", q="prompt").press(
        "j"
    )
    view.run(
        "[...document.querySelectorAll('#rows input')].find((b) => b.value === 'start').click()"
    )
    listed, chosen, cards = view.listed(), view.chosen(), view.cards()
    assert 1 < len(listed) < len(IDS)
    address = view.run("return location.href")
    chrome.get("about:blank")
    chrome.get(address)
    again = View(chrome, file)
    assert (again.listed(), again.chosen(), again.cards()) == (listed, chosen, cards)
    assert chrome.execute_script("return document.getElementById('dir').value") == "down"
    again.run("document.getElementById('reset').click()")
    assert again.listed() == IDS


@pytest.mark.parametrize(
    "asked",
    ["suite=none&a=nobody&b=nobody&o=x&sort=x&dir=x&seed=9&p=none&rows=nobody", "%", "=&&="],
)
def test_address_with_unknown_values_is_ignored(chrome, file, asked):
    view = View(chrome, file).open(asked)
    assert len(view.listed()) == pages.PROMPTS and view.chosen() == "test/0"
    assert view.complaints() == []


def test_suite_control_changes_the_suite(view):
    view.choose(suite="<i>other")
    assert view.address()["suite"] == "<i>other" and view.listed() == IDS


def test_focus_is_visible_and_in_order(view):
    from selenium.webdriver.common.keys import Keys

    view.run("document.getElementById('suite').focus()")
    order = []
    for _ in range(11):
        order.append(view.run("return document.activeElement.id || document.activeElement.tagName"))
        view.press(Keys.TAB)
    assert order == ["suite", "seed", "q", "a", "o", "b", "sort", "dir", "reset", "help", "SUMMARY"]
    view.run("document.getElementById('suite').focus()")
    view.press(Keys.TAB)
    assert view.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


# -- hostile text, other devices -------------------------------------------------------------------


def escaped(text):
    """What the browser shows of a text, by the rule of the page's Python side."""
    from harness.report.page.html import visible

    return visible(text)


def test_hostile_text_is_shown_as_text(view):
    for i, sample in enumerate(pages.samples("dpo", 0)):
        assert view.text("#detail h3") == f"Prompt test/{i}"
        assert view.text(".ask .text") == escaped(sample["prompt"])
        assert view.cards()[pages.DPO][1] == escaped(sample["answer"])
        view.press("j")
    assert view.run("return window.hacked") is None
    assert (
        view.run(
            "return document.querySelectorAll('#browser img, #browser script, #browser svg').length"
        )
        == 0
    )


def test_hostile_text_has_a_negative_control(chrome, file, tmp_path):
    careless = altered(
        file,
        tmp_path,
        "element.append(document.createTextNode(text.slice(from)));",
        "element.innerHTML += text;",
    )
    View(chrome, careless).open("suite=toy").press("j", "j", "j", "j")
    found = chrome.execute_async_script(
        "const done = arguments[0]; setTimeout(() => done(window.hacked ?? null), 500)"
    )
    assert found in (3, 4, 6)


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 400])
def test_page_width_is_not_changed_by_text(view, width):
    settings = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    view.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)
    try:
        for _ in pages.HOSTILE:
            assert view.run("return document.documentElement.scrollWidth") <= width
            wide = (
                "return [...document.querySelectorAll('#browser .card, #browser"
                " .ask')].filter((e) => "
            )
            assert view.run(wide + "e.scrollWidth > e.clientWidth + 1).length") == 0
            view.press("j")
    finally:
        view.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_without_scripts_has_tables_and_plots(chrome, file):
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        View(chrome, file).open()
        body = chrome.find_element("tag name", "body").text
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "Browsing samples needs JavaScript" in body and "Search" not in body
    assert "win-rate vs baseline" in body and "@misc{rafailov2023direct" in body


def test_print_unfolds_content_and_hides_controls(view):
    view.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        seen = "return getComputedStyle(document.querySelector(arguments[0])).display"
        assert view.run(seen, "#controls") == "none" and view.run(seen, "#list") == "none"
        assert view.run(seen, ".comparison") != "none"
        view.run("window.dispatchEvent(new Event('beforeprint'))")
        assert view.run("return document.querySelectorAll('main details:not([open])').length") == 0
        view.run("window.dispatchEvent(new Event('afterprint'))")
        assert view.run("return document.querySelectorAll('main details:not([open])').length") > 3
    finally:
        view.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_dark_mode_has_dark_colours(view):
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    shade = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert min(view.run(shade)) > 200
    view.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert max(view.run(shade)) < 50
    view.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_page_script_is_the_shipped_one(file):
    assert (HERE / "page.js").read_text(encoding="utf-8") in file.read_text(encoding="utf-8")
    assert os.path.getsize(file) < 20_000_000
