"""Length-controlled win-rate: an estimate of the win-rate at equal lengths of answer and baseline.

Dubois et al. 2024 (2404.04475, AlpacaEval 2) fit a logistic regression of the preference in [0, 1],

    logit P(model wins on prompt x) = theta + phi tanh(dlen / sd(dlen)) + psi gamma_x.

dlen is the baseline's length less the model's, divided by its own sample standard deviation and not
centred. There is no other intercept. gamma_x is a difficulty of the prompt that is known
beforehand. The length-controlled win-rate is the mean over prompts of sigma(theta + psi gamma_x):
the length term is set to 0. A study's own prompts have no such difficulty: then psi = 0 and the
rate is sigma(theta), "own data" as opposed to AlpacaEval's figure, from which it may differ by many
points (28 at most, 7 on average over their models). This fit has no L1 penalty, theirs has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Array, Estimate, matrix, two_way_interval, win_rate_interval

RIDGE = 1e-4  # keeps coefficients finite where every prompt is won; negligible elsewhere
IDENTIFIED = 0.05  # least share of a seed's answers on either side of the baseline's length
SEPARATED = 7.0  # nats: beyond a win-rate of 99.9 % the curvature does not tell the error


@dataclass(frozen=True)
class LengthControlled:
    """The length-controlled win-rate with the raw win-rate and both mean lengths, which belong
    beside it.
    """

    win_rate: Estimate
    raw: Estimate
    theta: float  # in nats of log-odds
    phi: float  # change of the log-odds for a far longer answer; below 0: longer answers win
    psi: float
    length: float
    baseline_length: float
    # the smaller share of answers on one side of the baseline's length; the least over seeds
    overlap: float

    @property
    def identified(self) -> bool:
        """Whether every seed has enough answers on both sides of equal length; otherwise the fit is
        an extrapolation.
        """
        return self.overlap >= IDENTIFIED


def length_feature(baseline: ArrayLike, model: ArrayLike) -> Array:
    """Return tanh(dlen / sd(dlen)) for lengths that broadcast to (S, P); 0 where all dlen are
    equal: no control.
    """
    gap = np.asarray(baseline, dtype=np.float64) - np.asarray(model, dtype=np.float64)
    sd = float(gap.std(ddof=1))
    return np.tanh(gap / sd) if sd > 0 else np.zeros_like(gap)


def logistic(design: Array, weights: Array, moment: Array, ridge: float = RIDGE) -> Array:
    """Return the coefficients (K,) of a weighted logistic regression by Newton's method.

    design is (N, K); weights (N,). Outcomes y, soft ones too, enter by their sufficient statistic
    alone, `moment` = X'(w y), as (K,). Minimises sum w [log(1 + e^eta) - y eta] + ridge / 2
    |beta|^2; steps are halved until it falls.
    """
    beta = np.zeros(design.shape[1])

    def cost(at: Array) -> float:
        eta = design @ at
        return float(weights @ np.logaddexp(0, eta) - moment @ at + ridge / 2 * at @ at)

    for _ in range(100):
        mu = sigmoid(design @ beta)
        slope = design.T @ (weights * mu) - moment + ridge * beta
        step = np.linalg.solve(_curvature(design, weights, mu, ridge), slope)
        size, here = 1.0, cost(beta)
        while cost(beta - size * step) > here + 1e-12 * abs(here) and size > 1e-6:
            size /= 2
        beta = beta - size * step
        if float(np.abs(step).max()) < 1e-10:
            break
    return beta


def _curvature(design: Array, weights: Array, mu: Array, ridge: float) -> Array:
    curved = (design * (weights * mu * (1 - mu))[:, None]).T @ design
    return np.asarray(curved + ridge * np.eye(design.shape[1]), dtype=np.float64)


def sigmoid(x: ArrayLike) -> Array:
    """Return 1 / (1 + e^-x), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x, dtype=np.float64))), dtype=np.float64)


def published(theta: float, psi: float, difficulty: ArrayLike) -> float:
    """Return AlpacaEval 2's length-controlled win-rate in percent, from its coefficients and
    difficulties (P,).
    """
    return 100 * float(sigmoid(theta + psi * np.asarray(difficulty, dtype=np.float64)).mean())


def length_controlled(
    scores: ArrayLike,
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    difficulty: ArrayLike | None = None,
    level: float = 0.95,
    grounds: Sequence[int] | None = None,
) -> LengthControlled:
    """Return the length-controlled win-rate of scores (S, P) in [0, 1], lengths (S, P), baseline's
    (P,) or (S, P).

    One fit over all cells: seeds share theta and phi. The interval covers seeds and prompts, and
    the fit: every cell's influence on logit(LC), that is gradient' H^-1 x (y - mu) N, is a
    pseudo-score, and they get `two_way_interval`. (Upstream's standard error is that of the fitted
    values and leaves out the fit.) Where nearly every prompt is won the raw win-rate's interval
    stands in. `grounds` are those of the seeds, as in `two_way_interval`.
    """
    y, long = matrix(scores), matrix(lengths)
    if y.shape != long.shape or y.min() < 0 or y.max() > 1:
        raise ValueError(
            f"scores in [0, 1] need a length each: shapes are {y.shape} and {long.shape}"
        )
    other = np.broadcast_to(np.asarray(baseline_lengths, dtype=np.float64), y.shape)
    columns = [np.ones(y.size), length_feature(other, long).ravel()]
    if difficulty is not None:
        columns.append(np.broadcast_to(np.asarray(difficulty, dtype=np.float64), y.shape).ravel())
    design, weights = np.stack(columns, 1), np.ones(y.size)
    beta = logistic(design, weights, design.T @ y.ravel())
    neutral = design * np.array([1.0, 0.0, 1.0][: len(columns)])
    at = sigmoid(neutral @ beta)
    rate = float(at.mean())
    raw = win_rate_interval(y, level, grounds)
    if abs(beta[0]) > SEPARATED:
        controlled = replace(raw, mean=rate, low=min(raw.low, rate), high=max(raw.high, rate))
    else:
        gradient = neutral.T @ (at * (1 - at)) / y.size
        mu = sigmoid(design @ beta)
        solved = np.linalg.solve(_curvature(design, weights, mu, RIDGE), gradient)
        influence = (design @ solved) * (y.ravel() - mu) * y.size + (at - rate)
        controlled = _on_logits(rate, influence.reshape(y.shape), level, grounds)
    psi = float(beta[2]) if len(beta) > 2 else 0.0
    sides = np.minimum((long >= other).mean(1), (long <= other).mean(1))
    means = float(long.mean()), float(other.mean())
    return LengthControlled(
        controlled, raw, float(beta[0]), float(beta[1]), psi, *means, float(sides.min())
    )


def _on_logits(
    rate: float, influence: Array, level: float, grounds: Sequence[int] | None
) -> Estimate:
    """Return the interval of a rate from the influence of every cell (S, P), made on log-odds: it
    stays in (0, 1).
    """
    odds = float(np.log(rate / (1 - rate)))
    scale = rate * (1 - rate)
    interval = two_way_interval(odds + influence / scale, level=level, grounds=grounds)
    ends = (float(sigmoid(odds + end - interval.mean)) for end in (interval.low, interval.high))
    low, high = ends
    return replace(
        interval,
        mean=rate,
        low=low,
        high=high,
        seed_sd=interval.seed_sd * scale,
        ground_sd=interval.ground_sd * scale,
    )
