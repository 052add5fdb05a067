"""Bradley-Terry ratings against one baseline at equal style: answers of equal length and form.

Judges may prefer long answers and Markdown as such. Arena-Hard's style control (Li et al. 2024,
Does style matter?) adds the differences of style to the Bradley-Terry model. It is a logistic
regression of the outcome y in [0, 1] of every battle,

    logit P(row i wins on prompt x) = r_i + sum_k gamma_k z_k,   z_k = d_k / sd(d_k),
    d_k = (a_k - b_k) / (a_k + b_k), of the answer's a_k and the baseline's b_k; 0 where both are 0.

r_i is the rating of row i in nats above the baseline, whose rating is 0. All rows share gamma. The
differences are divided by their standard deviation and not centred, so that z = 0 is equal style
and r_i is the log-odds of a win there. Arena-Hard centres them, which compares rows at the average
difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Array, matrix, two_way_interval
from .length import IDENTIFIED, SEPARATED, logistic, sigmoid
from .rating import ELO, RIDGE, Rating

STYLE = ("length", "headers", "list items", "bold")  # in characters, and counts of Markdown
BASE = 1000.0  # Elo points of the baseline
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)  # its lines are no Markdown
_HEADER = re.compile(r"^ {0,3}#{1,6} +\S", re.MULTILINE)
_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


@dataclass(frozen=True)
class Coefficient:
    """The change of the log-odds of a win for a difference of style of one standard deviation."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class StyleControlled:
    """Ratings in Elo points above the baseline at BASE, as they are and at equal style."""

    raw: Mapping[str, Rating]
    controlled: Mapping[str, Rating]
    coefficients: Mapping[str, Coefficient]  # by the names of STYLE that vary
    battles: int
    # the smaller share of answers on one side of the baseline's length
    overlap: float

    @property
    def identified(self) -> bool:
        """Whether enough answers lie on both sides of equal length; otherwise the ratings at equal
        style are an extrapolation.
        """
        return self.overlap >= IDENTIFIED


def style_of(text: str) -> tuple[int, int, int, int]:
    """Return the features of STYLE of a text: characters, headers, list items and bold spans."""
    plain = _CODE.sub("", text)
    counts = (len(pattern.findall(plain)) for pattern in (_HEADER, _ITEM, _BOLD))
    return (len(text), *counts)  # type: ignore[return-value]  # three counts


def differences(ours: ArrayLike, theirs: ArrayLike) -> Array:
    """Return (a - b) / (a + b) of features (..., K) that are not negative; 0 where both are 0."""
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    total = a + b
    return np.where(total > 0, (a - b) / np.where(total > 0, total, 1.0), 0.0)


def style_controlled(
    scores: Mapping[str, ArrayLike],
    style: Mapping[str, ArrayLike],
    grounds: Mapping[str, Sequence[int]] | None = None,
    ridge: float = RIDGE,
    level: float = 0.95,
) -> StyleControlled:
    """Return the ratings of rows against one baseline, with and without control for style.

    The intervals cover seeds and prompts, and the fit: every battle has an influence on a rating,
    H^-1 x (y - mu), and the influences on one seed and prompt, summed over rows, are a pseudo-score
    for `two_way_interval`. Rows with unequal numbers of seeds enter one another's ratings by their
    means over seeds.

    Args:
        scores: Outcomes (S, P) in [0, 1] of each row, 1 a win over the baseline, on the same
            prompts.
        style: Differences (S, P, K) of each row, as `differences` returns them, in the order of
            STYLE.
        grounds: The ground of each seed of a row.
        ridge: One over the prior variance of a rating in nats, and of a coefficient.
        level: The nominal coverage.

    Raises:
        ValueError: Shapes do not agree, or an outcome is outside [0, 1].
    """
    outcomes = {name: matrix(own) for name, own in scores.items()}
    features = {name: np.asarray(style[name], dtype=np.float64) for name in scores}
    _check(outcomes, features)
    every = np.concatenate([own.reshape(-1, own.shape[-1]) for own in features.values()])
    spread = every.std(0, ddof=1)
    varied = [k for k in range(every.shape[1]) if spread[k] > 1e-12]
    scaled = {name: own[..., varied] / spread[varied] for name, own in features.items()}
    none = {name: own[..., :0] for name, own in scaled.items()}
    labels = {name: tuple((grounds or {}).get(name, (0,) * len(y))) for name, y in outcomes.items()}
    raw, _ = _fitted(outcomes, none, labels, ridge, level)
    controlled, gamma = _fitted(outcomes, scaled, labels, ridge, level)
    coefficients = {STYLE[k]: one for k, one in zip(varied, gamma, strict=True)}
    sides = min(float((every[:, 0] >= 0).mean()), float((every[:, 0] <= 0).mean()))
    return StyleControlled(raw, controlled, coefficients, len(every), sides)


def _check(outcomes: Mapping[str, Array], features: Mapping[str, Array]) -> None:
    for name, y in outcomes.items():
        if y.shape != features[name].shape[:2] or features[name].ndim != 3:
            raise ValueError(
                f"{name} has outcomes {y.shape} and style {features[name].shape}; (S, P) and"
                " (S, P, K) were expected"
            )
        if y.min() < 0 or y.max() > 1:
            raise ValueError(f"outcomes of {name} are not all in [0, 1]")
    if len({y.shape[1] for y in outcomes.values()}) > 1:
        raise ValueError("rows have unlike numbers of prompts")


def _fitted(
    outcomes: Mapping[str, Array],
    features: Mapping[str, Array],
    grounds: Mapping[str, Sequence[int]],
    ridge: float,
    level: float,
) -> tuple[dict[str, Rating], list[Coefficient]]:
    """Return the ratings of rows and the coefficients of style, with intervals."""
    names = list(outcomes)
    blocks = [_design(features[name], i, len(names)) for i, name in enumerate(names)]
    design = np.concatenate(blocks)
    y = np.concatenate([outcomes[name].ravel() for name in names])
    beta = logistic(design, np.ones(len(y)), design.T @ y, ridge)
    mu = sigmoid(design @ beta)
    curvature = (design * (mu * (1 - mu))[:, None]).T @ design + ridge * np.eye(len(beta))
    pull = (design * (y - mu)[:, None]).T
    moves: Array = np.asarray(np.linalg.solve(curvature, pull).T, dtype=np.float64)
    ends = np.cumsum([0, *(outcomes[name].size for name in names)])
    parts: dict[str, Array] = {
        name: moves[ends[i] : ends[i + 1]].reshape(*outcomes[name].shape, len(beta))
        for i, name in enumerate(names)
    }
    ratings = {
        name: _rating(beta[i], _pseudo(name, i, parts, grounds), outcomes[name], grounds, level)
        for i, name in enumerate(names)
    }
    longest = max(names, key=lambda name: len(outcomes[name]))
    coefficients = []
    for k in range(len(names), len(beta)):
        own, seeds = _pseudo(longest, k, parts, grounds)
        found = two_way_interval(beta[k] + own, level=level, grounds=seeds)
        shift = beta[k] - found.mean
        coefficients.append(Coefficient(float(beta[k]), found.low + shift, found.high + shift))
    return ratings, coefficients


def _design(features: Array, row: int, rows: int) -> Array:
    """Return the design (battles, M + K) of a row: its indicator, then the differences of style."""
    flat = features.reshape(features.shape[0] * features.shape[1], features.shape[2])
    indicator = np.zeros((len(flat), rows))
    indicator[:, row] = 1.0
    return np.concatenate([indicator, flat], 1)


def _pseudo(
    name: str, k: int, parts: Mapping[str, Array], grounds: Mapping[str, Sequence[int]]
) -> tuple[Array, Sequence[int]]:
    """Return the summed influences (S, P) on coefficient k by seed and prompt, in the units of the
    mean over cells, and the grounds of the seeds.
    """
    own = parts[name][..., k]
    total = own * own.size
    for other, moves in parts.items():
        if other == name:
            continue
        theirs = moves[..., k] * moves[..., k].size
        alike = theirs.shape == own.shape and tuple(grounds[other]) == tuple(grounds[name])
        total = total + (theirs if alike else theirs.mean(0, keepdims=True))
    return total, grounds[name]


def _rating(
    nats: float,
    pseudo: tuple[Array, Sequence[int]],
    outcomes: Array,
    grounds: Mapping[str, Sequence[int]],
    level: float,
) -> Rating:
    """Return a rating in Elo points. Beyond SEPARATED nats, or where all outcomes agree, the
    curvature does not tell the error: the end on that side is open.
    """
    influence, seeds = pseudo
    found = two_way_interval(nats + influence, level=level, grounds=seeds)
    low, high = (float(end + nats - found.mean) for end in (found.low, found.high))
    if outcomes.min() == outcomes.max() and outcomes.min() in (0.0, 1.0):
        low, high = (0.0, np.inf) if nats > 0 else (-np.inf, 0.0)
    elif abs(nats) > SEPARATED:
        low, high = (low, np.inf) if nats > 0 else (-np.inf, high)
    return Rating(*(BASE + ELO * end for end in (float(nats), low, high)))
