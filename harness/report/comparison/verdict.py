"""The result of a comparison in one sentence."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ..selection.select import Row

if TYPE_CHECKING:
    from ...statistics.intervals import Array

ALPHA = 0.05


def verdict(a: Row, b: Row, x: Array, y: Array) -> str:
    """Return one sentence on win scores (S, P): the difference, or the smallest detectable
    difference.
    """
    from ...statistics.compare import compare

    comparison = compare(x, y, grounds=(a.grounds, b.grounds))
    scope = scope_of(a, b)
    if comparison.p <= ALPHA:
        better, worse, sign = (a, b, 1) if comparison.difference > 0 else (b, a, -1)
        low, high = sorted((sign * comparison.low, sign * comparison.high))
        result = (
            f"{better.name} beats {worse.name} by {abs(comparison.difference):.3f} [{low:.3f},"
            f" {high:.3f}] of win-rate"
        )
        return f"{result}, {p_text(comparison.p)}; {scope}"
    can = _can_detect(a, b, x, y)
    return (
        f"{a.name} and {b.name} are not distinguishable by win-rate: {comparison.difference:+.3f} "
        f"[{comparison.low:+.3f}, {comparison.high:+.3f}], {p_text(comparison.p)}; {can}; {scope}"
    )


def _can_detect(a: Row, b: Row, x: Array, y: Array) -> str:
    """Return which difference such a study can find."""
    grounds = len(set(a.grounds) & set(b.grounds))
    if grounds > 1:
        return f"{grounds} grounds detect what lies beyond this interval"
    least = detectable(x, y)
    if least is None:
        return "this study can detect no difference"
    return f"this study can detect {least:.3f} (harness power)"


def scope_of(a: Row, b: Row) -> str:
    """Return the scope of a comparison: one seed does not show the spread between seeds, nor one
    ground that between grounds.
    """
    grounds = len(set(a.grounds) & set(b.grounds))
    if grounds > 1:
        return f"{a.seeds} and {b.seeds} runs on {grounds} grounds: these algorithms"
    alone = [row.name for row in (a, b) if len(row.good) == 1]
    if len(alone) == 2:
        return "one seed each: these checkpoints, not these algorithms"
    if alone:
        return f"one seed of {alone[0]}: that checkpoint, not the algorithm"
    return f"{len(a.good)} and {len(b.good)} seeds: these algorithms, on one ground"


def detectable(x: Array, y: Array) -> float | None:
    """Return the smallest difference of win-rates that such a study finds with 80 % power.

    Ties, the spread between seeds, and the variance that seeds and methods share on a prompt are
    those of the scores (S, P) of each.
    """
    from ...statistics.intervals import parts, two_way_interval
    from ...statistics.power import Design, minimum_detectable_effect

    seeds = min(len(x), len(y))
    both = [x[:seeds], y[:seeds]]
    ties = min(float(np.mean([(m == 0.5).mean() for m in both])), 0.99)
    spread = [float(m.var()) for m in both]
    shared = max(float(np.cov(x.mean(0), y.mean(0))[0, 1]), 0.0) / max(fmean(spread), 1e-12)
    if seeds == 1:
        return minimum_detectable_effect(
            Design(x.shape[1], 1, ties, correlation=min(shared, 0.99)), True
        )
    of_prompt = [
        float(parts(m).prompts) * x.shape[1] / max(v, 1e-12)
        for m, v in zip(both, spread, strict=True)
    ]
    share = min(fmean(of_prompt), 1.0)
    sd = fmean(two_way_interval(m).seed_sd for m in both)
    return minimum_detectable_effect(
        Design(x.shape[1], seeds, ties, sd, share, min(shared, share, 0.99)), True
    )


def p_text(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
