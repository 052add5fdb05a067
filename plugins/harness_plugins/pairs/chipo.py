"""ChiPO: chi-squared Preference Optimization (Huang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import RatioLoss, Side
from .theory import normalised


@dataclass
class ChiPO(RatioLoss):
    """DPO with the link rho + log rho in place of log rho.

    Its regulariser is the chi-squared divergence plus the KL, against over-optimisation.
    """

    name, paper = "chipo", "https://arxiv.org/abs/2407.13399"

    beta: float = 0.1  # strength of the regulariser
    r_max: float = 10.0  # the paper's R_max: margins are clipped to 2 r_max; beyond it no gradient

    def check(self) -> None:
        super().check()
        if self.r_max <= 0:
            raise ValueError("r_max must be above 0")

    def reward(self, y: Side):
        """beta (rho + log rho).

        A departure beyond the range of floats: exp(s) is taken at 60 nats at most, where the margin
        is long clipped.
        """
        return self.beta * (torch.exp(y.ratio.clamp(max=60.0)) + y.ratio)

    def pair_loss(self, w: Side, l: Side):
        """Algorithm 1: -log sigma(clip(beta phi(rho_w) - beta phi(rho_l), -2 R_max, 2 R_max)),
        phi(rho) = rho + log rho.
        """
        h = self.reward(w) - self.reward(l)
        return torch.nn.functional.softplus(-h.clamp(-2 * self.r_max, 2 * self.r_max))

    def optimum(self, problem):
        """beta (rho + log rho) = r + c, if labels follow Bradley-Terry and no margin of the reward
        is clipped; then every pair's cross-entropy is least at once.
        """
        reward = problem.reward
        clipped = (reward.amax(-1) - reward.amin(-1)).max() >= 2 * self.r_max
        if self.shuffle_labels or clipped:
            return None
        span = reward.abs().max() + 2 * self.beta

        def log_weight(c):  # rho by Newton's steps on log rho: e^x + x = (r + c) / beta
            aim = (reward + c) / self.beta
            x = torch.where(aim > 1, aim.clamp(min=1).log(), aim)
            for _ in range(60):
                x = x - (x.exp() + x - aim) / (x.exp() + 1)
            return problem.ref.log() + x

        ones = torch.ones_like(reward[:, :1])
        return normalised(log_weight, -span * ones, span * ones)


@hookimpl
def register_methods(register):
    register(ChiPO)
