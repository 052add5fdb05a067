"""ORPO: Odds Ratio Preference Optimization (Hong et al. 2024): imitation of the chosen with an
odds-ratio penalty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import PairOptions, Policy, hookimpl, logprobs, torch

from .population import minimiser, ordered_pairs

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class ORPO(PairOptions):
    """Fine-tune on the chosen completion with a penalty on the odds of the rejected one; no
    reference.
    """

    name, kind, paper = "orpo", "offline preference", "https://arxiv.org/abs/2403.07691"
    needs = frozenset({"pairs"})
    tuning_space = PairOptions.tuning_space | {"lambda_or": {"times": [0.2, 5.0]}}

    lambda_or: float = 0.1  # weight of the odds-ratio term (beta in TRL)
    nll_reduction: str = "token-mean"  # of the likelihood: token-mean, or sequence-mean (eq. 2)

    def check(self) -> None:
        super().check()
        if self.lambda_or <= 0:
            raise ValueError(
                "lambda_or must be above 0: without its odds-ratio term the method is SFT on the"
                " chosen"
            )
        if self.nll_reduction not in ("token-mean", "sequence-mean"):
            raise ValueError(
                f"nll_reduction is token-mean or sequence-mean, not {self.nll_reduction!r}"
            )

    def loss(self, logp, batch):
        """Eq. 6: NLL(y_w) - lambda log sigma(log odds(y_w|x) - log odds(y_l|x)); (B,).

        `logp` (B, 2, T), chosen first. The odds use the mean over a completion's tokens; the NLL is
        that of the completion alone (TRL's has the prompt too). A label probability `p` below 1
        weighs both orders.
        """
        lengths = batch["mask"].sum(-1)
        per = lengths if self.nll_reduction == "sequence-mean" else batch["tokens"][:, None]
        (n_w, n_l), (o_w, o_l) = (
            (logp.sum(-1) / per).unbind(1),
            log_odds(logp.sum(-1) / lengths).unbind(1),
        )
        h, p, softplus = o_w - o_l, batch["p"], torch.nn.functional.softplus
        loss = p * (self.lambda_or * softplus(-h) - n_w) + (1 - p) * (
            self.lambda_or * softplus(h) - n_l
        )
        return loss, {"log_odds": h, "accuracy": logprobs.ordered_right(h), "chosen_nll": -n_w}

    def train(self, lab: Lab) -> Policy:
        """Take one step on each batch of pairs."""
        for pairs in self.pairs(lab):
            p, (chosen, rejected) = pairs["p"], pairs["mask"].sum(-1).unbind(1)
            tokens = (
                p * chosen + (1 - p) * rejected
            ).mean()  # tokens of the imitated completions, per row of the whole batch
            lab.step(self.loss, pairs.with_columns(tokens=tokens.expand(len(p))))
        return lab.policy

    def optimum(self, problem):
        """No closed form: the loss of the pairs' population, minimised over all distributions."""
        pairs = ordered_pairs(problem)
        imitated = pairs.sum(2)
        mean_length = (imitated * problem.lengths).sum(1).mean()
        per = problem.lengths if self.nll_reduction == "sequence-mean" else mean_length

        def loss(logp, softness):
            odds = log_odds(logp / problem.lengths)
            ratio = torch.nn.functional.softplus(odds[:, None, :] - odds[:, :, None])
            return (pairs * self.lambda_or * ratio).sum((1, 2)) - (imitated * logp / per).sum(1)

        return None if self.shuffle_labels else minimiser(loss, problem)


def log_odds(mean):
    """Return log(P / (1 - P)) of mean log-probabilities: m - log(1 - e^m), accurate at either end
    (Maechler 2012).
    """
    m = mean.clamp(max=-1e-6)  # a certain completion has infinite odds
    rest = torch.where(m > -math.log(2), torch.log(-torch.expm1(m)), torch.log1p(-torch.exp(m)))
    return m - rest


@hookimpl
def register_methods(register):
    register(ORPO)
