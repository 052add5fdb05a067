"""`harness compare`: who is compared, what is refused, and figures that can be checked by hand."""

import json
import math
from statistics import fmean

import numpy as np
import pytest

from harness.core.errors import HarnessError, UsageError
from harness.core.records import write_sealed
from harness.core.run_folder import read_rows, write_rows
from harness.report.comparison.compare import (
    compared,
    differing,
    head_to_head,
    suites_to_compare,
    two_rows,
)
from harness.report.comparison.side_by_side import WIDTH, as_json, parts
from harness.report.comparison.verdict import detectable, p_text
from harness.report.selection.filters import Filter
from harness.statistics.compare import compare
from harness.statistics.power import Design, minimum_detectable_effect

from ..helpers.tools import GROUND, command, failure, process, put, record
from ..helpers.toy_runs import run

PROMPTS = 64


def sample(i, gold=1.0, win=None, **more):
    """A plausible line of samples.jsonl; SFT has gold 1 everywhere."""
    win = (gold > 1) + 0.5 * (gold == 1) if win is None else win
    return {
        "prompt_id": f"test/{i}",
        "prompt": f"prompt {i}",
        "answer": "w " * (8 + i % 3),
        "baseline": "w " * (8 + i % 2),
        "gold": gold,
        "baseline_gold": 1.0,
        "win": float(win),
        "kl": 2.0 + 0.01 * i,
        "length": 8 + i % 3,
        "ended": True,
        "proxy": gold / 2,
        "baseline_proxy": 0.5,
    } | more


def add(results, method, golds, seed=0, **more):
    """Put a run whose answers have these gold scores below a results folder; return its folder."""
    told = record(method, seed, **more)
    put(results, told)
    folder = max(
        (results / "runs" / told["suite"] / method).iterdir(), key=lambda f: f.stat().st_mtime_ns
    )
    return answered(folder, [sample(i, g) for i, g in enumerate(golds)])


def answered(folder, rows):
    """Write a run with these answers: samples and the means of its record. Return its folder."""
    write_rows(folder / "samples.jsonl", rows)
    told = json.loads((folder / "result.json").read_text())
    for name, column in (("win_rate", "win"), *((c, c) for c in ("gold", "proxy", "kl", "length"))):
        values = [row[column] for row in rows]
        if None in values:
            del told["evaluation"][name]
        else:
            told["evaluation"][name]["mean"] = fmean(values)
    write_sealed(folder / "result.json", told)
    return folder


def golds(wins, ties=0, n=PROMPTS):
    """Scores above SFT's on the first prompts, equal on the next, below on the rest."""
    return [2.0] * wins + [1.0] * ties + [0.0] * (n - wins - ties)


@pytest.fixture
def two(tmp_path):
    """A results folder with dpo, which wins 48 of 64, and ipo, which wins 24."""
    add(tmp_path, "dpo", golds(48))
    add(tmp_path, "ipo", golds(24))
    return tmp_path


def text(found):
    return "\n".join(
        p if isinstance(p, str) else "\n".join("  ".join(row) for row in p) for p in parts(found)
    )


# -- figures ---------------------------------------------------------------------------------------


def test_compare_pairs_differences_by_prompt(two):
    found = compared(two, ("dpo", "ipo"), Filter())
    win = found.measures[0]
    assert (win.label, win.a, win.b) == ("win-rate vs baseline", 0.75, 0.375)
    expected = compare([1.0] * 48 + [0.0] * 16, [1.0] * 24 + [0.0] * 40)
    assert win.difference == expected and expected.difference == 0.375
    assert "dpo beats ipo by 0.375" in found.verdict and "p < 0.001" in found.verdict
    assert "these checkpoints, not these algorithms" in found.verdict


def test_verdict_keeps_its_result_when_a_and_b_are_swapped(two):
    one, other = (compared(two, names, Filter()) for names in (("dpo", "ipo"), ("ipo", "dpo")))
    assert other.measures[0].difference.difference == -one.measures[0].difference.difference
    assert one.verdict == other.verdict


def test_head_to_head_counts_prompts(two):
    head = compared(two, ("dpo", "ipo"), Filter()).head
    assert (head.wins, head.ties, head.losses) == (24, 40, 0)
    assert head.p == pytest.approx(2 * 0.5**24) and head.improvement == (24 + 40 / 2) / 64


def test_head_to_head_compares_means_over_seeds():
    head = head_to_head(np.array([[2.0, 0.0], [2.0, 1.0]]), np.array([[1.0, 2.0], [2.5, 0.5]]))
    assert (head.wins, head.ties, head.losses) == (1, 0, 1)
    assert head.improvement == pytest.approx((2 + 1) / 8)  # by prompt 2 of 4 pairs, and 1 of 4


def test_verdict_of_equal_runs_names_the_detectable_difference(tmp_path):
    add(tmp_path, "dpo", golds(32))
    add(tmp_path, "ipo", [2.0 * (i % 2) for i in range(PROMPTS)])
    found = compared(tmp_path, ("dpo", "ipo"), Filter())
    least = minimum_detectable_effect(Design(PROMPTS), True)
    assert "dpo and ipo are not distinguishable" in found.verdict
    assert f"this study can detect {least:.3f} (harness power)" in found.verdict


def test_detectable_difference_shrinks_with_shared_prompts():
    x = np.array([[1.0, 0.0] * 32])
    apart, alike = (
        np.array([[1.0, 1.0, 0.0, 0.0] * 16]),
        np.array([[1.0, 0.0] * 30 + [0.0, 1.0] * 2]),
    )
    assert detectable(x, alike) < 0.7 * detectable(x, apart)


def test_compare_treats_seeds_as_independent(tmp_path):
    for seed in range(3):
        add(tmp_path, "dpo", golds(40 + seed), seed)
        add(tmp_path, "ipo", golds(30 + seed), seed)
    found = compared(tmp_path, ("dpo", "ipo"), Filter())
    rows = [[[float(g > 1) for g in golds(wins + s)] for s in range(3)] for wins in (40, 30)]
    assert found.measures[0].difference == compare(*rows)
    assert found.measures[0].difference != compare(*rows, paired_seeds=True)
    assert "3 and 3 seeds: these algorithms" in found.verdict


def test_scope_names_a_row_with_one_seed(tmp_path):
    for seed in range(2):
        add(tmp_path, "dpo", golds(48), seed)
    add(tmp_path, "ipo", golds(24))
    assert (
        "one seed of ipo: that checkpoint" in compared(tmp_path, ("dpo", "ipo"), Filter()).verdict
    )


def test_measures_pair_accuracy_if_all_answers_have_verdicts(two):
    right = {
        "dpo": [float(i % 4 > 0) for i in range(PROMPTS)],
        "ipo": [float(i % 2) for i in range(PROMPTS)],
    }
    for method, verdicts in right.items():
        (folder,) = (two / "runs" / "toy" / method).iterdir()
        told = json.loads((folder / "result.json").read_text())
        told["evaluation"]["accuracy"] = {
            "mean": fmean(verdicts),
            "low": 0.0,
            "high": 1.0,
            "n": PROMPTS,
        }
        write_sealed(folder / "result.json", told)
        rows = read_rows(folder / "samples.jsonl")
        write_rows(
            folder / "samples.jsonl",
            [row | {"accuracy": v} for row, v in zip(rows, verdicts, strict=True)],
        )
    (found,) = [m for m in compared(two, ("dpo", "ipo"), Filter()).measures if m.name == "accuracy"]
    assert (found.a, found.b) == (0.75, 0.5)
    assert found.difference == compare(*(np.array([right[m]]) for m in ("dpo", "ipo")))


def test_measures_have_accuracy_means_without_verdicts(tmp_path):
    for method, mean in (("dpo", 0.75), ("ipo", 0.5)):
        made = record(method)["evaluation"] | {
            "accuracy": {"mean": mean, "low": 0.4, "high": 0.9, "n": 64}
        }
        add(tmp_path, method, golds(32), evaluation=made)
    (found,) = [
        m for m in compared(tmp_path, ("dpo", "ipo"), Filter()).measures if m.name == "accuracy"
    ]
    assert (found.a, found.b, found.difference) == (0.75, 0.5, None)


def test_measures_leave_proxy_out_if_a_run_has_none(two):
    (folder,) = (two / "runs" / "toy" / "ipo").iterdir()
    answered(folder, [sample(i, proxy=None) for i in range(PROMPTS)])
    assert "proxy" not in {m.name for m in compared(two, ("dpo", "ipo"), Filter()).measures}


def test_costs_are_shown_with_ratios(two):
    (folder,) = (two / "runs" / "toy" / "dpo").iterdir()
    told = json.loads((folder / "result.json").read_text())
    told["cost"]["method"]["flops"] *= 2
    write_sealed(folder / "result.json", told)
    found = compared(two, ("dpo", "ipo"), Filter())
    costs = {c.label: c.both for c in found.costs}
    assert (
        costs["training FLOPs"] == (6e12, 3e12)
        and costs["labels"] == (720, 720)
        and "AI labels" not in costs
    )
    assert "training FLOPs  6 T  3 T  2.00" in text(found) and "reward queries  0  0  -" in text(
        found
    )


def test_examples_are_the_largest_leads(two):
    (folder,) = (two / "runs" / "toy" / "dpo").iterdir()
    rows = [sample(i, g) for i, g in enumerate(golds(48))]
    rows[5] |= {"gold": 9.0, "answer": "ours \x1b[31m best\n" + "long " * 200}
    rows[7] |= {"gold": -3.0, "answer": "ours worst"}
    answered(folder, rows)
    best, worst = compared(two, ("dpo", "ipo"), Filter()).examples
    assert (
        "A has the largest lead in gold (+7.00) on prompt test/5" in best.title
        and best.gold
        == (
            9.0,
            2.0,
        )
    )
    assert (
        "B has the largest lead in gold (+5.00) on prompt test/7" in worst.title
        and worst.answers[0] == "ours worst"
    )


def test_length_control_uses_characters(two):
    a, _ = compared(two, ("dpo", "ipo"), Filter()).controlled
    assert (
        0 < a.win_rate.low < a.win_rate.mean < a.win_rate.high < 1 and a.win_rate.prompts == PROMPTS
    )


def test_options_show_the_differences(two):
    add(two, "dpo", golds(30), options={"beta": 0.5, "epochs": 1.0}, recipe="other")
    _, a, b = two_rows(two, ("dpo (beta=0.5)", "dpo (beta=0.1)"), Filter())
    assert differing(a, b) == ["beta 0.5 | 0.1"]


def test_p_text_has_three_decimals():
    assert [p_text(p) for p in (0.0494, 0.5, 0.0004)] == ["p = 0.049", "p = 0.500", "p < 0.001"]


# -- who is compared -------------------------------------------------------------------------------


def test_two_rows_accepts_run_folders(two):
    (folder,) = (two / "runs" / "toy" / "dpo").iterdir()
    found = compared(two, (str(folder), "ipo"), Filter())
    assert found.a.name == "dpo seed 0" and found.measures[0].a == 0.75


def test_two_rows_marks_equal_names_as_a_and_b(two):
    other = add(two, "dpo", golds(30), options={"beta": 0.5, "epochs": 1.0}, recipe="other")
    (first,) = [f for f in other.parent.iterdir() if f != other]
    assert compared(two, (str(first), str(other)), Filter()).verdict.startswith(
        "dpo seed 0 (A) beats dpo seed 0 (B)"
    )


@pytest.mark.parametrize(
    ("names", "asked", "told"),
    [
        (("dpo", "ip"), Filter(), r"no run folder, method or row 'ip'. Did you mean 'ipo'\?"),
        (("dpo", "dpo"), Filter(), "A and B are the same run: .*dpo"),
        (("dpo", "ipo"), Filter(where={"beta": "0.7"}), "No run has beta=0.7"),
        (("dpo", "ipo"), Filter(suite="nosuch"), "no suite with runs 'nosuch'"),
        (("dpo", "/no/such/folder"), Filter(), "no run folder, method or row '/no/such/folder'"),
    ],
)
def test_two_rows_refuses_names(two, names, asked, told):
    with pytest.raises(UsageError, match=told):
        compared(two, names, asked)


def test_two_rows_lists_ambiguous_rows(two):
    add(two, "dpo", golds(30), options={"beta": 0.5, "epochs": 1.0}, recipe="other")
    with pytest.raises(UsageError, match=r"several rows of dpo: .*'dpo \(beta=0.1\)'"):
        compared(two, ("dpo", "ipo"), Filter())
    with pytest.raises(UsageError, match="with beta=0.5 'ipo'"):
        compared(two, ("dpo", "ipo"), Filter(where={"beta": "0.5"}))


def test_two_rows_refuses_incomparable_runs(two):
    add(two, "kto", golds(30), ground=GROUND | {"preferences": "XX"})
    with pytest.raises(UsageError, match=r"preferences differs \(bb: dpo seed 0; XX: kto seed 0\)"):
        compared(two, ("dpo", "kto"), Filter())


def test_two_rows_refuses_a_failed_run(two):
    put(two, failure("kto"))
    with pytest.raises(
        UsageError, match="kto has no finished run to compare. It failed: The loss is nan"
    ):
        compared(two, ("dpo", "kto"), Filter())


def test_compare_refuses_samples_of_other_prompts(two):
    (folder,) = (two / "runs" / "toy" / "dpo").iterdir()
    rows = [sample(i) for i in range(PROMPTS)]
    answered(folder, rows[1:] + rows[:1])
    with pytest.raises(HarnessError, match="do not have the same prompts in the same order"):
        compared(two, ("dpo", "ipo"), Filter())


def test_compare_refuses_edited_samples(two, capsys):
    (folder,) = (two / "runs" / "toy" / "dpo").iterdir()
    write_rows(folder / "samples.jsonl", [sample(i, g) for i, g in enumerate(golds(50))])
    with pytest.raises(HarnessError, match="no run folder, method or row 'dpo'"):
        compared(two, ("dpo", "ipo"), Filter())
    assert "the mean of win is 0.78125 here and 0.75 in result.json" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["win", "gold"])
def test_compare_refuses_samples_without_scores(two, column, capsys):
    (folder,) = (two / "runs" / "toy" / "dpo").iterdir()
    write_rows(
        folder / "samples.jsonl", [sample(i, g) | {column: None} for i, g in enumerate(golds(48))]
    )
    with pytest.raises(HarnessError, match="no run folder, method or row 'dpo'"):
        compared(two, ("dpo", "ipo"), Filter())
    assert f"its answers have no {column} scores" in capsys.readouterr().err


def test_compare_refuses_options_without_effect(two):
    folders = tuple(str(f) for m in ("dpo", "ipo") for f in (two / "runs" / "toy" / m).iterdir())
    with pytest.raises(UsageError, match="--study and --where select runs of a method"):
        compared(two, folders, Filter(where={"beta": "0.1"}))


# -- the command -----------------------------------------------------------------------------------


def test_show_fits_one_screen(two):
    (folder,) = (two / "runs" / "toy" / "dpo").iterdir()
    rows = [
        sample(i, g, answer="\x1b[31mred\x07 " + "long " * 99, prompt="p\n" * 99)
        for i, g in enumerate(golds(48))
    ]
    answered(folder, rows)
    done = process("compare", "dpo", "ipo", "--results", two)
    assert done.code == 0, done.text
    lines = done.out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= WIDTH
    assert "\x1b" not in done.out and "\x07" not in done.out and "[31mred" in done.out
    assert "dpo beats ipo by 0.375" in lines[-2]


def test_as_json_is_complete_without_nan(two):
    done = process("compare", "dpo", "ipo", "--results", two, "--format", "json")
    told = json.loads(done.out, parse_constant=lambda name: pytest.fail(name))
    assert told["a"]["name"] == "dpo" and told["a"]["seeds"] == [0] and told["head"]["wins"] == 24
    assert told["measures"][0]["difference"]["difference"] == 0.375
    assert told["controlled"][0]["win_rate"]["seed_sd"] is None
    found, _ = compared(two, ("dpo", "ipo"), Filter()).controlled
    assert math.isnan(found.win_rate.seed_sd)  # which is what null stands for
    assert json.loads(as_json([compared(two, ("dpo", "ipo"), Filter())])) == told


def test_compare_command_refuses_in_one_line(two):
    done = process("compare", "dpo", "ip", "--results", two)
    assert (
        done.code == 2
        and done.out == ""
        and done.err.count("\n") == 1
        and "Did you mean 'ipo'?" in done.err
    )


def test_compare_command_shows_every_suite_with_both(tmp_path):
    for suite in ("one", "two"):
        for method in ("dpo", "ppo"):
            run(tmp_path, method, 0, 1.0 if method == "dpo" else 2.0, suite=suite)
    run(tmp_path, "dpo", 0, 1.0, suite="three")
    assert suites_to_compare(tmp_path, ("dpo", "ppo"), Filter()) == ["one", "two"]
    done = command("compare", "dpo", "ppo", "--results", tmp_path)
    heads = [line for line in done.out.splitlines() if line.endswith("the same for both")]
    assert done.code == 0 and [h.split(":")[0] for h in heads] == ["one", "two"], done.text
    done = command("compare", "dpo", "ppo", "--results", tmp_path, "--format", "json")
    assert [c["suite"] for c in json.loads(done.out)] == ["one", "two"]
    with pytest.raises(UsageError, match="Did you mean 'dpo'"):
        suites_to_compare(tmp_path, ("dpoo", "ppo"), Filter())
    run(tmp_path, "ipo", 0, 1.0, suite="four")
    with pytest.raises(UsageError, match="No suite has runs of both ppo and ipo"):
        suites_to_compare(tmp_path, ("ppo", "ipo"), Filter())
