"""Tables, comparisons and plots of studies with several grounds (shared seeds)."""

import csv
import io
from random import Random
from statistics import fmean

import numpy as np
import pytest
from harness_plugins.reporters import CSV, LaTeX

from harness.core.errors import UsageError
from harness.core.run_folder import write_rows
from harness.report.comparison.compare import compared
from harness.report.comparison.side_by_side import parts
from harness.report.plots import KINDS, render
from harness.report.plots.curves import curve_of
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.selection.sweeps import prompts_of_all_grounds
from harness.report.tables.tables import comparison
from harness.statistics.compare import compare
from harness.statistics.intervals import SEVERAL_GROUNDS, win_rate_interval

from ..helpers.tools import estimate, put, record, samples

RATES = {"ppo": 0.8, "dpo": 0.75, "kto": 0.4, "ipo": 0.38}
PROMPTS = 64


def run_of(method, ground, seed, rate, **more):
    """A record on a ground, and its scores against the baseline."""
    rng = Random(f"{method}/{ground}/{seed}")
    scores = [float(rng.random() < rate) for _ in range(PROMPTS)]
    conditions = {
        name: f"{name}-{ground}"
        for name in ("start_checkpoint", "preferences", "evaluation_prompts", "reward_model")
    } | {"judge": "gold/1"}
    made = record(
        method,
        seed,
        fmean(scores),
        shared_seed=ground,
        recipe=f"{method}-{ground}",
        recipe_of_any_ground=method,
        **{"ground": conditions, **more},
    )
    made["evaluation"] |= {"gold": estimate(2 * fmean(scores))}
    return made, scores


def put_runs(results, *pairs):
    for made, scores in pairs:
        before = set(results.glob("runs/*/*/*"))
        put(results, made)
        (folder,) = set(results.glob("runs/*/*/*")) - before
        rows = [
            row | {"win": w, "gold": 2 * w} for row, w in zip(samples(made), scores, strict=True)
        ]
        write_rows(folder / "samples.jsonl", rows)
    return results


def grid(rates=None, grounds=(0, 1, 2), seeds=(0, 1, 2)):
    return [
        run_of(method, ground, seed, rate)
        for method, rate in (rates or RATES).items()
        for ground in grounds
        for seed in seeds
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return put_runs(tmp_path_factory.mktemp("grounds"), *grid())


def matrix(method):
    """Scores (9, P) by ground and seed."""
    return np.array([run_of(method, g, s, RATES[method])[1] for g in range(3) for s in range(3)])


OF_RUNS = [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_row_of_several_grounds_has_three_way_intervals(study):
    made = comparison(select(study, Filter()))
    assert [str(row[1]) for row in made.rows] == ["3 x 3"] * 4
    for row in csv.DictReader(io.StringIO(CSV().render(made))):
        found = win_rate_interval(matrix(row["method"]), grounds=OF_RUNS)
        ends = [float(row[f"win_rate{end}"]) for end in ("", "_low", "_high", "_ground_sd")]
        assert ends == pytest.approx([found.mean, found.low, found.high, found.ground_sd])
        assert (row["grounds"], row["shared_seeds"], row["seeds"]) == ("3", "0 1 2", "9")
        assert row["win_rate_speaks_for"] == SEVERAL_GROUNDS
    bold = {str(row[0]): row[2].bold for row in made.rows}
    assert bold == {"ppo": True, "dpo": True, "kto": False, "ipo": False}
    for text in (
        "mean over 3 grounds (shared seeds 0, 1, 2) of 3 seeds each",
        "95 % intervals over grounds, seeds and prompts",
        "paired over grounds and prompts",
        "the variance between grounds pooled",
    ):
        assert text in made.caption and text.replace("%", r"\%") in LaTeX().render(made)


def test_one_ground_is_said_to_be_one_ground(tmp_path):
    put_runs(tmp_path, *grid({"ppo": 0.8, "dpo": 0.4}, grounds=(2,)))
    made = comparison(select(tmp_path, Filter()))
    assert "All runs are on one ground (shared seed 2): one start checkpoint" in made.caption
    assert "grounds" not in made.plain[0] and str(made.rows[0][1]) == "3"


def test_rows_without_a_common_ground_are_refused(tmp_path):
    put_runs(tmp_path, run_of("ppo", 0, 0, 0.8), run_of("dpo", 1, 0, 0.4))
    with pytest.raises(UsageError, match="have no ground in common.*ppo: 0; dpo: 1"):
        select(tmp_path, Filter())
    made = comparison(select(tmp_path, Filter(mixed=True)))
    assert "Nothing is bold" in made.caption
    with pytest.raises(UsageError, match="no ground in common"):
        compared(tmp_path, ("ppo", "dpo"), Filter())


def test_runs_of_one_ground_must_share_its_conditions(tmp_path):
    """Negative control: other grounds may differ in them."""
    runs = grid({"ppo": 0.8, "dpo": 0.4}, seeds=(0,))
    put_runs(tmp_path, *runs)
    select(tmp_path, Filter())
    other = run_of("kto", 1, 0, 0.5)
    other[0]["ground"]["preferences"] = "others"
    put_runs(tmp_path, other)
    with pytest.raises(UsageError, match="differ in preferences"):
        select(tmp_path, Filter())


def test_row_without_a_run_on_a_ground_has_a_footnote(tmp_path):
    put_runs(tmp_path, *grid({"ppo": 0.8, "dpo": 0.4}), *grid({"kto": 0.5}, grounds=(0, 2)))
    made = comparison(select(tmp_path, Filter()))
    notes = {f["method"]: f.get("footnotes", "") for f in made.plain}
    assert "No finished run on 1 of 3 grounds" in notes["kto"] and not notes["ppo"]
    assert "mean over 2 to 3 grounds" in made.caption


def test_each_run_of_a_ground_is_a_row_with_its_shared_seed(study):
    selection = select(study, Filter(each=True))
    assert "ppo, seed 1, shared seed 2" in {row.name for row in selection.rows}
    assert "Nothing is bold" in comparison(selection).caption


def test_compare_pairs_over_grounds(study):
    found = compared(study, ("ppo", "kto"), Filter())
    difference = found.measures[0].difference
    direct = compare(matrix("ppo"), matrix("kto"), grounds=(OF_RUNS, OF_RUNS))
    assert (difference.low, difference.high) == pytest.approx((direct.low, direct.high))
    assert found.head.wins + found.head.ties + found.head.losses == 3 * PROMPTS
    text = "\n".join(str(part) for part in parts(found))
    assert "on shared seeds 0, 1, 2" in text and "runs on 3 grounds" in found.verdict


def test_plots_are_drawn_of_several_grounds(study):
    selection = select(study, Filter())
    for kind in ("frontier", "cost", "wins"):
        assert kind in KINDS and render(kind, selection, "svg")
    rows = selection.rows
    side = prompts_of_all_grounds(rows, [matrix(row.method) for row in rows])
    assert {one.shape for one in side} == {(3, 3 * PROMPTS)}


def test_bands_of_curves_are_over_grounds():
    seeds = [{1.0: float(v)} for v in (1, 3, 5, 7)]
    found = curve_of(seeds, (0, 0, 1, 1))
    assert (found.mean, found.seeds) == ([4.0], 2)
    assert found.half == curve_of([{1.0: 2.0}, {1.0: 6.0}]).half
    assert curve_of(seeds, (0, 0, 0, 0)).seeds == 4
