"""LUSPO: Length-Unbiased Sequence Policy Optimization (Liu et al. 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl

from .gspo import GSPO


@dataclass
class LUSPO(GSPO):
    """GSPO with each completion weighed by its length, against a pull towards short ones."""

    name, paper = "luspo", "https://arxiv.org/abs/2602.05261"

    clip_range: float = 2e-3  # of the ratio, its lower side
    clip_range_high: float = 2.5e-3  # its upper side

    def loss(self, logp, batch):
        """|y| times GSPO's: -|y| min(s A, clip(s, 1-eps, 1+eps_high) A), (B, K)."""
        loss, metrics = super().loss(logp, batch)
        return batch["mask"].sum(-1) * loss, metrics


@hookimpl
def register_methods(register):
    register(LUSPO)
