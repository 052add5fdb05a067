"""DiscoPOP: the loss that an LLM discovered (Lu et al. 2024), log-ratio modulated."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import RatioLoss, Side
from .theory import least


@dataclass
class DiscoPOP(RatioLoss):
    """DPO's loss on misranked pairs, and an exponential one on pairs that are ranked right.

    The switch between them is smooth, over margins of about tau.
    """

    name, paper = "discopop", "https://arxiv.org/abs/2406.08414"

    beta: float = 0.05  # scale of the log-ratios; the paper has 0.05
    tau: float = 0.05  # width of the switch, in units of the margin

    def check(self) -> None:
        super().check()
        if self.tau <= 0:
            raise ValueError("tau must be above 0")

    def pair_loss(self, w: Side, l: Side):
        """Eq. 5: (1 - m) softplus(-h) + m exp(-h), m = sigma(h / tau), h = beta (s_w - s_l)."""
        h = self.beta * (w.ratio - l.ratio)
        m, softplus = torch.sigmoid(h / self.tau), torch.nn.functional.softplus
        # m exp(-h) with the exponents joined: exp(-h) alone overflows where m is 0
        return (1 - m) * softplus(-h) + torch.exp(torch.nn.functional.logsigmoid(h / self.tau) - h)

    def optimum(self, problem):
        """No closed form: the loss of all pairs, minimised. It is not convex: None where two starts
        end apart.
        """

        def loss(s_w, s_l, _):
            h = self.beta * (s_w - s_l)
            share = 1 / (1 + torch.exp(-h / self.tau))
            return (1 - share) * torch.log1p(torch.exp(-h)) + share * torch.exp(-h)

        return None if self.shuffle_labels else least(loss, problem)


@hookimpl
def register_methods(register):
    register(DiscoPOP)
