"""The leaderboard: which rows share a table, what stands on the page, and that it repeats."""

import json
import re
import shutil
from contextlib import ExitStack

import pytest

from harness.core.archives import OddArchive
from harness.core.errors import UsageError
from harness.core.records import write_sealed
from harness.experiments.bundle import opened, pack
from harness.report.page import leaderboard as module
from harness.report.page.leaderboard import leaderboard
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.tables import comparison

from ..helpers.bundles import contents, packed, rewritten, seal, study, write_cells
from ..helpers.tools import GROUND, put, record


@pytest.fixture(autouse=True)
def without_plots(request, monkeypatch):
    """Draw no plot, which takes most of the time, but where a test is of plots."""
    if "plots" not in request.node.name:
        monkeypatch.setattr(module, "PLOTS", ())


def page(*paths, suite=None):
    """Return the page of some bundles."""
    with ExitStack() as stack:
        return leaderboard([stack.enter_context(opened(path)) for path in paths], suite)


def tables(text):
    """Return the rows of each comparison: the cells as plain text."""
    found = []
    for table in re.findall(r'<table class="comparison">.*?</table>', text, re.S):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
        found.append([[re.sub(r"<.*?>", "", cell).strip() for cell in row] for row in cells])
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("one"), "one.zip")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A bundle of another author: the same ground, another method, and `start` as in `one`."""
    wins = {"start": 0.5, "kto": 0.65}
    return packed(tmp_path_factory.mktemp("two"), "two.zip", wins=wins)


def test_leaderboard_of_equal_grounds_is_one_table_by_win_rate(one, two):
    (table,) = tables(page(one, two))
    assert [row[0] for row in table[1:]] == ["start", "dpo", "kto", "ppo"]
    assert table[0][:3] == ["method", "group", "seeds"]
    assert {"KL (nats)", "train TFLOP"} <= set(table[0]) and "peak MiB" not in table[0]


def test_leaderboard_groups_are_those_of_bold_type(one, two):
    with opened(one) as bundle:
        plain = comparison(select(bundle.results, Filter(study="mine"))).plain
    best = [f["method"] for f in plain if f["win_rate_bold"]]
    (table,) = tables(page(one))
    assert [row[0] for row in table[1:] if row[1] == "best"] == best == ["dpo"]
    assert {row[1] for row in table[1:]} == {"best", "behind"}


def test_leaderboard_shows_the_same_runs_of_two_bundles_once(one, two):
    text = page(one, two)
    assert text.count('<th scope="row">start</th><td>one.zip, two.zip</td>') == 2  # of two seeds


def test_leaderboard_keeps_another_ground_apart_with_the_reason(one, tmp_path):
    other = packed(tmp_path, "other.zip", ground={**GROUND, "judge": "gold/2"})
    text = page(one, other)
    assert len(tables(text)) == 2
    assert "they differ in judge." in text and "own model: another judge</h2>" in text


def test_leaderboard_keeps_rows_without_a_common_ground_apart(one, tmp_path):
    other = packed(tmp_path, "other.zip", shared_seed=1, wins={"kto": 0.6})
    text = page(one, other)
    assert len(tables(text)) == 2 and "they differ in shared seed." in text


def test_leaderboard_names_the_bundle_of_equal_names(one, tmp_path):
    other = packed(tmp_path, "other.zip", wins={"dpo": 0.75}, seeds=(7, 8))
    (table,) = tables(page(one, other))
    assert {"dpo (one.zip)", "dpo (other.zip)"} <= {row[0] for row in table}


def test_leaderboard_prints_a_command_for_every_run(one):
    commands = re.findall(r"<code>(harness reproduce .*?)</code>", page(one))
    assert "harness reproduce one.zip --run toy/dpo/seed0-000000000000" in commands
    assert len(commands) == 7 and commands[-1] == "harness reproduce one.zip --sample 1"
    with opened(one) as bundle:
        for command in commands[:-1]:
            assert bundle.folder(command.split("--run ")[1]).is_dir()


def test_leaderboard_repeats_byte_for_byte_and_names_no_folder(one, two):
    text = page(one, two)
    assert text == page(one, two)
    assert "harness-bundle-" not in text and str(one.parent) not in text


def test_leaderboard_escapes_what_a_stranger_wrote(tmp_path):
    hostile = "<script>window.hacked = 1</script>\u202e"
    results = study(tmp_path / "results")
    (results / "studies/mine/study.toml").write_text(f"# {hostile}", encoding="utf-8")
    text = page(pack(results, "mine", tmp_path / "x.zip").path)
    assert "<script" not in text and "&lt;script&gt;window.hacked" in text and "\u202e" not in text


def test_leaderboard_notes_rows_of_other_code(one, tmp_path):
    results = study(tmp_path / "results", wins={"kto": 0.6})
    for file in results.glob("runs/*/*/*/provenance.json"):
        write_sealed(file, {"versions": {}, "code": {"harness": "ee", "method": "ff"}})
    text = page(one, pack(results, "mine", tmp_path / "x.zip").path)
    assert len(tables(text)) == 1
    assert "Different code of the harness computed these rows" in text
    assert "NOT COMPARABLE" not in text


def test_leaderboard_refuses_a_bundle_given_twice_and_an_unknown_suite(one):
    with pytest.raises(UsageError, match="given twice"):
        page(one, one)
    with pytest.raises(UsageError, match="toy"):
        page(one, suite="other")


def test_leaderboard_refuses_a_record_that_tables_cannot_read(one, tmp_path):
    bundle = shutil.copy(one, tmp_path / "bad.zip")
    name = "runs/toy/dpo/seed0-000000000000/result.json"
    result = json.loads(contents(bundle)[name])
    del result["cost"]["labels"]
    write_sealed(tmp_path / "result.json", result)
    rewritten(bundle, {name: (tmp_path / "result.json").read_bytes()})
    with pytest.raises(OddArchive, match=r"result\.json lacks what tables need"):
        page(bundle)


def test_leaderboard_has_a_section_for_each_suite(tmp_path):
    results = tmp_path / "results"
    put(results, record("dpo"), record("dpo", suite="other", recipe="x"), record("ppo"))
    folders = sorted(results.glob("runs/*/*/*"))
    for folder in folders:
        seal(folder)
    write_cells(results, folders, "mine")
    bundle = pack(results, "mine", tmp_path / "x.zip").path
    assert [len(table) for table in tables(page(bundle))] == [2, 3]
    assert [len(table) for table in tables(page(bundle, suite="toy"))] == [3]


def test_leaderboard_has_plots_of_kl_and_of_cost(one):
    text = page(one)
    assert text.count("<figure><img src=") == 2
