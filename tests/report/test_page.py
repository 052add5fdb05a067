"""The report page without a browser: what stands on it, that all of it is escaped, its size, and
that it repeats.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser

import pytest

from harness.api.registry import installed
from harness.core.errors import HarnessError, UsageError
from harness.report import page as module
from harness.report.page import citations, html, page
from harness.report.page.samples import browser
from harness.report.page.sections import sections

from ..helpers import pages
from ..helpers.tools import GROUND, ROOT, failure, process, put, record

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Tree(HTMLParser):
    """Tags with their attributes, text, and what was left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def values(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return pages.study(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def text(results):
    return page(results, "mine")


@pytest.fixture(scope="module")
def tree(text):
    return Tree(text)


def told(tree):
    return " ".join(" ".join(tree.text).split())


def test_page_is_well_formed_and_links_resolve(tree):
    assert tree.open == []
    ids = tree.values("id")
    assert len(set(ids)) == len(ids) > 20
    assert [
        link for link in tree.values("href") if not link.startswith("#") or link[1:] not in ids
    ] == []
    labelled = tree.values("aria-labelledby")
    assert labelled and set(labelled) <= set(ids)


def test_page_has_its_parts_in_order(tree):
    parts = [attributes["id"] for tag, attributes in tree.tags if tag == "section"]
    assert parts == [
        "s0",
        "s1",
        "samples-section",
        "settings",
        "provenance",
        "checklist",
        "citations",
    ]


def test_page_links_rows_to_their_runs(text, tree):
    rows = re.findall(r'<th scope="row"><a href="#(s\d-r\d)">', text)
    assert {"s0-r0", "s0-r1", "s0-r2", "s1-r0", "s1-r1", "s1-r2", "s1-r3"} == set(rows)
    bodies = [
        attributes["id"] for tag, attributes in tree.tags if tag == "tbody" and "id" in attributes
    ]
    assert sorted(bodies) == sorted(set(rows))
    runs = text[text.index('<tbody id="s1-r1">') :]
    assert "toy/ppo/seed0-000000000000" in runs and "toy/ppo/seed1-000000000001" in runs


def test_page_explains_relative_paths_of_a_study_file(tree):
    """Saved elsewhere, a study with `plugins` of its own did not start."""
    assert "are relative to the folder of the original file" in told(tree)


def test_page_calls_the_compared_answers_the_baseline(text):
    assert "SFT's answer" not in text and '[BASELINE, "baseline"]' in text
    assert "answer to the baseline" in text


def test_page_fetches_nothing(text, tree):
    assert {tag for tag, _ in tree.tags} & {"link", "iframe", "object", "embed", "base"} == set()
    assert all(source.startswith("data:image/svg+xml;base64,") for source in tree.values("src"))
    assert "@import" not in text and not re.search(r"url\((?!data:)", text.split("</style>")[0])
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\b *\(", html_file("page.js"))


def html_file(name):
    return (html.HERE / name).read_text(encoding="utf-8")


def test_page_policy_allows_only_its_script(text):
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{own}';" in policy and policy.startswith("default-src 'none'")
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")


def test_page_script_inserts_text_only():
    script = html_file("page.js")
    unsafe = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|new Function|setAttribute\(\"on"
    )
    assert not re.search(unsafe, script) and re.search(unsafe, "e.innerHTML = x")


def hostile_parts(tree):
    """What only a text that was not escaped brings into a page."""
    events = [name for _, attributes in tree.tags for name in attributes if name.startswith("on")]
    foreign = [tag for tag, _ in tree.tags if tag in ("svg", "i", "b", "raw")]
    scripts = [attributes for tag, attributes in tree.tags if tag == "script"]
    return (
        events
        + foreign
        + scripts[2:]
        + [a for a in tree.values("src") if not a.startswith("data:")]
    )


def test_page_escapes_records(text, tree):
    assert hostile_parts(tree) == []
    written = told(tree)
    for hostile in (
        pages.LABEL,
        "window.hacked = 7</script>",
        "<i>other",
        "no verifier </td>",
        "window.hacked = 8",
    ):
        assert hostile in written
    assert r"\u202eturned \u0000 \ud800" in written
    assert (
        re.findall(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", text) == []
    )


def test_escaping_has_a_negative_control(results, monkeypatch):
    import jinja2

    class Trusting(jinja2.Environment):
        def __init__(self, **options):
            super().__init__(**options | {"autoescape": False})

    monkeypatch.setattr(jinja2, "Environment", Trusting)

    class Loose(Tree):
        def handle_endtag(self, tag):
            pass

    assert hostile_parts(Loose(page(results, "mine"))) != []


def test_inline_json_cannot_end_its_element():
    data = {"hostile": pages.HOSTILE}
    written = html.inline_json(data)
    assert json.loads(written) == data and written.isascii()
    assert not set("<>&\u2028") & set(written)


def test_visible_escapes_invisible_characters():
    assert (
        html.visible("a\u202eb\x00c\ud800d\n\te\U000e0041")
        == "a\\u202eb\\u0000c\\ud800d\n\te\\u{e0041}"
    )
    assert (
        html.visible("caf\u00e9 \U0001f468\u200d\U0001f469")
        == "caf\u00e9 \U0001f468\u200d\U0001f469"
    )


def test_page_has_the_same_bytes_for_the_same_records(results, text):
    assert page(results, "mine") == text
    code = (
        f"import pathlib, harness.report.page as p; print(p.page(pathlib.Path({str(results)!r}),"
        " 'mine'))"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert again.stdout == text + "\n"


def test_page_shows_failed_refused_and_missing_runs(text, tree):
    written = told(tree)
    assert "kto 0 diverged Loss is nan" in written
    assert "9 of 10 runs have ended. Missing: grpo on toy seed 0." in written
    assert "rlvr toy 0 toy has no verifier" in written
    assert "1 of 9 runs failed" in written and "1 were refused" in written


def test_page_has_settings_tuning_provenance_and_citations(text, tree):
    written = told(tree)
    assert "beta=0.1" in text and "0, 1" in written
    assert (
        "2 trials for each method and suite, drawn from seed 4. Chosen: highest mean gold."
        in written
    )
    assert (
        "1 chosen the settings of the study file done 1.2500" in written
        and "2 beta=0.3 diverged -" in written
    )
    assert "harness run --method 'it'\"'\"'s <i>' --seed 0" in written
    assert (
        "Tuned, settings unchanged: the best of 2 trials (random search, seed 4; highest mean"
        " gold)." in written
    )
    assert "c0ffee, with changes" in written and "torch 2.13.0" in written
    assert "processor: <b>a processor</b>" in written
    assert "start_checkpoint aa" in written
    assert "@misc{rafailov2023direct" in written and "@software{alignment_harness" in written
    for question in (
        "Error bars",
        "Seeds",
        "Data",
        "Hyper-parameters",
        "Compute",
        "Failed runs",
        "Code",
    ):
        assert question in written


def test_page_marks_options_that_differ_or_were_set(tmp_path):
    pages.add(tmp_path, "start", options={})
    pages.add(tmp_path, "dpo", options={"beta": 0.1, "epochs": 1.0}, asked=["beta"])
    pages.add(tmp_path, "ipo", options={"beta": 0.3, "epochs": 1.0})
    text = page(tmp_path)
    assert '<span class="opt differs asked">beta=0.1</span>' in text
    assert (
        '<span class="opt differs">beta=0.3</span>' in text
        and '<span class="opt">epochs=1</span>' in text
    )


def test_page_shows_the_cost_of_every_phase(tmp_path):
    cost = record()["cost"]
    cost["phases"] = {"rollout": {"cpu_seconds": 3.0, "flops": 2e12}}
    cost["shared"] = {"sft": {"cpu_seconds": 19.0, "flops": 9e11}}
    pages.add(tmp_path, "ppo", cost=cost)
    written = told(Tree(page(tmp_path)))
    assert "rollout ppo 11.0 3 3.0 2" in written and "sft 19.0 CPU s, 0.9 TFLOP." in written


def test_page_gives_incomparable_runs_a_table_of_their_own(tmp_path):
    other = GROUND | {"preferences": "XX"}
    for method in ("start", "dpo"):
        pages.add(tmp_path, method, suite_options={"labeller_bias": 0.0})
    pages.add(
        tmp_path, "start", ground=other, suite_options={"labeller_bias": 0.12}, recipe="biased"
    )
    put(tmp_path, failure("dpo", seed=4), failure("dpo", seed=5, recipe="biased"))
    found = sections(tmp_path, None, None)
    assert [s.title for s in found] == ["toy: labeller_bias=0", "toy: labeller_bias=0.12"]
    assert [len(s.selection.records) for s in found] == [3, 2] and found[0].apart == ["preferences"]
    assert "they differ in preferences" in told(Tree(page(tmp_path)))


def test_page_names_incomparable_runs_by_digest(tmp_path):
    pages.add(tmp_path, "dpo")
    pages.add(tmp_path, "dpo", ground=GROUND | {"judge": "gold/2"}, recipe="later")
    assert [s.title for s in sections(tmp_path, None, None)] == [
        "toy: judge gold/1",
        "toy: judge gold/2",
    ]


def test_page_names_runs_without_a_result(tmp_path):
    for method in ("start", "dpo"):
        pages.add(tmp_path, method)
    assert "Not finished" not in page(tmp_path)
    (file,) = (tmp_path / "runs/toy/dpo").glob("*/result.json")
    file.unlink()
    assert "Not finished, and left out: 1 run (dpo seed" in page(tmp_path)


def test_page_of_failures_only_is_written(tmp_path):
    put(tmp_path, failure("dpo"))
    written = told(Tree(page(tmp_path)))
    assert "diverged The loss is nan" in written and "There is no finished run" in written


def test_page_of_one_suite_has_only_it(results):
    assert [s.title for s in sections(results, "mine", "toy")] == ["toy"]
    with pytest.raises(UsageError, match="toy"):
        sections(results, "mine", "toi")


# -- samples ---------------------------------------------------------------------------------------


def test_page_holds_prompts_once_and_every_answer(text):
    suite = pages.browsed(text)[1]
    assert suite["title"] == "toy" and suite["total"] == pages.PROMPTS
    rows = {row["name"]: row["runs"] for row in suite["rows"]}
    assert set(rows) == {"start", pages.DPO, pages.LABEL} and [
        run["seed"] for run in rows[pages.LABEL]
    ] == [0, 1]
    for seed, run in enumerate(rows[pages.LABEL]):
        truth = pages.samples("ppo", seed)
        assert run["answer"] == [s["answer"] for s in truth] and run["gold"] == [
            s["gold"] for s in truth
        ]
        assert run["kl"] == pytest.approx([s["kl"] for s in truth], rel=1e-5)
    assert suite["prompts"]["baseline"] == [s["baseline"] for s in pages.samples("start", 0)]


def test_page_states_how_many_prompts_it_holds(results):
    short = page(results, "mine", prompts=5)
    assert pages.browsed(short)[0]["prompts"]["id"] == [f"test/{i}" for i in range(5)]
    assert f"toy: the first 5 of {pages.PROMPTS} prompts." in told(Tree(short))
    assert f"toy: all {pages.PROMPTS} prompts." in told(Tree(page(results, "mine")))


def test_page_refuses_different_prompts_of_one_id(tmp_path):
    pages.add(tmp_path, "start")
    folder = pages.add(tmp_path, "dpo")
    file = folder / "samples.jsonl"
    file.write_text(file.read_text().replace("prompt 3: ", "another 3: "))
    with pytest.raises(HarnessError, match="prompt test/3"):
        page(tmp_path)


def test_page_refuses_to_be_too_large(results, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 50_000)
    with pytest.raises(UsageError, match=r"more than 0: with 24 prompts.*Lower --prompts"):
        page(results, "mine", prompts=24)


def test_page_of_twenty_rows_in_three_suites_fits(tmp_path):
    for suite in ("one", "two", "three"):
        for i in range(20):
            pages.add(tmp_path, f"m{i}", n=512, suite=suite, recipe=f"m{i}-{suite}")
    data = html.inline_json(browser(sections(tmp_path, None, None), 512))
    words = "a sentence of about three hundred characters, as long as what methods say. " * 4
    real = (
        len(data) - data.count("long" * 3000) * 12000 + 3 * 512 * 22 * len(words)
    )  # ordinary texts beside these
    assert real < module.MAX_BYTES - 2_000_000


# -- citations -------------------------------------------------------------------------------------


def test_bibtex_knows_the_papers_of_all_methods():
    registry, known = installed(), citations.entries()
    papers = {m.paper for m in registry.classes["methods"].values() if m.paper}
    assert len(papers) > 10 and [p for p in papers if citations.arxiv_id(p) not in known] == []
    for number, entry in known.items():
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
        assert fields["url"].endswith(number) and {"title", "author", "year"} <= set(fields)
        assert entry.count("{") == entry.count("}") and 2000 + int(number[:2]) == int(
            fields["year"]
        )


def test_bibtex_gives_the_address_of_an_unknown_paper():
    own, one, other = citations.bibtex(
        ["https://arxiv.org/abs/1901.00001v2", "", "https://example.org/a-b"]
    )
    assert one == "@misc{1901_00001,\n  url = {https://arxiv.org/abs/1901.00001v2},\n}"
    assert "example.org/a-b" in other and "author" not in one + other + own


# -- the command, and what it loads ----------------------------------------------------------------


def test_report_command_names_file_and_size(results, tmp_path):
    done = process("report", "mine", "--results", results)
    assert done.code == 0 and (results / "mine.html").read_text(encoding="utf-8").startswith(
        "<!DOCTYPE html>"
    )
    assert re.fullmatch(rf"wrote {re.escape(str(results))}/mine.html \(\d+\.\d MB\)\n", done.out)
    done = process(
        "report",
        "--results",
        results,
        "--suite",
        "toy",
        "--prompts",
        "3",
        "-o",
        tmp_path / "a.html",
    )
    assert done.code == 0 and "All runs" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_report_command_refuses_in_one_message(results, tmp_path):
    assert process("report", "mime", "--results", results).code == 2
    done = process("report", "--results", tmp_path)
    assert done.code == 2 and "There is no run" in done.err
    (tmp_path / "file").write_text("")
    done = process("report", "mine", "--results", results, "-o", tmp_path / "file" / "a.html")
    assert done.code == 3 and "Cannot write" in done.err
    new = tmp_path / "new" / "folder" / "a.html"
    assert process("report", "mine", "--results", results, "-o", new).code == 0 and new.is_file()


def test_wheel_contains_page_and_templates(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.rpartition("/")[2] for name in names if name.startswith("harness/report/page/")}
    assert {"page.html", "page.css", "page.js", "papers.bib", "__init__.py"} <= shipped
    folder = ROOT / "harness" / "cli" / "templates"
    templates = {str(f.relative_to(ROOT)) for f in folder.rglob("*.template")}
    assert len(templates) > 6 and templates <= set(names)
    assert "harness_plugins/table.html" in {name.removeprefix("plugins/") for name in names}
