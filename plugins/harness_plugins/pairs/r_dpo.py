"""R-DPO: DPO with a length penalty in the reward (Park et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness import hookimpl, torch

from .base import RatioLoss, Side


@dataclass
class RDPO(RatioLoss):
    """DPO for the reward less alpha per token: the policy is not paid for length."""

    name, paper = "r_dpo", "https://arxiv.org/abs/2403.19159"
    tuning_space = RatioLoss.tuning_space | {"alpha": [0.005, 0.02, 0.05, 0.1, 0.3]}

    beta: float = 0.1  # strength of the KL constraint
    alpha: float = 0.05  # reward taken off per token; negative values pay for length

    def pair_loss(self, w: Side, l: Side):
        """Eq. 9: -log sigma(beta (s_w - s_l) + alpha (|y_w| - |y_l|)).

        The reward r is beta s + alpha |y|, so the sign is +: a longer chosen completion owes part
        of its win to its length. With a minus length is paid for.
        """
        h = self.beta * (w.ratio - l.ratio) + self.alpha * (w.length - l.length)
        return torch.nn.functional.softplus(-h)

    def optimum(self, problem):
        """pi* of RLHF for the reward r - alpha |y|, if labels follow Bradley-Terry on r."""
        taxed = replace(problem, reward=problem.reward - self.alpha * problem.lengths)
        return None if self.shuffle_labels else taxed.tilted(self.beta)


@hookimpl
def register_methods(register):
    register(RDPO)
