"""GMPO: Geometric-Mean Policy Optimization (Zhao et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Surrogate


@dataclass
class GMPO(Surrogate):
    """GRPO with the geometric mean of a completion's clipped token ratios, not their mean."""

    name, paper = "gmpo", "https://arxiv.org/abs/2507.20673"

    log_clip_range: float = 0.4  # of log pi / pi_old: ratios lie in (e^-0.4, e^0.4)

    def check(self) -> None:
        super().check()
        if self.log_clip_range <= 0:
            raise ValueError("log_clip_range must be above 0")

    def loss(self, logp, batch):
        """-A exp(mean_t c_t), (B, K): c the log-ratio u, clipped where that lowers the objective.

        c = min(u, clip(u)) for A > 0 and max(u, clip(u)) for A < 0.
        """
        u, advantages = logp - batch["old_logp"], batch["advantages"]
        within = u.clamp(-self.log_clip_range, self.log_clip_range)
        lower, upper = torch.min(u, within), torch.max(u, within)
        kept = torch.where(advantages[..., None] > 0, lower, upper) * batch["mask"]
        mean = kept.sum(-1) / batch["mask"].sum(-1).clamp(min=1)
        metrics = {"clip_fraction": (u != within).float(), "ratio": u.exp()}
        return -advantages * mean.exp(), metrics


@hookimpl
def register_methods(register):
    register(GMPO)
