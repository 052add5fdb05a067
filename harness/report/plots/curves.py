"""Learning curves: metrics that methods log in training, and figures of evaluated snapshots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ...core.records import Damaged, show_damaged
from ...core.run_folder import METRICS, rows_behind
from ...statistics.over_prompts import t_quantile
from ..selection.filters import Record
from ..selection.select import Row, Selection
from ..selection.sweeps import sweeps
from .style import Look, NothingToDraw, beside, handle, height, look, note, panels, plain_ticks

ROLLOUTS = {  # in metrics.jsonl, by the names that all methods share
    "reward": "reward of rollouts",
    "kl": "KL of rollouts, nats",
    "length": "length of rollouts, tokens",
}
LOSS = "loss, where no rollouts"
KEPT = {"win_rate": "win-rate vs baseline", "gold": "gold reward"}  # of snapshots
COLUMNS = 2


@dataclass(frozen=True)
class Curve:
    """A figure along training: the mean over seeds, with Student's 95 % interval over them, or
    over grounds.
    """

    steps: Sequence[float]
    mean: Sequence[float]
    half: Sequence[float]  # ends of the interval; nan with one seed
    seeds: int  # or grounds


def draw(selection: Selection) -> Any:
    """Return the figure: a panel for each metric that any run has."""
    rows = [
        (row, look(i))
        for i, row in enumerate(row for s in sweeps(selection.rows) for row in s.rows)
    ]
    shown = _shown(rows)
    if not shown:
        raise NothingToDraw(
            f"No run of {selection.suite} logged a reward, KL, length or loss or kept snapshots"
            " (--snapshots 8): there is no learning curve to draw."
        )
    lines = math.ceil(len(shown) / COLUMNS)
    figure, axes = panels(
        lines, COLUMNS, height(0.5 + 1.9 * lines, [_label(row) for row, _ in rows])
    )
    for axis, (label, curves) in zip(axes, shown.items(), strict=False):
        _draw_panel(axis, label, curves)
    for axis in axes[len(shown) :]:
        axis.remove()
    drawn = {row.name for curves in shown.values() for row, _, _ in curves}
    beside(
        figure,
        [handle(_label(row), **how.line, **_sparse(how)) for row, how in rows if row.name in drawn],
    )
    note(figure, _note(selection))
    return figure


def _shown(rows: Sequence[tuple[Row, Look]]) -> dict[str, list[tuple[Row, Look, Curve]]]:
    """Return {label of a panel: its curves}, without empty panels.

    Losses of different methods have different scales. They are shown for rows that log nothing
    else, on a logarithmic axis.
    """
    shown = {label: _curves(rows, name, logged_of) for name, label in ROLLOUTS.items()}
    with_rollouts = {row.name for curves in shown.values() for row, _, _ in curves}
    shown[LOSS] = _curves(
        [(row, how) for row, how in rows if row.name not in with_rollouts], "loss", logged_of
    )
    shown |= {label: _curves(rows, name, snapshots_of) for name, label in KEPT.items()}
    return {label: curves for label, curves in shown.items() if curves}


def curve_of(seeds: Sequence[Mapping[float, float]], grounds: Sequence[int] = ()) -> Curve:
    """Return the mean over seeds, with its interval, at the steps that all seeds have.

    Args:
        seeds: {step: value} of each seed.
        grounds: The ground of each seed; with several, the interval is over grounds.
    """
    steps = sorted(set.intersection(*(set(s) for s in seeds)))
    several = sorted(set(grounds)) if len(set(grounds)) > 1 else []
    groups = [
        [s for s, ground in zip(seeds, grounds, strict=True) if ground == one] for one in several
    ] or [[s] for s in seeds]
    values = [[fmean(s[step] for s in group) for group in groups] for step in steps]
    n = len(groups)
    t = t_quantile(0.975, n - 1) if n > 1 else math.nan
    half = [t * stdev(v) / math.sqrt(n) if n > 1 else math.nan for v in values]
    return Curve(steps, [fmean(v) for v in values], half, n)


def logged_of(record: Record, name: str) -> dict[float, float]:
    """Return {step: value} of a logged metric; empty if the run has none, or damaged ones."""
    if not (Path(record["folder"]) / METRICS).exists():
        return {}
    try:
        rows = rows_behind(record, METRICS)
    except Damaged as error:
        show_damaged(error)
        return {}
    return {float(r["step"]): float(r[name]) for r in rows if r.get(name) is not None}


def snapshots_of(record: Record, name: str) -> dict[float, float]:
    """Return {step: value} of a figure of a run's snapshots; empty without snapshots."""
    return {
        float(p["step"]): float(p[name]) for p in record["evaluation"].get("curve", []) if name in p
    }


def _curves(
    rows: Sequence[tuple[Row, Look]], name: str, read: Any
) -> list[tuple[Row, Look, Curve]]:
    """Return the curves of rows with a metric at two or more common steps."""
    curves = []
    for row, how in rows:
        curve = curve_of([read(record, name) for record in row.good], row.grounds)
        if len(curve.steps) > 1:
            curves.append((row, how, curve))
    return curves


def _draw_panel(axis: Any, label: str, curves: Sequence[tuple[Row, Look, Curve]]) -> None:
    for row, how, curve in curves:
        every = max(1, len(curve.steps) // 6)
        thin = {"linewidth": 0.9, "markevery": every, "zorder": 2}
        axis.plot(curve.steps, curve.mean, label=row.name, **how.line, **_sparse(how), **thin)
        if curve.seeds > 1:
            low = [m - h for m, h in zip(curve.mean, curve.half, strict=True)]
            high = [m + h for m, h in zip(curve.mean, curve.half, strict=True)]
            axis.fill_between(curve.steps, low, high, color=how.colour, alpha=0.2, linewidth=0)
    axis.set_ylabel(label)
    axis.set_xlabel("step, of evaluated snapshots" if label in KEPT.values() else "step")
    means = [m for _, _, curve in curves for m in curve.mean]
    room = 0.15 * (max(means) - min(means)) or 1.0
    axis.set_ylim(
        min(means) - room, max(means) + room
    )  # wide bands are cut, so that lines stay distinguishable
    if label == LOSS and all(m > 0 for _, _, curve in curves for m in curve.mean):
        axis.set_yscale("log")
        plain_ticks(axis.yaxis)
        axis.set_ylim(min(means) / 1.2, max(means) * 1.2)  # a band may reach below 0


def _sparse(how: Look) -> dict[str, Any]:
    return {**{key: value for key, value in how.point.items() if key != "color"}, "markersize": 3.2}


def _label(row: Row) -> str:
    return f"{row.name}, {row.seeds} seed{'s' * (len(row.records) > 1)}"


def _note(selection: Selection) -> str:
    several = any(len(row.good) > 1 for row in selection.rows)
    over = "grounds" if any(len(set(row.grounds)) > 1 for row in selection.rows) else "seeds"
    bands = (
        f"Bands: Student's 95 % interval over {over} at each step; a line of one seed has none. "
        if several
        else ""
    )
    alone = "" if several else "One seed each: there is no band. "
    return (
        f"{bands}{alone}Rollouts are of training prompts. Rewards and losses are those that each"
        " method trains with, on its own scale: compare shapes, not levels."
    )
