"""APO-down: Anchored Preference Optimization (D'Oosterlinck et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import RatioLoss, Side


@dataclass
class APODown(RatioLoss):
    """Lower the chosen completion a little and the rejected one more.

    The paper advises it where the chosen completions are worse than what the model answers.
    """

    name, paper = "apo_down", "https://arxiv.org/abs/2408.06266"

    beta: float = 0.1  # how fast gains and losses saturate

    def pair_loss(self, w: Side, l: Side):
        """Eq. 8: sigma(beta s_w) - sigma(beta (s_w - s_l)), plus 1 as in TRL, so that it is
        positive.
        """
        h = self.beta * (w.ratio - l.ratio)
        return torch.sigmoid(self.beta * w.ratio) + 1 - torch.sigmoid(h)


@hookimpl
def register_methods(register):
    register(APODown)
