"""SPPO: self-play preference optimisation with estimated win-rates (Wu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import OnPolicyOptions, hookimpl

from .base import Rounds
from .theory import least_squares


@dataclass
class SPPO(Rounds, OnPolicyOptions):
    """Each round samples from its first policy, estimates how often a sample beats the others, and
    regresses the log-ratio on that win-rate.

    `sppo_hard` is the same loss on fixed pairs with sure labels.
    """

    name, kind, paper = "sppo", "iterated", "https://arxiv.org/abs/2405.00675"
    needs = frozenset({"prompts", "reward"})

    uncorrected = "its loss compares samples, whatever drew them"

    steps: int = 150  # turns of all rounds
    num_generations: int = 5  # completions per prompt, all of them opponents of each other
    beta: float = 1e-3  # 1 / eta: a sample that always wins has the target 1 / (2 beta) nats

    def check(self) -> None:
        super().check()
        if self.num_generations < 2:
            raise ValueError("num_generations must be at least 2: a sample needs an opponent")
        if self.beta <= 0:
            raise ValueError("beta must be above 0")
        if self.adaptive_beta:
            raise ValueError(
                "adaptive_beta steers the KL to the start, which a moved reference no longer is"
            )

    def win_rates(self, reward):
        """Return (B, K) P(y_i > pi_t), the mean over all K samples of sigma(r_i - r_j), y_i itself
        among them, as in the authors' code; NaN where the reward is unknown.
        """
        wins = (reward[:, :, None] - reward[:, None, :]).sigmoid().nanmean(-1)
        return wins.masked_fill(reward.isnan(), float("nan"))

    def loss(self, logp, batch):
        """(log pi / pi_t - (P(y > pi_t) - 1/2) / beta)^2, token sums; (B, K)."""
        s, known = (logp - batch["ref_logp"]).sum(-1), ~batch["wins"].isnan()
        error = s - (batch["wins"].nan_to_num(0.5) - 0.5) / self.beta
        return known * error**2, {"log_ratio": s}

    def train(self, lab):
        """Rounds; the samples and the denominator pi_t are those of the round's first policy."""
        lab.state.setdefault("beta", self.beta)
        for prompts in self.in_rounds(lab, lab.prompts):
            batch = lab.rollout(
                prompts,
                self.num_generations,
                self.temperature,
                self.max_new_tokens,
                of=lab.reference,
            )
            batch = batch.with_columns(reward=lab.reward(batch))
            self.report(lab, batch, None)
            wins = self.win_rates(batch["reward"])
            lab.step(self.loss, batch.with_columns(ref_logp=batch["logp"], wins=wins))
        return lab.policy

    def optimum(self, problem):
        """Every round is least squares of s on (K - 1) / K (P(y > pi_t) - 1/2) / beta under pi_t,
        the normaliser minimised over too; the next one starts there.
        """
        if not self.as_measured():
            return None
        policy, k = problem.ref, self.num_generations
        for _ in range(self.rounds):
            wins = (problem.prefer * policy[:, None, :]).sum(-1)
            target = (k - 1) / k * (wins - 0.5) / self.beta
            policy = policy * least_squares(policy, target).exp()
        return policy


@hookimpl
def register_methods(register):
    register(SPPO)
