"""OPO: On-Policy RL with the Optimal reward baseline (Hao et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import PolicyGradient


@dataclass
class OPO(PolicyGradient):
    """REINFORCE on exactly on-policy samples; the baseline is the mean reward, weighed by length.

    It has the least variance if the squared gradient of log pi(y|x) grows as the length of y.
    """

    name, paper = "opo", "https://arxiv.org/abs/2505.23585"

    def advantages(self, reward, batch):
        """A_i = r_i - sum_j |y_j| r_j / sum_j |y_j|, (B, K); 0 for NaN."""
        known = ~reward.isnan()
        length = batch["mask"].sum(-1) * known
        filled = torch.where(known, reward, 0.0)
        baseline = (length * filled).sum(-1, keepdim=True) / length.sum(-1, keepdim=True).clamp(1)
        return torch.where(known, reward - baseline, 0.0)


@hookimpl
def register_methods(register):
    register(OPO)
