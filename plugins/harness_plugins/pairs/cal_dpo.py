"""Cal-DPO: Calibrated DPO (Xiao et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import RatioLoss, Side
from .theory import least


@dataclass
class CalDPO(RatioLoss):
    """DPO's contrast with beta of 1, and both log-ratios calibrated to +-1 / (2 beta).

    Without the contrast it is `sppo_hard`.
    """

    name, paper = "cal_dpo", "https://arxiv.org/abs/2412.14516"

    beta: float = 1e-3  # the targets are +-1 / (2 beta) nats; the authors' script has 1e-3

    def reward(self, y: Side):
        """The log-ratio, which the paper's calibrated reward is in units of beta."""
        return y.ratio

    def pair_loss(self, w: Side, l: Side):
        """-log sigma(s_w - s_l) + (s_w - 1 / (2 beta))^2 + (s_l + 1 / (2 beta))^2."""
        aim = 1 / (2 * self.beta)
        contrast = torch.nn.functional.softplus(l.ratio - w.ratio)
        return contrast + (w.ratio - aim) ** 2 + (l.ratio + aim) ** 2

    def optimum(self, problem):
        """No closed form: the loss of all pairs, minimised; it is convex in the log-ratios."""
        aim = 0.5 / self.beta

        def loss(s_w, s_l, _):
            squares = (s_w - aim).square() + (s_l + aim).square()
            return torch.log1p(torch.exp(s_l - s_w)) + squares

        return None if self.shuffle_labels else least(loss, problem)


@hookimpl
def register_methods(register):
    register(CalDPO)
