"""Records to tables: rows, means, intervals, refusals, failures, labels, and both formats."""

import csv
import io
import json
import time
import tracemalloc
from random import Random
from statistics import fmean

import numpy as np
import pytest
from harness_plugins.reporters import CSV, Markdown

from harness.errors import HarnessError, UsageError
from harness.files import write_json
from harness.report.figures import answers_of, figures_of
from harness.report.select import Filter, rows_of, select
from harness.report.table import Cell, Table
from harness.report.tables import COLUMNS, comparison
from harness.statistics.intervals import ONE_SEED, SEVERAL_SEEDS, two_way_interval, win_rate_interval
from harness.store import read_rows, write_rows
from harness.study.state import Place

from .tools import GROUND, estimate, failure, put, record, samples


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
def test_accuracy_has_an_interval_over_seeds_and_prompts_where_every_answer_has_a_verdict(tmp_path, verdicts):
    told = [[float((i * (2 + seed)) % 3 > 0) for i in range(64)] for seed in range(3)]
    for seed, row in enumerate(told):
        made = record("dpo", seed)
        made["evaluation"]["accuracy"] = estimate(sum(row) / 64)
        put(tmp_path, made)
    for seed, folder in enumerate(sorted((tmp_path / "runs" / "toy" / "dpo").iterdir())):
        rows = read_rows(folder / "samples.jsonl")
        for i, row in enumerate(rows):
            if verdicts is not False:
                row["accuracy"] = None if verdicts is None and i == 5 else told[seed][i]
        write_rows(folder / "samples.jsonl", rows)
    (row,) = select(tmp_path, Filter("toy")).rows
    figures = figures_of(row, answers_of(row))
    expected = win_rate_interval(np.array(told))
    assert figures["accuracy"] == pytest.approx(expected.mean)
    (cell,) = [c for c in [column.write(figures) for column in COLUMNS] if c.text == f"{expected.mean:.3f}"]
    if verdicts:
        assert (figures["accuracy_low"], figures["accuracy_high"]) == (expected.low, expected.high)
        assert cell.interval == f"[{expected.low:.3f}, {expected.high:.3f}]"
    else:  # a mean without an interval: an older record, or an answer that could not be scored
        assert "accuracy_low" not in figures and not cell.interval


def test_verdicts_of_any_size_have_an_interval(tmp_path):
    made = record("rlvr") | {"seed": 0}
    values = [float(i % 5) - 3 for i in range(64)]
    made["evaluation"]["accuracy"] = estimate(fmean(values))
    put(tmp_path, made)
    (folder,) = (tmp_path / "runs" / "toy" / "rlvr").iterdir()
    rows = read_rows(folder / "samples.jsonl")
    write_rows(folder / "samples.jsonl", [row | {"accuracy": v} for row, v in zip(rows, values, strict=True)])
    (row,) = select(tmp_path, Filter("toy")).rows
    figures, expected = figures_of(row, answers_of(row)), two_way_interval(np.array([values]))
    assert figures["accuracy_low"] == expected.low < expected.mean < 0 and figures["accuracy_high"] == expected.high


def test_rows_sft_first_then_by_strength(tmp_path):
    made = table(tmp_path, record("dpo", win=0.6), record("ppo", win=0.8), record("sft", win=0.5))
    assert [row[0] for row in texts(made)] == ["sft", "ppo", "dpo"]
    unused = {"accuracy", "verifier queries", "AI labels", "queries / answer"}  # no row says anything there
    assert made.columns == [c.title for c in COLUMNS if c.title not in unused]
    assert all(len(row) == len(made.columns) for row in texts(made))
    assert made.title == "toy: 64 test prompts, one answer each at T=1"
    row = dict(zip(made.columns, texts(made)[2], strict=True))
    assert row["win-rate vs SFT [95 %]"] == "0.600 [0.499, 0.690]" and row["KL (nats)"] == "5.12 [5.00, 5.25]"
    assert row["tokens gen. / trained"] == "1 k / 2.5 k" and row["labels"] == "720" and row["seeds"] == "1"
    assert row["models held (params)"] == "policy (300 k)" and row["peak MiB"] == "512"


def test_each_run_can_have_a_row_of_its_own(tmp_path):
    put(tmp_path, record("dpo", win=0.6), record("dpo", seed=1, win=0.8), record("sft", win=0.5))
    assert [row[:2] for row in texts(of(tmp_path))] == [["sft", "1"], ["dpo", "2"]]
    made = of(tmp_path, each=True)
    assert [row[0] for row in texts(made)] == ["sft, seed 0", "dpo, seed 1", "dpo, seed 0"]
    assert [cell.text for cell in made.rows[1][:3]] == ["dpo, seed 1", "1", "0.800"]
    assert "One seed per row" in made.caption and "not for the algorithms" in made.caption


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_those_of_the_answers(tmp_path, seeds):
    put(tmp_path, *(record(seed=i, win=w) for i, w in zip(range(seeds), (0.5, 0.6, 0.7), strict=False)))
    (row,) = of(tmp_path).plain
    rows = [[json.loads(line) for line in f.read_text().splitlines()] for f in sorted(tmp_path.rglob("samples.jsonl"))]
    found = win_rate_interval([[sample["win"] for sample in answers] for answers in rows])
    assert row["seeds"] == seeds and row["win_rate"] == pytest.approx(fmean((0.5, 0.6, 0.7)[:seeds]))
    assert (row["win_rate_low"], row["win_rate_high"]) == (found.low, found.high)
    gold = two_way_interval([[sample["gold"] for sample in answers] for answers in rows])
    assert (row["gold_low"], row["gold_high"]) == (gold.low, gold.high)
    assert row["win_rate_speaks_for"] == (ONE_SEED if seeds == 1 else SEVERAL_SEEDS)


def test_an_interval_over_seeds_stays_a_share(tmp_path):
    (row,) = table(tmp_path, record(seed=0, win=0.9), record(seed=1, win=0.1)).plain
    assert 0.0 <= row["win_rate_low"] < 0.1 and 0.9 < row["win_rate_high"] <= 1.0


def test_figures_that_are_not_those_of_the_answers_are_refused(tmp_path):
    put(tmp_path, record(win=0.6))
    (file,) = tmp_path.rglob("samples.jsonl")
    file.write_text(file.read_text().replace('"win": 1.0', '"win": 0.5', 1))
    with pytest.raises(HarnessError, match="the mean of win in samples.jsonl is .*result.json says 0.6"):
        of(tmp_path)
    file.unlink()
    with pytest.raises(HarnessError, match="samples.jsonl is missing"):
        of(tmp_path)


def test_answers_that_were_edited_are_refused_though_no_mean_moved(tmp_path):
    put(tmp_path, record(win=0.6))
    (file,) = tmp_path.rglob("samples.jsonl")
    digest = write_rows(file, read_rows(file))
    edited = json.loads((file.parent / "result.json").read_text()) | {"files": {"samples.jsonl": digest}}
    write_json(file.parent / "result.json", edited)
    assert of(tmp_path).plain[0]["win_rate"] == pytest.approx(0.6)
    rows = read_rows(file)
    write_rows(file, [rows[0] | {"answer": "another text"}, *rows[1:]])
    with pytest.raises(HarnessError, match="samples.jsonl is damaged .not the samples.jsonl that result.json was made"):
        of(tmp_path)


def answers(scores, seed=0, **more):
    """A record and its answers with these scores against SFT, gold twice as high."""
    made = record(more.pop("method", "dpo"), seed=seed, win=fmean(scores), **more)
    made["evaluation"] |= {"prompts": len(scores), "gold": estimate(2 * fmean(scores))}
    return made, scores


def put_answers(results, *pairs):
    """Write records whose answers have given scores."""
    for made, scores in pairs:
        put(results, made)
        folder = max(results.glob("runs/*/*/*"), key=lambda f: (f.stat().st_ctime_ns, f.name))
        rows = [row | {"win": w, "gold": 2 * w} for row, w in zip(samples(made), scores, strict=True)]
        write_rows(folder / "samples.jsonl", rows)
    return of(results)


def scores_of(rate, seed, n=200):
    rng = Random(seed)
    return [float(rng.random() < rate) for _ in range(n)]


def test_bold_is_what_is_not_significantly_worse(tmp_path):
    same = scores_of(0.7, 1)
    made = put_answers(
        tmp_path, answers(same, method="ppo"), answers(scores_of(0.68, 2), method="dpo"),
        answers(scores_of(0.3, 3), method="kto"),
    )  # fmt: skip
    cells = {str(row[0]): row[2] for row in made.rows}
    assert [c.bold for c in (cells["ppo"], cells["dpo"], cells["kto"])] == [True, True, False]
    assert sum(c.best for c in cells.values()) == 1
    shown = Markdown().render(made)
    best, other, worse = (f"{cells[name].text}" for name in ("ppo", "dpo", "kto"))
    assert f"***{max(best, other)}***" in shown and f" **{min(best, other)}** " in shown and f"| {worse} " in shown
    assert (
        "Bold: not significantly worse than the best mean" in made.caption and "Holm over all 3 pairs" in made.caption
    )


def test_identical_methods_under_two_names_are_both_bold(tmp_path):
    pairs = [
        answers(scores_of(0.7, seed), seed, method=method, recipe=f"{method}-r")
        for method in ("ppo", "twin") for seed in (0, 1)
    ]  # fmt: skip
    made = put_answers(tmp_path, *pairs)
    assert [(row[2].bold, row[2].best) for row in made.rows] == [(True, True), (True, True)]


def test_a_diverged_seed_is_shown_and_counted(tmp_path):
    put(tmp_path, failure("ppo", seed=2))
    pairs = [answers(scores_of(0.7, seed), seed, method="ppo") for seed in (0, 1)]
    made = put_answers(tmp_path, *pairs, answers(scores_of(0.5, 9), method="dpo"))
    row = next(row for row in made.rows if str(row[0]) == "ppo")
    assert row[1].text == "2/3" and made.footnotes[row[1].marks[0]].startswith("1 of 3 runs failed (1 diverged)")
    assert "2/3 (a)" in "\n".join(" ".join(line.split()) for line in Markdown().render(made).splitlines())
    assert "(a) 1 of 3 runs failed" in Markdown().render(made)


def test_a_budget_is_footnoted(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    for method, left in (("ppo", -1), ("dpo", 3)):
        (folder,) = (tmp_path / "runs/toy" / method).iterdir()
        write_json(folder / "spec.json", {"stages": {}, "budget": {"steps": 100, "flops": None}})
        told = json.loads((folder / "result.json").read_text())
        told["cost"]["budget_left"] = {"steps": left}
        write_json(folder / "result.json", told)
    made = of(tmp_path)
    told = {str(row[0]): [made.footnotes[m] for m in row[1].marks] for row in made.rows}
    assert told == {"ppo": ["Budget: steps 100."], "dpo": ["Budget: steps 100. It ended by itself before."]}


def test_unlike_code_is_refused_and_mixed_on_request(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    (folder,) = (tmp_path / "runs/toy/dpo").iterdir()
    made = json.loads((folder / "provenance.json").read_text())
    write_json(folder / "provenance.json", made | {"code": {"harness": "older", "method": "cd"}})
    with pytest.raises(UsageError, match="differ in the harness's code .*older: dpo seed 0; ab: ppo seed 0"):
        of(tmp_path)
    told = of(tmp_path, mixed=True).footnotes
    assert list(told) == ["a"] and told["a"].startswith("NOT ON EQUAL GROUND") and "the harness's code" in told["a"]


def test_seeds_of_a_row_are_of_one_code(tmp_path):
    put(tmp_path, record(seed=0), record(seed=1))
    folder = max((tmp_path / "runs/toy/dpo").iterdir())
    made = json.loads((folder / "provenance.json").read_text())
    write_json(folder / "provenance.json", made | {"code": {"harness": "ab", "method": "edited"}})
    with pytest.raises(UsageError, match="differ in the code of dpo"):
        of(tmp_path)


def test_rows_are_chosen_by_their_options(tmp_path):
    put(tmp_path, record(recipe="r1", options={"beta": 0.1}), record(recipe="r2", options={"beta": 0.5}))
    assert len(of(tmp_path).rows) == 2
    (row,) = of(tmp_path, where={"beta": "0.50"}).rows
    assert row[0].text == "dpo"
    with pytest.raises(UsageError, match="No run has beta=7. There are: 0.1, 0.5"):
        of(tmp_path, where={"beta": "7"})
    with pytest.raises(UsageError, match="no option of these runs 'betta'. Did you mean 'beta'"):
        of(tmp_path, where={"betta": "0.1"})


def test_rows_of_a_sweep_are_named_by_their_entry_where_one_setting_is_chosen(tmp_path, monkeypatch):
    put(
        tmp_path,
        *(
            record("dpo", seed, recipe=f"{b}", options={"beta": b, "epochs": 1.0})
            for b in (0.1, 0.2)
            for seed in range(2)
        ),
    )
    folders = {str(f): json.loads((f / "result.json").read_text()) for f in (tmp_path / "runs/toy/dpo").iterdir()}
    places = {f: Place(f"mine (beta={r['options']['beta']})", "mine") for f, r in folders.items()}
    monkeypatch.setattr("harness.report.select.places_of", lambda results, study: places)
    assert [row.name for row in select(tmp_path, Filter(study="s", where={"beta": "0.2"})).rows] == ["mine"]
    both = select(tmp_path, Filter(study="s", where={"epochs": "1"})).rows  # which leaves both
    assert [row.name for row in both] == ["mine (beta=0.1)", "mine (beta=0.2)"]


def test_a_label_with_a_comma_is_one_name(tmp_path, monkeypatch):
    put(tmp_path, *(record("ppo", recipe=label) for label in ("ppo, no penalty", "no penalty", "ppo")))
    there = tmp_path.glob("runs/toy/ppo/*")
    labels = {str(f): json.loads((f / "result.json").read_text())["recipe"] for f in there}
    places = {folder: Place(label, label) for folder, label in labels.items()}
    monkeypatch.setattr("harness.report.select.places_of", lambda results, study: places)

    def chosen(told):
        return {row.name for row in select(tmp_path, Filter(study="s", methods=told.split(", "))).rows}

    assert chosen("ppo, no penalty") == {"ppo, no penalty"}
    assert chosen("no penalty, ppo, no penalty") == {"no penalty", "ppo, no penalty"}
    assert chosen("ppo, ppo") == {"ppo, no penalty", "no penalty", "ppo"}  # the method, of all three


@pytest.mark.parametrize("option", ["labeller.noise=0.5", "run.snapshots=6", "suite.bias=2", "stage.sft.epochs=3"])
def test_runs_are_chosen_by_whatever_a_study_can_sweep(tmp_path, option):
    mine = record("dpo", recipe="mine", suite_options={"bias": 2})
    put(tmp_path, mine, record("dpo", recipe="other", suite_options={"bias": 1}))
    for folder in (tmp_path / "runs" / "toy" / "dpo").iterdir():
        ours = json.loads((folder / "result.json").read_text())["recipe"] == "mine"
        spec = {"labeller_options": {"noise": 0.5 * ours}, "snapshots": 6 * ours, "options": {}, "budget": {}}
        (folder / "spec.json").write_text(json.dumps(spec | {"stages": {"sft": {"epochs": 3 * ours}}}))
    name, _, value = option.partition("=")
    (row,) = select(tmp_path, Filter(where={name: value})).rows
    assert [r["recipe"] for r in row.records] == ["mine"]
    with pytest.raises(UsageError, match=f"No run has {name}=7"):
        select(tmp_path, Filter(where={name: "7"}))


def test_a_misspelt_method_is_not_left_out_silently(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    with pytest.raises(UsageError, match="no method with runs 'dpoo'. Did you mean 'dpo'"):
        of(tmp_path, methods=["ppo", "dpoo"])


def test_answers_that_are_not_there_are_one_message(tmp_path):
    put(tmp_path, record("ppo"))
    (file,) = tmp_path.rglob("samples.jsonl")
    for text, why in (("", "no answers in it"), ("[1]\n", "no answer to a prompt"), ("{\n", "damaged")):
        file.write_text(text)
        with pytest.raises(HarnessError, match=why):
            of(tmp_path)


def test_an_unfinished_run_is_told(tmp_path):
    put(tmp_path, record("ppo"), record("dpo"))
    assert not any("Not finished" in note for note in of(tmp_path).notes)
    (file,) = (tmp_path / "runs/toy/ppo").glob("*/result.json")
    file.unlink()
    assert any("left out: 1 run (ppo seed0-" in note for note in of(tmp_path).notes)


def test_an_interval_does_not_reach_below_what_there_can_be(tmp_path):
    wild = record(seed=1)
    wild["evaluation"] |= {"kl": estimate(18.0)}
    (row,) = table(tmp_path, record(seed=0), wild).plain
    assert row["kl_low"] == 0.0 and row["kl_high"] > 30


def test_columns_are_chosen_by_key(tmp_path):
    put(tmp_path, record(), record("ppo"))
    made = comparison(select(tmp_path, Filter()), ["method", "kl", "win_rate"])
    assert made.columns == ["method", "KL (nats)", "win-rate vs SFT [95 %]"]
    with pytest.raises(UsageError, match="no column 'winrate'. Did you mean 'win_rate'"):
        comparison(select(tmp_path, Filter()), ["winrate"])


def synthetic(folder, records, prompts):
    """Records of methods of 100 seeds, with prompts and answers as long as those of summarization (680 bytes a line).

    Four files of samples, the records' own by their digests; 10,000 of 512 prompts would be 3.5 GB, so they are linked.
    """
    files = []
    for seed in range(4):
        made = record(seed=seed)
        made["evaluation"]["prompts"] = prompts
        rows = [r | {"prompt": "p" * 350, "answer": r["answer"] + "a" * 110, "sft": "s" * 125} for r in samples(made)]
        files.append((folder / f"samples-{seed}", write_rows(folder / f"samples-{seed}", rows)))
    for i in range(records):
        made, (samples_file, digest) = record(f"m{i // 100}", seed=i % 100), files[i % 4]
        made["evaluation"]["prompts"] = prompts
        run = folder / "runs/toy" / made["method"] / f"seed{made['seed']}-x"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(made | {"files": {"samples.jsonl": digest}}))
        (run / "samples.jsonl").hardlink_to(samples_file)
        (run / "spec.json").write_text("{}")
    return folder


MANY = [  # CPU seconds and MiB at most: some four times what docs/tables.md says was measured
    (400, 64, 3, 30), (200, 512, 6, 60), pytest.param(10_000, 64, 30, 400, marks=pytest.mark.slow)
]  # fmt: skip


@pytest.mark.parametrize(("records", "prompts", "most", "mebibytes"), MANY)
def test_many_records_take_seconds(tmp_path, records, prompts, most, mebibytes):
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


def test_every_cost_is_a_mean_over_seeds(tmp_path):
    second = record(seed=1)
    second["cost"]["method"] |= {"seconds": 14.5, "tokens_generated": 3000}
    (row,) = table(tmp_path, record(seed=0), second).plain
    assert row["method_seconds"] == 13.5 and row["method_tokens_generated"] == 2000


def test_mixed_ground_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError) as refusal:
        table(tmp_path, record("dpo"), record("ppo", seed=3, ground=GROUND | {"preferences": "XX"}))
    told = str(refusal.value)
    assert "differ in preferences" in told and "bb: dpo seed 0" in told and "XX: ppo seed 3" in told


def test_ground_that_one_run_lacks_is_refused(tmp_path):
    with pytest.raises(UsageError, match="differ in judge"):
        table(tmp_path, record("dpo"), record("ppo", ground={k: v for k, v in GROUND.items() if k != "judge"}))


def test_methods_can_be_chosen_out_of_mixed_ground(tmp_path):
    mixed = [record("dpo"), record("ppo"), record("sft", ground=GROUND | {"judge": "other/1"})]
    made = table(tmp_path, *mixed, methods=["ppo", "dpo"])
    assert [row[0] for row in texts(made)] == ["dpo", "ppo"]


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nosuch"):
        table(tmp_path, record("dpo"), methods=["nosuch"])


def test_a_failed_seed_is_counted(tmp_path):
    made = table(tmp_path, record(seed=0), record(seed=1), failure(seed=2))
    (cells,) = texts(made)
    assert cells[1] == "2/3" and cells[2].startswith("0.600")
    assert made.plain[0]["failed"] == 1


def test_a_row_of_failures_says_why(tmp_path):
    made = table(tmp_path, record("ppo"), failure("dpo"))
    assert [row[0] for row in texts(made)] == ["ppo", "dpo"]
    assert texts(made)[1][:3] == ["dpo", "0/1", "failed: The loss is nan at optimiser step 3."]
    assert len(texts(made)[1]) == len(made.columns)
    assert "failed: The loss" in Markdown().render(made)
    assert parsed(made)[1]["failure"] == "The loss is nan at optimiser step 3."


def test_only_failures_make_a_table_too(tmp_path):
    made = table(tmp_path, failure("dpo"))
    assert texts(made)[0][1] == "0/1" and "no finished run" in made.title


def test_the_newest_of_one_recipe_and_seed_counts(tmp_path):
    newest = record(win=0.9, finished_at="2026-03-01T00:00:00Z")
    older = [record(win=0.1), record(win=0.2, finished_at="2026-02-01T00:00:00Z")]
    for order in ([newest, *older], [*older, newest]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        (row,) = table(folder, *order).plain
        assert row["win_rate"] == pytest.approx(0.9) and row["seeds"] == 1


def test_a_failure_newer_than_the_result_counts(tmp_path):
    newer = failure(finished_at="2026-03-01T00:00:00Z")
    (cells,) = texts(table(tmp_path, record(), newer))
    assert cells[1] == "0/1"


def test_rows_of_one_method_are_told_apart_by_their_options(tmp_path):
    made = table(
        tmp_path, record(recipe="r1", options={"beta": 0.1, "epochs": 1.0}, win=0.7),
        record(recipe="r2", options={"beta": 0.5, "epochs": 1.0}, win=0.6), record("ppo", win=0.5),
    )  # fmt: skip
    assert [row[0] for row in texts(made)] == ["dpo (beta=0.1)", "dpo (beta=0.5)", "ppo"]


def test_options_that_followed_from_what_was_asked_for_are_not_told(tmp_path):
    made = table(
        tmp_path, record(recipe="r1", options={"optimiser": "ppo", "beta": 0.1, "steps": 50}, win=0.7, asked=[]),
        record(recipe="r2", options={"optimiser": "dpo", "beta": 0.3, "steps": 9}, win=0.6, asked=["optimiser"]),
    )  # fmt: skip
    assert [row[0] for row in texts(made)] == ["dpo", "dpo (optimiser=dpo)"]


def test_every_record_is_named_as_its_row():
    told = [
        record(recipe="r1", asked=[]),
        record("ppo", recipe="r0"),
        record(recipe="r2", options={"beta": 0.5}, asked=["beta"]),
    ]
    named = {row.records[0]["recipe"]: row.name for row in rows_of(told)}
    assert named == {"r0": "ppo", "r1": "dpo", "r2": "dpo (beta=0.5)"}


def test_rows_that_differ_elsewhere_show_their_recipe(tmp_path):
    made = table(tmp_path, record(recipe="aaaa1", win=0.7), record(recipe="bbbb2", win=0.6))
    assert [row[0] for row in texts(made)] == ["dpo [aaaa]", "dpo [bbbb]"]


def test_an_estimated_kl_is_marked(tmp_path):
    best = record("best_of_n")
    best["evaluation"] |= {"kl_estimator": "best-of-n level mass", "kl_bound": 0.636}
    made = table(tmp_path, best)
    assert made.rows[0][6].text == "5.12 (est.)" and any("bounds it: best_of_n 0.64." in note for note in made.notes)


def test_several_suites_need_a_name(tmp_path):
    put(tmp_path, record(), record(suite="other", recipe="dpo-on-other"))
    with pytest.raises(UsageError, match="Name one suite with --suite: there are runs of other, toy"):
        of(tmp_path)
    assert of(tmp_path, "other").title.startswith("other")
    with pytest.raises(UsageError, match="other, toy"):
        of(tmp_path, "nosuch")


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="no (finished )?run below .* harness run"):
        of(tmp_path)


def test_a_newer_schema_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="written by a newer harness"):
        table(tmp_path, record(schema=99))


def columns_of(line):
    """Split a Markdown row at its unescaped bars."""
    return [cell.replace("\\|", "|").strip() for cell in line.replace("\\|", "\0").strip("|").split("|")]


def test_markdown_is_a_table(tmp_path):
    lines = Markdown().render(table(tmp_path, record("dpo"), record("ppo"))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4 and len({len(line) for line in rows}) == 1 and len({line.count("|") for line in rows}) == 1
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


def test_csv_parses_back_with_unrounded_figures(tmp_path):
    made = table(tmp_path, record("dpo", win=1 / 3, options={"note": 'a,"b"\n'}), record("dpo", recipe="r2", win=0.25))
    first, second = parsed(made)
    assert float(first["win_rate"]) == 1 / 3 and float(first["kl"]) == pytest.approx(5.123456789, abs=1e-12)
    assert first["method"] == 'dpo (note=a,"b"\n)' and "(beta=0.1" not in first["method"]
    assert float(second["method_flops"]) == 3e12 and second["failed"] == "0"


def test_csv_of_rows_and_failures_has_one_header(tmp_path):
    made = table(tmp_path, record("ppo"), failure("dpo"))
    text = CSV().render(made)
    header, *rows = csv.reader(io.StringIO(text))
    assert len(set(header)) == len(header) and {len(row) for row in rows} == {len(header)}


def test_a_table_is_a_pure_function_of_its_records(tmp_path):
    first = put(tmp_path / "a", record("dpo"), record("ppo", win=0.7))
    again = put(tmp_path / "b", record("ppo", win=0.7), record("dpo"))
    assert Markdown().render(of(first)) == Markdown().render(of(again))
