"""GPG: Group Policy Gradient (Chu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl

from ..grpo import group_advantages, has_signal
from .base import PolicyGradient


@dataclass
class GPG(PolicyGradient):
    """The plain policy gradient of all tokens, scaled up for the groups that have no signal."""

    name, paper = "gpg", "https://arxiv.org/abs/2504.02546"

    def advantages(self, reward, batch):
        """Eq. 7: A_i = alpha (r_i - mean_G r), alpha = B / (B - M); M of B groups lack a signal."""
        share = has_signal(reward).float().mean()
        return group_advantages(reward, False, 0) / share.clamp(min=1 / len(reward))

    def loss(self, logp, batch):
        """Eq. 5: -A log pi per token (B, K, T), and its mean over all tokens."""
        return -batch["advantages"][..., None] * logp


@hookimpl
def register_methods(register):
    register(GPG)
