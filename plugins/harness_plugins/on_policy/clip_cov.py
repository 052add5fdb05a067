"""Clip-Cov: no gradient for some tokens of high covariance (Cui et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import clipped
from .covariance import Covariance


@dataclass
class ClipCov(Covariance):
    """GRPO that drops a few tokens whose update would lower the entropy most."""

    name, paper = "clip_cov", "https://arxiv.org/abs/2505.22617"

    clip_range: float = 1.0  # of the ratio; wide, as in the authors' script: the choice limits
    clip_ratio: float = 2e-4  # share of all tokens that is dropped, at least one token
    cov_low: float = 1.0  # smallest covariance of a token that may be dropped
    cov_high: float = 5.0  # largest one

    def check(self) -> None:
        super().check()
        if self.clip_range <= 0 or not 0 < self.clip_ratio <= 1:
            raise ValueError("clip_range must be above 0 and clip_ratio in (0, 1]")
        if self.cov_low >= self.cov_high:
            raise ValueError("cov_low must be below cov_high")

    def chosen(self, lab, covariance, logp, part):
        """Draw `clip_ratio` of the tokens between the bounds that the clip leaves a gradient."""
        free = (part["mask"] > 0) & ~self.is_clipped(logp, part)
        between = free & (covariance > self.cov_low) & (covariance < self.cov_high)
        places = between.flatten().nonzero()[:, 0].cpu()
        count = max(1, int(self.clip_ratio * int(part["mask"].sum())))
        order = torch.randperm(len(places), generator=lab.generator("clip_cov"))
        chosen = torch.zeros(covariance.numel())
        chosen[places[order[:count]]] = 1.0
        return chosen.view_as(covariance).to(covariance)

    def is_clipped(self, logp, batch):
        """Return (B, K, T) whether the clip leaves a token no gradient."""
        ratio, advantages = torch.exp(logp - batch["old_logp"]), batch["advantages"][..., None]
        loss, _ = clipped(ratio, advantages, self.clip_range, self.clip_range)
        return loss > -ratio * advantages

    def loss(self, logp, batch):
        """-min(rho A, clip(rho) A) per token (B, K, T), and 0 for the chosen tokens."""
        ratio, advantages = torch.exp(logp - batch["old_logp"]), batch["advantages"][..., None]
        loss, metrics = clipped(ratio, advantages, self.clip_range, self.clip_range)
        return (1 - batch["chosen"]) * loss, metrics | {"chosen": batch["chosen"]}


@hookimpl
def register_methods(register):
    register(ClipCov)
