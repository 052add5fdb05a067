"""Several tasks: interquartile mean, probability of improvement, stratified bootstrap.

As defined by Agarwal et al. 2021 (2108.13264, "Deep RL at the edge of the statistical precipice")
and in their library rliable. Scores are (R runs, K tasks), runs being seeds, already on one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Array, matrix, percentile_interval


@dataclass(frozen=True)
class Aggregate:
    """A figure of one or two score matrices with its bootstrap percentile interval."""

    value: float
    low: float
    high: float


def iqm(scores: ArrayLike) -> float:
    """Return the interquartile mean of all run-task cells: the mean without the lowest and highest
    int(n / 4).

    Raises:
        ValueError: A score is missing. Sorting would count it as the highest.
    """
    cells = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not len(cells) or np.isnan(cells).any():
        raise ValueError("the interquartile mean needs every score")
    cut = len(cells) // 4
    return float(cells[cut : len(cells) - cut].mean())


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Return P(a run of x beats a run of y), ties half: per task Mann-Whitney's U / (Rx Ry), the
    mean over tasks.
    """
    a, b = matrix(x, 1), matrix(y, 1)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both need the same tasks: there are {a.shape[1]} and {b.shape[1]}")
    above, equal = a[:, None] > b[None], a[:, None] == b[None]
    return float((above + 0.5 * equal).mean())


def stratified_bootstrap(
    figure: Callable[..., float],
    matrices: Sequence[ArrayLike],
    resamples: int = 2000,
    seed: int = 0,
    tasks_too: bool = False,
    level: float = 0.95,
) -> Aggregate:
    """Return a figure of one or two matrices (R, K) with the percentile interval of its stratified
    bootstrap.

    Runs are drawn with replacement within each task. With `tasks_too` the K tasks are drawn first,
    the same for all matrices (rliable's task_bootstrap). With fewer than ten runs such an interval
    is too narrow (a mean of three runs: 76 % at nominal 95 %), so for one task use
    `two_way_interval`. Prompts must not stand for tasks: runs share the difficulty of prompts, and
    drawing seeds anew for each prompt loses what a seed does to all of them.

    Raises:
        ValueError: There is one run only.
    """
    arrays = [matrix(m, 1) for m in matrices]
    if any(len(array) < 2 for array in arrays):
        raise ValueError(
            "the bootstrap draws runs again: it needs two runs (rows) or more of every matrix, and"
            " of one alone the interval would have no width; a row is a run's score on each task"
        )
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for i in range(resamples):
        tasks = arrays[0].shape[1]
        chosen = rng.integers(tasks, size=tasks) if tasks_too else np.arange(tasks)
        draws[i] = figure(*(_resampled(array[:, chosen], rng) for array in arrays))
    return Aggregate(figure(*arrays), *percentile_interval(draws, level))


def _resampled(array: Array, rng: np.random.Generator) -> Array:
    rows = rng.integers(len(array), size=array.shape)
    return np.take_along_axis(array, rows, axis=0)
