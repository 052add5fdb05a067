"""GSPO: Group Sequence Policy Optimization (Zheng et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl

from .base import Surrogate, clipped, sequence_ratio


@dataclass
class GSPO(Surrogate):
    """GRPO with one ratio per completion, the geometric mean of its tokens' ratios."""

    name, paper = "gspo", "https://arxiv.org/abs/2507.18071"

    clip_range: float = 3e-4  # of the ratio, its lower side; the paper's, far below GRPO's
    clip_range_high: float = 4e-4  # its upper side

    def check(self) -> None:
        super().check()
        if self.clip_range <= 0 or self.clip_range_high <= 0:
            raise ValueError("clip_range and clip_range_high must be above 0")

    def loss(self, logp, batch):
        """Eq. 5: -min(s A, clip(s, 1-eps, 1+eps_high) A), s = (pi(y|x) / pi_old(y|x))^(1/|y|),
        (B, K).
        """
        ratio = sequence_ratio(logp, batch)
        return clipped(ratio, batch["advantages"], self.clip_range, self.clip_range_high)


@hookimpl
def register_methods(register):
    register(GSPO)
