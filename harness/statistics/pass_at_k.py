"""pass@k: the probability that one of k answers to a prompt is right, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .over_prompts import PromptEstimate, mean_interval


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


def pass_estimates(verdicts: Sequence[Sequence[float | None]]) -> dict[int, PromptEstimate]:
    """Return pass@k for k = 1, 2, 4 ... n, as means over prompts with 95 % intervals.

    Args:
        verdicts: for each prompt n verdicts. 1 is right; a grade below it and None are not.
    """
    counts = [(len(row), sum(v is not None and v >= 1.0 for v in row)) for row in verdicts]
    n = min(size for size, _ in counts)
    return {
        k: mean_interval([pass_at_k(size, right, k) for size, right in counts], (0.0, 1.0))
        for k in powers_up_to(n)
    }
