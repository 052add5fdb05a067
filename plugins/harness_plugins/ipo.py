"""IPO: Identity Preference Optimization (Azar et al. 2023), token-sum or length-averaged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import PairOptions, Policy, hookimpl, logprobs, torch

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class IPO(PairOptions):
    """Regress the log-ratio margin of a pair on a constant, so that certain labels do not drive it
    to infinity.
    """

    name, kind, paper = "ipo", "offline preference", "https://arxiv.org/abs/2310.12036"
    aliases = {"ipo_norm": "length_average=true"}
    needs = frozenset({"pairs"})
    tuning_space = PairOptions.tuning_space | {"beta": {"times": [0.2, 5.0]}}

    beta: float = 0.1  # the paper's tau: the target margin is 1 / (2 beta) nats
    length_average: bool = False  # divide log-ratios by length; false: token sums, eq. 17

    def check(self) -> None:
        super().check()
        if self.beta <= 0:
            raise ValueError("beta must be above 0")

    def loss(self, logp, batch):
        """Eq. 17: (h - 1 / (2 tau))^2, h = s_w - s_l, with s = log pi(y|x) / pi_ref(y|x) summed
        over tokens; (B,).

        `logp` (B, 2, T), chosen first. A departure, by option: `length_average` takes s / |y|,
        which the authors used for their reported results. If all lengths are L, its tau equals a
        token-sum tau of tau / L. A label probability `p` below 1 weighs both orders: p L(h) + (1-p)
        L(-h).
        """
        s = (logp - batch["ref_logp"]).sum(-1)
        if self.length_average:
            s = s / batch["mask"].sum(-1)
        s_w, s_l = s.unbind(1)
        h, aim, p = s_w - s_l, 1 / (2 * self.beta), batch["p"]
        loss = p * (h - aim) ** 2 + (1 - p) * (-h - aim) ** 2
        return loss, {"margin": h, "accuracy": logprobs.ordered_right(h), "chosen_ratio": s_w}

    def train(self, lab: Lab) -> Policy:
        """Take one step on each batch of pairs."""
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))
        return lab.policy

    def optimum(self, problem):
        """s(y) = (P(y > mu) - 1/2) / tau + c, times |y| if averaged: the paper's theorem 1 for the
        pairs' own mu.

        With both orders of a pair averaged, h(y, y') is regressed on (p(y > y') - 1/2) / tau. Least
        squares over mu x mu of an additive h gives the mean over y'. Random labels lead back to the
        start checkpoint only as the number of pairs grows, so no optimum is given for them.
        """
        if self.shuffle_labels or (problem.mu <= 0).any():  # not identified by pairs
            return None
        edge = (problem.prefer - problem.prefer.transpose(1, 2)) / 2  # p(y > y') - 1/2
        tilt = torch.einsum("pij,pj->pi", edge, problem.mu) / self.beta
        lengths = problem.lengths if self.length_average else torch.ones_like(problem.lengths)
        return length_tilted(problem.ref.log(), tilt, lengths)


def length_tilted(base, tilt, lengths):
    """Return base exp(|y| (tilt + c)), (P, N), with the c of each prompt, found by bisection, that
    makes it sum to 1.

    `base` are log-weights of at most 1 each. At the least c tried every term is below 1 / N, at the
    greatest the sum is that of the weights or more.
    """
    low, high = -tilt.amax(-1) - math.log(tilt.shape[-1]), -tilt.amin(-1)
    for _ in range(200):
        c = (low + high) / 2
        over = (base + lengths * (tilt + c[:, None])).logsumexp(-1) > 0
        low, high = torch.where(over, low, c), torch.where(over, c, high)
    return (base + lengths * (tilt + low[:, None])).softmax(-1)


@hookimpl
def register_methods(register):
    register(IPO)
