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
from ..selection.select import Record, Row, Selection
from ..selection.sweeps import Sweep, sweeps
from .style import GREY, Look, NothingToDraw, below, handle, look, panels


@dataclass(frozen=True)
class Path:
    """What one seed went through: (N,) each, by d."""

    d: Sequence[float]  # sqrt(KL(policy || start checkpoint))
    gold: Sequence[float]  # less the baseline's
    proxy: Sequence[float] | None  # less the baseline's; None where the suite has no reward model


@dataclass(frozen=True)
class Series:
    """The paths of one row along training, or of one sweep: one per seed."""

    name: str
    form: str
    paths: Sequence[Path]

    @property
    def fit(self) -> Fit | None:
        """The form fitted to gold, seed by seed; None where a seed has too few points of KL above
        0.
        """
        if any(len({d for d in path.d if d > 0}) < LEAST for path in self.paths):
            return None
        return fit_seeds([(path.d, path.gold) for path in self.paths], self.form)


def draw(selection: Selection) -> Any:
    """Return the figure."""
    series = series_of(selection)
    if not series:
        raise NothingToDraw(
            "Over-optimisation shows along training (harness run --snapshots 8) or over a sweep of"
            f" two settings or more; {selection.suite} has runs of neither here."
        )
    both = any(path.proxy is not None for one in series for path in one.paths)
    figure, axes = panels(1, 1 + both, 3.3 + 0.32 * len(series))
    handles = [_draw_series(axes, one, look(i + 1)) for i, one in enumerate(series)]
    for axis, name in zip(
        axes, ("gold reward over the baseline's", "proxy reward over the baseline's"), strict=False
    ):
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.set_ylabel(name)
        axis.set_xlabel(r"$d = \sqrt{\mathrm{KL(policy\,||\,SFT)}}$, square root of nats")
    below(figure, handles, _note(series))
    return figure


def series_of(selection: Selection) -> list[Series]:
    """Return what runs with snapshots went through, then what sweeps of two rows or more did."""
    rows = [row for row in selection.rows if any(r["evaluation"].get("curve") for r in row.good)]
    along = [Series(f"{row.name}, along training", RL, _trained(row)) for row in rows]
    known = {row.name for row in rows}
    over = [_swept(s) for s in sweeps(selection.rows) if len(s.rows) >= _least(s, known)]
    return along + [s for s in over if s.paths]


def _least(sweep: Sweep, known: set[str]) -> int:
    """Return how many rows make a sweep worth a line: enough for a fit where they are drawn along
    training already.
    """
    return LEAST if any(row.name in known for row in sweep.rows) else 2


def _trained(row: Row) -> list[Path]:
    return [_path(r, r["evaluation"]["curve"]) for r in row.good if r["evaluation"].get("curve")]


def _swept(sweep: Sweep) -> Series:
    """Return a sweep as paths of the seeds that two rows or more share; best-of-n's have a form of
    their own.
    """
    seeds = sorted({r["seed"] for row in sweep.rows for r in row.good})
    paths = []
    for seed in seeds:
        own = [r for row in sweep.rows for r in row.good if r["seed"] == seed]
        if len(own) > 1:
            names = [n for n in ("gold", "proxy", "kl") if all(n in r["evaluation"] for r in own)]
            points = [{n: r["evaluation"][n]["mean"] for n in names} for r in own]
            paths.append(_path(own[0], points))
    form = BON if all("kl_bound" in r["evaluation"] for row in sweep.rows for r in row.good) else RL
    return Series(sweep.told, form, paths)


def _path(record: Record, points: Sequence[Any]) -> Path:
    """Return points with the start checkpoint's before them: d and rewards 0."""
    start = record["evaluation"]
    points = sorted(points, key=lambda p: float(p["kl"]))
    d = [0.0, *(math.sqrt(max(0.0, p["kl"])) for p in points)]
    gold = [0.0, *(p["gold"] - start["baseline_gold"] for p in points)]
    known = "baseline_proxy" in start and all("proxy" in p for p in points)
    return Path(
        d, gold, [0.0, *(p["proxy"] - start["baseline_proxy"] for p in points)] if known else None
    )


def _draw_series(axes: Sequence[Any], series: Series, how: Look) -> Any:
    """Draw a series and return its entry of the legend, with the fit's figures."""
    fit = series.fit
    for path in series.paths:
        axes[0].plot(
            path.d, path.gold, label=series.name, linestyle="" if fit else ":", **how.point
        )
        if path.proxy is not None:
            axes[1].plot(
                path.d,
                path.proxy,
                label=series.name,
                linewidth=0.8,
                linestyle=how.dash,
                **how.point,
            )
    if fit is not None:
        d = np.linspace(0, fit.largest, 200)
        axes[0].plot(d, fit.at(d), label=f"{series.name}: fit", **how.line)
        if fit.peak_is_seen and fit.peak is not None:
            axes[0].plot(
                [fit.peak.d] * 2,
                [0, fit.peak.reward],
                color=how.colour,
                linewidth=0.7,
                linestyle=":",
            )
            axes[0].plot(
                [fit.peak.d],
                [fit.peak.reward],
                marker="|",
                markersize=12,
                color=how.colour,
                linestyle="",
            )
    return handle(
        f"{series.name}\n{told(series, fit)}", linestyle=how.dash if fit else ":", **how.point
    )


def told(series: Series, fit: Fit | None) -> str:
    """Return a fit in one line: form, coefficients with standard errors, errors, and the peak."""
    if fit is None:
        return f"no fit: it takes {LEAST} points of KL above 0"
    form = r"$d(\alpha-\beta d)$" if fit.form == BON else r"$d(\alpha-\beta\,\log\,d)$"
    named = {"alpha": (fit.alpha, fit.alpha_se), "beta": (fit.beta, fit.beta_se)}
    values = ", ".join(
        rf"$\{name}$ = {value:.3g} $\pm$ {error:.2g}" for name, (value, error) in named.items()
    )
    text = f"{form}: {values}, RMSE {fit.rmse:.2g}"
    if fit.held_out is not None:
        text += f", {fit.held_out:.2g} on the largest d held out"
    if fit.peak is None:
        return f"{text}; no peak"
    if not fit.peak_is_seen:
        return f"{text}; peak {'before' if fit.peak.d < fit.smallest else 'beyond'} the points"
    return f"{text}; peak {fit.peak.reward:.2f} at d* = {fit.peak.d:.2f}"


def _note(series: Sequence[Series]) -> str:
    several = any(len(one.paths) > 1 for one in series)
    errors = (
        "over seeds where there are several, else the regression's"
        if several
        else "the regression's (one seed)"
    )
    return (
        "Lines on the left: the forms of Gao et al. (2022) fitted to gold by least squares, seed"
        f" by seed, then averaged. \u00b1: standard errors, {errors}. Held out: the quarter of"
        " points with the largest d, foretold by a fit to the rest. | marks a peak."
    )
