"""RRHF: Rank Responses to align with Human Feedback (Yuan et al. 2023): rank candidates, imitate
the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import GradientMethod, Policy, RewardOptions, hookimpl, torch

from .population import best_of, hinge, minimiser, ranked
from .slic import EQUAL, shuffled

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class RRHF(RewardOptions, GradientMethod):
    """Order the likelihoods of scored candidates by their scores, and raise the best one; no
    reference.
    """

    name, kind, paper = "rrhf", "offline preference", "https://arxiv.org/abs/2304.05302"
    needs = frozenset({"prompts", "reward"})
    tuning_space = GradientMethod.tuning_space | {"rrhf_weight": {"times": [0.2, 5.0]}}

    steps: int = 100  # optimiser steps, one per batch of prompts
    num_candidates: int = 4  # candidates per prompt; the ranking loss has a term for each pair
    length_exponent: float = 1.0  # a of p = log pi(y|x) / |y|^a
    rrhf_weight: float = 1.0  # weight of the ranking loss; the paper has 1
    shuffle_labels: bool = False  # a control: scores are permuted among a prompt's candidates

    def check(self) -> None:
        super().check()
        self.check_reward()
        if self.steps < 1 or self.num_candidates < 2:
            raise ValueError("steps must be at least 1, and num_candidates at least 2")
        if self.length_exponent < 0 or self.rrhf_weight < 0:
            raise ValueError("length_exponent and rrhf_weight must not be negative")

    def required(self) -> frozenset[str]:
        return frozenset({"prompts"}) | self.reward_needs()

    def loss(self, logp, batch):
        """Eq. 2-4: sum over r_i < r_j of max(0, p_i - p_j), less log pi(y_best|x) per token; (B,).

        `logp` (B, K, T), `score` (B, K); p = sum_t log pi / |y|^a. Equal scores contribute nothing.
        Departure: L_ft is the mean over the completion's tokens; the paper has their sum, the
        released code a mean over the padded row.
        """
        lp, lengths, score = logp.sum(-1), batch["mask"].sum(-1), batch["score"]
        p, best = (
            lp / lengths**self.length_exponent,
            score.argmax(1, keepdim=True),
        )  # the first of equals
        worse = (score[:, None, :] - score[:, :, None] > EQUAL).to(p.dtype)
        excess = torch.relu(p[:, :, None] - p[:, None, :])  # of i over j
        rank, nll = (worse * excess).sum((1, 2)), -(lp / lengths).gather(1, best)[:, 0]
        wrong = (worse * (excess > EQUAL)).sum((1, 2)) / worse.sum((1, 2)).clamp(min=1)
        return self.rrhf_weight * rank + nll, {
            "rank_loss": rank,
            "best_nll": nll,
            "misranked": wrong,
        }

    def train(self, lab: Lab) -> Policy:
        """Candidates of the start checkpoint, scored once; a step on each batch of prompts."""
        for prompts in lab.prompts(self.steps):
            batch = lab.rollout(prompts, self.num_candidates, of=lab.start)
            score = lab.reward(batch).nan_to_num(
                nan=-torch.inf
            )  # a candidate that a verifier cannot score is never preferred
            if self.shuffle_labels:
                score = shuffled(score, lab.generator("shuffle"))
            lab.step(self.loss, batch.with_columns(score=score))
        return lab.policy

    def optimum(self, problem):
        """The minimiser of the population's loss, found by descent from two starts; None where they
        end apart.

        Each of the K (K - 1) / 2 pairs of candidates is two independent draws of the start
        checkpoint, and the imitated one is the best of K. Convex in the logits if all completions
        have equal length.
        """
        if self.shuffle_labels:
            return None
        k, lengths = self.num_candidates, problem.lengths
        pairs = self.rrhf_weight * k * (k - 1) / 2 * ranked(problem, problem.ref)
        best = best_of(problem, k)

        def loss(logp, softness):
            p = logp / lengths**self.length_exponent
            return (pairs * hinge(p[:, None, :] - p[:, :, None], softness)).sum((1, 2)) - (
                best * logp / lengths
            ).sum(1)

        return minimiser(loss, problem)


@hookimpl
def register_methods(register):
    register(RRHF)
