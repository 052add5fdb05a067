"""CISPO: clipped importance-sampling weights (MiniMax-M1, Chen et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Surrogate


@dataclass
class CISPO(Surrogate):
    """REINFORCE with a capped importance weight: no token loses its gradient, unlike by a clip."""

    name, paper = "cispo", "https://arxiv.org/abs/2506.13585"

    # cap of the ratio, 1 + eps_high; the paper states no value, ScaleRL (2510.13786) has 5
    ratio_max: float = 5.0

    def check(self) -> None:
        super().check()
        if self.ratio_max < 1:
            raise ValueError("ratio_max must be at least 1, the ratio of the first update")

    def loss(self, logp, batch):
        """-sg(min(rho, ratio_max)) A log pi per token (B, K, T), rho = pi / pi_old: the upper side
        alone is capped.
        """
        ratio = torch.exp(logp - batch["old_logp"]).detach()
        capped = ratio.clamp(max=self.ratio_max)
        loss = -capped * batch["advantages"][..., None] * logp
        return loss, {"clip_fraction": (ratio != capped).float(), "ratio": ratio}


@hookimpl
def register_methods(register):
    register(CISPO)
