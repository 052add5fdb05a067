"""Comparison of methods on the same prompts: paired differences, Holm's correction, and the
confidence set of the best behind bold type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .intervals import ONE_SEED, SEVERAL_SEEDS, Array, Parts, half_width, matrix, p_value, parts

OPEN_WIDTH = 2.0  # half-widths of a usual method: see `confidence_set`
BORROW_FROM = 3  # least seeds per method, and least methods, for a pooled variance


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods, the first less the second, with interval and two-sided
    p-value.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: tuple[int, int]
    prompts: int
    label: str
    adjusted: float | None = None  # p after Holm, in a family


@dataclass(frozen=True)
class Pool:
    """The variance of a run's mean, pooled over all methods of a table, with its degrees of
    freedom.
    """

    variance: float
    df: float
    within: frozenset[int] = frozenset()  # the methods that are pooled, by their place


def difference_parts(
    a: Array, b: Array, paired_seeds: bool = False, pool: Pool | None = None
) -> Parts:
    """Split the variance of mean(a) - mean(b); a is (..., Sa, P), b is (..., Sb, P), on the same
    prompts.

    With `paired_seeds`, seed s of one belongs to seed s of the other: the two-way layout of a - b.
    Otherwise seeds are independent between methods and prompts are paired: V_A = V_A(a) + V_A(b) on
    Welch's degrees of freedom, and V_B is the variance over prompts of the difference of seed
    means, less the part of the answers' noise. A method with one seed adds nothing to V_A. The
    noise of its answers stays in V_B, the noise of its seed cannot be estimated, and the label says
    so. With a `pool`, no method's variance of a run is set below the pool's, and t has the pool's
    degrees of freedom.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"compare on the same prompts: there are {a.shape[-1]} and {b.shape[-1]}")
    if paired_seeds:
        if a.shape != b.shape:
            raise ValueError(
                f"paired seeds need as many of each, not {a.shape[-2]} and {b.shape[-2]}"
            )
        return parts(a - b)
    return _unpaired(a, b, parts(a), parts(b), pool)


def _unpaired(a: Array, b: Array, first: Parts, second: Parts, pool: Pool | None) -> Parts:
    prompts = a.shape[-1]
    between = (a.mean(-2) - b.mean(-2)).var(-1, ddof=1) / prompts
    prompt_share = np.maximum(between - first.rest - second.rest, 0)
    if pool is not None:
        seeds = _at_least(first.seeds, pool, a) + _at_least(second.seeds, pool, b)
        df = np.full_like(seeds, pool.df)
    else:
        seeds = first.seeds + second.seeds
        welch = first.seeds**2 / first.df + second.seeds**2 / second.df
        df = np.where(welch > 0, seeds**2 / np.where(welch > 0, welch, 1.0), 1.0)
    return Parts(
        first.mean - second.mean, seeds, df, prompt_share, prompts - 1, first.rest + second.rest
    )


def _at_least(own: Array, pool: Pool, scores: Array) -> Array:
    seeds = scores.shape[-2]
    return np.maximum(own, pool.variance / seeds) if seeds > 1 else own


def pooled(methods: Sequence[Array]) -> Pool | None:
    """Return the pooled variance of a run's mean over methods (S_i, P), or None where there is too
    little to pool.

    Three seeds are too few to separate any two of ten methods by their own variance: Holm's first
    step asks t with 2 or so degrees of freedom for a tail of 0.0006. The variances A_i of all
    methods' runs, weighted by d_i = S_i - 1, give Satterthwaite's (sum d A)^2 / sum(d^2 A^2 / (d +
    1)) degrees of freedom: most of sum(d) where methods are alike, few where one is much noisier.
    (A^2 / d without bias is A^2 / (d + 2): that errs in 5.6 % of tables where one of three methods
    is noisy; d + 1 keeps below 5 %. A pool without either guard errs in 35 %, see the tests.)

    A method whose variance is an outlier among the others (Cochran's C at 1 %, again and again) is
    not `within`: it neither blows up the pool nor is spoken for by it. The same scores under two
    names count once: they say nothing twice, and two outliers hide each other.
    """
    first: dict[bytes, int] = {}
    twin = [first.setdefault(array.tobytes(), i) for i, array in enumerate(methods)]
    several = [i for i, array in enumerate(methods) if array.shape[-2] > 1 and twin[i] == i]
    if len(several) < BORROW_FROM or any(methods[i].shape[-2] < BORROW_FROM for i in several):
        return None
    d = np.array([methods[i].shape[-2] - 1 for i in several], dtype=np.float64)
    of_run = np.array([methods[i].mean(-1).var(ddof=1) for i in several])
    alike = _without_outliers(of_run, d)
    total, squares = (
        float((d * of_run)[alike].sum()),
        float((d**2 * of_run**2 / (d + 1))[alike].sum()),
    )
    if squares <= 0:
        return None
    freedom = float(d[alike].sum())
    kept = {several[k] for k in np.flatnonzero(alike)}
    within = frozenset(i for i, other in enumerate(twin) if other in kept)
    return Pool(total / freedom, min(total**2 / squares, freedom), within)


def borrows(scores: Mapping[str, ArrayLike]) -> bool:
    """Return whether `all_pairs` also tests these methods with a pooled variance."""
    return pooled([matrix(s) for s in scores.values()]) is not None


def _without_outliers(variances: Array, d: Array, alpha: float = 0.01) -> NDArray[np.bool_]:
    """Return which variances, on d degrees of freedom each, are no upward outliers; at least
    BORROW_FROM are kept.
    """
    from scipy.stats import f

    kept = np.ones(len(variances), dtype=bool)
    while kept.sum() > BORROW_FROM:
        worst = int(np.argmax(np.where(kept, variances, -1.0)))
        others = kept.copy()
        others[worst] = False
        rest = float((d * variances)[others].sum() / d[others].sum())
        limit = f.isf(
            alpha / kept.sum(), d[worst], d[others].sum()
        )  # Cochran's C, as the F of one against the rest
        if rest <= 0 or variances[worst] <= limit * rest:
            break
        kept = others
    return kept


def compare(
    a: ArrayLike, b: ArrayLike, paired_seeds: bool = False, level: float = 0.95
) -> Comparison:
    """Return the paired comparison of two methods' scores, (Sa, P) and (Sb, P), row p the same
    prompt in both.
    """
    x, y = matrix(a), matrix(b)
    difference = difference_parts(x, y, paired_seeds)
    return _comparison(
        difference, float(half_width(difference, level)), float(p_value(difference)), x, y
    )


def _comparison(difference: Parts, half: float, p: float, x: Array, y: Array) -> Comparison:
    mean, label = float(difference.mean), SEVERAL_SEEDS if min(len(x), len(y)) > 1 else ONE_SEED
    return Comparison(mean, mean - half, mean + half, p, (len(x), len(y)), x.shape[1], label)


def sign_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the exact two-sided sign test over prompts (P,), equal ones left out; of 0/1 scores:
    McNemar's.
    """
    from scipy.stats import binomtest

    above, below = (
        int(np.sum(s)) for s in (np.asarray(a) > np.asarray(b), np.asarray(a) < np.asarray(b))
    )
    return float(binomtest(above, above + below).pvalue) if above + below else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down (1979): the i-th smallest of m times m - i + 1,
    then monotone.

    Rejecting where the result is at most alpha errs anywhere in the family with probability at most
    alpha, however the tests depend on each other.
    """
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def all_pairs(
    scores: Mapping[str, ArrayLike], borrow: bool = True, level: float = 0.95
) -> dict[tuple[str, str], Comparison]:
    """Return the comparison of every pair of methods, with p-values adjusted by Holm over all
    pairs.

    With `borrow`, where three methods or more have three seeds or more, every pair is tested twice:
    with the variance between seeds `pooled`, and with its own (Welch). Twice the smaller p-value
    counts, which is a valid test by Bonferroni. The pool separates similar methods on few seeds.
    Where methods vary unequally, the pool helps little, and a pair's own variance still separates
    steady methods. A method that is not `within` the pool is tested with its own variance only.
    """
    arrays = {name: matrix(s) for name, s in scores.items()}
    if len({array.shape[1] for array in arrays.values()}) > 1:
        raise ValueError("compare on the same prompts: methods have unlike numbers of them")
    own, names = (
        {name: parts(array) for name, array in arrays.items()},
        list(combinations(arrays, 2)),
    )
    if not names:
        return {}
    places = {name: i for i, name in enumerate(arrays)}
    pools = [None, pooled(list(arrays.values()))] if borrow else [None]
    tests = [None] if pools[-1] is None else pools
    each = 1 - (1 - level) / len(tests)
    halves, p = [], []
    for pool in tests:
        differences = [_unpaired(arrays[a], arrays[b], own[a], own[b], pool) for a, b in names]
        together = _stacked(differences)
        halves.append(half_width(together, each))
        usable = np.array([pool is None or {places[a], places[b]} <= pool.within for a, b in names])
        p.append(
            np.where(usable, np.minimum(1.0, p_value(together) * len(tests)), 2.0)
        )  # 2: the other test counts
    best = np.argmin(np.array(p), 0)
    rows = np.arange(len(names))
    smallest, half = np.array(p)[best, rows].tolist(), np.array(halves)[best, rows].tolist()
    comparisons = {}
    for pair, f, h, raw, adjusted in zip(
        names, differences, half, smallest, holm(smallest), strict=True
    ):
        comparisons[pair] = replace(
            _comparison(f, h, raw, arrays[pair[0]], arrays[pair[1]]), adjusted=adjusted
        )
    return comparisons


def _stacked(differences: Sequence[Parts]) -> Parts:
    """Return the parts of all pairs in one array, so that the quantiles are computed in one
    call.
    """
    return Parts(
        mean=np.array([f.mean for f in differences]),
        seeds=np.array([f.seeds for f in differences]),
        df=np.array([f.df for f in differences]),
        prompts=np.array([f.prompts for f in differences]),
        df_prompts=differences[0].df_prompts,
        rest=np.array([f.rest for f in differences]),
    )


class Standing(Enum):
    """Where a method stands beside the best mean of a table."""

    BEST = "best"  # in the confidence set of the best
    OPEN = "open"  # in it only because its own seeds vary
    WORSE = "worse"


def confidence_set(
    scores: Mapping[str, ArrayLike], alpha: float = 0.05, borrow: bool = True, higher: bool = True
) -> dict[str, Standing]:
    """Return where each method stands: a stepwise confidence set of the best.

    In the manner of the model confidence set (Hansen, Lunde and Nason 2011), on the p-values of
    `all_pairs`. While k methods are left, the one with the smallest p-value beside the best mean is
    out if p k (k - 1) / 2 <= alpha. The best is chosen by the same data, so the factor is that of
    all pairs that are left, as in Tukey's range test. The family shrinks with the set: pairs among
    methods that are out correct nothing. A method that is truly best is called worse in at most
    `alpha` of tables.

    A method of the set is OPEN where the half-width of its difference to the best mean, and the
    difference itself, are both more than OPEN_WIDTH times the median half-width of the methods. Its
    own seeds vary so much that the data say little of it.

    The same scores under two names are one method, tested once.

    Args:
        scores: Scores (S, P) by method, on the same P prompts.
        alpha: The share of tables in which a best method may be called worse.
        borrow: Whether the variance between seeds is also pooled; see `all_pairs`.
        higher: Whether higher scores are better.
    """
    arrays = {name: matrix(s) for name, s in scores.items()}
    first: dict[bytes, str] = {}
    twin = {name: first.setdefault(array.tobytes(), name) for name, array in arrays.items()}
    distinct = {name: array for name, array in arrays.items() if twin[name] == name}
    sign = 1 if higher else -1
    means = {name: sign * float(array.mean()) for name, array in distinct.items()}
    pairs = all_pairs(distinct, borrow)
    left = _left(pairs, means, alpha)
    noisy = _noisy(pairs, means)
    standing = {
        name: Standing.WORSE
        if name not in left
        else Standing.OPEN
        if name in noisy
        else Standing.BEST
        for name in distinct
    }
    return {name: standing[twin[name]] for name in scores}


def _left(
    pairs: Mapping[tuple[str, str], Comparison], means: Mapping[str, float], alpha: float
) -> set[str]:
    """Return the methods that the stepwise tests leave."""
    best, left = max(means, key=lambda name: means[name]), set(means)
    beside = {
        name: comparison.p for pair, comparison in pairs.items() if best in pair for name in pair
    }
    beside.pop(best, None)
    for name in sorted(beside, key=lambda name: beside[name]):
        if beside[name] * len(left) * (len(left) - 1) / 2 > alpha:
            break
        left.remove(name)
    return left


def _noisy(
    pairs: Mapping[tuple[str, str], Comparison], means: Mapping[str, float]
) -> dict[str, float]:
    """Return the methods whose difference to the best mean is wide and large beside the others'."""
    best = max(means, key=lambda name: means[name])
    beside = {
        name: comparison for pair, comparison in pairs.items() if best in pair for name in pair
    }
    beside.pop(best, None)
    if not beside:
        return {}
    halves = {name: (comparison.high - comparison.low) / 2 for name, comparison in beside.items()}
    limit = OPEN_WIDTH * float(np.median(list(halves.values())))
    return {
        name: half
        for name, half in halves.items()
        if half > limit and abs(beside[name].difference) > limit
    }


def best_group(
    scores: Mapping[str, ArrayLike], alpha: float = 0.05, borrow: bool = True, higher: bool = True
) -> dict[str, bool]:
    """Return which methods a table sets bold: those whose `Standing` is BEST."""
    standings = confidence_set(scores, alpha, borrow, higher)
    return {name: standing is Standing.BEST for name, standing in standings.items()}
