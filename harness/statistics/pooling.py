"""The variance of a run's mean, pooled over the methods of a table.

Few seeds or grounds say little about a method's own variance. Methods that vary alike say more
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .intervals import Array, ground_means

BORROW_FROM = 3  # least seeds per method, and least methods, for a pooled variance
ALPHA = 0.01  # of the test for outliers among the variances


@dataclass(frozen=True)
class Pool:
    """The variance of a run's mean, pooled over all methods of a table, with its degrees of
    freedom.
    """

    variance: float
    df: float
    within: frozenset[int] = frozenset()  # the methods that are pooled, by their place


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


def _without_outliers(variances: Array, d: Array, alpha: float = ALPHA) -> NDArray[np.bool_]:
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


def pooled_on_grounds(methods: Sequence[Array], grounds: Sequence[Sequence[int]]) -> Pool | None:
    """Return the pooled variance of a method's mean on a ground, apart from what the ground does to
    all methods; None where there is too little to pool.

    The layout is a randomised block design: methods are the treatments, grounds the blocks. The
    residuals of its means (M, G) have (M - 1) (G - 1) degrees of freedom, where a pair of methods
    has G - 1. Methods with fewer grounds than others, and outliers as in `pooled`, are not
    `within`.

    Args:
        methods: Scores (S_i, P) of each method.
        grounds: The ground of each row of each method.
    """
    every = set().union(*map(set, grounds))
    first: dict[bytes, int] = {}
    twin = [first.setdefault(array.tobytes(), i) for i, array in enumerate(methods)]
    full = [i for i, own in enumerate(grounds) if set(own) == every and twin[i] == i]
    if min(len(full), len(every)) < BORROW_FROM:
        return None
    means = np.stack([ground_means(methods[i], grounds[i]).mean(-1) for i in full])
    kept = _blocks_without_outliers(means)
    variances, d = _of_blocks(means[kept])
    total, squares = float(d * variances.sum()), float((d**2 * variances**2 / (d + 1)).sum())
    if squares <= 0:
        return None
    freedom = d * len(kept)
    inside = {full[k] for k in kept}
    within = frozenset(i for i, other in enumerate(twin) if other in inside)
    return Pool(total / freedom, min(total**2 / squares, freedom), within)


def _of_blocks(means: Array) -> tuple[Array, float]:
    """Return the variances (M,) of means (M, G) without those of the grounds, and the degrees of
    freedom of each.
    """
    m, g = means.shape
    residual = means - means.mean(0)
    residual = residual - residual.mean(1, keepdims=True)
    d = (g - 1) * (m - 1) / m
    return (residual**2).sum(1) / d, d


def _blocks_without_outliers(means: Array) -> list[int]:
    """Return which methods vary alike over grounds; at least BORROW_FROM are kept."""
    from scipy.stats import f

    kept = list(range(len(means)))
    while len(kept) > BORROW_FROM:
        variances, d = _of_blocks(means[kept])
        worst = int(np.argmax(variances))
        rest = float(np.delete(variances, worst).mean())
        if variances[worst] <= rest * f.isf(ALPHA / len(kept), d, d * (len(kept) - 1)):
            break
        del kept[worst]
    return kept
