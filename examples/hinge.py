"""A hinge loss on pairs (RSO, Liu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import PairOptions, hookimpl, torch


@dataclass
class Hinge(PairOptions):
    """Keep the log-ratio of the chosen completion a margin above that of the rejected one."""

    name, kind, paper = "hinge", "offline preference", "https://arxiv.org/abs/2309.06657"
    needs = frozenset({"pairs"})

    beta: float = 0.3  # one over the margin, in nats per completion
    steps: int = 150  # optimiser steps

    def check(self):
        super().check()
        if self.beta <= 0:
            raise ValueError("beta must be above 0")

    def loss(self, logp, batch):
        """max(0, 1 - beta (s_w - s_l)), s = log pi(y|x) / pi_ref(y|x) summed over tokens.

        `p` is the probability that the label is right.
        """
        s_w, s_l = (logp - batch["ref_logp"]).sum(-1).unbind(1)
        h, p = self.beta * (s_w - s_l), batch["p"]
        return p * torch.relu(1 - h) + (1 - p) * torch.relu(1 + h)

    def train(self, lab):
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))
        return lab.policy


@hookimpl
def register_methods(register):
    register(Hinge)
