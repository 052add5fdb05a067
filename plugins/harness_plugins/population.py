"""Population losses where every completion can be listed: the distribution of pairs, and the
minimiser of a loss.

For `optimum` of the offline methods. Training does not use this module, so the theory stays
independent of the code that it checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness import Enumerated

SOFTNESS = (0.1, 0.03, 0.01, 0.003, 0.001)  # successive smoothings of a hinge's kink
AGREEMENT = 2e-3  # total variation below which the minima from two starts count as one


def ordered_pairs(problem: Enumerated) -> Tensor:
    """Return (P, N, N): how often a pair has the row's completion chosen and the column's rejected;
    sums to 1.

    A pair is two independent draws of mu; draws that are equal make no pair.
    """
    pairs = problem.mu[:, :, None] * problem.mu[:, None, :] * problem.prefer
    pairs = pairs * (1 - torch.eye(pairs.shape[-1], dtype=pairs.dtype))
    return pairs / pairs.sum((1, 2), keepdim=True)


def best_of(problem: Enumerated, n: int) -> Tensor:
    """Return (P, N): the distribution of the best of n independent draws of the start checkpoint.

    With f the mass of a reward's level and F that of all up to it: ref / f (F^n - (F - f)^n), ties
    broken at random.
    """
    reward = problem.reward
    level = torch.einsum(
        "pj,pij->pi", problem.ref, (reward[:, :, None] == reward[:, None, :]).double()
    )
    below = torch.einsum(
        "pj,pij->pi", problem.ref, (reward[:, :, None] > reward[:, None, :]).double()
    )
    return problem.ref / level * ((below + level) ** n - below**n)


def ranked(problem: Enumerated, draws: Tensor) -> Tensor:
    """Return (P, N, N): how often, of two independent draws, the row's has a higher reward than the
    column's.

    Both orders are counted, so the sum is 1 less the share of ties.
    """
    above = (problem.reward[:, :, None] > problem.reward[:, None, :]).double()
    return 2 * above * draws[:, :, None] * draws[:, None, :]


def hinge(x: Tensor, softness: float) -> Tensor:
    """Return max(0, x), smoothed so that its gradient is nonzero everywhere."""
    return softness * torch.nn.functional.softplus(x / softness)


def minimiser(loss: Callable[[Tensor, float], Tensor], problem: Enumerated) -> Tensor | None:
    """Return the distribution (P, N) that minimises loss(logp, softness) (P,), or None where no
    single one is found.

    Two starts, the start checkpoint and the uniform distribution, must reach the same minimum.
    """
    starts = (problem.ref.log(), torch.zeros_like(problem.ref))
    one, other = (_descend(loss, start.clone()) for start in starts)
    return one if 0.5 * (one - other).abs().sum(-1).max() < AGREEMENT else None


def _descend(loss: Callable[[Tensor, float], Tensor], logits: Tensor) -> Tensor:
    logits.requires_grad_()
    for softness in SOFTNESS:
        optimiser = torch.optim.LBFGS(
            [logits],
            max_iter=150,
            history_size=30,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure(optimiser=optimiser, softness=softness):
            optimiser.zero_grad()
            value = loss(logits.log_softmax(-1), softness).sum()
            value.backward()
            return value

        optimiser.step(closure)
    return logits.detach().softmax(-1)
