"""ODPO: DPO whose margin grows with the gap of the scores (Amini et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Listed, RatioListLoss

LEAST = 1e-6  # score gap below which two completions make no pair


@dataclass
class ODPO(RatioListLoss):
    """DPO on all pairs of a scored list, with an offset: the margin has to exceed a function of the
    score gap.

    Its pairs are sure, so no finite policy is its minimum.
    """

    name, paper = "odpo", "https://arxiv.org/abs/2402.10571"

    alpha: float = 1.0  # weight of the offset; the authors' configuration has 1
    offset: str = "log"  # of the score gap: its log, as in the paper, or the gap itself (identity)

    def check(self) -> None:
        super().check()
        if self.offset not in ("log", "identity"):
            raise ValueError(f"offset is log or identity, not {self.offset!r}")
        if self.alpha < 0:
            raise ValueError("alpha must not be negative: it would ask less of larger gaps")

    def list_loss(self, y: Listed):
        """Mean over pairs with r_i > r_j of -log sigma(beta (s_i - s_j) - alpha f(r_i - r_j))."""
        i, j = torch.triu_indices(*2 * (y.score.shape[1],), 1, device=y.score.device).unbind(0)
        gap = y.score[:, i] - y.score[:, j]  # scores fall along the list
        pairs = gap > LEAST
        f = gap.clamp(min=LEAST).log() if self.offset == "log" else gap
        h = self.beta * (y.ratio[:, i] - y.ratio[:, j]) - self.alpha * f
        losses = torch.nn.functional.softplus(-h) * pairs
        return losses.sum(-1) / pairs.sum(-1).clamp(min=1)


@hookimpl
def register_methods(register):
    register(ODPO)
