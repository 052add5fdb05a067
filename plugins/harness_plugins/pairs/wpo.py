"""WPO: Weighted Preference Optimization (Zhou et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Side
from .coupled import CoupledLoss


@dataclass
class WPO(CoupledLoss):
    """DPO on pairs weighed by how likely the policy is to write them, as if they were its own.

    Weights are normalised over the batch: in a batch of one pair it is `dpo`.
    """

    name, paper = "wpo", "https://arxiv.org/abs/2406.11827"

    beta: float = 0.1  # strength of the KL constraint
    normalise: bool = True  # divide the weights by their mean over the batch; false: eq. 2 as it is

    def batch_loss(self, w: Side, l: Side, batch):
        """Eq. 2: mean of w(x, y_w) w(x, y_l) times DPO's loss, w = exp(mean log pi per token).

        The weights have no gradient. A departure: the paper's "sampled alignment" divides each
        token's probability by the sum of squares of the distribution, which a loss does not see.
        """
        h, p = self.reward(w) - self.reward(l), batch["p"]
        softplus = torch.nn.functional.softplus
        losses = p * softplus(-h) + (1 - p) * softplus(h)
        weight = torch.exp((w.logp / w.length + l.logp / l.length).detach())
        if self.normalise:
            weight = weight / weight.mean()
        return (weight * losses).mean()

    def optimum(self, problem):
        """pi* of RLHF, as DPO's: if labels follow Bradley-Terry every pair's loss is least there,
        whatever its weight.
        """
        return None if self.shuffle_labels else problem.tilted(self.beta)


@hookimpl
def register_methods(register):
    register(WPO)
