"""Power: the effects that a study of S seeds and P prompts can find, and the prompts that an effect
needs.

It is the power of the two-sided tests in `intervals` and `compare`. With V_A and V_B the parts of
the variance, a mean off by delta is found where |N(delta, V_A + V_B)| > sqrt(t(df)^2 V_A X + z^2
V_B), X ~ chi^2(S - 1) / (S - 1), integrated over X. For two methods X is the mean of two such, and
df is Welch's. For one seed V_A = 0, which gives the normal power of textbooks. t over prompts is
taken as normal, since prompts are many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from .intervals import Array
from .pooling import BORROW_FROM

NORMAL = NormalDist()
MOST_PROMPTS = 10**9  # an effect that needs more prompts needs more seeds instead


@dataclass(frozen=True)
class Design:
    """A study. Scores per prompt are 1, 0.5 (ties) or 0. Effects are differences of win-rates: 0.02
    is two points.
    """

    prompts: int = 512
    seeds: int = 1
    ties: float = 0.0  # share of prompts that tie
    seed_sd: float = 0.0  # of the win-rate between seeds, in units of the win-rate
    # of a score's variance: the part that seeds of a method share on a prompt
    prompt_share: float = 0.5
    correlation: float = 0.0  # of two methods' scores on a prompt, for their difference
    rows: int = 2  # of the table: the first step of its tests is corrected for all pairs

    def check(self) -> None:
        """Raise ValueError for impossible values."""
        if self.prompts < 2 or self.seeds < 1:
            raise ValueError("a study has at least 2 prompts and 1 seed")
        if self.rows < 2:
            raise ValueError("a table that compares has at least 2 rows")
        if self.seeds > 1 and self.correlation > self.prompt_share:
            raise ValueError(
                "methods share no more of a prompt than the seeds of one do: correlation <= prompt"
                " share"
            )
        if not (
            0 <= self.ties < 1
            and self.seed_sd >= 0
            and 0 <= self.prompt_share <= 1
            and -1 <= self.correlation < 1
        ):
            raise ValueError(
                "ties in [0, 1), seed sd >= 0, prompt share in [0, 1], correlation in [-1, 1)"
            )


def variances(design: Design, difference: bool, rate: float = 0.5) -> tuple[float, float]:
    """Return (V_A, V_B) of a win-rate, or of the difference of two, at a true win-rate.

    A score's variance is v = rate (1 - rate) - ties / 4. Methods' seeds are independent of each
    other; a correlation r between methods takes 2 r v / P from the variance of the difference, all
    of it from what prompts share.
    """
    v = rate * (1 - rate) - design.ties / 4
    if v <= 0:
        raise ValueError(f"with {design.ties:.0%} ties the win-rate cannot be {rate:.3f}")
    n, s = design.prompts, design.seeds
    if s == 1:
        return 0.0, v / n * (2 * (1 - design.correlation) if difference else 1)
    seeds = design.seed_sd**2 / s + (1 - design.prompt_share) * v / (n * s)
    shared = design.prompt_share * v / n
    if not difference:
        return seeds, shared
    return 2 * seeds, max(0.0, 2 * (design.prompt_share - design.correlation) * v / n)


@cache
def _squared_t(d: int, welch: bool, alpha: float) -> Array:
    """Return equally likely values of t(df)^2 X: what multiplies V_A in a squared half-width.

    Args:
        d: Degrees of freedom of one estimate of V_A.
        welch: Whether V_A is the mean of two such estimates, on Welch's degrees of freedom.
        alpha: The two-sided level.
    """
    from scipy.special import gammaincinv, stdtrit

    points = 120 if welch else 4000
    x = 2 * gammaincinv(d / 2, (np.arange(points) + 0.5) / points) / d
    if not welch:
        return np.asarray(stdtrit(d, 1 - alpha / 2) ** 2 * x, dtype=np.float64)
    one, other = (axis.ravel() for axis in np.meshgrid(x, x))
    df = d * (one + other) ** 2 / (one**2 + other**2)
    return np.asarray(stdtrit(df, 1 - alpha / 2) ** 2 * (one + other) / 2, dtype=np.float64)


def power(design: Design, effect: float, difference: bool = False, alpha: float = 0.05) -> float:
    """Return the probability of finding an effect at two-sided `alpha`: a win-rate of 0.5 + effect,
    or a difference.

    In a table of M rows a difference is tested at alpha / (M (M - 1) / 2), as in the first step of
    `compare.confidence_set`. With three rows and three seeds or more the variance between seeds is
    also pooled over the rows, on M (S - 1) degrees of freedom, and the smaller p-value counts
    twice.
    """
    design.check()
    if not difference or design.rows == 2:
        return _power(design, effect, difference, alpha)
    each = alpha / (design.rows * (design.rows - 1) / 2)
    if design.seeds < BORROW_FROM:
        return _power(design, effect, True, each)
    pooled = design.rows * (design.seeds - 1)
    return max(
        _power(design, effect, True, each / 2), _power(design, effect, True, each / 2, pooled)
    )


def _power(design: Design, effect: float, difference: bool, alpha: float, pooled: int = 0) -> float:
    """Return the power of one test; `pooled`: the degrees of freedom of a pooled variance."""
    from scipy.special import ndtr

    null = variances(design, difference)
    sd = math.sqrt(sum(null if difference else variances(design, False, 0.5 + effect)))
    squared = NORMAL.inv_cdf(1 - alpha / 2) ** 2 * null[1]
    halves = (
        np.sqrt(
            _squared_t(pooled or design.seeds - 1, difference and not pooled, alpha) * null[0]
            + squared
        )
        if null[0]
        else math.sqrt(squared)
    )
    return float(np.mean(ndtr((effect - halves) / sd) + ndtr((-effect - halves) / sd)))


def minimum_detectable_effect(
    design: Design, difference: bool = False, wanted: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Return the smallest effect found with the wanted power, or None where the largest possible
    effect is not.
    """
    most = 1.0 if difference else (1 - design.ties) / 2 - 1e-6
    if power(design, most, difference, alpha) < wanted:
        return None
    return _least(lambda effect: power(design, effect, difference, alpha) >= wanted, 0.0, most)


def prompts_needed(
    design: Design,
    effect: float,
    difference: bool = False,
    wanted: float = 0.8,
    alpha: float = 0.05,
) -> int | None:
    """Return the number of prompts that find an effect with the wanted power; None where more seeds
    are needed.
    """

    def enough(n: float) -> bool:
        changed = Design(**{**design.__dict__, "prompts": math.ceil(n)})
        return power(changed, effect, difference, alpha) >= wanted

    return math.ceil(_least(enough, 1.0, MOST_PROMPTS, 0.25)) if enough(MOST_PROMPTS) else None


def _least(enough: Callable[[float], bool], low: float, high: float, within: float = 1e-6) -> float:
    while high - low > within:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def report(
    design: Design, effect: float | None = None, wanted: float = 0.8
) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of `harness power`: a win-rate against 50 %, and the difference of
    two methods.
    """
    columns = ["question", f"smallest effect found ({wanted:.0%} power)"]
    if effect is not None:
        columns += [f"power at {effect:g}", f"prompts for {wanted:.0%} power"]
    rows = []
    for difference, question in (
        (False, "one method against 50 %"),
        (True, _of_two(design)),
    ):
        least = minimum_detectable_effect(design, difference, wanted)
        row = [question, "none" if least is None else f"{least:.3f}"]
        if effect is not None:
            needed = prompts_needed(design, effect, difference, wanted)
            row += [
                f"{power(design, effect, difference):.1%}",
                _not_enough(design.seeds, "seed") if needed is None else str(needed),
            ]
        rows.append(row)
    return columns, rows


def _of_two(design: Design) -> str:
    """Return the question of a difference in words."""
    if design.rows == 2:
        return "two methods on the same prompts"
    return f"two of {design.rows} methods on the same prompts"


def _not_enough(count: int, unit: str) -> str:
    """Return the table cell for a quantity of which no number reaches the wanted power."""
    return f"no number is enough with {count} {unit}{'s' * (count > 1)}"


def _correction(design: Design) -> str:
    if design.rows == 2:
        return "no correction for several comparisons (--rows gives a table's)"
    pairs = design.rows * (design.rows - 1) // 2
    return (
        f"a difference is tested as in the first of the stepwise tests of {design.rows} rows,"
        f" which is corrected for all {pairs} pairs; later steps correct for fewer"
    )


def assumptions(design: Design) -> str:
    """Return the assumptions of `report` in words."""
    text = (
        f"{design.prompts} prompts, two-sided tests at 5 %, {design.ties:.0%} ties, methods' scores"
        f" on a prompt correlated {design.correlation:g}; {_correction(design)}."
    )
    if design.seeds == 1:
        return (
            f"1 seed, {text} It speaks for one checkpoint each, not for the algorithm: no variance"
            " between seeds in it."
        )
    return (
        f"{design.seeds} seeds, {text} Assumed: a standard deviation of {design.seed_sd:g} between"
        f" seeds' win-rates, and that seeds share {design.prompt_share:.0%} of a score's variance"
        " on a prompt."
    )
