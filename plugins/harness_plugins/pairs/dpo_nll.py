"""DPO with a likelihood term: the loss of Iterative RPO (Pang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..population import minimiser, ordered_pairs
from .base import RatioLoss, Side


@dataclass
class DPONLL(RatioLoss):
    """DPO, and the chosen completion's likelihood per token, so that it does not fall.

    The paper's iterations, with fresh pairs from each round's policy, are not part of it.
    """

    name, paper = "dpo_nll", "https://arxiv.org/abs/2404.19733"
    tuning_space = RatioLoss.tuning_space | {"alpha": {"times": [0.2, 5.0]}}

    beta: float = 0.1  # strength of the KL constraint in DPO's term
    alpha: float = 1.0  # weight of DPO's term, as in the paper (TRL's rpo_alpha weighs the other)

    def check(self) -> None:
        super().check()
        if self.alpha <= 0:
            raise ValueError("alpha must be above 0: without DPO's term it is SFT on the chosen")

    def pair_loss(self, w: Side, l: Side):
        """-log pi(y_w|x) / |y_w| - alpha log sigma(beta (s_w - s_l)).

        The likelihood is that of the completion alone, as the prompt is not generated.
        """
        prefer = torch.nn.functional.softplus(self.reward(l) - self.reward(w))
        return self.alpha * prefer - w.logp / w.length

    def optimum(self, problem):
        """No closed form: the loss of all pairs, minimised."""
        pairs = ordered_pairs(problem)

        def loss(logp, _):
            s = logp - problem.ref.log()
            h = self.beta * (s[:, :, None] - s[:, None, :])
            prefer = -(pairs * torch.nn.functional.logsigmoid(h)).sum((1, 2))
            return self.alpha * prefer - (pairs.sum(2) * logp / problem.lengths).sum(1)

        return None if self.shuffle_labels else minimiser(loss, problem)


@hookimpl
def register_methods(register):
    register(DPONLL)
