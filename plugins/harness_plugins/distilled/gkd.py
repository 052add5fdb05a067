"""GKD: generalised knowledge distillation (Agarwal et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from harness import TeacherOptions, hookimpl, torch


@dataclass
class GKD(TeacherOptions):
    """Follow a teacher's next-token distributions, on the policy's own samples or on
    demonstrations, by a generalised Jensen-Shannon divergence.

    On-policy distillation is `lmbda=1 beta=1`: the reverse KL on own samples.
    """

    name, kind, paper = "gkd", "distillation", "https://arxiv.org/abs/2306.13649"
    needs = frozenset({"demonstrations"})
    aliases = {"on_policy_distillation": "lmbda=1 beta=1"}

    steps: int = 100  # optimiser steps
    beta: float = 0.5  # of the divergence: 0 is KL(teacher || policy), 1 is KL(policy || teacher)
    lmbda: float = 0.5  # share of the batches that the policy samples; the rest are demonstrations
    temperature: float | None = None  # of samples; none: the suite's, as in the evaluation

    def check(self) -> None:
        super().check()
        if self.steps < 1:
            raise ValueError("steps must be at least 1")
        if not 0 <= self.beta <= 1 or not 0 <= self.lmbda <= 1:
            raise ValueError("beta and lmbda must lie in [0, 1]")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError("temperature must be above 0")

    def required(self):
        """Own samples alone need prompts, and no demonstrations."""
        return frozenset({"prompts"}) if self.lmbda == 1 else self.needs

    def loss(self, columns, batch):
        """beta KL(q || m) + (1 - beta) KL(pi || m), m = beta q + (1 - beta) pi, q the teacher; per
        token (B, K, T). At beta of 0 and 1 it is the KL itself.

        `columns` (B, K, T, 3) hold log pi, log q and the divergence.
        """
        logp, taught, divergence = columns.unbind(-1)
        return divergence, {"log_ratio_to_teacher": (logp - taught).detach()}

    def train(self, lab):
        """In each turn a draw decides whose completions are learned from."""
        teacher = lab.teacher(self.teacher)
        divergence = partial(generalised_jsd, beta=self.beta)
        for batch in self.batches(lab):
            both = lab.policy.against(teacher, divergence)
            lab.step(lab.term(self.loss, batch, of=both))
        return lab.policy

    def batches(self, lab):
        """Yield completions (B, 1, T): samples of the policy, or demonstrations."""
        if self.lmbda == 1:
            for prompts in lab.prompts(self.steps):
                yield lab.rollout(prompts, 1, self.temperature)
            return
        for demonstrations in lab.demonstrated(steps=self.steps):
            own = float(torch.rand(1, generator=lab.generator("whose"))) < self.lmbda
            lab.log(own_samples=float(own))
            prompts = demonstrations.prompts
            yield lab.rollout(prompts, 1, self.temperature) if own else demonstrations

    def optimum(self, problem):
        """The teacher, for every beta and lmbda: each divergence is 0 there. None where its
        probabilities are unknown.
        """
        return problem.taught


def generalised_jsd(p, q, beta):
    """Return (m,): the divergence of log-probabilities p of the policy and q of the teacher, each
    (m, V).
    """
    if beta == 0:
        return (q.exp() * (q - p)).sum(-1)
    if beta == 1:
        return (p.exp() * (p - q)).sum(-1)
    mixed = torch.logaddexp(q + math.log(beta), p + math.log1p(-beta))
    of_teacher, of_policy = (q.exp() * (q - mixed)).sum(-1), (p.exp() * (p - mixed)).sum(-1)
    return beta * of_teacher + (1 - beta) * of_policy


@hookimpl
def register_methods(register):
    register(GKD)
