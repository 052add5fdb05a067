"""SimPO: Simple Preference Optimization (Meng et al. 2024), without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import PairOptions, Policy, hookimpl, logprobs, torch

from .ipo import length_tilted
from .population import minimiser, ordered_pairs

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class SimPO(PairOptions):
    """Preferences on length-averaged log-probabilities, with a margin and without a reference."""

    name, kind, paper = "simpo", "offline preference", "https://arxiv.org/abs/2405.14734"
    needs = frozenset({"pairs"})
    tuning_space = PairOptions.tuning_space | {
        "beta": {"times": [0.4, 2.5]},
        "gamma": [0.0, 0.5, 1.0, 1.6],
    }

    beta: float = 2.0  # scale of the length-averaged log-probability; not a KL strength
    gamma: float = 1.0  # target margin, in beta times nats per token

    def check(self) -> None:
        super().check()
        if self.beta <= 0 or self.gamma < 0:
            raise ValueError("beta must be above 0, and gamma not negative")

    def loss(self, logp, batch):
        """Eq. 6: -log sigma(beta / |y_w| log pi(y_w|x) - beta / |y_l| log pi(y_l|x) - gamma); (B,).

        `logp` (B, 2, T), chosen first. A label probability `p` below 1 weighs both orders, each
        with its margin.
        """
        r_w, r_l = (self.beta * logp.sum(-1) / batch["mask"].sum(-1)).unbind(1)
        h, p, softplus = r_w - r_l, batch["p"], torch.nn.functional.softplus
        loss = p * softplus(self.gamma - h) + (1 - p) * softplus(self.gamma + h)
        return loss, {"margin": h, "accuracy": logprobs.ordered_right(h), "chosen_reward": r_w}

    def train(self, lab: Lab) -> Policy:
        """Take one step on each batch of pairs."""
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs)
        return lab.policy

    def optimum(self, problem):
        """exp(|y| (r / beta + c)) for any start checkpoint, if labels follow Bradley-Terry on the
        reward and gamma is 0.

        Then beta (log pi / |y| - log pi' / |y'|) = r - r' is the cross-entropy's minimum for every
        pair at once; for one-token completions it is softmax(r / beta). A margin has no closed
        form: its loss is minimised over all distributions.
        """
        if self.shuffle_labels:
            return None
        if self.gamma == 0:
            return length_tilted(
                torch.zeros_like(problem.ref), problem.reward / self.beta, problem.lengths
            )
        pairs = ordered_pairs(problem)

        def loss(logp, softness):
            r = self.beta * logp / problem.lengths
            return (
                pairs * torch.nn.functional.softplus(self.gamma - r[:, :, None] + r[:, None, :])
            ).sum((1, 2))

        return minimiser(loss, problem)


@hookimpl
def register_methods(register):
    register(SimPO)
