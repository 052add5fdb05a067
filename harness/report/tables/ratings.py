"""A table of ratings: every row against the baseline, with and without control for style."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.errors import UsageError
from ...core.table import Cell, Table
from ...statistics.intervals import Array, win_rate_interval
from ...statistics.rating import Rating
from ...statistics.style import BASE, StyleControlled, differences, style_controlled, style_of
from ..selection.figures import answers_of, complete, of_prompts
from ..selection.run_files import length_is_bias, samples_of
from ..selection.select import Row, Selection
from .captions import conditions
from .columns import WITHHELD

NO_BIAS = (
    "There are no ratings at equal style: the judge scores what an answer contains, so length and"
    " form are no bias of it."
)


def ratings_table(selection: Selection) -> Table:
    """Return the Bradley-Terry ratings of the rows of a selection against the baseline.

    Raises:
        UsageError: No row has a win-rate, or rows have no prompt with a verdict in common.
    """
    rows = [row for row in selection.rows if row.good]
    wins, style = _battles(rows, selection)
    grounds = {row.name: row.grounds for row in rows if row.name in wins}
    found = style_controlled(wins, style, grounds)
    of_judge = all(length_is_bias(record) for record in selection.good)
    shown = of_judge and found.identified
    names = sorted(wins, key=lambda name: -(found.controlled if shown else found.raw)[name].elo)
    seeds = {row.name: row.seeds for row in rows}
    plain = [_figures(name, wins, style, grounds, found, shown) for name in names]
    return Table(
        title=f"ratings: {selection.description}: {conditions(selection)}",
        columns=["method", "seeds", "win-rate [95 %]", "rating [95 %]"]
        + (["rating at equal style [95 %]"] if shown else [])
        + ["answer / baseline (characters)"],
        rows=[_cells(one, seeds[str(one["method"])], shown) for one in plain],
        notes=[*_style_notes(found, of_judge), *_left_out(selection, wins)],
        plain=[one | {"seeds": seeds[str(one["method"])]} for one in plain],
        caption=(
            f"Bradley-Terry ratings in Elo points from {found.battles} battles against the"
            f" baseline, which has {BASE:.0f}. 95 % intervals are over seeds and prompts."
        ),
        runs=[[r["folder"] for r in row.records] for row in _in_order(rows, names)],
    )


def _in_order(rows: list[Row], names: list[str]) -> list[Row]:
    by_name = {row.name: row for row in rows}
    return [by_name[name] for name in names]


def _battles(rows: list[Row], selection: Selection) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return outcomes (S, P) and differences of style (S, P, K) on the prompts that all have."""
    every = {row.name: answers_of(row) for row in rows}
    wins = {name: own.win for name, own in every.items() if own.win is not None}
    if not wins:
        reason = selection.no_win_rate or "no run of it has a win-rate"
        raise UsageError(f"There are no ratings of {selection.suite}: {reason}.")
    if len({own.shape[1] for own in wins.values()}) > 1:
        raise UsageError("Rows were evaluated on unlike numbers of prompts: they have no ratings.")
    kept = complete(*wins.values())
    if kept.sum() < 2:
        raise UsageError("Fewer than two prompts have a verdict in all rows: there are no ratings.")
    style = {row.name: _styles(row)[:, kept] for row in rows if row.name in wins}
    return {name: of_prompts(own, kept) for name, own in wins.items()}, style


def _styles(row: Row) -> Array:
    """Return the differences of style (S, P, K) of a row's answers to the baseline's."""
    texts = [
        [[style_of(s["answer"]), style_of(s["baseline"])] for s in samples_of(r)] for r in row.good
    ]
    features = np.array(texts, dtype=np.float64)  # (S, P, 2, K)
    return differences(features[:, :, 0], features[:, :, 1])


def _figures(
    name: str,
    wins: dict[str, Array],
    style: dict[str, Array],
    grounds: dict[str, tuple[int, ...]],
    found: StyleControlled,
    shown: bool,
) -> dict[str, Any]:
    """Return the unrounded figures of a row."""
    win = win_rate_interval(wins[name], grounds=grounds[name])
    gap = float(style[name][..., 0].mean())  # (a - b) / (a + b)
    figures: dict[str, Any] = {
        "method": name,
        "win_rate": win.mean,
        "win_rate_low": win.low,
        "win_rate_high": win.high,
        **_named("rating", found.raw[name]),
        "length_ratio": (1 + gap) / (1 - gap) if gap < 1 else float("inf"),
    }
    return figures | (_named("style_rating", found.controlled[name]) if shown else {})


def _named(name: str, rating: Rating) -> dict[str, float]:
    return {name: rating.elo, f"{name}_low": rating.low, f"{name}_high": rating.high}


def _cells(one: dict[str, Any], seeds: str, shown: bool) -> list[Cell]:
    def cell(name: str, form: str) -> Cell:
        low, high = one[f"{name}_low"], one[f"{name}_high"]
        return Cell(f"{one[name]:{form}}", f"[{low:{form}}, {high:{form}}]")

    ratings = [cell(name, ".0f") for name in ("rating", *(["style_rating"] if shown else []))]
    ratio = Cell(f"{one['length_ratio']:.2f}" if np.isfinite(one["length_ratio"]) else WITHHELD)
    return [Cell(str(one["method"])), Cell(seeds), cell("win_rate", ".3f"), *ratings, ratio]


def _style_notes(found: StyleControlled, of_judge: bool) -> list[str]:
    """Return what control for style did, or why there is none."""
    if not of_judge:
        return [NO_BIAS]
    if not found.identified:
        return [
            "There are no ratings at equal style: fewer than 5 % of the answers are at least as"
            " long, or at least as short, as the baseline's, so they would be an extrapolation."
        ]
    listed = "; ".join(
        f"{name} {one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
        for name, one in found.coefficients.items()
    )
    return [
        "Equal style: a logistic regression of the outcomes on the rows and on the differences"
        " (a - b) / (a + b) of length in characters, headers, list items and bold text, divided by"
        " their standard deviations (Arena-Hard's style control). Change of the log-odds of a win"
        f" for one standard deviation: {listed}."
    ]


def _left_out(selection: Selection, wins: dict[str, Array]) -> list[str]:
    names = [row.name for row in selection.rows if row.name not in wins]
    return [f"Without a win-rate, and left out: {', '.join(names)}."] if names else []
