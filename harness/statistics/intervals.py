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

Grounds are a third axis. A ground is what the runs of a shared seed share: start checkpoint,
preferences, reward model, and in most suites the prompts. With G of them, y_gsp = mu + A_g + a_gs +
b_p + (Ab)_gp + e_gsp; grounds are random, and seeds are nested in them. The means over the seeds of
each ground are a two-way layout of grounds and prompts. Its mean square of grounds holds
sigma_A^2, sigma_a^2 / S and all of the interaction. So the interval above, with grounds in the
place of seeds and G - 1 degrees of freedom, is the one of the nested design. Where each ground has
prompts of its own, MSB - MSE is 0 on average, and MSA holds the prompts too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FLOOR = 0.3  # see half_width
ONE_SEED = "this checkpoint, not this algorithm"
SEVERAL_SEEDS = "this algorithm on one ground: seeds and prompts"
SEVERAL_GROUNDS = "this algorithm: grounds, seeds and prompts"


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
    seed_sd: float  # between seeds of a ground, without prompts and answers; nan with one seed
    level: float = 0.95
    grounds: int = 1
    ground_sd: float = math.nan  # between grounds, without seeds, prompts and answers


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


def ground_means(scores: Array, grounds: Sequence[int] | None) -> Array:
    """Return the means over the seeds of each ground, (G, P); with one ground the scores (S, P).

    Args:
        scores: Scores (S, P).
        grounds: The ground of each of the S rows; None where all have one.

    Raises:
        ValueError: There is not one ground for each row.
    """
    if grounds is not None and len(grounds) != len(scores):
        raise ValueError(f"{len(scores)} seeds need a ground each, not {len(grounds)}")
    if grounds is None or len(set(grounds)) < 2:
        return scores
    labels = np.asarray(grounds)
    return np.stack([scores[labels == ground].mean(0) for ground in sorted(set(grounds))])


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
    scores: ArrayLike,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
    grounds: Sequence[int] | None = None,
) -> Estimate:
    """Return the mean of scores (S, P) with an interval for seeds and prompts; (P,) or (1, P): for
    prompts only.

    Args:
        scores: Scores (S, P).
        bounds: The least and the largest score; the interval stays inside. See `score_interval`.
        level: The nominal coverage.
        grounds: The ground of each seed. With several, the interval is for grounds too, and every
            ground counts equally.

    Raises:
        ValueError: Scores are outside the bounds, or not finite.
    """
    array = matrix(scores)
    units = ground_means(array, grounds)
    variances = parts(units)
    mean, half = float(variances.mean), float(half_width(variances, level))
    low, high = mean - half, mean + half
    if bounds:
        floor, span = bounds[0], bounds[1] - bounds[0]
        if array.min() < bounds[0] or array.max() > bounds[1]:
            raise ValueError(f"scores lie outside {bounds}")
        low, high = (
            floor + span * float(end) for end in score_interval((units - floor) / span, level)
        )
    seeds, prompts = array.shape
    count = len(set(grounds or [0]))
    label = SEVERAL_GROUNDS if count > 1 else SEVERAL_SEEDS if seeds > 1 else ONE_SEED
    seed_sd, ground_sd = _spread(array, units, grounds if count > 1 else None)
    return Estimate(mean, low, high, seeds, prompts, label, seed_sd, level, count, ground_sd)


def _spread(scores: Array, units: Array, grounds: Sequence[int] | None) -> tuple[float, float]:
    """Return the standard deviations between seeds of a ground, and between grounds."""
    if grounds is None:
        return math.sqrt(_between(scores)) if len(scores) > 1 else math.nan, math.nan
    labels = np.asarray(grounds)
    own = [scores[labels == ground] for ground in sorted(set(grounds))]
    several = [_between(array) for array in own if len(array) > 1]
    of_seeds = fmean(several) if several else math.nan
    # one seed to a ground: what varies is both
    rest = of_seeds * fmean(1 / len(array) for array in own) if several else 0.0
    return math.sqrt(of_seeds), math.sqrt(max(0.0, _between(units) - rest))


def _between(scores: Array) -> float:
    """Return the variance between the rows of scores (S, P), without prompts and answers."""
    found = parts(scores)
    return max(0.0, len(scores) * float(found.seeds - found.rest))


def win_rate_interval(
    scores: ArrayLike, level: float = 0.95, grounds: Sequence[int] | None = None
) -> Estimate:
    """Return the win-rate of per-prompt scores (S, P) in [0, 1], 1 a win, 0.5 a tie, with its
    interval in [0, 1]; see `two_way_interval`.
    """
    return two_way_interval(scores, (0.0, 1.0), level, grounds)


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
