"""One table across models and suites: ranks, IQM over settings, and whether the order holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...core.table import Cell, Table
from ...statistics.aggregate import Aggregate, iqm, stratified_bootstrap
from ...statistics.ranks import Ranked, draws_of, order_holds, ranks
from ..selection.filters import Filter
from ..selection.settings import Across, across
from .columns import short


def ranking(results: Path, criteria: Filter) -> Table:
    """Return the table of ranks across the settings of the selected runs."""
    found = across(results, criteria)
    estimates = [[s.estimate(method) for method in found.methods] for s in found.settings]
    draws = draws_of(estimates)
    ranked, tau = ranks(estimates, draws), order_holds(estimates, draws)
    aggregates = [_aggregate(found, method) for method in found.methods]
    order = sorted(range(len(found.methods)), key=lambda m: -aggregates[m].value)
    titles = [found.title(setting) for setting in found.settings]
    rows, plain = [], []
    for m in order:
        own = [row[m] for row in ranked]
        rows.append(
            [
                Cell(found.methods[m]),
                *(Cell(f"{one.value:g}", f"[{one.low:g}, {one.high:g}]") for one in own),
                _cell(aggregates[m]),
            ]
        )
        plain.append(_plain(found, m, own, estimates, aggregates[m]))
    return Table(
        title=f"ranks across {len(titles)} settings: {'; '.join(titles)}",
        columns=["method", *(f"rank: {title} [95 %]" for title in titles), _iqm_title(found)],
        rows=rows,
        notes=[_order(tau, len(titles)), _sizes(found)],
        plain=plain,
        caption=(
            f"Ranks by win-rate of {len(found.methods)} methods in each setting, 1 the highest."
            " Their intervals follow from those of the win-rates. IQM: the interquartile mean of"
            " the win-rates of runs over all settings (Agarwal et al. 2021)."
        ),
    )


def _aggregate(found: Across, method: str) -> Aggregate:
    """Return the IQM of the runs' win-rates over settings; without an interval of one seed."""
    runs = [s.wins(method).mean(1) for s in found.settings]
    least = min(map(len, runs))
    scores = np.stack([own[:least] for own in runs], 1)
    if least > 1:
        return stratified_bootstrap(iqm, [scores])
    value = iqm(scores)
    return Aggregate(value, value, value)


def _cell(one: Aggregate) -> Cell:
    interval = f"[{one.low:.3f}, {one.high:.3f}]" if one.high > one.low else ""
    return Cell(f"{one.value:.3f}", interval)


def _iqm_title(found: Across) -> str:
    return f"IQM of {len(found.settings)} win-rates [95 %]"


def _plain(
    found: Across, m: int, own: list[Ranked], estimates: list[list[Any]], aggregate: Aggregate
) -> dict[str, Any]:
    figures: dict[str, Any] = {"method": found.methods[m]}
    for setting, one, row in zip(found.settings, own, estimates, strict=True):
        name = found.title(setting)
        figures |= {f"rank {name}": one.value, f"rank {name} low": one.low}
        figures |= {f"rank {name} high": one.high, f"win_rate {name}": row[m].mean}
    return figures | {"iqm": aggregate.value, "iqm_low": aggregate.low, "iqm_high": aggregate.high}


def _order(tau: Ranked, settings: int) -> str:
    """Return whether the order of methods holds across settings."""
    pairs = settings * (settings - 1) // 2
    verdict = (
        "the order holds beyond chance"
        if tau.low > 0
        else "the order is reversed"
        if tau.high < 0
        else "these runs do not show it"
    )
    return (
        f"Does the order hold? Kendall's tau, mean over {pairs} pairs of settings: {tau.value:.2f}"
        f" [{tau.low:.2f}, {tau.high:.2f}] (1: the same order, 0: no common order): {verdict}."
    )


def _sizes(found: Across) -> str:
    sizes = {s.model: short(s.parameters) for s in found.settings}
    listed = "; ".join(f"{model} {size}" for model, size in sizes.items())
    return f"Parameters of the models: {listed}. The IQM's interval resamples seeds only."
