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
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = t_quantile(0.975, n - 1) * spread
    low, high = mean - half, mean + half
    if bounds:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return PromptEstimate(mean, low, high, n)


def win_scores(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return per prompt 1 for a win, 0.5 for a tie, 0 for a loss."""
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> PromptEstimate:
    """Return the win-rate over prompts, ties half.

    The interval is Wilson's score interval with the variance of the observed scores in place of p
    (1 - p): it stays inside [0, 1] and does not shrink to nothing at 0 or 1, and ties narrow it as
    they should.
    """
    scores = win_scores(ours, theirs)
    n, p = len(scores), math.fsum(scores) / len(scores)
    ties = sum(s == 0.5 for s in scores) / n
    z = NormalDist().inv_cdf(0.975)
    # with p' the true rate, var = p'(1 - p') - ties / 4; solve |p - p'| = z sqrt(var / n) for p'
    a, b, c = 1 + z * z / n, -(2 * p + z * z / n), p * p + z * z * ties / (4 * n)
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
    """
    m = len(values)
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
