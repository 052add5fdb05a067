"""APO-zero: Anchored Preference Optimization (D'Oosterlinck et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..kto import allocate
from ..population import ordered_pairs
from .base import RatioLoss, Side


@dataclass
class APOZero(RatioLoss):
    """Raise the chosen completion and lower the rejected one, each apart, by losses that saturate.

    A sum of KTO's two losses with its reference point z0 at 0. The paper advises it where the
    chosen completions are better than what the model answers.
    """

    name, paper = "apo_zero", "https://arxiv.org/abs/2408.06266"

    beta: float = 0.1  # how fast gains and losses saturate; the strength of the KL constraint

    def pair_loss(self, w: Side, l: Side):
        """Eq. 7: -sigma(beta s_w) + sigma(beta s_l), plus 1 as in TRL, so that it is positive."""
        return 1 - torch.sigmoid(self.beta * w.ratio) + torch.sigmoid(self.beta * l.ratio)

    def optimum(self, problem):
        """Where KTO's is with z0 = 0 and weights of 1: all mass on what is chosen more often than
        rejected.

        The mean loss is a constant less sum_y w(y) sigma(beta log rho), w = P(chosen) - P(rejected)
        and rho = pi / ref, which is concave in rho for beta <= 1.
        """
        pairs = ordered_pairs(problem)
        gain = pairs.sum(2) - pairs.sum(1)
        if self.shuffle_labels or self.beta > 1 or not (gain > 0).any(-1).all():
            return None
        return allocate(problem.ref, gain, self.beta, 0.0)


@hookimpl
def register_methods(register):
    register(APOZero)
