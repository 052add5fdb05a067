"""Error bars over prompts, without torch. The interval of one run describes its checkpoint only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class PromptEstimate:
    """A mean over the prompts of one run, with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(
    values: Sequence[float], bounds: tuple[float, float] | None = None
) -> PromptEstimate:
    """Return the mean with a 95 % Student-t interval, cut at `bounds` where there are any."""
    n = len(values)
    if n < 2:
        raise ValueError("an interval needs at least two values")
    if any(math.isnan(v) for v in values):
        raise ValueError("a value is missing: leave it out, and count it")
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = t_quantile(0.975, n - 1) * spread
    low, high = mean - half, mean + half
    if bounds:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return PromptEstimate(mean, low, high, n)


def known(values: Sequence[float]) -> list[float]:
    """Return the values that are there: NaN is a missing one."""
    return [value for value in values if not math.isnan(value)]


def known_interval(
    values: Sequence[float], bounds: tuple[float, float] | None = None
) -> PromptEstimate | None:
    """Return the mean over the values that are there; None where fewer than two are."""
    there = known(values)
    return mean_interval(there, bounds) if len(there) > 1 else None


def win_scores(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return per prompt 1 for a win, 0.5 for a tie, 0 for a loss.

    It is NaN where either score is missing: a missing score is no loss for either side.
    """
    return [_win(a, b) for a, b in zip(ours, theirs, strict=True)]


def _win(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan
    return 1.0 if a > b else 0.5 if a == b else 0.0


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> PromptEstimate:
    """Return the win-rate over the prompts on which both scores are there, ties half; see
    `rate_interval`.
    """
    return rate_interval(win_scores(ours, theirs))


def rate_interval(scores: Sequence[float]) -> PromptEstimate:
    """Return the mean of scores in [0, 1] over prompts; NaN is a missing score and is left out.

    The interval is Wilson's score interval with the variance of the observed scores in place of p
    (1 - p): it stays inside [0, 1] and does not shrink to nothing at 0 or 1, and ties narrow it as
    they should.

    Raises:
        ValueError: No score is there.
    """
    there = known(scores)
    if not there:
        raise ValueError("no score is there: there is no win-rate")
    n, p = len(there), math.fsum(there) / len(there)
    inner = math.fsum(s * (1 - s) for s in there) / n  # a quarter of the ties' share
    z = NormalDist().inv_cdf(0.975)
    # with p' the true rate, var = p'(1 - p') - inner; solve |p - p'| = z sqrt(var / n) for p'
    a, b, c = 1 + z * z / n, -(2 * p + z * z / n), p * p + z * z * inner / n
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return PromptEstimate(p, max(0.0, (-b - root) / (2 * a)), min(1.0, (-b + root) / (2 * a)), n)


def t_quantile(p: float, df: int) -> float:
    """Return the quantile of Student's t: scipy's for few degrees of freedom, else an expansion in
    1/df.
    """
    if df < 30:
        from scipy.stats import t

        return float(t.ppf(p, df))
    z = NormalDist().inv_cdf(p)
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def best_of_n_estimate(values: Sequence[float], proxy: Sequence[float], n: int) -> float:
    """Return the unbiased estimate, from m >= n samples, of the expected value of the best of n by
    the proxy.

    With the samples sorted by proxy, sample i of m is the best of C(i-1, n-1) of the C(m, n)
    subsets (Nakano et al. 2021, 2112.09332, app.). Equal proxies share the weight of their ranks,
    C(last, n) - C(first - 1, n).

    Raises:
        ValueError: There are fewer than n samples, or a value or its proxy is missing.
    """
    m = len(values)
    if any(math.isnan(v) for v in (*values, *proxy)):
        raise ValueError("a value or its proxy is missing: leave the sample out, and count it")
    if not 1 <= n <= m or len(proxy) != m:
        raise ValueError(
            f"best of {n} needs at least {n} samples with a proxy each, not {m} and {len(proxy)}"
        )
    levels: dict[float, list[float]] = {}
    for score, value in zip(proxy, values, strict=True):
        levels.setdefault(score, []).append(value)
    total, below = 0.0, 0
    for score in sorted(levels):
        tied = levels[score]
        subsets = math.comb(below + len(tied), n) - math.comb(below, n)
        total += subsets / math.comb(m, n) * math.fsum(tied) / len(tied)
        below += len(tied)
    return total
