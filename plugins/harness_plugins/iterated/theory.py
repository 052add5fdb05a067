"""Fixed points of methods that sample, where every completion can be listed. Training uses nothing
of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from harness import torch

from ..pairs.theory import normalised

SHARES = 8  # steps in which a root is followed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness import Enumerated


def least_squares(policy: Tensor, target: Tensor) -> Tensor:
    """Return the log-ratios s (P, N) with the least E (s - target)^2 of which policy e^s sums to 1.

    Where the derivative of the Lagrangian vanishes, s + c e^s = target for one c per prompt. c is
    not negative if the target has mean 0 under the policy, since E e^target is then at least 1.
    """

    low, high = torch.full_like(policy[:, :1], -50.0), torch.full_like(policy[:, :1], 50.0)
    new = normalised(lambda u: policy.log() + target - lambert(target - u), low, high)  # c = e^-u
    return new.log() - policy.log()


def lambert(log_z: Tensor) -> Tensor:
    """Return w with w + log w = log_z, by Newton's method: Lambert's W of e^log_z."""
    w = torch.where(log_z > 1, log_z, log_z.clamp(max=1.0).exp())
    for _ in range(60):
        w = (w * (1 + log_z - w.clamp(min=1e-300).log()) / (1 + w)).clamp(min=1e-300)
    return w


def root(force: Callable[..., Tensor], start: Tensor) -> Tensor | None:
    """Return the distribution (P, N) at which a force on logits vanishes, or None where Newton's
    method does not end at one.

    It is followed from a force that is known to vanish at `start`.

    Args:
        force: Of log-probabilities (N,), a prompt, and a share in [0, 1] of the way to the full
            force; returns (N,), which sums to 0.
        start: (P, N) where the force of share 0 vanishes.
    """
    found = []
    for prompt, logits in enumerate(start.log()):
        for share in (i / SHARES for i in range(1, SHARES + 1)):
            of_share = partial(_at, force, prompt, share)
            logits, rest = _newton(of_share, logits)
            if not rest < 1e-9:
                return None
        found.append(logits.softmax(-1))
    return torch.stack(found)


def _at(force: Callable[..., Tensor], prompt: int, share: float, logits: Tensor) -> Tensor:
    return force(logits.log_softmax(-1), prompt, share)


def _newton(force: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, float]:
    """Return the logits (N,) where Newton's method stops, and the largest force left there."""
    for _ in range(20):
        slope = torch.autograd.functional.jacobian(force, logits)
        step = torch.linalg.lstsq(slope, force(logits)[:, None], driver="gelsd").solution[:, 0]
        logits = logits - step / step.abs().max().clamp(min=1.0)
        if step.abs().max() < 1e-10:
            break
    return logits, float(force(logits).abs().max())


def token_mixture(problem: Enumerated, policy: Tensor, share: float) -> Tensor:
    """Return (P, N): completions whose tokens are drawn from policy^(1 - share) ref^share.

    Each token's distribution is normalised on its own, given the tokens before it.
    """
    mixed = torch.zeros_like(policy)
    prefixes = sorted({y[:t] for y in problem.ids for t in range(len(y))})
    for prefix in prefixes:
        n = len(prefix)
        inside = [i for i, y in enumerate(problem.ids) if y[:n] == prefix and len(y) > n]
        tokens = sorted({problem.ids[i][n] for i in inside})
        groups = [[i for i in inside if problem.ids[i][n] == token] for token in tokens]
        mass = [
            torch.stack([p[:, g].sum(-1) for g in groups], -1).log() for p in (policy, problem.ref)
        ]
        log_next = ((1 - share) * mass[0] + share * mass[1]).log_softmax(-1)
        for column, group in enumerate(groups):
            mixed[:, group] += log_next[:, column : column + 1]
    return mixed.exp()
