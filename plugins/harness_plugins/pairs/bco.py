"""BCO: Binary Classifier Optimization (Jung et al. 2024), with its reward shift."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from harness import hookimpl, torch

from ..population import minimiser, ordered_pairs
from .base import RatioLoss, Side, in_both_orders

ROUNDS = 100  # of the search for the shift of the optimum


@dataclass
class BCO(RatioLoss):
    """Classify chosen completions as good and rejected ones as bad, around a shift delta.

    The paper's matching of the distributions of prompts (UDM) is not part of it: both completions
    of a pair have the same prompt.
    """

    name, paper = "bco", "https://arxiv.org/abs/2404.04656"
    passes = 1.25  # one forward pass more of the policy: 10 N FLOPs per token in place of 8 N

    beta: float = 0.1  # scale of the implicit reward
    delta_decay: float = 0.9  # of the running mean of rewards that is the shift; 0: the batch's own

    def check(self) -> None:
        super().check()
        if not 0 <= self.delta_decay < 1:
            raise ValueError("delta_decay must lie in [0, 1)")

    def loss(self, logp, batch):
        """-log sigma(r_w - delta) - log sigma(-(r_l - delta)), r = beta s, (B,)."""
        w, l = self.sides(logp, batch)
        shifted = partial(self.pair_loss, delta=batch["delta"])
        return in_both_orders(shifted, w, l, batch["p"]), self.metrics(w, l)

    def pair_loss(self, w: Side, l: Side, delta=0.0):
        """Return the loss of a plain label with the shift delta (B,), which has no gradient."""
        softplus = torch.nn.functional.softplus
        return softplus(delta - self.reward(w)) + softplus(self.reward(l) - delta)

    def prepared(self, lab, pairs):
        """Return the pairs with the reference's log-probabilities and the shift.

        delta = (E r_w + E r_l) / 2, a running mean over batches of the policy before the step. It
        takes one forward pass more, and so does not depend on micro-batches.
        """
        pairs = super().prepared(lab, pairs)
        ratio = (lab.policy.logp(pairs) - pairs["ref_logp"]).sum(-1)
        mean = self.mean_reward(ratio, pairs)
        delta = self.delta_decay * lab.state.get("delta", mean) + (1 - self.delta_decay) * mean
        lab.state["delta"] = delta
        lab.log(delta=delta)
        return pairs.with_columns(delta=torch.full_like(pairs["p"], delta))

    def mean_reward(self, ratio, pairs) -> float:
        """Return the mean of beta s over both completions of all pairs; ratio (B, 2)."""
        return float(self.beta * ratio.mean())

    def optimum(self, problem):
        """The minimiser for the shift that its own mean reward gives: found by iteration.

        Per completion the loss is P(chosen) softplus(delta - r) + P(rejected) softplus(r - delta).
        """
        if self.shuffle_labels:
            return None
        pairs, softplus = ordered_pairs(problem), torch.nn.functional.softplus
        chosen, rejected = pairs.sum(2), pairs.sum(1)

        def at(delta):
            def loss(logp, _):
                r = self.beta * (logp - problem.ref.log())
                return (chosen * softplus(delta - r) + rejected * softplus(r - delta)).sum(1)

            return minimiser(loss, problem)

        delta = 0.0
        for _ in range(ROUNDS):
            policy = at(delta)
            if policy is None:
                return None
            r = self.beta * (policy / problem.ref).log()
            mean = float(((chosen + rejected) / 2 * r).sum(1).mean())
            if abs(mean - delta) < 1e-6:
                return policy
            delta = mean
        return None


@hookimpl
def register_methods(register):
    register(BCO)
