"""How good verdicts are: missing ones, ties, position bias, self-agreement; agreement with labels.

numpy and scipy are imported late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from .over_prompts import PromptEstimate, known, mean_interval, rate_interval

COIN = 0.5


def verdict_figures(wins: Sequence[float], notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return counts and qualities of verdicts.

    A note may hold `answers`, [p1, p2]: the judge's probability that the answer shown first is
    better, in the two orders of presentation; `repeats`, a list of probabilities for the same
    question; and `problem`, the reason for no verdict.

    Returns:
        `pairs`, `missing`, `ties`; `problems` by kind; `position_bias`, the mean of p for the
        answer shown first less 1/2, with its interval; `position_consistency`, the share of pairs
        on which both orders name the same answer; `self_agreement`, the share of repeated
        questions with the same verdict.
    """
    problems: dict[str, int] = {}
    for note in notes:
        for problem in note.get("problems", ()):
            problems[problem] = problems.get(problem, 0) + 1
    there = known(wins)
    figures: dict[str, Any] = {
        "pairs": len(wins),
        "missing": len(wins) - len(there),
        "ties": sum(p == COIN for p in there),
    }
    if problems:
        figures["problems"] = dict(sorted(problems.items()))
    return figures | _position(notes) | _repeats(notes)


def _position(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    orders = [note["answers"] for note in notes if len(note.get("answers") or ()) == 2]
    orders = [(float(one), float(two)) for one, two in orders if None not in (one, two)]
    if len(orders) < 2:
        return {}
    bias = mean_interval([(one + two) / 2 - COIN for one, two in orders])
    consistent = [(one - COIN) * (COIN - two) >= 0 for one, two in orders]
    return {"position_bias": asdict(bias), "position_consistency": fmean(consistent)}


def _repeats(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    same = [
        side_of(first) == side_of(other)
        for note in notes
        for first, *others in note.get("repeats", ())
        for other in others
        if first is not None and other is not None
    ]
    return {"self_agreement": fmean(same)} if same else {}


def side_of(p: float) -> int:
    """Return 1 for a preference of the first answer, -1 of the second, 0 for a tie."""
    return (p > COIN) - (p < COIN)


def near_coin(accuracy: float, pairs: int) -> bool:
    """Return whether an accuracy on so many pairs does not exclude 1/2 at 5 %, two-sided.

    An accuracy below 1/2 counts as near a coin too: such a judge is no better than one.
    """
    from scipy.stats import binomtest

    right = round(accuracy * pairs)
    return pairs == 0 or accuracy <= COIN or float(binomtest(right, pairs).pvalue) > 0.05


# -- agreement with labels -------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with labels, or with another judge, with 95 % intervals."""

    accuracy: PromptEstimate  # over pairs with a label that is no tie; a tie of the judge is half
    kappa: PromptEstimate  # Cohen's, over win, tie and loss
    spearman: PromptEstimate  # rank correlation of probabilities
    pairs: int
    missing: int  # pairs without a verdict


def agreement(
    verdicts: Sequence[float], labels: Sequence[float], resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Return the agreement of verdicts with labels, both P(first is better) per pair.

    Intervals of kappa and Spearman's rho are percentiles of a bootstrap over pairs. Cohen 1960,
    Educational and Psychological Measurement 20.

    Raises:
        ValueError: Fewer than two pairs have both a verdict and a decided label.
    """
    import numpy as np

    both = [
        (v, y)
        for v, y in zip(verdicts, labels, strict=True)
        if not math.isnan(v) and not math.isnan(y)
    ]
    decided = [(v, y) for v, y in both if y != COIN]
    if len(decided) < 2:
        raise ValueError("fewer than two pairs have a verdict and a label that is no tie")
    right = [COIN if v == COIN else float(side_of(v) == side_of(y)) for v, y in decided]
    x, y = (np.array(column) for column in zip(*both, strict=True))
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(x), len(x)) for _ in range(resamples)]
    return Agreement(
        rate_interval(right),
        _bootstrapped(cohens_kappa, x, y, drawn),
        _bootstrapped(spearman, x, y, drawn),
        len(verdicts),
        len(verdicts) - len(both),
    )


def _bootstrapped(statistic: Any, x: Any, y: Any, drawn: Sequence[Any]) -> PromptEstimate:
    import numpy as np

    values = np.array([statistic(x[i], y[i]) for i in drawn])
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (0.0, 0.0)
    return PromptEstimate(float(statistic(x, y)), float(low), float(high), len(x))


def cohens_kappa(x: Any, y: Any) -> float:
    """Return Cohen's kappa of two raters' verdicts, read as first, tie or second.

    It is (p_o - p_e) / (1 - p_e); NaN where both raters say one and the same of every pair.
    """
    import numpy as np

    a, b = (np.sign(np.asarray(values) - COIN) for values in (x, y))
    observed = float((a == b).mean())
    chance = sum(float((a == side).mean() * (b == side).mean()) for side in (-1, 0, 1))
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def spearman(x: Any, y: Any) -> float:
    """Return Spearman's rank correlation; NaN where one side is constant."""
    import numpy as np
    from scipy.stats import rankdata

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
