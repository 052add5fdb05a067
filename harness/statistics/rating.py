"""Ratings of several methods from their pairwise wins: Bradley-Terry with ties, a weak prior, a
bootstrap over prompts.

P(i beats j) = sigma(r_i - r_j), with a tie as half a win for each (Bradley and Terry 1952; Hunter
2004). It is fitted to all comparisons at once. So it does not depend on their order, as sequential
Elo updates do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Array, matrix, pairwise_scores

ELO = 400 / float(np.log(10))  # Elo points per nat
RIDGE = 0.1  # one over the prior variance of a rating: 3.2 nats or 550 Elo of standard deviation


@dataclass(frozen=True)
class Rating:
    """A method's rating in Elo points, `base` on average over methods (or at the anchor), with its
    interval.
    """

    elo: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratings:
    """Ratings, the win-rates they are fitted to, and the misfit of a single ranking."""

    ratings: dict[str, Rating]
    win_rates: Array  # (M, M): row beats column, ties half; nan on the diagonal
    residual: float  # root mean square over pairs of (win-rate - fitted)
    worst: tuple[str, str]  # the pair that fits worst
    label: str = "these checkpoints: prompts drawn again, not seeds"


def bradley_terry(wins: ArrayLike, ridge: float = RIDGE) -> Array:
    """Return ratings r (..., M) in nats, of mean 0, from wins (..., M, M): how often row beat
    column, ties half a win.

    Newton's method on sum wins_ij log sigma(r_i - r_j) - ridge / 2 |r|^2. The prior keeps 20-0
    finite; with `ridge` 0 it is the maximum likelihood, refused where that is infinite: unless
    every method can be reached from every other over methods it beat or tied (Ford 1957).
    """
    w = np.asarray(wins, dtype=np.float64).copy()
    m = w.shape[-1]
    w[..., np.arange(m), np.arange(m)] = 0.0
    if ridge <= 0 and not all(_connected(one) for one in w.reshape(-1, m, m)):
        raise ValueError(
            "some methods never lost to the others: without a prior (ridge > 0) their rating is"
            " infinite"
        )
    games, won = w + np.swapaxes(w, -1, -2), w.sum(-1)
    r = np.zeros(w.shape[:-1])
    fixed = ridge * np.eye(m) + (
        np.ones((m, m)) / m if ridge <= 0 else 0.0
    )  # without a prior the mean is not determined
    for _ in range(200):
        p = 0.5 * (1 + np.tanh(0.5 * (r[..., :, None] - r[..., None, :])))
        slope = won - (games * p).sum(-1) - ridge * r
        curved = games * p * (1 - p)
        hessian = fixed - curved
        hessian[..., np.arange(m), np.arange(m)] += curved.sum(-1)
        step = np.linalg.solve(hessian, slope[..., None])[..., 0]
        largest = np.abs(step).max(-1, keepdims=True)
        r = r + step * np.minimum(
            1.0, 2.0 / np.maximum(largest, 2.0)
        )  # at most 2 nats per step, to avoid large overshoots
        if float(largest.max()) < 1e-11:
            break
    return np.asarray(r - r.mean(-1, keepdims=True), dtype=np.float64)


def _connected(wins: Array) -> bool:
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(len(wins)):
        reach = reach | ((reach.astype(float) @ reach.astype(float)) > 0)
    return bool(reach.all())


def battles(scores: Mapping[str, ArrayLike]) -> Array:
    """Return how often row beat column on each prompt, (P, M, M), for scores (S_i, P), over all
    pairs of their seeds.

    A prompt counts once, whatever the number of seeds. The diagonal is 0.
    """
    arrays = [matrix(s) for s in scores.values()]
    prompts = arrays[0].shape[1]
    if any(array.shape[1] != prompts for array in arrays):
        raise ValueError("battles are on the same prompts: methods have unlike numbers of them")
    shares = np.zeros((prompts, len(arrays), len(arrays)))
    for i, a in enumerate(arrays):
        for j, b in enumerate(arrays[:i]):
            shares[:, i, j] = pairwise_scores(a[:, None], b[None]).mean((0, 1))
            shares[:, j, i] = 1 - shares[:, i, j]
    return shares


def rate(
    scores: Mapping[str, ArrayLike],
    anchor: str | None = None,
    base: float = 1000.0,
    ridge: float = RIDGE,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Ratings:
    """Return Elo ratings of methods from scores (S_i, P) on the same prompts, higher is better,
    with percentile intervals.

    The bootstrap draws prompts with all comparisons on them, because comparisons on one prompt
    share its answers.
    """
    names, per_prompt = list(scores), battles(scores)
    prompts, m = per_prompt.shape[:2]
    zero = names.index(anchor) if anchor is not None else None
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(
        np.float64
    )
    drawn = (counts @ per_prompt.reshape(prompts, m * m)).reshape(resamples, m, m)
    nats = bradley_terry(np.concatenate([per_prompt.sum(0)[None], drawn]), ridge)
    shifted = nats - (nats[:, [zero]] if zero is not None else 0.0)
    elo = base + ELO * shifted
    tails = np.quantile(elo[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    ratings = {
        name: Rating(float(elo[0, i]), float(tails[0, i]), float(tails[1, i]))
        for i, name in enumerate(names)
    }
    rates = per_prompt.mean(0)
    residual, (i, j) = intransitivity(rates, nats[0])
    rates[np.arange(m), np.arange(m)] = np.nan
    return Ratings(ratings, rates, residual, (names[i], names[j]))


def intransitivity(win_rates: Array, nats: Array) -> tuple[float, tuple[int, int]]:
    """Return the root mean square of (win-rate - fitted) over pairs, and the pair where it is
    largest.

    Near 0 where one number per method explains all pairs; 0.5 for rock, paper, scissors.
    """
    fitted = 0.5 * (1 + np.tanh(0.5 * (nats[:, None] - nats[None])))
    rows, columns = np.triu_indices(len(nats), 1)
    gap = (win_rates - fitted)[rows, columns]
    worst = int(np.abs(gap).argmax())
    return float(np.sqrt((gap**2).mean())), (int(rows[worst]), int(columns[worst]))
