"""Win-rate against cost: FLOPs, seconds and memory of training, and FLOPs of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...statistics.intervals import Estimate, win_rate_interval
from ..selection.filters import Record
from ..selection.select import Row, Selection, is_guest
from ..selection.sweeps import Sweep, measured, scores_of, sweeps
from .style import (
    GREY,
    Look,
    NothingToDraw,
    beside,
    handle,
    height,
    look,
    note,
    panels,
    place_labels,
    why,
)

LABELS = 12  # most labelled points of sweeps in a panel
NARROW = 3.0  # ratio of costs in a panel below which ticks have even distances
MIDDLING = 60.0  # ratio below which ticks are at 1, 2 and 5, above at powers of ten


def _of_training(name: str) -> Callable[[Record], float]:
    return lambda record: float(record["cost"]["method"][name])


PANELS: dict[str, tuple[Callable[[Record], float], float]] = {  # {label: (what, unit)}
    "training, TFLOP": (_of_training("flops"), 1e12),
    "training, seconds": (_of_training("seconds"), 1.0),
    "peak memory in training, MiB": (_of_training("peak_memory"), 2.0**20),
    "an answer, MFLOP": (
        lambda record: float(record["evaluation"]["inference"]["flops_per_answer"]),
        1e6,
    ),
}


@dataclass(frozen=True)
class Spot:
    """A row in a panel."""

    sweep: Sweep
    row: Row
    how: Look
    win: Estimate
    cost: float  # in the panel's unit


def draw(selection: Selection) -> Any:
    """Return the figure."""
    known = [row for row in selection.rows if not (row.good and is_guest(row.good[0]))]
    shown_sweeps = sweeps(measured(known, "win_rate"))
    if not shown_sweeps:
        raise NothingToDraw(
            f"No finished run of {selection.suite} has a win-rate and a cost: there is nothing to"
            f" draw.{why(selection)}"
        )
    wins = {
        row.name: win_rate_interval(scores_of(row)["win_rate"], grounds=row.grounds)
        for s in shown_sweeps
        for row in s.rows
    }
    figure, axes = panels(2, 2, height(5.4, [s.title for s in shown_sweeps]))
    shown = [spots_of(shown_sweeps, wins, label) for label in PANELS]
    for axis, label, spots in zip(axes, PANELS, shown, strict=True):
        _draw_panel(axis, spots)
        axis.set_xlabel(label)
    for axis in axes[::2]:
        axis.set_ylabel("win-rate vs baseline")
    beside(
        figure, [handle(s.title, linestyle="", **look(i).point) for i, s in enumerate(shown_sweeps)]
    )
    note(figure, _note(selection))
    figure.draw_without_rendering()
    for axis, spots in zip(axes, shown, strict=True):
        _name_points(axis, spots)
    return figure


def spots_of(shown: Sequence[Sweep], wins: dict[str, Estimate], label: str) -> list[Spot]:
    """Return the rows of a panel; a cost is the mean over seeds, of memory the largest value."""
    what, unit = PANELS[label]
    over = max if "memory" in label else fmean
    return [
        Spot(s, row, look(i), wins[row.name], float(over([what(r) for r in row.good])) / unit)
        for i, s in enumerate(shown)
        for row in s.rows
    ]


def _draw_panel(axis: Any, spots: Sequence[Spot]) -> None:
    """Draw win-rates against costs on a logarithmic axis; costs of 0 are left of it."""
    least, most, zero, span = _scale(spots)
    free = any(spot.cost == 0 for spot in spots)
    for spot in spots:
        win = spot.win
        axis.errorbar(
            [spot.cost or zero],
            [win.mean],
            yerr=[[win.mean - win.low], [win.high - win.mean]],
            label=spot.row.name,
            linestyle="",
            capsize=1.5,
            elinewidth=0.6,
            capthick=0.6,
            **spot.how.point,
        )
    axis.set_xscale("log")
    axis.axhline(0.5, color=GREY, linewidth=0.6)
    axis.set_xlim((zero if free else least) / span**0.1, most * span**0.1)
    if free:
        axis.axvline(least / span**0.12, color=GREY, linewidth=0.6, linestyle=":")
    _ticks(axis, least, most, [zero] if free else [])


def _scale(spots: Sequence[Spot]) -> tuple[float, float, float, float]:
    """Return the smallest and largest cost, the position of costs of 0, and the ratio of costs."""
    positive = [spot.cost for spot in spots if spot.cost > 0]
    least, most = (min(positive), max(positive)) if positive else (1.0, 1.0)
    span = max(most / least, 1.2)
    return least, most, least / span**0.25, span


def _name_points(axis: Any, spots: Sequence[Spot]) -> None:
    """Write the swept values beside the points of sweeps, unless there are too many."""
    zero = _scale(spots)[2]
    several = [spot for spot in spots if len(spot.sweep.rows) > 1]
    if len(several) <= LABELS:
        where = [(spot.cost or zero, spot.win.mean) for spot in several]
        taken = [(spot.cost or zero, spot.win.mean) for spot in spots]
        texts = [spot.sweep.value(spot.row) for spot in several]
        place_labels(axis, where, texts, [spot.how.colour for spot in several], taken)


def _ticks(axis: Any, least: float, most: float, zero: Sequence[float]) -> None:
    """Write plain numbers at ticks, and `none` at a cost of 0."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    span = most / least
    subs = (1.0, 2.0, 5.0) if span < MIDDLING else (1.0,)
    locator = MaxNLocator(4) if span < NARROW else LogLocator(subs=subs)
    room = max(span, 1.2) ** 0.1
    low, high = least / room, most * room
    ticks = {f"{t:g}": float(t) for t in locator.tick_values(low, high) if low <= t <= high}
    axis.set_xticks([*zero, *ticks.values()], [*["none"] * len(zero), *ticks])
    axis.xaxis.set_minor_locator(NullLocator())


def _note(selection: Selection) -> str:
    shared = [record["cost"]["shared_total"] for record in selection.good]
    flops, seconds = (fmean(s[name] for s in shared) for name in ("flops", "seconds"))
    return (
        "Bars: 95 % intervals for seeds and prompts. Costs are means over seeds, of memory"
        " the largest value. Shared stages (SFT, preferences, reward model:"
        f" {flops / 1e12:.3g} TFLOP and {seconds:.0f} s a run on average) are not included."
    )
