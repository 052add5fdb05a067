"""SPIN: tell demonstrations from one's own samples (Chen et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness import hookimpl, torch

from .base import Rounds


@dataclass
class SPIN(Rounds):
    """DPO's loss with a demonstration as the chosen completion, and a sample of the round's first
    policy as the rejected one.

    It makes no use of preferences or rewards: its aim is the distribution of the demonstrations.
    """

    name, kind, paper = "spin", "iterated", "https://arxiv.org/abs/2401.01335"
    needs = frozenset({"demonstrations"})
    completions_per_row: ClassVar[int] = 2  # a demonstration and a sample, for estimates
    tuning_space = Rounds.tuning_space | {"beta": {"times": [0.2, 5.0]}}

    beta: float = 0.1  # the paper's lambda; its last round has 5
    epochs: float = 2.0  # passes of each round over the demonstrations
    steps: int = 0  # optimiser steps of all rounds; 0 takes `epochs`

    def check(self) -> None:
        super().check()
        if self.beta <= 0 or self.epochs <= 0 or self.steps < 0:
            raise ValueError("beta and epochs must be above 0, and steps not negative")

    def loss(self, logp, batch):
        """-log sigma(beta (s_y - s_y')), s = log pi / pi_t, y demonstrated, y' ~ pi_t; (B,)."""
        s = (logp - batch["ref_logp"]).sum(-1)
        h = self.beta * (s[:, 0] - s[:, 1])
        return torch.nn.functional.softplus(-h), {"margin": h}

    def train(self, lab):
        """Rounds over the demonstrations; the opponent is the policy at the round's start."""

        def stream(steps):
            return lab.demonstrated(self.epochs, steps)

        for demonstrations in self.in_rounds(lab, stream):
            own = lab.rollout(demonstrations.prompts, 1, of=lab.reference)
            pairs = demonstrations.beside(own)
            lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))
        return lab.policy

    def optimum(self, problem):
        """pi_t+1 = pi_t (data / pi_t)^(1 / beta) / Z in each round, as in the paper's theorem 5.4:
        a pair is labelled by log data / pi_t, in the form of Bradley-Terry. None where the
        distribution of the demonstrations is unknown.
        """
        if problem.demonstrated is None:
            return None
        shown, log_policy = problem.demonstrated > 0, problem.ref.log()
        for _ in range(self.rounds):
            tilt = (problem.demonstrated.log() - log_policy) / self.beta
            log_policy = (log_policy + tilt).where(shown, -torch.inf).log_softmax(-1)
        return log_policy.exp()


@hookimpl
def register_methods(register):
    register(SPIN)
