"""Ranks of methods in several settings, and whether their order holds: Kendall's tau.

A setting is a suite with a model. In each, a method has a mean with its interval (`intervals`). The
uncertainty of ranks and of tau follows from draws of the true means: mean + SE T, with Student's T
on the interval's degrees of freedom. Methods are drawn independently. Their scores share prompts,
so ranks are a little more certain than this says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .intervals import Array, Estimate, percentile_interval

DRAWS = 2000


@dataclass(frozen=True)
class Ranked:
    """A rank or a tau with its 95 % interval."""

    value: float
    low: float
    high: float


def draws_of(estimates: Sequence[Sequence[Estimate]], seed: int = 0) -> Array:
    """Return draws of the true means, (R, settings, methods).

    Args:
        estimates: An estimate for each method in each setting.
        seed: Of the draws.
    """
    from scipy.special import stdtrit

    rng = np.random.default_rng(seed)
    mean = np.array([[e.mean for e in row] for row in estimates])
    half = np.array([[(e.high - e.low) / 2 for e in row] for row in estimates])
    df = np.array([[_freedom(e) for e in row] for row in estimates], dtype=np.float64)
    draws = mean + half / stdtrit(df, 0.975) * rng.standard_t(df, (DRAWS, *mean.shape))
    return np.asarray(draws, dtype=np.float64)


def _freedom(estimate: Estimate) -> int:
    units = estimate.grounds if estimate.grounds > 1 else estimate.seeds
    return units - 1 if units > 1 else estimate.prompts - 1


def ranks(estimates: Sequence[Sequence[Estimate]], draws: Array) -> list[list[Ranked]]:
    """Return the rank of each method in each setting: 1 has the highest mean; ties share a rank."""
    from scipy.stats import rankdata

    mean = np.array([[e.mean for e in row] for row in estimates])
    own, drawn = rankdata(-mean, axis=-1), rankdata(-draws, axis=-1)
    return [
        [
            Ranked(float(own[k, m]), *percentile_interval(drawn[:, k, m]))
            for m in range(mean.shape[1])
        ]
        for k in range(len(mean))
    ]


def order_holds(estimates: Sequence[Sequence[Estimate]], draws: Array) -> Ranked:
    """Return the mean of Kendall's tau-b over all pairs of settings: 1 is the same order
    everywhere, 0 no common order, -1 a reversed one.

    The observed tau is inside the interval.
    """
    mean = np.array([[e.mean for e in row] for row in estimates])
    value = _tau(mean[None])[0]
    low, high = percentile_interval(_tau(draws))
    return Ranked(float(value), min(low, float(value)), max(high, float(value)))


def _tau(means: Array) -> Array:
    """Return the mean tau-b over pairs of settings, (R,), of means (R, settings, methods)."""
    i, j = np.triu_indices(means.shape[2], 1)
    signs = np.sign(means[:, :, i] - means[:, :, j])
    pairs = list(combinations(range(means.shape[1]), 2))
    taus = [_tau_b(signs[:, a], signs[:, b]) for a, b in pairs]
    return np.asarray(np.mean(taus, 0), dtype=np.float64)


def _tau_b(a: Array, b: Array) -> Array:
    untied = np.sqrt((a != 0).sum(-1) * (b != 0).sum(-1))
    return np.asarray((a * b).sum(-1) / np.maximum(untied, 1), dtype=np.float64)
