"""FocalPO: a focal factor on pairs that are ranked right (Liu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import RatioLoss, Side
from .theory import least


@dataclass
class FocalPO(RatioLoss):
    """DPO's loss times the probability of the right ranking to the power gamma.

    Misranked pairs, which DPO weighs most and rarely mends, count for less.
    """

    name, paper = "focal_po", "https://arxiv.org/abs/2501.06645"
    tuning_space = RatioLoss.tuning_space | {"gamma": [0.02, 0.05, 0.1, 0.2]}

    beta: float = 0.1  # strength of the KL constraint at gamma 0
    gamma: float = 0.05  # power of the focal factor; 0 is DPO

    def check(self) -> None:
        super().check()
        if self.gamma < 0:
            raise ValueError("gamma must not be negative")

    def pair_loss(self, w: Side, l: Side):
        """Eq. 4: -p^gamma log p, p = sigma(beta (s_w - s_l)). The factor has a gradient, too."""
        log_p = torch.nn.functional.logsigmoid(self.beta * (w.ratio - l.ratio))
        return -torch.exp(self.gamma * log_p) * log_p

    def optimum(self, problem):
        """No closed form: the loss of all pairs, minimised; pi* at gamma 0."""

        def loss(s_w, s_l, _):
            right = torch.sigmoid(self.beta * (s_w - s_l))
            return -(right**self.gamma) * right.log()

        return None if self.shuffle_labels else least(loss, problem)


@hookimpl
def register_methods(register):
    register(FocalPO)
