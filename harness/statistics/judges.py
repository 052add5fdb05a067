"""Qualities of verdicts: missing ones, ties, position bias and self-agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from .over_prompts import known, mean_interval

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
