"""Gold and proxy reward against sqrt(KL), along training or over a sweep, with Gao et al.'s forms
fitted to gold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...statistics.overoptimization import BON, LEAST, RL, Fit, fit_seeds
from ..selection.comparable import shared_seed_of
from ..selection.filters import Record
from ..selection.select import Row, Selection
from ..selection.sweeps import Sweep, sweeps
from .style import (
    GREY,
    SMALL,
    Look,
    NothingToDraw,
    handle,
    look,
    note,
    panels_and_table,
    why,
    wrapped,
)

COLUMNS, PANEL = 3, 1.75  # panels side by side; inches of a row of panels
HEADINGS = ("form", r"$\alpha$", r"$\beta$", "error", "peak of gold")
WIDTHS = (0.33, 0.15, 0.14, 0.15, 0.11, 0.17)  # shares of the table's columns
PROXY: dict[str, Any] = {
    "color": GREY,
    "linewidth": 0.7,
    "marker": "o",
    "markersize": 2.5,
    "markerfacecolor": "white",
}


@dataclass(frozen=True)
class Path:
    """The points of one seed by d, (N,) each."""

    d: Sequence[float]  # sqrt(KL(policy || reference))
    gold: Sequence[float]  # less the baseline's
    proxy: Sequence[float] | None  # less the baseline's; None if the suite has no reward model


@dataclass(frozen=True)
class Series:
    """The paths of one row along training, or of one sweep: one per seed."""

    name: str
    form: str
    paths: Sequence[Path]

    @property
    def fit(self) -> Fit | None:
        """The form fitted to gold for each seed; None if a seed has too few points."""
        if any(len({d for d in path.d if d > 0}) < LEAST for path in self.paths):
            return None
        return fit_seeds([(path.d, path.gold) for path in self.paths], self.form)


def draw(selection: Selection) -> Any:
    """Return the figure: a panel for each series, and a table of the fits below them."""
    series = series_of(selection)
    if not series:
        raise NothingToDraw(
            "Over-optimisation is drawn along training (harness run --snapshots 8) or over a"
            " sweep of"
            f" two settings or more, judged by scores; {selection.suite} has no such runs."
            f"{why(selection)}"
        )
    columns = min(COLUMNS, len(series))
    lines = math.ceil(len(series) / columns)
    inches = PANEL * lines + 0.21 * (len(series) + 1) + 0.9
    figure, axes, table = panels_and_table(
        lines, columns, inches, PANEL * lines, 0.21 * (len(series) + 1)
    )
    limits = _limits(series)
    for i, (axis, one) in enumerate(zip(axes, series, strict=False)):
        _draw_panel(axis, one, look(i + 1), limits)
    for axis in axes[len(series) :]:
        axis.remove()
    _label_axes(figure, axes[: len(series)], columns)
    _draw_fits(table, series)
    grounds = {ground for row in selection.rows for ground in row.grounds}
    note(figure, _note(series, len(grounds)))
    return figure


def _limits(series: Sequence[Series]) -> tuple[float, float, float]:
    """Return the largest d, and the range of rewards that all panels show.

    The range covers gold, and proxy rewards as far as twice the range of gold: one run that
    exploits its reward model would flatten all panels.
    """
    paths = [path for one in series for path in one.paths]
    gold = [value for path in paths for value in path.gold]
    proxy = [value for path in paths for value in path.proxy or ()]
    low, high = min(gold), max(gold)
    span = high - low or 1.0
    low = min([low, *(v for v in proxy if v >= low - span / 2)])
    high = max([high, *(v for v in proxy if v <= high + span / 2)])
    return max(d for path in paths for d in path.d), low - 0.05 * span, high + 0.12 * span


def _label_axes(figure: Any, axes: Sequence[Any], columns: int) -> None:
    """Label the outer panels, and explain the marks of all in one legend."""
    for i, axis in enumerate(axes):
        if i % columns == 0:
            axis.set_ylabel("reward over\nthe baseline's")
        if i + columns >= len(axes):
            axis.set_xlabel(r"$d = \sqrt{\mathrm{KL}}$, square root of nats")
    marks = [handle("gold", linestyle="", **look(0).point), handle("fit to gold", color="black")]
    marks.append(handle("proxy", color=GREY, marker="o", markerfacecolor="white", linewidth=0.8))
    figure.legend(handles=marks, loc="outside upper right", ncols=3, handlelength=2)


def series_of(selection: Selection) -> list[Series]:
    """Return the series of runs with snapshots, then those of sweeps of two rows or more."""
    scored = [row for row in selection.rows if _scored(row)]
    rows = [row for row in scored if any(r["evaluation"].get("curve") for r in row.good)]
    along = [Series(f"{row.name}, along training", RL, _trained(row)) for row in rows]
    known = {row.name for row in rows}
    over = [_swept(s) for s in sweeps(scored) if len(s.rows) >= _least(s, known)]
    return along + [s for s in over if s.paths]


def _scored(row: Row) -> bool:
    """Return whether finished runs have what a path needs: gold scores of both sides, and KL."""
    names = ("gold", "baseline_gold", "kl")
    return all(r["evaluation"].get(name) is not None for r in row.good for name in names)


def _least(sweep: Sweep, known: set[str]) -> int:
    """Return how many rows a sweep needs: enough for a fit if they are drawn along training too."""
    return LEAST if any(row.name in known for row in sweep.rows) else 2


def _trained(row: Row) -> list[Path]:
    return [_path(r, r["evaluation"]["curve"]) for r in row.good if r["evaluation"].get("curve")]


def _swept(sweep: Sweep) -> Series:
    """Return a sweep as paths of the seeds that two rows or more share."""
    runs = sorted({_run_of(r) for row in sweep.rows for r in row.good})
    paths = []
    for run in runs:
        own = [r for row in sweep.rows for r in row.good if _run_of(r) == run]
        if len(own) > 1:
            names = [n for n in ("gold", "proxy", "kl") if all(n in r["evaluation"] for r in own)]
            points = [{n: r["evaluation"][n]["mean"] for n in names} for r in own]
            paths.append(_path(own[0], points))
    form = BON if all("kl_bound" in r["evaluation"] for row in sweep.rows for r in row.good) else RL
    return Series(sweep.title, form, paths)


def _run_of(record: Record) -> tuple[int, int]:
    """Return the ground and the seed of a run."""
    return shared_seed_of(record), int(record["seed"])


def _path(record: Record, points: Sequence[Any]) -> Path:
    """Return the path of a run, from the start checkpoint on (d and rewards 0)."""
    start = record["evaluation"]
    points = sorted(points, key=lambda p: float(p["kl"]))
    d = [0.0, *(math.sqrt(max(0.0, p["kl"])) for p in points)]
    gold = [0.0, *(p["gold"] - start["baseline_gold"] for p in points)]
    known = "baseline_proxy" in start and all("proxy" in p for p in points)
    return Path(
        d, gold, [0.0, *(p["proxy"] - start["baseline_proxy"] for p in points)] if known else None
    )


def _draw_panel(axis: Any, series: Series, how: Look, limits: tuple[float, float, float]) -> None:
    """Draw the gold and proxy rewards of one series, with the form fitted to gold."""
    largest, low, high = limits
    for path in series.paths:
        if path.proxy is not None:
            axis.plot(path.d, path.proxy, label=f"{series.name}: proxy", **PROXY)
        axis.plot(path.d, path.gold, label=series.name, linestyle="", markersize=3.5, **how.point)
    fit = series.fit
    if fit is not None:
        d = np.linspace(0, fit.largest, 200)
        axis.plot(d, fit.at(d), label=f"{series.name}: fit", color=how.colour)
    if fit is not None and fit.peak_is_seen and fit.peak is not None:
        axis.plot([fit.peak.d] * 2, [0, fit.peak.reward], color=how.colour, linestyle=":")
    axis.axhline(0, color=GREY, linewidth=0.6)
    axis.set_xlim(-0.04 * largest, 1.04 * largest)
    axis.set_ylim(low, high)
    axis.set_title(wrapped(series.name), fontsize=SMALL)
    cut = [value for path in series.paths for value in path.proxy or () if value > high]
    if cut:
        axis.text(
            0.98,
            0.97,
            f"proxy up to {max(cut):.1f}",
            transform=axis.transAxes,
            ha="right",
            va="top",
            fontsize=SMALL,
            color=GREY,
        )


def _draw_fits(axis: Any, series: Sequence[Series]) -> None:
    """Draw the fits as a table without lines, a row for each series."""
    table = axis.table(
        [[one.name, *cells(one.fit)] for one in series],
        colLabels=["", *HEADINGS],
        cellLoc="left",
        colLoc="left",
        colWidths=WIDTHS,
        edges="open",
        bbox=(0, 0, 1, 1),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(SMALL)


def cells(fit: Fit | None) -> list[str]:
    """Return the cells of a fit: form, alpha and beta with standard errors, errors, the peak."""
    if fit is None:
        return [f"no fit: fewer than {LEAST} points", "", "", "", ""]
    form = r"$d(\alpha-\beta d)$" if fit.form == BON else r"$d(\alpha-\beta\,\log\,d)$"
    errors = f"{fit.rmse:.2f}"
    if fit.held_out is not None:
        errors += f" / {fit.held_out:.2f}"
    return [form, *_coefficients(fit), errors, _peak(fit)]


def _coefficients(fit: Fit) -> list[str]:
    pairs = ((fit.alpha, fit.alpha_se), (fit.beta, fit.beta_se))
    return [f"{value:.3f} \u00b1 {error:.3f}" for value, error in pairs]


def _peak(fit: Fit) -> str:
    if fit.peak is None:
        return "none"
    if not fit.peak_is_seen:
        return f"{'before' if fit.peak.d < fit.smallest else 'beyond'} the points"
    return f"{fit.peak.reward:.2f} at d = {fit.peak.d:.2f}"


def _note(series: Sequence[Series], grounds: int) -> str:
    several = any(len(one.paths) > 1 for one in series)
    errors = "over seeds (of the regression for one seed)" if several else "of the regression"
    if grounds > 1:
        errors = f"over the runs of {grounds} grounds as if each were independent"
    return (
        "Lines: the forms of Gao et al. (2022), fitted to gold by least squares for each seed and"
        f" averaged. Dotted: the peak of gold. \u00b1: standard errors {errors}. Error: root mean"
        " square of the fit, and on the quarter of points with the largest d when the fit leaves"
        " them out."
    )
