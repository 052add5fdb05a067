"""Methods at an equal value: exact on straight lines and at nodes, refused outside, intervals of
the mix.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import UsageError
from harness.core.records import write_sealed
from harness.report.selection.select import rows_of
from harness.report.selection.sweeps import scores_of, sweeps
from harness.report.tables.match import COLUMNS, QUANTITIES, matched, parse_match
from harness.statistics.compare import best_group
from harness.statistics.intervals import two_way_interval, win_rate_interval

from ..helpers.tools import failure, put, record
from ..helpers.toy_runs import chosen, run


def sweep(results, method="ppo", kls=(1.0, 2.0, 4.0), seeds=2, gold=None, cost=None):
    """A sweep of beta, its first point of the largest beta."""
    for i, kl in enumerate(kls):
        for seed in range(seeds):
            more = {} if gold is None else {"gold": gold}
            own = cost(i) if cost else {}
            run(results, method, seed, kl, {"beta": 1 / (i + 1)}, cost=own, **more)
    return chosen(results)


def by_name(table):
    return {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


def plain(table):
    return {row["method"]: row for row in table.plain}


def test_matched_is_exact_on_a_straight_line(tmp_path):
    selection = sweep(tmp_path, gold=lambda d: 0.5 * d * d)  # gold is linear in KL
    for kl in (1.0, 1.3, 2.0, 3.9, 4.0):
        (row,) = matched(selection, "kl", kl).plain
        assert row["kl"] == pytest.approx(kl) and row["gold"] == pytest.approx(1 + 0.5 * kl)
        assert row["low_at"] <= kl + 1e-9 and kl <= row["high_at"] + 1e-9


def test_matched_at_a_point_is_its_row(tmp_path):
    selection = sweep(tmp_path)
    node = next(row for row in selection.rows if "beta=0.5" in row.name)
    kl = node.mean("kl")
    table = matched(selection, "kl", kl)
    (row,) = table.plain
    scores = scores_of(node)
    own = win_rate_interval(scores["win_rate"])
    assert (row["win_rate"], row["win_rate_low"], row["win_rate_high"]) == (
        own.mean,
        own.low,
        own.high,
    )
    assert row["share"] == 0 and str(by_name(table)["ppo"]["between"]) == "at beta=0.5"
    assert sorted(table.runs[0]) == sorted(r["folder"] for r in node.good)


def test_matched_intervals_are_of_the_mixed_scores(tmp_path):
    selection = sweep(tmp_path)
    low, high = (
        scores_of(next(r for r in selection.rows if b in r.name))
        for b in ("beta=0.5", "beta=0.333")
    )
    table = matched(selection, "kl", 2.5)
    (row,) = table.plain
    mix = {name: 0.75 * low[name] + 0.25 * high[name] for name in low}
    won, kl = win_rate_interval(mix["win_rate"]), two_way_interval(mix["kl"])
    assert (row["win_rate"], row["win_rate_low"], row["win_rate_high"]) == pytest.approx(
        (won.mean, won.low, won.high)
    )
    assert (row["kl"], row["kl_low"], row["kl_high"]) == pytest.approx((kl.mean, kl.low, kl.high))
    cells = by_name(table)["ppo"]
    assert (
        str(cells["between"]) == "beta=0.5 (75%), beta=0.333333 (25%)"
        and str(cells["seeds"]) == "2"
    )
    assert cells["win-rate vs baseline [95 %]"].interval == f"[{won.low:.3f}, {won.high:.3f}]"
    assert len(table.runs[0]) == 4  # two seeds of either neighbour


@pytest.fixture(scope="module")
def rising(tmp_path_factory):
    """A sweep whose gold reward rises with KL."""
    return sweep(tmp_path_factory.mktemp("rising"), seeds=1)


@settings(max_examples=25, deadline=None)
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_matched_keeps_the_order_of_a_rising_curve(rising, a, b):
    selection, (low, high) = rising, sorted((1 + 3 * a, 1 + 3 * b))
    first, second = (matched(selection, "kl", kl).plain[0] for kl in (low, high))
    assert first["gold"] <= second["gold"] + 1e-9 and first["kl"] <= second["kl"] + 1e-9


def test_matched_does_not_extrapolate(tmp_path):
    sweep(tmp_path, "dpo", (0.5, 1.5))
    selection = sweep(tmp_path, "ppo", (1.0, 4.0))
    table = matched(selection, "kl", 3.0)
    assert [str(row[0]) for row in table.rows] == ["ppo", "dpo"]
    assert (
        str(by_name(table)["dpo"]["win-rate vs baseline [95 %]"])
        == "not reached: its points are at 0.5 to 1.5"
    )
    assert "gold" not in plain(table)["dpo"] and plain(table)["dpo"]["high_at"] == pytest.approx(
        1.5
    )
    assert all(len(row) == len(COLUMNS) for row in table.rows)
    below = matched(selection, "kl", 0.7)
    assert "not reached" in plain(below)["ppo"]["why"] and "gold" in plain(below)["dpo"]


def test_matched_gives_no_mix_for_one_point(tmp_path):
    run(tmp_path, "start", 0, 0.0)
    table = matched(sweep(tmp_path, seeds=1), "kl", 2.5)
    assert plain(table)["start"]["why"] == "one point, at 0" and "gold" in plain(table)["ppo"]


def test_matched_defaults_to_the_largest_common_value(tmp_path):
    sweep(tmp_path, "dpo", (0.5, 1.5, 2.5))
    run(tmp_path, "start", 0, 0.0)
    selection = sweep(tmp_path, "ppo", (1.0, 4.0))
    table = matched(selection, "kl")
    assert table.title == "toy: at 2.5 nats of KL, the largest that all sweeps reach"
    assert plain(table)["dpo"]["share"] == 0 and plain(table)["ppo"]["share"] == pytest.approx(0.5)
    assert matched(selection, "kl", 2.0).title == "toy: at 2 nats of KL"


def test_matched_refuses_sweeps_without_a_common_value(tmp_path):
    sweep(tmp_path, "dpo", (0.5, 1.0))
    selection = sweep(tmp_path, "ppo", (2.0, 4.0))
    with pytest.raises(
        UsageError,
        match=r"No value of nats of KL is within all sweeps.*dpo: 0.5 to 1.*--match kl=VALUE",
    ):
        matched(selection, "kl")


def test_matched_refuses_rows_without_a_sweep(tmp_path):
    run(tmp_path, "start", 0, 0.0)
    run(tmp_path, "ppo", 0, 2.0)
    with pytest.raises(UsageError, match="Nothing to match"):
        matched(chosen(tmp_path), "kl")
    with pytest.raises(UsageError, match="Nothing to match"):
        matched(sweep(tmp_path, "dpo", seeds=1), "flops")  # the same for every beta


def test_matched_orders_points_by_the_quantity(tmp_path):
    """KL goes 1, 4, 2 along beta: both segments hold 3; taken are the points next to it, 2 and 4,
    not 1 and 4.
    """
    table = matched(sweep(tmp_path, kls=(1.0, 4.0, 2.0)), "kl", 3.0)
    (row,) = table.plain
    assert (row["low_at"], row["high_at"]) == pytest.approx((2.0, 4.0)) and row[
        "share"
    ] == pytest.approx(0.5)
    assert str(table.rows[0][-1]) == "beta=0.333333 (50%), beta=0.5 (50%)"


def test_matched_does_not_choose_between_equal_points(tmp_path):
    selection = sweep(tmp_path, cost=lambda i: {"flops": 1e12 if i < 2 else 2e12})
    for value in (1e12, 1.5e12):
        with pytest.raises(UsageError, match="No sweep reaches .*not one curve: beta=.*--where"):
            matched(selection, "flops", value)
    assert "gold" in matched(selection, "flops", 2e12).plain[0]


def test_matched_does_not_mix_different_numbers_of_seeds(tmp_path):
    for seed in range(2):
        run(tmp_path, "ppo", seed, 1.0, {"beta": 0.2})
    run(tmp_path, "ppo", 0, 2.0, {"beta": 0.1})
    selection = chosen(tmp_path)
    with pytest.raises(UsageError, match="seeds differ .2 of beta=0.2 and 1 of beta=0.1."):
        matched(selection, "kl", 1.5)
    table = matched(selection, "kl", 2.0)  # on a point nothing is mixed
    assert table.plain[0]["seeds"] == 1


def test_matched_bold_is_the_best_group_of_mixes(tmp_path):
    for name, level in (("dpo", 2.0), ("ppo", 1.9), ("kto", 0.0)):
        sweep(tmp_path, name, (1.0, 3.0), 3, gold=lambda d, level=level: level)
    selection = chosen(tmp_path)
    table = matched(selection, "kl", 2.0)
    mixes = {}
    for one in sweeps(selection.rows):
        first, second = (scores_of(row)["win_rate"] for row in one.rows)
        mixes[one.name] = 0.5 * first + 0.5 * second
    bold = {str(row[0]): row[2].bold for row in table.rows}
    assert bold == best_group(mixes) and set(bold.values()) == {True, False}
    means = {name: m.mean() for name, m in mixes.items()}
    assert [str(row[0]) for row in table.rows if row[2].best] == [max(means, key=means.get)]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_matched_accepts_every_quantity(tmp_path, quantity):
    def cost(i):
        return {
            "flops": 1e12 * (i + 1),
            "seconds": 10.0 * (i + 1),
            "tokens_generated": 100 * i,
            "tokens_trained": 900,
        }

    selection = sweep(tmp_path, kls=(1.0, 2.0, 3.0), cost=cost)
    middle = {"kl": 1.5, "flops": 1.5e12, "seconds": 15.0, "tokens": 950.0}[quantity]
    (row,) = matched(selection, quantity, middle).plain
    assert row["share"] == pytest.approx(0.5) and row["kl"] == pytest.approx(1.5)
    assert row["flops"] == pytest.approx(1.5e12)


def broken(results, method="ppo", seed=0, beta=0.1):
    """A failed run of a setting of `sweep`, or of one with no finished run."""
    options = {"beta": beta}
    put(results, failure(method, seed, recipe=f"{method} beta={beta} on toy", options=options))


def test_matched_shows_failed_rows_apart(tmp_path):
    sweep(tmp_path, kls=(1.0, 2.0), seeds=1)
    broken(tmp_path, beta=0.7)
    broken(tmp_path, "kto")
    made = matched(chosen(tmp_path), "kl", 1.5)
    assert made.plain[0]["share"] == pytest.approx(0.5)
    shown = by_name(made)
    assert list(shown) == ["ppo", "kto", "ppo (beta=0.7)"]
    for name in ("kto", "ppo (beta=0.7)"):
        assert str(shown[name]["seeds"]) == "0/1"
        assert str(shown[name]["win-rate vs baseline [95 %]"]).startswith("failed: The loss is nan")
        assert "gold" not in plain(made)[name] and plain(made)[name]["failed"] == 1
    assert all(len(row) == len(COLUMNS) for row in made.rows)
    assert len(made.runs) == len(made.rows) == len(made.plain)


def test_matched_names_failures_if_no_sweep_matches(tmp_path):
    sweep(tmp_path, kls=(1.0, 2.0), seeds=1)
    broken(tmp_path, "kto")
    with pytest.raises(UsageError, match=r"ppo: not reached.*kto: failed: The loss is nan"):
        matched(chosen(tmp_path), "kl", 7.0)


def test_matched_footnotes_failed_seeds(tmp_path):
    sweep(tmp_path, kls=(1.0, 2.0, 4.0))
    broken(tmp_path, seed=2, beta=0.5)
    broken(tmp_path, seed=3, beta=1.0)
    selection = chosen(tmp_path)
    made = matched(selection, "kl", 3.0)
    cell = by_name(made)["ppo"]["seeds"]
    assert str(cell) == "2/3 or 2" and made.plain[0]["seeds"] == 2 and made.plain[0]["failed"] == 1
    assert (
        [made.footnotes[m] for m in cell.marks]
        == list(made.footnotes.values())
        == [made.plain[0]["footnotes"]]
    )
    assert made.footnotes["a"].startswith("1 of 3 runs failed (1 diverged)")
    assert any("settings that are not shown: ppo (beta=1.0) 2/3" in note for note in made.notes)
    assert not any("that are not shown" in note for note in matched(selection, "kl", 1.5).notes)


def test_matched_footnotes_budgets(tmp_path):
    selection = sweep(tmp_path, kls=(1.0, 2.0), seeds=1)
    for row in selection.rows:
        write_sealed(
            Path(row.good[0]["folder"]) / "spec.json", {"stages": {}, "budget": {"steps": 100}}
        )
    made = matched(selection, "kl", 1.5)
    assert made.footnotes == {"a": "Budget: steps 100."} and made.rows[0][1].marks == ("a",)


def test_matched_caption_names_tests_and_seeds(tmp_path):
    alone = matched(sweep(tmp_path / "a", seeds=1), "kl", 1.5).caption
    assert "One seed per row" in alone and "not to the algorithms" in alone and "Bold" not in alone
    for name, best in (
        ("dpo", 0.5),
        ("ppo", 0.6),
        ("kto", 0.7),
    ):  # the same scores thrice would be no pool
        selection = sweep(tmp_path / "b", name, (1.0, 3.0), 3, gold=lambda d, best=best: best * d)
    told = matched(selection, "kl", 2.0).caption
    assert (
        "mean over 3 seeds with 95 % intervals over seeds and prompts" in told
        and "pooled over alike rows" in told
    )
    assert (
        "by t-tests paired over prompts" in told and "corrected stepwise from all 3 pairs" in told
    )
    two = matched(chosen(tmp_path / "b", methods=["dpo", "ppo"]), "kl", 2.0)
    assert "pooled" not in two.caption and "corrected stepwise from all 1 pairs" in two.caption
    assert (
        two.title == "toy (only dpo, ppo): at 2 nats of KL"
        and "on toy (only dpo, ppo), ties half" in two.caption
    )


def test_matched_does_not_mark_a_single_mix(tmp_path):
    (row,) = matched(sweep(tmp_path), "kl", 1.5).rows
    assert not any(cell.bold or cell.best for cell in row)


def test_matched_marks_an_estimated_kl(tmp_path):
    for n, kl in ((4, 0.6), (16, 1.7)):
        run(tmp_path, "best_of_n", 0, kl, {"n": n})
    made = matched(sweep(tmp_path, kls=(0.5, 2.0), seeds=1), "kl", 1.0)
    shown = {name: str(row["KL (nats)"]) for name, row in by_name(made).items()}
    assert shown == {"best_of_n": "1.00 (est.)", "ppo": "1.00"}
    assert any(
        "at most log n - (n-1)/n: best_of_n (n=4) 0.64; best_of_n (n=16) 1.84." in note
        for note in made.notes
    )


def test_matched_names_unfinished_runs(tmp_path):
    sweep(tmp_path, seeds=1)
    folder = tmp_path / "runs" / "toy" / "ppo" / "seed9-000000000000"
    folder.mkdir()
    write_sealed(folder / "spec.json", {})
    assert any(
        "Not finished, and left out: 1 run (ppo seed9-" in n
        for n in matched(chosen(tmp_path), "kl", 1.5).notes
    )


def test_matched_refuses_mixed_runs(tmp_path):
    sweep(tmp_path, kls=(1.0, 2.0), seeds=1)
    with pytest.raises(UsageError, match="leave --mixed out"):
        matched(chosen(tmp_path, mixed=True), "kl", 1.5)


def test_parse_match_reads_quantity_and_value():
    assert parse_match("kl") == ("kl", None) and parse_match("flops=1e12") == ("flops", 1e12)
    with pytest.raises(UsageError, match="Did you mean 'flops'"):
        parse_match("flop=3")
    for text in ("kl=", "kl=much", "kl=nan", "kl=-1", "kl=inf"):
        with pytest.raises(UsageError, match="a value is a number"):
            parse_match(text)
    with pytest.raises(UsageError, match="quantity to match"):
        matched(None, "steps")


# -- sweeps ----------------------------------------------------------------------------------------


def test_sweeps_differ_in_numbers_only():
    records = [
        record(
            "dpo",
            recipe=f"{beta} {shuffled}",
            options={"beta": beta, "shuffle": shuffled, "kind": None},
        )
        for beta, shuffled in ((0.1, False), (0.3, False), (0.1, True))
    ] + [record("ppo", options={"beta": 0.1})]
    found = {s.name: s for s in sweeps(rows_of(records))}
    assert set(found) == {"dpo (shuffle=False)", "dpo (beta=0.1, shuffle=True)", "ppo"}
    one = found["dpo (shuffle=False)"]
    assert one.options == ("beta",) and {one.point(row) for row in one.rows} == {
        "beta=0.1",
        "beta=0.3",
    }
    assert {one.value(row) for row in one.rows} == {
        "0.1",
        "0.3",
    } and one.title == "dpo (shuffle=False), over beta"


def test_sweeps_keep_entries_of_a_study_apart():
    records = [
        record(
            "dpo", recipe=str(beta), options={"beta": beta}, label=f"{entry} {beta}", entry=entry
        )
        for entry, beta in (("a", 0.1), ("a", 0.2), ("b", 0.3), ("b", 0.4))
    ]
    assert {s.name: len(s.rows) for s in sweeps(rows_of(records))} == {"a": 2, "b": 2}


def test_sweeps_name_options_set_by_hand():
    records = [
        record(
            "dpo",
            recipe=str(steps),
            options={"steps": steps, "warmup": steps // 10},
            asked=["steps"],
        )
        for steps in (100, 200)
    ]
    (found,) = sweeps(rows_of(records))
    assert found.options == ("steps",)


def test_scores_of_are_by_seed_and_prompt(tmp_path):
    for seed in (1, 0):
        run(tmp_path, "ppo", seed, 2.0)
    (row,) = chosen(tmp_path).rows
    scores = scores_of(row)
    assert {m.shape for m in scores.values()} == {(2, 48)} and set(scores) == {
        "win_rate",
        "gold",
        "proxy",
        "kl",
        "length",
    }
    for figure, matrix in scores.items():
        expected = [r["evaluation"][figure]["mean"] for r in row.good]
        assert matrix.mean(1) == pytest.approx(expected) and np.isfinite(matrix).all()
    assert [r["seed"] for r in row.good] == [0, 1] and not math.isclose(*scores["gold"][:, 0])


def test_scores_of_refuses_seeds_on_other_prompts(tmp_path):
    for seed in (0, 1):
        run(tmp_path, "ppo", seed, 2.0)
    (row,) = chosen(tmp_path).rows
    file = tmp_path / "runs" / "toy" / "ppo"
    first, _ = sorted(file.glob("*/samples.jsonl"))
    first.write_text(first.read_text().replace('test/3"', 'test/99"'))
    with pytest.raises(UsageError, match="answered different prompts"):
        scores_of(row)
