"""Win-rate against KL: a point per row, a line per sweep, the frontier, and bounds of best-of-n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...statistics.intervals import Estimate, two_way_interval, win_rate_interval
from ..selection.select import Row, Selection
from ..selection.sweeps import Sweep, measured, scores_of, seeds_text, sweeps
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

OTHERS = 6  # lines of the legend that belong to no row
LABELS = 24  # the largest number of sweep points with labels in the picture


@dataclass(frozen=True)
class Spot:
    """A row in the picture."""

    row: Row
    kl: Estimate
    win: Estimate
    bound: float | None  # log n - (n - 1) / n, where KL is estimated from it


def draw(selection: Selection) -> Any:
    """Return the figure."""
    shown = [
        (s, look(i), [spot_of(row) for row in s.rows])
        for i, s in enumerate(sweeps(measured(selection.rows, "win_rate", "kl")))
    ]
    if not shown:
        raise NothingToDraw(
            f"No run of {selection.suite} has a win-rate and a KL: there is nothing to draw."
            f"{why(selection)}"
        )
    labels = [_label(s.title, spots) for s, _, spots in shown]
    figure, (axis,) = panels(1, 1, height(4.2, labels + [""] * OTHERS))
    handles = [_draw_sweep(axis, s, how, spots) for s, how, spots in shown]
    spots = [spot for _, _, own in shown for spot in own]
    axis.axhline(0.5, color=GREY, linewidth=0.6)
    handles += [*_draw_bounds(axis, spots), *_draw_frontier(axis, spots), _draw_ideal(axis, spots)]
    widest = max(spot.kl.mean for spot in spots)
    end = 1.12 * widest + 0.05
    # long bars are cut, so that points stay distinguishable
    axis.set_xlim(-0.03 * widest - 0.02, end)
    cut = [f"{spot.row.name} (to {spot.kl.high:.1f} nats)" for spot in spots if spot.kl.high > end]
    if cut:
        note(figure, f"Bars cut at the right edge: {', '.join(cut)}.")
    axis.set_xlabel("KL(policy || reference), nats per answer")
    axis.set_ylabel("win-rate vs baseline")
    beside(figure, handles)
    _name_points(axis, shown)
    return figure


def spot_of(row: Row) -> Spot:
    """Return the win-rate and KL of a row with intervals over grounds, seeds and prompts."""
    scores = scores_of(row)
    bound = row.good[0]["evaluation"].get("kl_bound")
    kl = two_way_interval(scores["kl"], grounds=row.grounds)
    kl = replace(
        kl, low=max(kl.low, min(kl.mean, 0.0))
    )  # a mean below 0 is noise, and its interval has no meaning
    win = win_rate_interval(scores["win_rate"], grounds=row.grounds)
    return Spot(row, kl, win, bound)


def _draw_sweep(axis: Any, sweep: Sweep, how: Look, spots: Sequence[Spot]) -> Any:
    """Draw a sweep and return its entry in the legend."""
    spots = sorted(spots, key=lambda s: s.kl.mean)
    x, y = [s.kl.mean for s in spots], [s.win.mean for s in spots]
    across = [[s.kl.mean - s.kl.low for s in spots], [s.kl.high - s.kl.mean for s in spots]]
    along = [[s.win.mean - s.win.low for s in spots], [s.win.high - s.win.mean for s in spots]]
    line = how.dash if len(spots) > 1 else ""
    axis.errorbar(
        x,
        y,
        xerr=across,
        yerr=along,
        label=sweep.name,
        linestyle=line,
        capsize=1.5,
        elinewidth=0.6,
        capthick=0.6,
        **how.point,
    )
    return handle(_label(sweep.title, spots), linestyle=line, **how.point)


def _label(name: str, spots: Sequence[Spot]) -> str:
    """Return a name with the number of seeds behind it."""
    rows = [s.row for s in spots]
    least, most = (of(len(row.records) for row in rows) for of in (min, max))
    apart = least == most or any(row.failed for row in rows)
    return f"{name}, {seeds_text(rows) if apart else f'{least} to {most}'} seed{'s' * (most > 1)}"


def _draw_bounds(axis: Any, spots: Sequence[Spot]) -> list[Any]:
    """Mark the bound log n - (n - 1) / n beside each estimated KL, joined by a line."""
    bounded = [(s, s.bound) for s in spots if s.bound is not None]
    for spot, bound in bounded:
        axis.plot(
            [spot.kl.mean, bound], [spot.win.mean] * 2, color=GREY, linewidth=0.8, linestyle=":"
        )
        axis.plot([bound], [spot.win.mean], color=GREY, marker="|", markersize=8, linestyle="")
    text = "best-of-n's KL is estimated;\n| its bound log n - (n - 1)/n"
    return [handle(text, color=GREY, linestyle=":", marker="|", markersize=8)] if bounded else []


def frontier_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (KL, win-rate) above all points of less or equal KL, by KL."""
    kept: list[tuple[float, float]] = []
    for kl, win in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or win > kept[-1][1]:
            kept.append((kl, win))
    return kept


def _draw_frontier(axis: Any, spots: Sequence[Spot]) -> list[Any]:
    kept = frontier_of([(s.kl.mean, s.win.mean) for s in spots])
    last = max(s.kl.mean for s in spots)
    x, y = zip(*kept, (last, kept[-1][1]), strict=True)
    how = {"color": GREY, "linewidth": 2.6, "alpha": 0.45}
    axis.plot(x, y, drawstyle="steps-post", zorder=0, **how)
    return [handle("frontier: highest win-rate at\nno more KL", **how)]


def _draw_ideal(axis: Any, spots: Sequence[Spot]) -> Any:
    """Draw best-of-n by gold itself without ties: n / (n + 1) against log n - (n - 1) / n.

    Beirami et al. 2024 (2401.01879): bounds of its win-rate and its KL, n real from 1 on.
    """
    furthest = max(max(s.kl.high for s in spots), 0.1)
    ns = [math.exp(i / 50) for i in range(int(50 * (furthest + 1.2)))]
    curve = [(math.log(n) - (n - 1) / n, n / (n + 1)) for n in ns]
    x, y = zip(*[p for p in curve if p[0] <= furthest], strict=True)
    how = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (4, 2, 1, 2))}
    axis.plot(x, y, zorder=0, **how)
    return handle("bound of best-of-n by gold:\nn/(n + 1) at log n - (n - 1)/n", **how)


def _name_points(axis: Any, shown: Sequence[tuple[Sweep, Look, Sequence[Spot]]]) -> None:
    """Write the swept values beside the points of sweeps, unless there are too many."""
    several = [(s, how.colour, spot) for s, how, spots in shown if len(spots) > 1 for spot in spots]
    if len(several) > LABELS:
        return
    axis.figure.draw_without_rendering()
    taken = [(spot.kl.mean, spot.win.mean) for _, _, spots in shown for spot in spots]
    points = [(spot.kl.mean, spot.win.mean) for _, _, spot in several]
    texts = [s.value(spot.row) for s, _, spot in several]
    place_labels(axis, points, texts, [colour for _, colour, _ in several], taken)
