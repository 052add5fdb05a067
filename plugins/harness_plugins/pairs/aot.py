"""AOT: Alignment via Optimal Transport (Melnyk et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Side
from .coupled import CoupledLoss


@dataclass
class AOT(CoupledLoss):
    """Make the distribution of chosen rewards dominate that of rejected ones, quantile by quantile.

    In a batch of one pair it is `dpo`.
    """

    name, paper = "aot", "https://arxiv.org/abs/2406.05882"
    aliases = {"aot_paired": "paired=true"}

    beta: float = 0.1  # scale of the log-ratios
    paired: bool = False  # quantiles of the policy's margins against the reference's

    def batch_loss(self, w: Side, l: Side, batch):
        """Mean of -log sigma(beta (a_i - b_i)) over sorted a and b.

        unpaired: a = s_w and b = s_l. paired: a = log pi(y_w|x) - log pi(y_l|x) and b the same of
        the reference. A departure: a doubtful label counts as a plain one, since a quantile has no
        other order.
        """
        a, b = w.ratio, l.ratio
        if self.paired:
            a = w.logp - l.logp
            b = a - (w.ratio - l.ratio)
        h = self.beta * (a.sort().values - b.sort().values)
        return torch.nn.functional.softplus(-h).mean()


@hookimpl
def register_methods(register):
    register(AOT)
