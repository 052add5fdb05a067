"""Optima of pair losses where every completion can be listed. Training uses nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..population import minimiser, ordered_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness import Enumerated


def least(loss: Callable[..., Tensor], problem: Enumerated) -> Tensor | None:
    """Return the distribution (P, N) that minimises the mean loss of all pairs, or None where two
    starts of the descent end apart.

    Args:
        loss: Of log-ratios s_w (P, N, 1) and s_l (P, 1, N) to the reference and a softness for its
            kinks. It returns the loss (P, N, N) of a pair with the row's completion chosen.
        problem: All completions.
    """
    pairs = ordered_pairs(problem)

    def mean(logp, softness):
        s = logp - problem.ref.log()
        return (pairs * loss(s[:, :, None], s[:, None, :], softness)).sum((1, 2))

    return minimiser(mean, problem)


def least_by_completion(loss: Callable[..., Tensor], problem: Enumerated) -> Tensor | None:
    """Return the minimiser (P, N) of a loss that is a sum over the completions of pairs.

    Args:
        loss: Of a log-ratio s (P, N) and of how often its completion is chosen and rejected (P, N).
        problem: All completions.
    """
    pairs = ordered_pairs(problem)
    chosen, rejected = pairs.sum(2), pairs.sum(1)

    def mean(logp, _):
        return loss(logp - problem.ref.log(), chosen, rejected).sum(1)

    return minimiser(mean, problem)


def normalised(log_weight: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return the distribution exp(log_weight(c)) (P, N) with the c of each prompt that makes it sum
    to 1, found by bisection.

    Args:
        log_weight: Of c (P, 1), increasing in it; returns (P, N).
        low: (P, 1) a c at which the sum is below 1.
        high: (P, 1) a c at which the sum is above 1.
    """
    for _ in range(200):
        c = (low + high) / 2
        over = log_weight(c).logsumexp(-1, keepdim=True) > 0
        low, high = low.where(over, c), c.where(over, high)
    return log_weight((low + high) / 2).softmax(-1)
