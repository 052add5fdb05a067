"""SimPO (Meng et al. 2024) in a plain file: harness run -p examples/simpo.py --method simpo --suite summarization"""

from __future__ import annotations

from dataclasses import dataclass

from harness import GradientMethod, hookimpl, torch


@dataclass
class SimPO(GradientMethod):
    """Preferences on length-averaged log-probabilities, with a margin and without a reference."""

    name, paper = "simpo", "https://arxiv.org/abs/2405.14734"
    needs = frozenset({"pairs"})

    beta: float = 2.0  # scale of the length-averaged log-probability
    gamma: float = 1.0  # target margin
    steps: int = 150  # optimiser steps
    learning_rate: float = 1e-4  # no reference holds it back: a fifth of what the suite would give

    def loss(self, logp, batch):
        """Eq. 6: -log sigma(beta / |y_w| log pi(y_w|x) - beta / |y_l| log pi(y_l|x) - gamma); (B,)."""
        r_w, r_l = (self.beta * logp.sum(-1) / batch["mask"].sum(-1)).unbind(1)
        return -torch.nn.functional.logsigmoid(r_w - r_l - self.gamma)

    def train(self, lab):
        for pairs in lab.pairs(steps=self.steps):
            lab.step(self.loss, pairs)
        return lab.policy


@hookimpl
def register_methods(register):
    register(SimPO)
