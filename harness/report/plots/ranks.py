"""Ranks of methods against the size of the model, a panel for each suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...statistics.ranks import draws_of, order_holds, ranks
from ..selection.filters import Filter
from ..selection.settings import across
from .style import beside, handle, height, look, note, panels


def draw(results: Path, criteria: Filter) -> Any:
    """Return the figure."""
    found = across(results, criteria)
    estimates = [[s.estimate(method) for method in found.methods] for s in found.settings]
    draws = draws_of(estimates)
    ranked, tau = ranks(estimates, draws), order_holds(estimates, draws)
    suites = list(dict.fromkeys(s.suite for s in found.settings))
    figure, axes = panels(1, len(suites), height(3.6, found.methods))
    for axis, suite in zip(axes, suites, strict=True):
        own = [k for k, s in enumerate(found.settings) if s.suite == suite]
        for m, method in enumerate(found.methods):
            values = [ranked[k][m] for k in own]
            x = [found.settings[k].parameters * (1 + 0.02 * m) for k in own]
            bars = [
                [max(0.0, v.value - v.low) for v in values],
                [max(0.0, v.high - v.value) for v in values],
            ]
            how = look(m)
            axis.errorbar(
                x,
                [v.value for v in values],
                yerr=bars,
                capsize=1.5,
                label=method,
                linestyle=how.dash,
                elinewidth=0.6,
                **how.point,
            )
        axis.set_xscale("log")
        axis.set_ylim(len(found.methods) + 0.5, 0.5)
        axis.set_title(suite)
        axis.set_xlabel("parameters of the model")
    axes[0].set_ylabel("rank by win-rate")
    beside(figure, [handle(method, **look(m).point) for m, method in enumerate(found.methods)])
    note(
        figure,
        f"Bars: 95 % intervals of ranks. Kendall's tau, mean over pairs of settings:"
        f" {tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}].",
    )
    return figure
