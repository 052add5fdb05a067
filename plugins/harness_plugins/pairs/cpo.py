"""CPO: Contrastive Preference Optimization (Xu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..population import minimiser, ordered_pairs
from .base import PairLoss, Side


@dataclass
class CPO(PairLoss):
    """DPO without a reference, and the likelihood of the chosen completion to hold the policy."""

    name, paper = "cpo", "https://arxiv.org/abs/2401.08417"
    tuning_space = PairLoss.tuning_space | {"cpo_alpha": {"times": [0.2, 5.0]}}

    beta: float = 0.1  # scale of the difference of log-probabilities; no KL strength
    cpo_alpha: float = 1.0  # weight of the chosen completion's negative log-likelihood
    nll_reduction: str = "token-mean"  # of the likelihood, per completion: token-mean or sum

    def check(self) -> None:
        super().check()
        if self.cpo_alpha < 0:
            raise ValueError("cpo_alpha must not be negative")
        if self.nll_reduction not in ("token-mean", "sum"):
            raise ValueError(f"nll_reduction is token-mean or sum, not {self.nll_reduction!r}")

    def pair_loss(self, w: Side, l: Side):
        """-log sigma(beta (log pi(y_w|x) - log pi(y_l|x))) - alpha log pi(y_w|x).

        The paper has the sum over tokens in its equation. The authors' code and TRL have a mean per
        token, over the whole batch; the default here is a mean per completion.
        """
        per = w.length if self.nll_reduction == "token-mean" else 1
        prefer = torch.nn.functional.softplus(self.beta * (l.logp - w.logp))
        return prefer - self.cpo_alpha * w.logp / per

    def optimum(self, problem):
        """No closed form: the loss of all pairs, minimised, whatever the start checkpoint."""
        pairs = ordered_pairs(problem)
        per = problem.lengths if self.nll_reduction == "token-mean" else 1

        def loss(logp, _):
            h = self.beta * (logp[:, :, None] - logp[:, None, :])
            kept = (pairs.sum(2) * logp / per).sum(1)
            return (pairs * torch.nn.functional.softplus(-h)).sum((1, 2)) - self.cpo_alpha * kept

        return None if self.shuffle_labels else minimiser(loss, problem)


@hookimpl
def register_methods(register):
    register(CPO)
