"""Intervals over seeds and prompts. Scores of a method are a matrix (S seeds, P prompts): every
seed answers them all.

The model is two-way and crossed, y_sp = mu + a_s + b_p + e_sp (e holds the interaction too, one
answer per cell), so

    Var(mean) = sigma_a^2 / S + sigma_b^2 / P + sigma_e^2 / (S P).

With the mean squares of seeds, prompts and rest, E MSA = P sigma_a^2 + sigma_e^2, E MSB = S
sigma_b^2 + sigma_e^2 and E MSE = sigma_e^2, it is the sum of V_A = MSA / (S P) on S - 1 degrees of
freedom and V_B = max(MSB - MSE, 0) / (S P).

The half-width is Banerjee's, sqrt(t(S-1)^2 V_A + t(P-1)^2 V_B): each part with its own Student
quantile. For independent parts its coverage is never below the nominal one (Banerjee 1960, Sankhya
22) and, whatever their shares, at most 98.8 % with two seeds and less with more. Satterthwaite's
degrees of freedom for the sum, the usual choice, are themselves estimated from one or two squares:
they cover as little as 87 % with two seeds and 92 % with three. The tests hold both. With two seeds
that differ t has 1 degree of freedom and is 12.7: such an interval is wide, and should be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FLOOR = 0.3  # see half_width
ONE_SEED = "this checkpoint, not this algorithm"
SEVERAL_SEEDS = "this algorithm: seeds and prompts"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and prompts with its interval, and the population that the interval
    covers.
    """

    mean: float
    low: float
    high: float
    seeds: int
    prompts: int
    label: str
    seed_sd: float  # between seeds, without prompts and answers; nan with one seed
    level: float = 0.95


@dataclass(frozen=True)
class Parts:
    """The variance of a mean by source. Scores may have leading axes (...); `mean` and the
    variances then have them, too.
    """

    mean: Array
    seeds: Array  # V_A: Var(mean) from seeds and answers, on `df`; 0 with one seed
    df: Array
    prompts: Array  # V_B: its share from prompts, never negative; with one seed all of it
    df_prompts: int
    rest: Array  # MSE / (S P), part of V_A; 0 with one seed


def matrix(scores: ArrayLike, least: int = 2) -> Array:
    """Return scores as an array (S, P); a row of P scores is one seed. Gaps are refused, since they
    would bias the mean.
    """
    array = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if array.ndim != 2 or array.shape[1] < least:
        raise ValueError(
            f"scores are (seeds, prompts) with at least {least} prompts, not of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError("every seed needs a finite score for every prompt")
    return array


def parts(scores: Array) -> Parts:
    """Split the variance of the mean of scores (..., S, P) by the mean squares of the two-way
    layout.
    """
    seeds, prompts = scores.shape[-2:]
    mean = scores.mean((-2, -1))
    by_prompt = scores.mean(-2)
    msb = seeds * by_prompt.var(-1, ddof=1)
    zero = np.zeros_like(mean)
    if seeds == 1:
        return Parts(mean, zero, np.ones_like(mean), msb / prompts, prompts - 1, zero)
    msa = prompts * scores.mean(-1).var(-1, ddof=1)
    total = ((scores - mean[..., None, None]) ** 2).sum((-2, -1))
    rest = np.maximum(
        total - (seeds - 1) * msa - (prompts - 1) * msb, 0.0
    )  # below 0 by rounding only
    mse = rest / ((seeds - 1) * (prompts - 1))
    n = seeds * prompts
    return Parts(
        mean,
        msa / n,
        np.full_like(mean, seeds - 1),
        np.maximum(msb - mse, 0) / n,
        prompts - 1,
        mse / n,
    )


def half_width(variances: Parts, level: float = 0.95) -> Array:
    """Return Banerjee's sqrt(t(df)^2 V_A + t(P - 1)^2 V_B), its first term at least FLOOR t(P -
    1)^2 MSE / SP.

    Two seeds of 64 prompts win equally many by chance one time in seven where nearly all are won,
    and would say that seeds add nothing; but E MSA >= E MSE, and MSE rests on many squares. Without
    the floor 85 % are covered there; with one of 1 over 99 % elsewhere.
    """
    return np.sqrt(_squared(variances, np.asarray((1 - level) / 2)))


def _squared(variances: Parts, tail: Array) -> Array:
    from scipy.special import stdtrit

    t_seeds, t_prompts = stdtrit(variances.df, tail), stdtrit(variances.df_prompts, tail)
    seeds = np.maximum(t_seeds**2 * variances.seeds, FLOOR * t_prompts**2 * variances.rest)
    return cast(Array, seeds + t_prompts**2 * variances.prompts)


def p_value(variances: Parts, null: float = 0.0) -> Array:
    """Return the two-sided p-value that belongs to the interval: the level at which it just touches
    `null`.

    Found by bisection of the logarithm; 1e-30 stands for anything below.
    """
    distance = (np.asarray(variances.mean) - null) ** 2
    low, high = np.full_like(distance, -30.0), np.zeros_like(distance)
    for _ in range(50):
        middle = (low + high) / 2
        inside = (
            _squared(variances, 10**middle / 2) > distance
        )  # this level's interval holds the null: p is larger
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    touched = np.where(distance > 0, 10**high, 1.0)
    return cast(Array, np.minimum(touched, 1.0))


def two_way_interval(
    scores: ArrayLike, bounds: tuple[float, float] | None = None, level: float = 0.95
) -> Estimate:
    """Return the mean of scores (S, P) with an interval for seeds and prompts; (P,) or (1, P): for
    prompts only.

    With `bounds` scores lie between them, and the interval stays inside: see `score_interval`.
    """
    array = matrix(scores)
    seeds, prompts = array.shape
    variances = parts(array)
    mean, half = float(variances.mean), float(half_width(variances, level))
    low, high = mean - half, mean + half
    if bounds:
        floor, span = bounds[0], bounds[1] - bounds[0]
        if array.min() < bounds[0] or array.max() > bounds[1]:
            raise ValueError(f"scores lie outside {bounds}")
        low, high = (
            floor + span * float(end) for end in score_interval((array - floor) / span, level)
        )
    label = SEVERAL_SEEDS if seeds > 1 else ONE_SEED
    seed_sd = (
        math.sqrt(max(0.0, seeds * float(variances.seeds - variances.rest)))
        if seeds > 1
        else math.nan
    )
    return Estimate(mean, low, high, seeds, prompts, label, seed_sd, level)


def win_rate_interval(scores: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the win-rate of per-prompt scores (S, P) in [0, 1], 1 a win, 0.5 a tie, with its
    interval in [0, 1].
    """
    return two_way_interval(scores, (0.0, 1.0), level)


def score_interval(scores: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Return both ends of the interval of the mean of scores (..., S, P) in [0, 1], in Wilson's
    form.

    The variance of a score of mean m in [0, 1] is m (1 - m) - D with D = E[y (1 - y)], which is a
    quarter of the ties' share. As Wilson does, keep m unknown in it: |mean - m|^2 = k (m (1 - m) -
    D). k is z^2 / P for one seed, which is `over_prompts.win_rate`; for several the squared
    half-width of `half_width` in units of the scores' variance, the design effect of seeds and
    prompts in it. So an interval does not shrink to nothing where all scores agree.
    """
    seeds, prompts = scores.shape[-2:]
    mean, inner = scores.mean((-2, -1)), (scores * (1 - scores)).mean((-2, -1))
    simple = NormalDist().inv_cdf((1 + level) / 2) ** 2 / prompts
    k = np.full_like(mean, simple)
    if seeds > 1:
        variance = mean * (1 - mean) - inner
        half = half_width(parts(scores), level)
        k = np.where(variance > 1e-12, half**2 / np.maximum(variance, 1e-12), simple)
    b, c = 2 * mean + k, mean**2 + k * inner
    root = np.sqrt(np.maximum(0.0, b * b - 4 * (1 + k) * c))
    return np.maximum(0.0, (b - root) / (2 + 2 * k)), np.minimum(1.0, (b + root) / (2 + 2 * k))


def pairwise_scores(ours: ArrayLike, theirs: ArrayLike) -> Array:
    """Return 1 where ours is above theirs, 0.5 where equal, 0 below; the shapes broadcast, (S, P)
    against (P,).
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    return np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0))


def percentile_interval(draws: Any, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws (R,)."""
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
