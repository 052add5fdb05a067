"""DPPO: Divergence Proximal Policy Optimization, by the binary total variation (Qi et al. 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Surrogate


@dataclass
class DPPO(Surrogate):
    """GRPO whose clip is on the change of a token's probability, not on the ratio.

    The binary form compares the drawn token with all others. The top-k form is not here: a loss
    sees the log-probabilities of the drawn tokens, not whole distributions.
    """

    name, paper = "dppo", "https://arxiv.org/abs/2602.04879"

    tv_range: float = 0.15  # largest |pi - pi_old| of a token that may still move on
    # divide advantages by the group's spread; the paper follows Dr. GRPO
    std_normalise: bool = False

    def check(self) -> None:
        super().check()
        if not 0 < self.tv_range <= 1:
            raise ValueError("tv_range lies in (0, 1]: it is a difference of probabilities")

    def loss(self, logp, batch):
        """-m rho A per token (B, K, T); m = 0 where pi - pi_old is beyond tv_range in the direction
        that A pushes.
        """
        advantages = batch["advantages"][..., None]
        ratio = torch.exp(logp - batch["old_logp"])
        moved = (logp.exp() - batch["old_logp"].exp()).detach()
        inside = torch.where(advantages > 0, moved <= self.tv_range, moved >= -self.tv_range)
        loss = -torch.where(inside, ratio * advantages, 0.0)
        return loss, {"clip_fraction": (~inside).float(), "ratio": ratio}

    def reduced(self, lab, part):
        """Divide by the longest length, as Dr. GRPO does: no bias by length."""
        b, k, _ = part.shape
        return float(b * k * (self.max_new_tokens or lab.max_new_tokens))


@hookimpl
def register_methods(register):
    register(DPPO)
