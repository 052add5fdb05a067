"""Records to tables: rows, means, intervals, refusals, failures, labels, and both formats."""

import csv
import hashlib
import io
import json
import os
import pty
import subprocess
import sys
import time
import tracemalloc
from random import Random
from select import select as select_ready
from statistics import fmean, stdev

import numpy as np
import pytest
from harness_plugins.reporters import CSV, LaTeX, Markdown

from harness.cli.tables import TERMINAL_COLUMNS, TableRequest, fitted
from harness.core.errors import HarnessError, UsageError
from harness.core.records import write_sealed
from harness.core.run_folder import read_rows, write_rows
from harness.core.table import Cell, Table
from harness.experiments.study.state import Place
from harness.report.selection.figures import answers_of, figures_of
from harness.report.selection.filters import Filter
from harness.report.selection.select import rows_of, select
from harness.report.tables.columns import COLUMNS
from harness.report.tables.tables import comparison
from harness.statistics.intervals import (
    ONE_SEED,
    SEVERAL_SEEDS,
    two_way_interval,
    win_rate_interval,
)

from ..helpers.tools import ENV, GROUND, command, estimate, failure, put, record, samples


def table(results, *records, **asked):
    return of(put(results, *records), **asked)


def of(results, *suite, **asked):
    """The comparison of what lies below a folder."""
    return comparison(select(results, Filter(*suite, **asked)))


def texts(made):
    return [[str(cell) for cell in row] for row in made.rows]


def parsed(made):
    return list(csv.DictReader(io.StringIO(CSV().render(made))))


@pytest.mark.parametrize("verdicts", [True, False, None])
def test_accuracy_has_an_interval_over_the_answers_with_verdicts(tmp_path, verdicts):
    """None: one answer of each seed could not be graded; it is left out, and counted."""
    told = [[float((i * (2 + seed)) % 3 > 0) for i in range(64)] for seed in range(3)]
    known = [[v for i, v in enumerate(row) if verdicts is not None or i != 5] for row in told]
    for seed, row in enumerate(known):
        made = record("dpo", seed)
        made["evaluation"]["accuracy"] = estimate(sum(row) / len(row))
        put(tmp_path, made)
    for seed, folder in enumerate(sorted((tmp_path / "runs" / "toy" / "dpo").iterdir())):
        rows = read_rows(folder / "samples.jsonl")
        for i, row in enumerate(rows):
            if verdicts is not False:
                row["accuracy"] = None if verdicts is None and i == 5 else told[seed][i]
        write_rows(folder / "samples.jsonl", rows)
    (row,) = select(tmp_path, Filter("toy")).rows
    figures = figures_of(row, answers_of(row))
    expected = win_rate_interval(np.array(known))
    assert figures["accuracy"] == pytest.approx(expected.mean)
    assert figures.get("missing") == ({"accuracy": 3} if verdicts is None else None)
    (cell,) = [
        c for c in [column.write(figures) for column in COLUMNS] if c.text == f"{expected.mean:.3f}"
    ]
    if verdicts is not False:
        assert (figures["accuracy_low"], figures["accuracy_high"]) == (expected.low, expected.high)
        assert cell.interval == f"[{expected.low:.3f}, {expected.high:.3f}]"
    else:  # a mean without an interval: an older record
        assert "accuracy_low" not in figures and not cell.interval


def test_accuracy_of_any_verdicts_has_an_interval(tmp_path):
    made = record("rlvr") | {"seed": 0}
    values = [float(i % 5) - 3 for i in range(64)]
    made["evaluation"]["accuracy"] = estimate(fmean(values))
    put(tmp_path, made)
    (folder,) = (tmp_path / "runs" / "toy" / "rlvr").iterdir()
    rows = read_rows(folder / "samples.jsonl")
    write_rows(
        folder / "samples.jsonl",
        [row | {"accuracy": v} for row, v in zip(rows, values, strict=True)],
    )
    (row,) = select(tmp_path, Filter("toy")).rows
    figures, expected = figures_of(row, answers_of(row)), two_way_interval(np.array([values]))
    assert (
        figures["accuracy_low"] == expected.low < expected.mean < 0
        and figures["accuracy_high"] == expected.high
    )


def test_rows_have_start_first_then_the_best(tmp_path):
    made = table(tmp_path, record("dpo", win=0.6), record("ppo", win=0.8), record("start", win=0.5))
    assert [row[0] for row in texts(made)] == ["start", "ppo", "dpo"]
    unused = {
        "accuracy",
        "pass@k",
        "maj@k",
        "mean of n answers",
        "verifier queries",
        "AI labels",
        "queries / answer",
    }  # no row says anything there
    assert made.columns == [c.title for c in COLUMNS if c.title not in unused and c.usual]
    assert all(len(row) == len(made.columns) for row in texts(made))
    assert made.title == "toy: 64 test prompts, one answer each at T=1"
    row = dict(zip(made.columns, texts(made)[2], strict=True))
    assert (
        row["win-rate vs baseline [95 %]"] == "0.600 [0.499, 0.690]"
        and row["KL (nats)"] == "5.12 [5.00, 5.25]"
    )
    assert (
        row["tokens gen. / trained"] == "1 k / 2.5 k"
        and row["labels"] == "720"
        and row["seeds"] == "1"
    )
    assert row["models held (params)"] == "policy (300 k)" and row["peak MiB"] == "512"


def test_rows_of_each_run_are_separate(tmp_path):
    put(tmp_path, record("dpo", win=0.6), record("dpo", seed=1, win=0.8), record("start", win=0.5))
    assert [row[:2] for row in texts(of(tmp_path))] == [["start", "1"], ["dpo", "2"]]
    made = of(tmp_path, each=True)
    assert [row[0] for row in texts(made)] == ["start, seed 0", "dpo, seed 1", "dpo, seed 0"]
    assert [cell.text for cell in made.rows[1][:3]] == ["dpo, seed 1", "1", "0.800"]
    assert "One seed per row" in made.caption and "not to the algorithms" in made.caption


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_those_of_the_answers(tmp_path, seeds):
    put(
        tmp_path,
        *(record(seed=i, win=w) for i, w in zip(range(seeds), (0.5, 0.6, 0.7), strict=False)),
    )
    (row,) = of(tmp_path).plain
    rows = [
        [json.loads(line) for line in f.read_text().splitlines()]
        for f in sorted(tmp_path.rglob("samples.jsonl"))
    ]
    found = win_rate_interval([[sample["win"] for sample in answers] for answers in rows])
    assert row["seeds"] == seeds and row["win_rate"] == pytest.approx(
        fmean((0.5, 0.6, 0.7)[:seeds])
    )
    assert (row["win_rate_low"], row["win_rate_high"]) == (found.low, found.high)
    gold = two_way_interval([[sample["gold"] for sample in answers] for answers in rows])
    assert (row["gold_low"], row["gold_high"]) == (gold.low, gold.high)
    assert row["win_rate_speaks_for"] == (ONE_SEED if seeds == 1 else SEVERAL_SEEDS)


def test_intervals_of_win_rates_stay_within_0_and_1(tmp_path):
    (row,) = table(tmp_path, record(seed=0, win=0.9), record(seed=1, win=0.1)).plain
    assert 0.0 <= row["win_rate_low"] < 0.1 and 0.9 < row["win_rate_high"] <= 1.0


def test_figures_must_be_those_of_the_answers(tmp_path):
    put(tmp_path, record(win=0.6))
    (file,) = tmp_path.rglob("samples.jsonl")
    file.write_text(file.read_text().replace('"win": 1.0', '"win": 0.5', 1))
    with pytest.raises(HarnessError, match="the mean of win is .* here and 0.6 in result.json"):
        of(tmp_path)
    file.unlink()
    with pytest.raises(HarnessError, match="samples.jsonl is damaged .it is missing"):
        of(tmp_path)


def test_table_refuses_edited_answers(tmp_path):
    put(tmp_path, record(win=0.6))
    (file,) = tmp_path.rglob("samples.jsonl")
    digest = write_rows(file, read_rows(file))
    edited = json.loads((file.parent / "result.json").read_text()) | {
        "files": {"samples.jsonl": digest}
    }
    write_sealed(file.parent / "result.json", edited)
    assert of(tmp_path).plain[0]["win_rate"] == pytest.approx(0.6)
    rows = read_rows(file)
    write_rows(file, [rows[0] | {"answer": "another text"}, *rows[1:]])
    with pytest.raises(
        HarnessError,
        match="samples.jsonl is damaged .not the samples.jsonl that result.json was made",
    ):
        of(tmp_path)


def answers(scores, seed=0, **more):
    """A record and its answers with these scores against SFT, gold twice as high."""
    made = record(more.pop("method", "dpo"), seed=seed, win=fmean(scores), **more)
    made["evaluation"] |= {"prompts": len(scores), "gold": estimate(2 * fmean(scores))}
    return made, scores


def put_answers(results, *pairs, **asked):
    """Write records whose answers have given scores; return their table."""
    for made, scores in pairs:
        put(results, made)
        folder = max(results.glob("runs/*/*/*"), key=lambda f: (f.stat().st_ctime_ns, f.name))
        rows = [
            row | {"win": w, "gold": 2 * w} for row, w in zip(samples(made), scores, strict=True)
        ]
        write_rows(folder / "samples.jsonl", rows)
    return of(results, **asked)


def scores_of(rate, seed, n=200):
    rng = Random(seed)
    return [float(rng.random() < rate) for _ in range(n)]


def test_bold_rows_are_not_significantly_worse(tmp_path):
    same = scores_of(0.7, 1)
    made = put_answers(
        tmp_path,
        answers(same, method="ppo"),
        answers(scores_of(0.68, 2), method="dpo"),
        answers(scores_of(0.3, 3), method="kto"),
    )
    cells = {str(row[0]): row[2] for row in made.rows}
    assert [c.bold for c in (cells["ppo"], cells["dpo"], cells["kto"])] == [True, True, False]
    assert sum(c.best for c in cells.values()) == 1
    shown = Markdown().render(made)
    best, other, worse = (f"{cells[name].text}" for name in ("ppo", "dpo", "kto"))
    assert (
        f"***{max(best, other)}***" in shown
        and f" **{min(best, other)}** " in shown
        and f"| {worse} " in shown
    )
    assert (
        "Bold: not significantly worse than the best mean" in made.caption
        and "corrected stepwise from all 3 pairs of rows" in made.caption
    )


def seeds_at(method, rates, salt):
    """Records of a method whose seeds have these win-rates."""
    return [
        answers(scores_of(rate, 10 * salt + seed), seed, method=method)
        for seed, rate in enumerate(rates)
    ]


def test_row_whose_seeds_collapse_has_a_dagger_and_their_range(tmp_path):
    steady = {"ppo": 0.9, "dpo": 0.89, "kto": 0.6, "ipo": 0.55}
    rows = [
        pair for i, (m, rate) in enumerate(steady.items()) for pair in seeds_at(m, [rate] * 3, i)
    ]
    made = put_answers(tmp_path, *rows, *seeds_at("rlaif", [0.02, 0.03, 0.6], 9))
    cells = {str(row[0]): row[2] for row in made.rows}
    wild, plain = cells["rlaif"], next(f for f in made.plain if f["method"] == "rlaif")
    assert not wild.bold and wild.marks == ("\u2020",) and cells["ppo"].bold
    assert not any(cell.marks for name, cell in cells.items() if name != "rlaif")
    assert "rlaif from 0.0" in made.footnotes["\u2020"] and " to 0.5" in made.footnotes["\u2020"]
    assert plain["collapsed"] == 2 and "2 of 3 seeds collapsed" in plain["footnotes"]
    assert all("collapsed" not in f for f in made.plain if f["method"] != "rlaif")
    assert "(\u2020)" in Markdown().render(made)
    shown = LaTeX().render(made)
    assert r"$^{\mathrm{\dagger}}$" in shown and "\u2020" not in shown


@pytest.mark.parametrize("prompts", [100, 200])  # fewer; as many, and other ones
def test_bold_is_absent_if_prompts_differ(tmp_path, prompts):
    other = answers(
        scores_of(0.3, 2, prompts), method="dpo", ground=GROUND | {"evaluation_prompts": "dd"}
    )
    other[0]["evaluation"]["split"] = "validation"
    made = put_answers(tmp_path, answers(scores_of(0.7, 1), method="ppo"), other, mixed=True)
    assert not any(cell.bold or cell.best for row in made.rows for cell in row)
    assert (
        "Nothing is bold: tests are paired over prompts" in made.caption
        and "stepwise" not in made.caption
    )
    assert f"200 test prompts, one answer each at T=1 or {prompts} validation prompts" in made.title
    assert "win_rate_bold" not in made.plain[0]


def test_bold_is_tested_for_mixed_runs_on_the_same_prompts(tmp_path):
    other = answers(scores_of(0.3, 2), method="dpo", ground=GROUND | {"preferences": "dd"})
    made = put_answers(tmp_path, answers(scores_of(0.7, 1), method="ppo"), other, mixed=True)
    assert {str(row[0]): row[2].bold for row in made.rows} == {
        "ppo": True,
        "dpo": False,
    } and "stepwise" in made.caption


def test_bold_is_absent_if_prompts_of_one_name_differ(tmp_path):
    """An old record's ground may not hold them: the answers still do."""
    pairs = [answers(scores_of(0.5, i), method=name) for i, name in enumerate(("ppo", "dpo"))]
    put_answers(tmp_path, *pairs)
    file = next((tmp_path / "runs/toy/dpo").glob("*/samples.jsonl"))
    file.write_text(file.read_text().replace('"test/3"', '"test/999"'))
    assert "Nothing is bold: tests are paired over prompts" in of(tmp_path).caption


def several(*counts):
    """Records of methods a, b, c, ... with so many seeds each, and their scores."""
    return [
        answers(scores_of(0.5, 10 * i + seed), seed, method="abcdef"[i], recipe=f"{i}")
        for i, n in enumerate(counts)
        for seed in range(n)
    ]


@pytest.mark.parametrize(
    ("seeds", "borrowed"),
    [((3, 3, 3, 1), True), ((3, 3, 3), True), ((3, 3, 1), False), ((3, 3, 2), False)],
)
def test_caption_names_the_test_used(tmp_path, seeds, borrowed):
    made = put_answers(tmp_path, *several(*seeds))
    assert ("pooled over alike rows" in made.caption) == borrowed
    assert "by t-tests paired over prompts" in made.caption


def test_bold_marks_identical_rows_alike(tmp_path):
    pairs = [
        answers(scores_of(0.7, seed), seed, method=method, recipe=f"{method}-r")
        for method in ("ppo", "twin")
        for seed in (0, 1)
    ]
    made = put_answers(tmp_path, *pairs)
    assert [(row[2].bold, row[2].best) for row in made.rows] == [(True, True), (True, True)]


def test_footnotes_count_a_diverged_seed(tmp_path):
    put(tmp_path, failure("ppo", seed=2))
    pairs = [answers(scores_of(0.7, seed), seed, method="ppo") for seed in (0, 1)]
    made = put_answers(tmp_path, *pairs, answers(scores_of(0.5, 9), method="dpo"))
    row = next(row for row in made.rows if str(row[0]) == "ppo")
    assert row[1].text == "2/3" and made.footnotes[row[1].marks[0]].startswith(
        "1 of 3 runs failed (1 diverged)"
    )
    assert "2/3 (a)" in "\n".join(
        " ".join(line.split()) for line in Markdown().render(made).splitlines()
    )
    assert "(a) 1 of 3 runs failed" in Markdown().render(made)


def test_footnotes_name_a_budget(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    for method, left in (("ppo", -1), ("dpo", 3)):
        (folder,) = (tmp_path / "runs/toy" / method).iterdir()
        write_sealed(folder / "spec.json", {"stages": {}, "budget": {"steps": 100, "flops": None}})
        told = json.loads((folder / "result.json").read_text())
        told["cost"]["budget_left"] = {"steps": left}
        write_sealed(folder / "result.json", told)
    made = of(tmp_path)
    told = {str(row[0]): [made.footnotes[m] for m in row[1].marks] for row in made.rows}
    assert told == {
        "ppo": ["Budget: steps 100."],
        "dpo": ["Budget: steps 100. Training ended before the limit."],
    }


def computed(**settings):
    """What a record says of how it was computed."""
    usual = {"device": "cpu", "threads": 1, "processes": 1, "micro_batch_tokens": 16384}
    used = {**usual, "hardware": "a processor", **settings}
    return {"execution": {"training": [used], "evaluation": used, "artifacts": {}}}


def test_footnotes_name_different_execution_settings(tmp_path):
    put(
        tmp_path,
        record("ppo", **computed(micro_batch_tokens=512)),
        record("dpo", **computed()),
        record("ipo", **computed()),
        record("kto"),  # an old record, without a word of it
    )
    made = of(tmp_path)
    told = {str(row[0]): [made.footnotes[m] for m in row[1].marks] for row in made.rows}
    assert [name for name in told if told[name]] == ["ppo"]
    assert "(micro_batch_tokens 512, most runs 16384)" in told["ppo"][0]


def test_footnotes_name_seeds_computed_differently(tmp_path):
    usual, resumed = computed(), computed(threads=2)
    resumed["execution"]["training"][:0] = usual["execution"]["training"]
    records = [record("ppo", seed, **usual) for seed in (0, 1)]
    put(tmp_path, *records, record("ppo", 2, **resumed))
    made = of(tmp_path)
    (row,) = made.rows
    (mark,) = row[1].marks
    assert "(threads 1 then 2, most runs 1)" in made.footnotes[mark]


def test_footnotes_are_absent_for_equal_execution(tmp_path):
    put(tmp_path, record("ppo", **computed(threads=2)), record("dpo", **computed(threads=2)))
    assert not of(tmp_path).footnotes


def test_table_refuses_different_code_without_mixed(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    (folder,) = (tmp_path / "runs/toy/dpo").iterdir()
    made = json.loads((folder / "provenance.json").read_text())
    write_sealed(folder / "provenance.json", made | {"code": {"harness": "older", "method": "cd"}})
    with pytest.raises(
        UsageError, match="differ in the harness.s code.*older: dpo seed 0; ab: ppo seed 0"
    ):
        of(tmp_path)
    table = of(tmp_path, mixed=True)
    told = table.footnotes
    assert (
        list(told) == ["a"]
        and told["a"].startswith("NOT COMPARABLE")
        and "the harness's code" in told["a"]
    )
    assert all(row[1].marks == ("a",) for row in table.rows)
    assert all(row["footnotes"] == told["a"] for row in parsed(table))


def test_csv_has_the_footnotes_of_a_row(tmp_path):
    assert "footnotes" not in parsed(table(tmp_path, record("ppo")))[0]
    told = {
        row["method"]: row["footnotes"]
        for row in parsed(table(tmp_path, record("dpo"), failure("dpo", 1)))
    }
    assert told["ppo"] == "" and told["dpo"].startswith("1 of 2 runs failed (1 diverged)")


def test_table_command_refuses_a_match_of_mixed_runs(tmp_path):
    put(tmp_path, record("ppo"), record("dpo", ground=GROUND | {"evaluation_prompts": "dd"}))
    done = command("table", "--mixed", "--match", "kl=2", "--results", tmp_path)
    assert done.code == 2 and "leave --mixed out" in done.text and "Traceback" not in done.text


def test_table_refuses_a_row_of_different_code(tmp_path):
    put(tmp_path, record(seed=0), record(seed=1))
    folder = max((tmp_path / "runs/toy/dpo").iterdir())
    made = json.loads((folder / "provenance.json").read_text())
    write_sealed(folder / "provenance.json", made | {"code": {"harness": "ab", "method": "edited"}})
    with pytest.raises(UsageError, match="differ in the code of dpo"):
        of(tmp_path)


def test_select_chooses_rows_by_options(tmp_path):
    put(
        tmp_path,
        record(recipe="r1", options={"beta": 0.1}),
        record(recipe="r2", options={"beta": 0.5}),
    )
    assert len(of(tmp_path).rows) == 2
    (row,) = of(tmp_path, where={"beta": "0.50"}).rows
    assert row[0].text == "dpo"
    with pytest.raises(UsageError, match="No run has beta=7. There are: 0.1, 0.5"):
        of(tmp_path, where={"beta": "7"})
    with pytest.raises(UsageError, match="no option of these runs 'betta'. Did you mean 'beta'"):
        of(tmp_path, where={"betta": "0.1"})


def in_a_study(monkeypatch, places):
    """Let runs have these places in a study, which refused none."""
    monkeypatch.setattr("harness.report.selection.select.places_of", lambda results, study: places)
    monkeypatch.setattr(
        "harness.report.selection.select.refused_of", lambda results, study, suite: {}
    )


def test_select_names_a_row_by_its_entry_if_one_setting_is_left(tmp_path, monkeypatch):
    put(
        tmp_path,
        *(
            record("dpo", seed, recipe=f"{b}", options={"beta": b, "epochs": 1.0})
            for b in (0.1, 0.2)
            for seed in range(2)
        ),
    )
    folders = {
        str(f): json.loads((f / "result.json").read_text())
        for f in (tmp_path / "runs/toy/dpo").iterdir()
    }
    places = {f: Place(f"mine (beta={r['options']['beta']})", "mine") for f, r in folders.items()}
    in_a_study(monkeypatch, places)
    assert [
        row.name for row in select(tmp_path, Filter(study="s", where={"beta": "0.2"})).rows
    ] == ["mine"]
    both = select(tmp_path, Filter(study="s", where={"epochs": "1"})).rows  # which leaves both
    assert [row.name for row in both] == ["mine (beta=0.1)", "mine (beta=0.2)"]


def test_select_accepts_labels_with_commas(tmp_path, monkeypatch):
    put(
        tmp_path,
        *(record("ppo", recipe=label) for label in ("ppo, no penalty", "no penalty", "ppo")),
    )
    there = tmp_path.glob("runs/toy/ppo/*")
    labels = {str(f): json.loads((f / "result.json").read_text())["recipe"] for f in there}
    places = {folder: Place(label, label) for folder, label in labels.items()}
    in_a_study(monkeypatch, places)

    def chosen(told):
        return {
            row.name for row in select(tmp_path, Filter(study="s", methods=told.split(", "))).rows
        }

    assert chosen("ppo, no penalty") == {"ppo, no penalty"}
    assert chosen("no penalty, ppo, no penalty") == {"no penalty", "ppo, no penalty"}
    assert chosen("ppo, ppo") == {
        "ppo, no penalty",
        "no penalty",
        "ppo",
    }  # the method, of all three


def test_table_of_a_study_has_all_its_rows(tmp_path, monkeypatch):
    """Snapshots decide a run and no recipe: two rows of one recipe, which are one where no study
    tells them apart.
    """
    same = [
        record("ppo", seed, 0.5, finished_at=f"2026-01-0{day}T00:00:00Z")
        for seed in (0, 1)
        for day in (1, 2)
    ]
    put(tmp_path, *same)
    there = sorted(str(f) for f in tmp_path.glob("runs/toy/ppo/*"))
    labels = ("ppo (beta=0.0)", "ppo, no penalty")
    places = {
        folder: Place(labels[i % 2], labels[i % 2].partition(" (")[0])
        for i, folder in enumerate(there)
    }
    in_a_study(monkeypatch, places)
    found = select(tmp_path, Filter(study="s")).rows
    assert sorted((row.name, len(row.good)) for row in found) == [(label, 2) for label in labels]
    assert {row.name: {r["folder"] for r in row.good} for row in found} == {
        label: {f for f in there if places[f].label == label} for label in labels
    }
    (row,) = select(tmp_path, Filter()).rows
    assert row.name == "ppo" and {r["finished_at"][:10] for r in row.good} == {"2026-01-02"}


@pytest.mark.parametrize(
    "option", ["labeller.noise=0.5", "run.snapshots=6", "suite.bias=2", "stage.sft.epochs=3"]
)
def test_select_chooses_by_every_option_of_a_study(tmp_path, option):
    mine = record("dpo", recipe="mine", suite_options={"bias": 2})
    put(tmp_path, mine, record("dpo", recipe="other", suite_options={"bias": 1}))
    for folder in (tmp_path / "runs" / "toy" / "dpo").iterdir():
        ours = json.loads((folder / "result.json").read_text())["recipe"] == "mine"
        spec = {
            "labeller_options": {"noise": 0.5 * ours},
            "snapshots": 6 * ours,
            "options": {},
            "budget": {},
        }
        write_sealed(folder / "spec.json", spec | {"stages": {"sft": {"epochs": 3 * ours}}})
    name, _, value = option.partition("=")
    (row,) = select(tmp_path, Filter(where={name: value})).rows
    assert [r["recipe"] for r in row.records] == ["mine"]
    with pytest.raises(UsageError, match=f"No run has {name}=7"):
        select(tmp_path, Filter(where={name: "7"}))


def test_table_title_states_the_selection(tmp_path):
    put(
        tmp_path,
        *(record("dpo", recipe=f"{b}", options={"beta": b}) for b in (0.1, 0.3)),
        record("ppo"),
    )
    made = of(tmp_path, where={"beta": "0.3"})
    assert (
        made.title.startswith("toy (beta=0.3): ")
        and "answers on toy (beta=0.3), ties half" in made.caption
    )
    both = of(tmp_path, where={"beta": "0.1"}, methods=["dpo", "ppo"])
    assert both.title.startswith("toy (beta=0.1; only dpo, ppo): ") and both.caption != made.caption
    assert (
        of(tmp_path).title.startswith("toy: ")
        and "answers on toy, ties half" in of(tmp_path).caption
    )


def test_select_refuses_a_misspelt_method(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    with pytest.raises(UsageError, match="no method with runs 'dpoo'. Did you mean 'dpo'"):
        of(tmp_path, methods=["ppo", "dpoo"])


def test_table_without_samples_is_one_message(tmp_path):
    put(tmp_path, record("ppo"))
    (file,) = tmp_path.rglob("samples.jsonl")
    for text, why in (
        ("", "it has no answers"),
        ("[1]\n", "a line is not an object"),
        ('{"a": 1}\n', "not an answer to a prompt"),
        ("{\n", "damaged"),
    ):
        file.write_text(text)
        with pytest.raises(HarnessError, match=why):
            of(tmp_path)


def test_notes_name_unfinished_runs(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    assert not any("Not finished" in note for note in of(tmp_path).notes)
    (file,) = (tmp_path / "runs/toy/ppo").glob("*/result.json")
    file.unlink()
    assert any("left out: 1 run (ppo seed0-" in note for note in of(tmp_path).notes)


@pytest.mark.parametrize("to", ["stdout", "file"])
def test_csv_without_a_run_names_it_on_stderr(tmp_path, to):
    put(tmp_path, record("ppo"), record("dpo"))
    (file,) = (tmp_path / "runs/toy/ppo").glob("*/result.json")
    output = ("-o", tmp_path / "t.csv") if to == "file" else ()
    arguments = ("table", "--results", tmp_path, "--format", "csv", *output)
    assert "left out" not in command(*arguments).text
    file.unlink()
    done = command(*arguments)
    assert done.code == 0 and "left out: 1 run (ppo seed0-" in done.err
    assert "result.json" in done.err and "left out" not in done.out


@pytest.mark.parametrize("name", ["spec.json", "provenance.json", "samples.jsonl"])
def test_run_that_lost_a_file_is_named_and_the_others_are_shown(tmp_path, name):
    put(tmp_path, record("ppo"), record("dpo"))
    (file,) = (tmp_path / "runs/toy/ppo").glob(f"*/{name}")
    file.unlink()
    done = command("table", "--results", tmp_path, "--format", "csv")
    assert done.out.count("\n") == 2 and "dpo" in done.out, done.text
    assert f"{file} is damaged" in done.err and "Traceback" not in done.err


def test_notes_in_the_text_are_not_repeated_on_stderr(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    (file,) = (tmp_path / "runs/toy/ppo").glob("*/result.json")
    file.unlink()
    done = command("table", "--results", tmp_path)
    assert "left out: 1 run (ppo seed0-" in done.out and "left out" not in done.err


def test_intervals_end_at_the_least_possible_value(tmp_path):
    wild = record(seed=1)
    wild["evaluation"] |= {"kl": estimate(18.0)}
    (row,) = table(tmp_path, record(seed=0), wild).plain
    assert row["kl_low"] == 0.0 and row["kl_high"] > 30


def reusing(method, flops):
    made = record(method)
    made["cost"]["method"]["flops_reused"] = flops
    return made


def test_notes_state_the_cached_share_of_costs(tmp_path):
    put(tmp_path, reusing("dpo", 1.5e12), reusing("ipo", 0.01e12), record("ppo"))
    made = of(tmp_path)
    (note,) = [note for note in made.notes if "Cached results" in note]
    assert (
        "up to 50% of the method's FLOPs (dpo)" in note and "cached (of FLOPs)" not in made.columns
    )
    asked = comparison(select(tmp_path, Filter()), ["method", "reused"])
    assert {row[0]: row[1] for row in texts(asked)} == {"dpo": "50%", "ipo": "<1%", "ppo": "-"}
    assert asked.notes == []  # no cost is shown
    assert any(
        "up to 50%" in note
        for note in comparison(select(tmp_path, Filter()), ["method", "seconds"]).notes
    )


def test_notes_are_silent_without_cached_work(tmp_path):
    older = record("ppo")
    del older["cost"]["method"]["flops_reused"]
    assert not any(
        "look up" in note for note in table(tmp_path, record("dpo"), older, failure("kto")).notes
    )


def made_by(folder, commit, dirty, code):
    told = json.loads((folder / "provenance.json").read_text())
    git = {"commit": commit, "dirty": dirty} if commit else None
    write_sealed(
        folder / "provenance.json", told | {"git": git, "code": told["code"] | {"harness": code}}
    )
    return hashlib.sha256((folder / "samples.jsonl").read_bytes()).hexdigest()


def test_csv_has_the_digests_of_a_run(tmp_path):
    put(tmp_path, *(record("dpo", seed) for seed in range(3)))
    folders = sorted((tmp_path / "runs/toy/dpo").iterdir())
    digests = [made_by(f, "c0ffee", f is folders[1], "ab" * 32) for f in folders]
    for folder, digest in list(zip(folders, digests, strict=True))[
        :2
    ]:  # the third is of before there were digests
        told = json.loads((folder / "result.json").read_text())
        write_sealed(folder / "result.json", told | {"files": {"samples.jsonl": digest}})
    made_by(folders[2], None, False, "ab" * 32)  # and not of a repository
    each = {row["method"]: row for row in parsed(of(tmp_path, each=True))}
    found = [
        tuple(each[f"dpo, seed {seed}"][k] for k in ("samples_sha256", "commit", "code"))
        for seed in range(3)
    ]
    assert found == [
        (digests[0], "c0ffee", "ab" * 32),
        (digests[1], "c0ffee-dirty", "ab" * 32),
        ("", "", "ab" * 32),
    ]
    (row,) = parsed(of(tmp_path))
    assert (
        row["samples_sha256"] == f"{digests[0]} {digests[1]} -"
        and row["commit"] == "c0ffee c0ffee-dirty -"
    )
    assert row["code"] == "ab" * 32 and row["folders"].split() == [str(f) for f in folders]


def test_columns_are_chosen_by_key(tmp_path):
    put(tmp_path, record(), record("ppo"))
    made = comparison(select(tmp_path, Filter()), ["method", "kl", "win_rate"])
    assert made.columns == ["method", "KL (nats)", "win-rate vs baseline [95 %]"]
    with pytest.raises(UsageError, match="no column 'winrate'. Did you mean 'win_rate'"):
        comparison(select(tmp_path, Filter()), ["winrate"])


def test_spread_sd_is_the_deviation_of_the_seeds_means(tmp_path):
    rates = (0.5, 0.6, 0.8)
    put(tmp_path, *(record(seed=i, win=w) for i, w in enumerate(rates)), record("ppo", win=0.7))
    made = comparison(select(tmp_path, Filter()), ["method", "win_rate", "kl"], "sd")
    cells = {str(row[0]): row[1] for row in made.rows}
    assert made.columns[1] == "win-rate vs baseline (sd)"
    assert str(cells["dpo"]) == f"0.633 \u00b1 {stdev(rates):.3f}"
    assert str(cells["ppo"]) == "0.700"  # one seed has no deviation
    assert "mean and standard deviation over seeds (1 to 3 seeds)" in made.caption
    assert "interval" not in made.caption
    assert {row["method"]: row.get("win_rate_sd") for row in made.plain} == {
        "dpo": pytest.approx(stdev(rates)),
        "ppo": None,
    }
    assert f"{{\\scriptsize $\\pm$ {stdev(rates):.3f}}}" in LaTeX().render(made)


@pytest.mark.parametrize("other", [["--match", "kl=2"], ["--each"]])
def test_spread_sd_is_refused_without_several_seeds_a_row(tmp_path, other):
    put(tmp_path, record())
    done = command("table", "--results", str(tmp_path), "--spread", "sd", *other)
    assert done.code == 2 and "--spread sd needs the seeds of a row" in done.err


def synthetic(folder, records, prompts):
    """Records of methods of 100 seeds, with prompts and answers as long as those of summarization
    (680 bytes a line).

    Four files of samples, the records' own by their digests; 10,000 of 512 prompts would be 3.5 GB,
    so they are linked.
    """
    files = []
    for seed in range(4):
        made = record(seed=seed)
        made["evaluation"]["prompts"] = prompts
        rows = [
            r | {"prompt": "p" * 350, "answer": r["answer"] + "a" * 110, "baseline": "s" * 125}
            for r in samples(made)
        ]
        files.append((folder / f"samples-{seed}", write_rows(folder / f"samples-{seed}", rows)))
    for i in range(records):
        made, (samples_file, digest) = record(f"m{i // 100}", seed=i % 100), files[i % 4]
        made["evaluation"]["prompts"] = prompts
        run = folder / "runs/toy" / made["method"] / f"seed{made['seed']}-x"
        run.mkdir(parents=True)
        write_sealed(run / "result.json", made | {"files": {"samples.jsonl": digest}})
        (run / "samples.jsonl").hardlink_to(samples_file)
        write_sealed(run / "spec.json", {})
        write_sealed(run / "provenance.json", {})
    return folder


MANY = [  # CPU seconds and MiB at most: some four times what docs/tables.md says was measured
    (400, 64, 3, 30),
    pytest.param(200, 512, 6, 60, marks=pytest.mark.slow),
    pytest.param(10_000, 64, 30, 400, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("records", "prompts", "most", "mebibytes"), MANY)
def test_select_of_many_records_takes_seconds(tmp_path, records, prompts, most, mebibytes):
    there = synthetic(tmp_path, records, prompts)
    begun = time.process_time()
    made = of(there)
    seconds = time.process_time() - begun
    tracemalloc.start()  # slows it down: so once more
    of(there)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert len(made.rows) == records // 100 and made.rows[0][1].text == "100"
    print(f"{seconds:.2f} s of CPU, {peak:.0f} MiB at most")
    assert seconds < most and peak < mebibytes, f"{seconds:.1f} s, {peak:.0f} MiB"


def test_costs_are_means_over_seeds(tmp_path):
    second = record(seed=1)
    second["cost"]["method"] |= {"seconds": 14.5, "tokens_generated": 3000}
    (row,) = table(tmp_path, record(seed=0), second).plain
    assert row["method_seconds"] == 13.5 and row["method_tokens_generated"] == 2000


def test_select_refuses_incomparable_runs_by_name(tmp_path):
    with pytest.raises(UsageError) as refusal:
        table(tmp_path, record("dpo"), record("ppo", seed=3, ground=GROUND | {"preferences": "XX"}))
    told = str(refusal.value)
    assert "differ in preferences" in told and "bb: dpo seed 0" in told and "XX: ppo seed 3" in told


def test_select_refuses_a_run_that_lacks_a_digest(tmp_path):
    with pytest.raises(UsageError, match="differ in judge"):
        table(
            tmp_path,
            record("dpo"),
            record("ppo", ground={k: v for k, v in GROUND.items() if k != "judge"}),
        )


def test_select_accepts_comparable_methods_among_others(tmp_path):
    mixed = [record("dpo"), record("ppo"), record("start", ground=GROUND | {"judge": "other/1"})]
    made = table(tmp_path, *mixed, methods=["ppo", "dpo"])
    assert [row[0] for row in texts(made)] == ["dpo", "ppo"]


def test_select_refuses_an_unknown_method(tmp_path):
    with pytest.raises(UsageError, match="nosuch"):
        table(tmp_path, record("dpo"), methods=["nosuch"])


def test_seeds_column_counts_a_failed_seed(tmp_path):
    made = table(tmp_path, record(seed=0), record(seed=1), failure(seed=2))
    (cells,) = texts(made)
    assert cells[1] == "2/3" and cells[2].startswith("0.600")
    assert made.plain[0]["failed"] == 1


def test_row_of_failures_gives_the_reason(tmp_path):
    made = table(tmp_path, record("ppo"), failure("dpo"))
    assert [row[0] for row in texts(made)] == ["ppo", "dpo"]
    assert texts(made)[1][:3] == ["dpo", "0/1", "failed: The loss is nan at optimiser step 3."]
    assert len(texts(made)[1]) == len(made.columns)
    assert "failed: The loss" in Markdown().render(made)
    assert parsed(made)[1]["failure"] == "The loss is nan at optimiser step 3."


def test_table_of_failures_only_is_written(tmp_path):
    made = table(tmp_path, failure("dpo"))
    assert texts(made)[0][1] == "0/1" and "no finished run" in made.title


def test_select_takes_the_newest_of_a_recipe_and_seed(tmp_path):
    newest = record(win=0.9, finished_at="2026-03-01T00:00:00Z")
    older = [record(win=0.1), record(win=0.2, finished_at="2026-02-01T00:00:00Z")]
    for order in ([newest, *older], [*older, newest]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        (row,) = table(folder, *order).plain
        assert row["win_rate"] == pytest.approx(0.9) and row["seeds"] == 1


def test_select_takes_a_newer_failure(tmp_path):
    newer = failure(finished_at="2026-03-01T00:00:00Z")
    (cells,) = texts(table(tmp_path, record(), newer))
    assert cells[1] == "0/1"


def test_row_names_have_the_options_that_differ(tmp_path):
    made = table(
        tmp_path,
        record(recipe="r1", options={"beta": 0.1, "epochs": 1.0}, win=0.7),
        record(recipe="r2", options={"beta": 0.5, "epochs": 1.0}, win=0.6),
        record("ppo", win=0.5),
    )
    assert [row[0] for row in texts(made)] == ["dpo (beta=0.1)", "dpo (beta=0.5)", "ppo"]


def test_row_names_leave_derived_options_out(tmp_path):
    made = table(
        tmp_path,
        record(
            recipe="r1", options={"optimiser": "ppo", "beta": 0.1, "steps": 50}, win=0.7, asked=[]
        ),
        record(
            recipe="r2",
            options={"optimiser": "dpo", "beta": 0.3, "steps": 9},
            win=0.6,
            asked=["optimiser"],
        ),
    )
    assert [row[0] for row in texts(made)] == ["dpo", "dpo (optimiser=dpo)"]


def test_row_names_are_unique():
    told = [
        record(recipe="r1", asked=[]),
        record("ppo", recipe="r0"),
        record(recipe="r2", options={"beta": 0.5}, asked=["beta"]),
    ]
    named = {row.records[0]["recipe"]: row.name for row in rows_of(told)}
    assert named == {"r0": "ppo", "r1": "dpo", "r2": "dpo (beta=0.5)"}


def test_row_names_have_the_recipe_if_options_agree(tmp_path):
    made = table(tmp_path, record(recipe="aaaa1", win=0.7), record(recipe="bbbb2", win=0.6))
    assert [row[0] for row in texts(made)] == ["dpo [aaaa]", "dpo [bbbb]"]


def test_kl_column_marks_an_estimate(tmp_path):
    best = record("best_of_n")
    best["evaluation"] |= {"kl_estimator": "best-of-n level mass", "kl_bound": 0.636}
    made = table(tmp_path, best)
    assert made.rows[0][6].text == "5.12 (est.)" and any(
        "at most log n - (n-1)/n: best_of_n 0.64." in note for note in made.notes
    )


def test_select_needs_a_suite_among_several(tmp_path):
    put(tmp_path, record(), record(suite="other", recipe="dpo-on-other"))
    with pytest.raises(
        UsageError, match="Name one suite with --suite: there are runs of other, toy"
    ):
        of(tmp_path)
    assert of(tmp_path, "other").title.startswith("other")
    with pytest.raises(UsageError, match="other, toy"):
        of(tmp_path, "nosuch")


def two_suites(results):
    put(results, record(), record("ppo", suite="other", recipe="ppo-on-other"))
    return results


def test_table_command_shows_every_suite(tmp_path):
    done = command("table", "--results", two_suites(tmp_path))
    titles = [line.split(":")[0] for line in done.out.splitlines() if line.startswith("**")]
    assert done.code == 0 and titles == ["**other", "**toy"], done.text
    done = command(
        "table", "--results", tmp_path, "--format", "csv", "-o", tmp_path / "x" / "t.csv"
    )
    assert done.code == 0 and {f.name for f in (tmp_path / "x").iterdir()} == {
        "t-other.csv",
        "t-toy.csv",
    }
    done = command("table", "--results", tmp_path, "--format", "csv")
    assert done.code == 2 and "Name one suite with --suite, or write files with -o" in done.err


def test_table_command_shows_others_beside_a_refused_suite(tmp_path):
    two_suites(tmp_path)
    put(tmp_path, record("dpo", recipe="x", ground={**GROUND, "data": "other"}))
    done = command("table", "--results", tmp_path)
    assert (
        done.code == 2 and "**other: " in done.out and "harness: toy: These runs differ" in done.err
    )


@pytest.mark.parametrize("width", [60, 100, 200])
def test_fitted_table_fits_the_width(tmp_path, width):
    put(tmp_path, record("start", win=0.5), record("dpo"), failure("ppo"))
    asked = Filter("toy")
    request = TableRequest(tmp_path, asked, Markdown(), False)
    made, _ = request.table("toy", TERMINAL_COLUMNS)
    text = fitted(made, Markdown(), width)
    assert max(map(len, text.splitlines())) <= max(width, len(text.splitlines()[0]))
    head = next(line for line in text.splitlines() if line.startswith("| method"))
    if width == 200:
        assert columns_of(head)[-2:] == ["length", "train TFLOP"]
        assert "labels" not in head and "proxy" not in head
    assert "\nRow start is a second draw from the start" in text
    assert text.splitlines()[-1].startswith("All columns") and "| ppo" in text


def test_notes_explain_the_row_start(tmp_path):
    note = "Row {} is a second draw from the start checkpoint: .5 up to noise."
    put(tmp_path, record("start", win=0.5), record("dpo"))
    assert note.format("start") in of(tmp_path).notes
    assert not any("second draw" in n for n in of(tmp_path, methods=["dpo"]).notes)
    columns = comparison(select(tmp_path, Filter("toy")), ("method", "kl"))
    assert not any("second draw" in n for n in columns.notes)


def test_select_accepts_former_names_of_methods(tmp_path):
    put(tmp_path, record("start", win=0.5), record("dpo"))
    assert [row[0] for row in texts(of(tmp_path, methods=["sft"]))] == ["start"]
    done = command("compare", "sft", "dpo", "--results", tmp_path)
    assert done.code == 0 and "A  start, seed 0" in done.out, done.text
    put(tmp_path, record("sft", win=0.4))  # a plugin of this name wins over the former name
    assert [row[0] for row in texts(of(tmp_path, methods=["sft"]))] == ["sft"]


def test_table_command_shows_fewer_columns_on_a_terminal(tmp_path):
    put(tmp_path, record("start", win=0.5), record("dpo"))
    piped = command("table", "--results", tmp_path)
    leader, follower = pty.openpty()
    arguments = [sys.executable, "-m", "harness", "table", "--results", str(tmp_path)]
    shown = {}
    for more in ((), ("--columns", "all")):
        child = subprocess.Popen(
            [*arguments, *more],
            stdout=follower,
            env={**os.environ, **ENV, "COLUMNS": "100"},
        )
        text = b""
        while child.poll() is None or select_ready([leader], [], [], 0.2)[0]:
            if select_ready([leader], [], [], 0.2)[0]:
                text += os.read(leader, 65536)
        shown[more] = text.decode().replace("\r\n", "\n")
    assert "models held" in piped.out and "--columns all" not in piped.out
    assert "models held" not in shown[()] and "train TFLOP" not in piped.out.splitlines()[-1]
    assert max(map(len, shown[()].splitlines())) <= 100
    assert shown["--columns", "all"] == piped.out


def test_select_in_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="no (finished )?run below .* harness run"):
        of(tmp_path)


def test_table_refuses_a_newer_schema(tmp_path):
    with pytest.raises(HarnessError, match="written by a newer harness"):
        table(tmp_path, record(schema=99))


def columns_of(line):
    """Split a Markdown row at its unescaped bars."""
    return [
        cell.replace("\\|", "|").strip() for cell in line.replace("\\|", "\0").strip("|").split("|")
    ]


def test_markdown_is_a_table(tmp_path):
    lines = Markdown().render(table(tmp_path, record("dpo"), record("ppo"))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert (
        len(rows) == 4
        and len({len(line) for line in rows}) == 1
        and len({line.count("|") for line in rows}) == 1
    )
    assert lines[0].startswith("**toy") and set(rows[1]) == {"|", "-"}


def test_markdown_escapes_bars():
    made = Table("t", ["a", "b|c"], [[Cell("x|y"), Cell("z")], [Cell("|"), Cell("\\")]])
    rows = [line for line in Markdown().render(made).splitlines() if line.startswith("|")]
    assert r"x\|y" in rows[2] and r"b\|c" in rows[0]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)


def test_markdown_keeps_a_row_on_its_line(tmp_path):
    made = table(tmp_path, failure("dpo", why="first line\nsecond | line"))
    rows = [line for line in Markdown().render(made).splitlines() if line.startswith("|")]
    assert len(rows) == 3 and "second" in rows[2]


def test_csv_has_unrounded_figures(tmp_path):
    made = table(
        tmp_path,
        record("dpo", win=1 / 3, options={"note": 'a,"b"\n'}),
        record("dpo", recipe="r2", win=0.25),
    )
    first, second = parsed(made)
    assert float(first["win_rate"]) == 1 / 3 and float(first["kl"]) == pytest.approx(
        5.123456789, abs=1e-12
    )
    assert first["method"] == 'dpo (note=a,"b"\n)' and "(beta=0.1" not in first["method"]
    assert float(second["method_flops"]) == 3e12 and second["failed"] == "0"


def test_csv_of_rows_and_failures_has_one_header(tmp_path):
    made = table(tmp_path, record("ppo"), failure("dpo"))
    text = CSV().render(made)
    header, *rows = csv.reader(io.StringIO(text))
    assert len(set(header)) == len(header) and {len(row) for row in rows} == {len(header)}


def test_table_is_a_function_of_its_records(tmp_path):
    first = put(tmp_path / "a", record("dpo"), record("ppo", win=0.7))
    again = put(tmp_path / "b", record("ppo", win=0.7), record("dpo"))
    assert Markdown().render(of(first)) == Markdown().render(of(again))


def judged(length_bias):
    """A record of a judge, whose answers are of both lengths beside the baseline's."""
    made = record(win=0.6)
    made["evaluation"]["judge"] = {"name": "gold"} | ({} if length_bias else {"length_bias": False})
    return made


@pytest.mark.parametrize("length_bias", [True, False])
def test_length_is_controlled_only_where_it_may_be_a_bias_of_the_judge(tmp_path, length_bias):
    made = table(tmp_path, judged(length_bias))
    notes = " ".join(made.notes)
    assert ("lc_win_rate" in made.plain[0]) == length_bias == ("length-controlled" in made.columns)
    assert ("length is no bias of the judge" in notes) != length_bias


def test_grades_beyond_shares_are_said_to_be_grades(tmp_path):
    told = [[-0.5 + (i % 4) for i in range(64)]]
    made = record(seed=0)
    made["evaluation"]["accuracy"] = {"mean": fmean(told[0])}
    put(tmp_path, made)
    (file,) = tmp_path.rglob("samples.jsonl")
    rows = [row | {"accuracy": v} for row, v in zip(read_rows(file), told[0], strict=True)]
    write_rows(file, rows)
    assert "not a share of right answers" in " ".join(of(tmp_path).notes)
    plain = table(tmp_path / "other", record()).notes  # negative control
    assert "not a share of right answers" not in " ".join(plain)


def test_runs_of_the_quick_size_are_named_where_others_stand_beside_them(tmp_path):
    quick = record("dpo", quick=True, ground={**GROUND, "start_checkpoint": "bb"})
    put(tmp_path, quick, record("ppo"))
    message = r"1 of these 2 runs are --quick: choose with --where run.quick=true or"
    with pytest.raises(UsageError, match=message):
        of(tmp_path)
