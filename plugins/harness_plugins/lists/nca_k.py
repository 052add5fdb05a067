"""NCA and InfoNCA on K scored completions (Chen et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..population import minimiser
from .base import Listed, RatioListLoss
from .theory import all_lists


@dataclass
class NCAK(RatioListLoss):
    """Tell completions that are drawn by their rewards from noise, each by itself.

    `nca` is the form for pairs.
    """

    name, paper = "nca_k", "https://arxiv.org/abs/2402.05369"

    num_candidates: int = 4  # completions per prompt; UltraFeedback, the paper's data, has 4
    beta: float = 0.01  # scale of the implicit reward; the paper has 0.01
    alpha: float = 1.0  # temperature of the rewards in units of their spread

    def check(self) -> None:
        super().check()
        if self.alpha <= 0:
            raise ValueError("alpha must be above 0")

    def list_loss(self, y: Listed):
        """-sum_i [q_i log sigma(beta s_i) + 1/K log sigma(-beta s_i)], q = softmax(r / alpha)."""
        r, softplus = self.beta * y.ratio, torch.nn.functional.softplus
        q = (y.score / self.alpha).softmax(-1)
        return (q * softplus(-r) + softplus(r) / y.score.shape[1]).sum(-1)

    def optimum(self, problem):
        """With the normaliser left out, (pi / ref)^beta would be K E[q | y]; the loss is minimised
        over distributions. None for too many lists.
        """
        listed = all_lists(problem, self.num_candidates)
        if self.shuffle_labels or listed is None:
            return None
        lists, often = listed
        tilted = (problem.reward / self.alpha).exp()
        share = tilted[:, lists[:, 0]] / tilted[:, lists].sum(-1)  # of the first of the list
        chosen = torch.zeros_like(problem.ref).index_add(1, lists[:, 0], often * share)

        def mean(logp, _):
            e = self.beta * (logp - problem.ref.log())
            up, down = -torch.nn.functional.logsigmoid(e), -torch.nn.functional.logsigmoid(-e)
            return (self.num_candidates * chosen * up + problem.ref * down).sum(-1)

        return minimiser(mean, problem)


@dataclass
class InfoNCA(NCAK):
    """Match the distribution of the implicit reward over a list to that of the rewards."""

    name = "info_nca"

    def list_loss(self, y: Listed):
        """-sum_i softmax(r / alpha)_i log softmax(beta s)_i."""
        q = (y.score / self.alpha).softmax(-1)
        return -(q * (self.beta * y.ratio).log_softmax(-1)).sum(-1)

    def optimum(self, problem):
        """pi* at alpha beta: there both distributions are equal in every list."""
        return None if self.shuffle_labels else problem.tilted(self.alpha * self.beta)


@hookimpl
def register_methods(register):
    register(NCAK)
    register(InfoNCA)
