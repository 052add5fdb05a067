"""SPPO's loss on fixed pairs with sure labels (Wu et al. 2024), one round of it."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl

from .base import RatioLoss, Side
from .theory import least_by_completion


@dataclass
class SPPOHard(RatioLoss):
    """Regress the log-ratio of the chosen completion on 1 / (2 beta), of the rejected one on minus
    that.

    The paper samples afresh in each round and estimates the win-rate P by a model; here P is the
    label of a fixed pair.
    """

    name, paper = "sppo_hard", "https://arxiv.org/abs/2405.00675"

    beta: float = 1e-3  # 1 / eta: the targets are +-1 / (2 beta) nats; the paper has eta = 1e3

    def pair_loss(self, w: Side, l: Side):
        """Eq. 4.7 with P of 1 and 0: (s_w - 1 / (2 beta))^2 + (s_l + 1 / (2 beta))^2."""
        aim = 1 / (2 * self.beta)
        return (w.ratio - aim) ** 2 + (l.ratio + aim) ** 2

    def optimum(self, problem):
        """Least squares of s on (P(y > mu) - 1/2) / beta, weighted by how often y is in a pair; the
        normaliser, which the paper sets to a constant, is minimised over too.
        """

        def loss(s, chosen, rejected):
            seen = chosen + rejected
            return seen * (s - (chosen / seen - 0.5) / self.beta) ** 2

        return None if self.shuffle_labels else least_by_completion(loss, problem)


@hookimpl
def register_methods(register):
    register(SPPOHard)
