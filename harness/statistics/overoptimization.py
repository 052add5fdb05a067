"""Over-optimisation: Gao, Schulman and Hilton's two forms (2022, 2210.10760) fitted to gold reward
against KL.

With d = sqrt(KL(policy || start)) and R(d) the gold reward less the start checkpoint's, they found

    R_bon(d) = d (alpha - beta d)        peak at d* = alpha / (2 beta),        R* = alpha^2 / (4
    beta) R_RL(d)  = d (alpha - beta log d)    peak at d* = exp(alpha / beta - 1),   R* = beta d*

Both are linear in alpha and beta, so the fit is ordinary least squares on the points with d > 0 (at
0 both are 0), not a search. Its standard errors are the textbook's, sigma^2 (X'X)^-1 on n - 2
degrees of freedom: points along one training run depend on each other, so they are too small there,
and the spread between seeds is what to trust.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Array

BON, RL = "bon", "rl"  # the form of best-of-n, and of all that is trained
LEAST = 3  # points with d > 0: two coefficients and one left over to say how well they fit
HELD_OUT = 0.25  # share of points, those of the largest d, predicted from the others
LARGEST = 700.0  # exp of more overflows


@dataclass(frozen=True)
class Peak:
    """The maximum of a fitted curve: d* in sqrt(nats), and the gold reward there less the start
    checkpoint's.
    """

    d: float
    reward: float


@dataclass(frozen=True)
class Fit:
    """A form fitted to one or several curves; `fit` and `fit_seeds` define the errors."""

    form: str
    alpha: float
    beta: float
    alpha_se: float
    beta_se: float
    rmse: float  # root mean square of residuals, in units of the reward
    points: int  # with d > 0
    smallest: float  # d of the points above 0
    largest: float  # the largest d of the points; beyond it the curve is extrapolated
    held_out: (
        float | None
    )  # root mean square error on the largest d of a fit to the rest; None with too few points
    seeds: int = 1

    def at(self, d: ArrayLike) -> Array:
        """Return the fitted gain of gold reward at d, of any shape; it is 0 at d = 0."""
        columns = _design(self.form, np.asarray(d, dtype=np.float64))
        return np.asarray(self.alpha * columns[0] + self.beta * columns[1])

    @property
    def peak(self) -> Peak | None:
        """The maximum of the fitted form, inside or outside the points' range of d; None where it
        has none.

        It has none with beta <= 0. With alpha <= 0 gold never rose. The form of best-of-n then
        falls from the start. The RL form has a maximum below d = 1 / e even then, which comes from
        log d alone.
        """
        if self.beta <= 0 or self.alpha <= 0:
            return None
        if self.form == BON:
            return Peak(self.alpha / (2 * self.beta), self.alpha**2 / (4 * self.beta))
        exponent = self.alpha / self.beta - 1
        if exponent > LARGEST:  # a line, but for rounding
            return None
        return Peak(math.exp(exponent), self.beta * math.exp(exponent))

    @property
    def peak_is_seen(self) -> bool:
        """Whether the maximum lies between the first point above d = 0 and the last, so that it is
        not extrapolated.
        """
        return self.peak is not None and self.smallest <= self.peak.d <= self.largest


def fit(d: ArrayLike, reward: ArrayLike, form: str = RL) -> Fit:
    """Return a form fitted by least squares to one curve: d (N,) and gold reward (N,) over the
    start checkpoint's.

    Raise ValueError with fewer than three points of different d > 0.
    """
    x, y = _points(d, reward)
    alpha, beta = _solve(form, x, y)
    design = np.stack(_design(form, x), 1)
    residual = y - design @ np.array([alpha, beta])
    squares = float(residual @ residual)
    spread = squares / (len(x) - 2) * np.linalg.inv(design.T @ design).diagonal()
    alpha_se, beta_se = (math.sqrt(max(0.0, float(v))) for v in spread)
    rmse = math.sqrt(squares / len(x))
    return Fit(
        form,
        alpha,
        beta,
        alpha_se,
        beta_se,
        rmse,
        len(x),
        float(x[0]),
        float(x[-1]),
        _held_out(form, x, y),
    )


def fit_seeds(curves: Sequence[tuple[ArrayLike, ArrayLike]], form: str = RL) -> Fit:
    """Return the mean of fits to curves (d, reward), one per seed; of one curve the fit itself.

    The forms are linear in their coefficients, so the curve of mean coefficients is the mean of the
    curves. With several seeds standard errors are those of the mean over seeds, sd / sqrt(S);
    errors root mean squares over them.
    """
    fits = [fit(d, reward, form) for d, reward in curves]
    if not fits:
        raise ValueError("there is no curve to fit")
    if len(fits) == 1:
        return fits[0]
    alphas, betas = np.array([f.alpha for f in fits]), np.array([f.beta for f in fits])
    errors = (float(v.std(ddof=1)) / math.sqrt(len(fits)) for v in (alphas, betas))
    alpha_se, beta_se = errors
    held = [f.held_out for f in fits if f.held_out is not None]
    return Fit(
        form,
        float(alphas.mean()),
        float(betas.mean()),
        alpha_se,
        beta_se,
        _root_mean_square([f.rmse for f in fits]),
        sum(f.points for f in fits),
        min(f.smallest for f in fits),
        max(f.largest for f in fits),
        _root_mean_square(held) if len(held) == len(fits) else None,
        len(fits),
    )


def _points(d: ArrayLike, reward: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(d, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"a curve is d (N,) and reward (N,), not of shapes {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("every point of a curve needs a finite d and reward")
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    x, y = x[x > 0], y[x > 0]
    if len(np.unique(x)) < LEAST:
        raise ValueError(
            f"a fit needs {LEAST} points of different KL above 0; there are {len(np.unique(x))}"
        )
    return x, y


def _design(form: str, d: Array) -> tuple[Array, Array]:
    """Return the factors of alpha and beta."""
    if form == BON:
        return d, -(d**2)
    if form == RL:
        return d, -d * np.log(np.where(d > 0, d, 1.0))
    raise ValueError(f"there is no form {form!r}: {BON} or {RL}")


def _solve(form: str, x: Array, y: Array) -> tuple[float, float]:
    solved = np.linalg.lstsq(np.stack(_design(form, x), 1), y, rcond=None)[0]
    return float(solved[0]), float(solved[1])


def _held_out(form: str, x: Array, y: Array) -> float | None:
    """Fit the points of smaller d; return the root mean square error on the others."""
    rest = len(x) - max(1, round(HELD_OUT * len(x)))
    if len(np.unique(x[:rest])) < LEAST:
        return None
    alpha, beta = _solve(form, x[:rest], y[:rest])
    columns = _design(form, x[rest:])
    return _root_mean_square(y[rest:] - alpha * columns[0] - beta * columns[1])


def _root_mean_square(values: ArrayLike) -> float:
    return math.sqrt(float(np.mean(np.square(values))))
