"""Several answers to a prompt: pass@k, maj@k and their mean, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from .over_prompts import PromptEstimate, known_interval, mean_interval

Verdicts = Sequence[Sequence[float | None]]  # of each prompt, those of its n answers
Readings = Sequence[Sequence[str | None]]  # of each prompt, the answers that were read


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from n answers of which some are right.

    1 - C(n - right, k) / C(n, k): Chen et al. 2021 (https://arxiv.org/abs/2107.03374), eq. 1.

    Args:
        n: answers drawn for the prompt.
        right: how many of them are right.
        k: how many answers one may give; at most n.

    Raises:
        ValueError: k is not between 1 and n, or right not between 0 and n.
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@{k} of {n} answers, {right} of them right: 1 <= k <= n is needed")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def powers_up_to(n: int) -> list[int]:
    """Return 1, 2, 4 ... below n, and n."""
    return sorted({n, *(1 << i for i in range(n.bit_length()) if 1 << i <= n)})


def right(verdict: float | None) -> bool:
    """Return whether a verdict has full marks."""
    return verdict is not None and verdict >= 1.0


def majority(readings: Sequence[str | None], verdicts: Sequence[float | None]) -> float:
    """Return the share of right answers among the most frequent readings; ties are split.

    Wang et al. 2022 (https://arxiv.org/abs/2203.11171). An answer without a reading does not vote;
    where none votes the result is 0.

    Args:
        readings: k readings; equal answers are equal texts.
        verdicts: k verdicts, as for `pass_estimates`.
    """
    votes: dict[str, list[bool]] = {}
    for reading, verdict in zip(readings, verdicts, strict=True):
        if reading is not None:
            votes.setdefault(reading, []).append(right(verdict))
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    return fmean(fmean(group) for group in votes.values() if len(group) == most)


def majority_estimates(readings: Readings, verdicts: Verdicts) -> dict[int, PromptEstimate]:
    """Return maj@k for k = 1, 2, 4 ... n, as means over prompts with 95 % intervals.

    The n answers of a prompt are cut into n // k blocks of k answers, whose mean is unbiased.

    Args:
        readings: For each prompt n readings.
        verdicts: For each prompt n verdicts.
    """
    n = min(map(len, verdicts))
    return {
        k: mean_interval(
            [
                fmean(majority(read[i : i + k], told[i : i + k]) for i in range(0, n - n % k, k))
                for read, told in zip(readings, verdicts, strict=True)
            ],
            (0.0, 1.0),
        )
        for k in powers_up_to(n)
    }


def mean_estimate(verdicts: Verdicts) -> PromptEstimate | None:
    """Return the mean verdict of the n answers, over prompts with its 95 % interval.

    Answers that could not be graded are left out; None where fewer than two prompts have any.
    """
    known = [[v for v in row if v is not None and not math.isnan(v)] for row in verdicts]
    return known_interval([fmean(row) if row else math.nan for row in known])


def pass_estimates(verdicts: Verdicts) -> dict[int, PromptEstimate]:
    """Return pass@k for k = 1, 2, 4 ... n, as means over prompts with 95 % intervals.

    Args:
        verdicts: for each prompt n verdicts. 1 is right; a grade below it and None are not.
    """
    counts = [(len(row), sum(map(right, row))) for row in verdicts]
    n = min(size for size, _ in counts)
    return {
        k: mean_interval([pass_at_k(size, right, k) for size, right in counts], (0.0, 1.0))
        for k in powers_up_to(n)
    }
