"""Comparison of methods on the same prompts: paired differences, Holm's correction, and the
confidence set of the best behind bold type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from .intervals import (
    ONE_SEED,
    SEVERAL_GROUNDS,
    SEVERAL_SEEDS,
    Array,
    Parts,
    ground_means,
    half_width,
    matrix,
    p_value,
    parts,
)
from .pooling import Pool, pooled, pooled_on_grounds

Grounds = Mapping[str, Sequence[int]]  # of the seeds of each method

OPEN_WIDTH = 2.0  # half-widths of a usual method: see `confidence_set`


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
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"compare on the same prompts: there are {a.shape[-1]} and {b.shape[-1]}")
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


@dataclass(frozen=True)
class Runs:
    """The scores of a method with the ground of each of its seeds."""

    scores: Array  # (S, P)
    grounds: tuple[int, ...]  # (S)

    def on(self, grounds: Sequence[int]) -> Runs:
        """Return the runs on some grounds."""
        if set(self.grounds) <= set(grounds):
            return self
        kept = [i for i, ground in enumerate(self.grounds) if ground in grounds]
        return Runs(self.scores[kept], tuple(self.grounds[i] for i in kept))

    @cached_property
    def parts(self) -> Parts:
        """The variance of the mean by source, of one ground."""
        return parts(self.scores)

    @cached_property
    def ground_means(self) -> Array:
        """The means over the seeds of each ground, (G, P)."""
        return ground_means(self.scores, self.grounds)

    @property
    def mean(self) -> float:
        """The mean over grounds, each of which counts equally."""
        return float(self.ground_means.mean())


def _runs(scores: Mapping[str, ArrayLike], grounds: Grounds | None) -> dict[str, Runs]:
    arrays = {name: matrix(s) for name, s in scores.items()}
    return {
        name: Runs(array, tuple(grounds[name]) if grounds else (0,) * len(array))
        for name, array in arrays.items()
    }


def common_grounds(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Return the grounds that two methods share, in order."""
    return sorted(set(a) & set(b))


def _parts_on(a: Runs, b: Runs, common: Sequence[int], pool: Pool | None) -> Parts:
    """Split the variance of a difference on several common grounds, which both methods share: the
    two-way layout of the differences of ground means.
    """
    ours, theirs = (
        ground_means(runs.scores, runs.grounds) for runs in (a.on(common), b.on(common))
    )
    own = parts(ours - theirs)
    if pool is None:
        return own
    seeds = np.maximum(own.seeds, 2 * pool.variance / len(common))
    return replace(own, seeds=seeds, df=np.full_like(seeds, pool.df))


def _difference(a: Runs, b: Runs, pool: Pool | None) -> tuple[Parts, str]:
    """Return the parts of mean(a) - mean(b) on the grounds that both have, and what it is about."""
    common = common_grounds(a.grounds, b.grounds)
    if len(common) > 1:
        return _parts_on(a, b, common, pool), SEVERAL_GROUNDS
    if not common:  # nothing is known of the difference
        own = difference_parts(a.scores, b.scores)
        return replace(own, seeds=np.full_like(own.seeds, np.inf)), SEVERAL_GROUNDS
    x, y = a.on(common), b.on(common)
    label = SEVERAL_SEEDS if min(len(x.scores), len(y.scores)) > 1 else ONE_SEED
    return _unpaired(x.scores, y.scores, x.parts, y.parts, pool), label


def _pool(runs: Sequence[Runs]) -> Pool | None:
    arrays, grounds = [one.scores for one in runs], [one.grounds for one in runs]
    if len(set().union(*grounds)) > 1:
        return pooled_on_grounds(arrays, grounds)
    return pooled(arrays)


def borrows(scores: Mapping[str, ArrayLike], grounds: Grounds | None = None) -> bool:
    """Return whether `all_pairs` also tests these methods with a pooled variance."""
    return _pool(list(_runs(scores, grounds).values())) is not None


def compare(
    a: ArrayLike,
    b: ArrayLike,
    paired_seeds: bool = False,
    level: float = 0.95,
    grounds: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Comparison:
    """Return the paired comparison of two methods' scores, (Sa, P) and (Sb, P), row p the same
    prompt in both.

    Args:
        a: Scores of the first.
        b: Scores of the second.
        paired_seeds: Whether seed s of one belongs to seed s of the other.
        level: The nominal coverage of the interval.
        grounds: The ground of each seed of both. Methods share their grounds: with several, the
            difference is paired over them.
    """
    x, y = matrix(a), matrix(b)
    if paired_seeds:
        found = difference_parts(x, y, True)
        label = SEVERAL_SEEDS if len(x) > 1 else ONE_SEED
    else:
        of_both = {"a": grounds[0], "b": grounds[1]} if grounds else None
        runs = _runs({"a": x, "b": y}, of_both)
        found, label = _difference(runs["a"], runs["b"], None)
    half = float(half_width(found, level))
    return _comparison(found, half, float(p_value(found)), x, y, label)


def _comparison(
    difference: Parts, half: float, p: float, x: Array, y: Array, label: str
) -> Comparison:
    mean = float(difference.mean)
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
    scores: Mapping[str, ArrayLike],
    borrow: bool = True,
    level: float = 0.95,
    grounds: Grounds | None = None,
) -> dict[tuple[str, str], Comparison]:
    """Return the comparison of every pair of methods, with p-values adjusted by Holm over all
    pairs.

    With `borrow`, where three methods or more have three seeds or more, every pair is tested twice:
    with the variance between seeds `pooled`, and with its own (Welch). Twice the smaller p-value
    counts, which is a valid test by Bonferroni. The pool separates similar methods on few seeds.
    Where methods vary unequally, the pool helps little, and a pair's own variance still separates
    steady methods. A method that is not `within` the pool is tested with its own variance only.

    With several `grounds` every pair is compared on the grounds that both have, paired over them,
    and the pool is `pooled_on_grounds`.
    """
    runs = _runs(scores, grounds)
    if len({one.scores.shape[1] for one in runs.values()}) > 1:
        raise ValueError("compare on the same prompts: methods have unlike numbers of them")
    names = list(combinations(runs, 2))
    if not names:
        return {}
    pool = _pool(list(runs.values())) if borrow else None
    tests = [
        _tested(runs, names, one, level, pool is not None) for one in dict.fromkeys((None, pool))
    ]
    p, halves = (np.array(column) for column in zip(*((t.p, t.halves) for t in tests), strict=True))
    best, places = np.argmin(p, 0), np.arange(len(names))
    smallest, half = p[best, places].tolist(), halves[best, places].tolist()
    return {
        pair: replace(
            _comparison(f, h, raw, runs[pair[0]].scores, runs[pair[1]].scores, label),
            adjusted=adjusted,
        )
        for pair, (f, label), h, raw, adjusted in zip(
            names, tests[0].differences, half, smallest, holm(smallest), strict=True
        )
    }


@dataclass(frozen=True)
class _Tests:
    """One test of every pair: p-values, half-widths, and what the differences are about."""

    p: Array
    halves: Array
    differences: list[tuple[Parts, str]]


def _tested(
    runs: Mapping[str, Runs],
    names: Sequence[tuple[str, str]],
    pool: Pool | None,
    level: float,
    twice: bool,
) -> _Tests:
    """Test every pair with a pool's variance, or with its own; p-values are those of two tests if
    every pair is tested `twice`.
    """
    times = 2 if twice else 1
    places = {name: i for i, name in enumerate(runs)}
    differences = [_difference(runs[a], runs[b], pool) for a, b in names]
    together = _stacked([f for f, _ in differences])
    usable = np.array([pool is None or {places[a], places[b]} <= pool.within for a, b in names])
    # 2: the other test counts
    p = np.where(usable, np.minimum(1.0, p_value(together) * times), 2.0)
    return _Tests(p, half_width(together, 1 - (1 - level) / times), differences)


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
    scores: Mapping[str, ArrayLike],
    alpha: float = 0.05,
    borrow: bool = True,
    higher: bool = True,
    grounds: Grounds | None = None,
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
        grounds: The ground of each seed of each method; None where all have one.
    """
    runs = _runs(scores, grounds)
    first: dict[bytes, str] = {}
    twin = {name: first.setdefault(one.scores.tobytes(), name) for name, one in runs.items()}
    distinct = {name: one for name, one in runs.items() if twin[name] == name}
    sign = 1 if higher else -1
    means = {name: sign * one.mean for name, one in distinct.items()}
    pairs = all_pairs(
        {name: one.scores for name, one in distinct.items()},
        borrow,
        grounds={name: one.grounds for name, one in distinct.items()},
    )
    left, noisy = _left(pairs, means, alpha), _noisy(pairs, means)
    of_left = {name: Standing.OPEN if name in noisy else Standing.BEST for name in left}
    return {name: of_left.get(twin[name], Standing.WORSE) for name in scores}


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
    scores: Mapping[str, ArrayLike],
    alpha: float = 0.05,
    borrow: bool = True,
    higher: bool = True,
    grounds: Grounds | None = None,
) -> dict[str, bool]:
    """Return which methods a table sets bold: those whose `Standing` is BEST."""
    standings = confidence_set(scores, alpha, borrow, higher, grounds)
    return {name: standing is Standing.BEST for name, standing in standings.items()}
