"""Qualities of verdicts: missing ones, ties, position bias and self-agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist, fmean
from typing import Any

from .over_prompts import PromptEstimate, known, mean_interval, rate_interval

COIN = 0.5
Z = NormalDist().inv_cdf(0.975)


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
    bias = replace(bias, low=max(bias.low, -COIN), high=min(bias.high, COIN))  # its possible values
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


NEAR_COIN = 0.55  # an accuracy below which a judge is hardly better than a coin


def held_out_figures(accuracy: float, pairs: float) -> dict[str, Any]:
    """Return the accuracy of a judge on held-out pairs, with Wilson's 95 % interval.

    `doubt` says why its verdicts mean little; it is absent for a judge that is better than a coin.
    """
    n = max(1, round(pairs))
    right = accuracy * n
    ties = right - int(right)  # the share of one pair that is neither right nor wrong
    scores = [1.0] * int(right) + ([ties] if ties else [])
    interval = rate_interval(scores + [0.0] * (n - len(scores)))
    figures: dict[str, Any] = {"accuracy": accuracy, "pairs": float(n)}
    figures |= {"low": interval.low, "high": interval.high}
    if interval.low <= COIN:
        figures["doubt"] = "not shown to be better than a coin"
    elif accuracy < NEAR_COIN:
        figures["doubt"] = "hardly better than a coin"
    return figures


def no_win_rate(held_out: Mapping[str, Any] | None) -> str:
    """Return why the verdicts of a judge give no win-rate; empty where they give one.

    Args:
        held_out: What `held_out_figures` returned; None or without an interval where nothing is
            known of the judge.
    """
    if not held_out or held_out.get("low", 1.0) > COIN:
        return ""
    accuracy, low, high = (_short(held_out[name]) for name in ("accuracy", "low", "high"))
    what = "does not exclude .5" if held_out["high"] >= COIN else "is below .5"
    return f"no win-rate: the judge's held-out accuracy {accuracy} [{low}, {high}] {what}"


def _short(share: float) -> str:
    """Return a share in two digits without its leading zero."""
    return f"{share:.2f}".removeprefix("0")


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with human preferences; None where it cannot be computed."""

    pairs: int
    missing: int  # pairs without a verdict, or without a human preference
    accuracy: PromptEstimate | None  # over pairs on which humans prefer one answer; ties half
    kappa: PromptEstimate | None  # Cohen's, of three categories: first, tie, second
    spearman: PromptEstimate | None  # of the two probabilities


def agreement(verdicts: Sequence[float], humans: Sequence[float]) -> Agreement:
    """Return how far verdicts agree with human preferences.

    Args:
        verdicts: n probabilities that the first answer is better; NaN is no verdict.
        humans: n shares of humans who prefer the first answer; 0.5 is a tie, NaN is missing.
    """
    pairs = zip(verdicts, humans, strict=True)
    there = [(v, h) for v, h in pairs if not (math.isnan(v) or math.isnan(h))]
    right = [0.5 if v == COIN else float(side_of(v) == side_of(h)) for v, h in there if h != COIN]
    return Agreement(
        len(humans),
        len(humans) - len(there),
        rate_interval(right) if right else None,
        cohens_kappa([(side_of(v), side_of(h)) for v, h in there]),
        spearman([v for v, _ in there], [h for _, h in there]),
    )


def cohens_kappa(pairs: Sequence[tuple[int, int]]) -> PromptEstimate | None:
    """Return Cohen's kappa of two raters' categories (1960), with the interval of Fleiss, Cohen and
    Everitt (1969); None where chance alone explains all agreement.
    """
    n = len(pairs)
    kinds = sorted({one for pair in pairs for one in pair})
    p = {(i, j): sum(pair == (i, j) for pair in pairs) / n for i in kinds for j in kinds}
    ours = {i: sum(p[i, j] for j in kinds) for i in kinds}
    theirs = {j: sum(p[i, j] for i in kinds) for j in kinds}
    chance = sum(ours[i] * theirs[i] for i in kinds)
    if n < 2 or chance > 1 - 1e-12:
        return None
    kappa = (sum(p[i, i] for i in kinds) - chance) / (1 - chance)
    agreed = sum(p[i, i] * (1 - (ours[i] + theirs[i]) * (1 - kappa)) ** 2 for i in kinds)
    apart = sum(p[i, j] * (theirs[i] + ours[j]) ** 2 for i in kinds for j in kinds if i != j)
    whole = agreed + (1 - kappa) ** 2 * apart - (kappa - chance * (1 - kappa)) ** 2
    half = Z * math.sqrt(max(0.0, whole) / n) / (1 - chance)
    return PromptEstimate(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), n)


def spearman(a: Sequence[float], b: Sequence[float]) -> PromptEstimate | None:
    """Return Spearman's rank correlation with the interval of Bonett and Wright (2000), by Fisher's
    z with variance (1 + r^2 / 2) / (n - 3); None where one side is constant or n is below 4.
    """
    import numpy as np
    from scipy.stats import rankdata

    if len(a) < 4 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    r = float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
    if abs(r) > 1 - 1e-12:
        return PromptEstimate(r, r, r, len(a))
    half = Z * math.sqrt((1 + r * r / 2) / (len(a) - 3))
    ends = (math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
    return PromptEstimate(r, *ends, len(a))


def side_of(p: float) -> int:
    """Return 1 for a preference of the first answer, -1 of the second, 0 for a tie."""
    return (p > COIN) - (p < COIN)
