"""PRO: preference ranking optimisation (Song et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import GradientMethod, hookimpl, torch

from ..population import best_of, minimiser
from .base import Listed, ListLoss
from .theory import all_lists


@dataclass
class PRO(ListLoss):
    """Pick the best completion among the rest of the list, again and again, at temperatures of the
    score gaps; and imitate the best one. It has no reference.
    """

    name, paper = "pro", "https://arxiv.org/abs/2306.17492"
    tuning_space = GradientMethod.tuning_space | {"sft_weight": {"times": [0.2, 5.0]}}

    beta: float = 1.0  # scale of the likelihood per token in the ranking terms; the paper has 1
    sft_weight: float = 0.05  # of -log pi of the best, times (K - 1)^2, as in the authors' code

    def check(self) -> None:
        super().check()
        if self.sft_weight < 0:
            raise ValueError("sft_weight must not be negative")

    def list_loss(self, y: Listed):
        """-sum_k log [e^(p_k / T_k) / (e^(p_k / T_k) + sum_{i>k} e^(p_i / T_k^i))]
        + sft_weight (K - 1)^2 (-log pi(y_1)), p = beta log pi / |y|.

        1 / T_k^i = r_k - r_i, and 1 / T_k is the largest of them. Token sums in the second term.
        """
        p, k = self.beta * y.logp / y.length, y.score.shape[1]
        total = -self.sft_weight * (k - 1) ** 2 * y.logp[:, 0]
        for at in range(k - 1):
            gaps = y.score[:, at : at + 1] - y.score[:, at + 1 :]
            own = p[:, at] * gaps.amax(-1)
            others = (p[:, at + 1 :] * gaps).logsumexp(-1)
            total = total + torch.nn.functional.softplus(others - own)
        return total

    def optimum(self, problem):
        """The minimiser of the mean loss of all lists, by descent; None for too many lists."""
        listed = all_lists(problem, self.num_candidates)
        if self.shuffle_labels or listed is None:
            return None
        lists, often = listed
        k = self.num_candidates
        order = problem.reward[:, lists].argsort(dim=-1, descending=True, stable=True)
        ordered = lists.expand_as(order).gather(-1, order)  # (P, M, K)
        rows = torch.arange(len(problem.ref))[:, None, None]
        reward, length = problem.reward[rows, ordered], problem.lengths[rows, ordered]
        imitated = self.sft_weight * (k - 1) ** 2 * best_of(problem, k)

        def mean(logp, _):
            p = self.beta * logp[rows, ordered] / length
            ranked = torch.zeros_like(often)
            for i in range(k - 1):
                gaps = reward[..., i, None] - reward[..., i + 1 :]
                scaled = torch.cat([p[..., i, None] * gaps[..., -1:], p[..., i + 1 :] * gaps], -1)
                ranked = ranked + scaled.logsumexp(-1) - scaled[..., 0]
            return (often * ranked).sum(-1) - (imitated * logp).sum(-1)

        return minimiser(mean, problem)


@hookimpl
def register_methods(register):
    register(PRO)
