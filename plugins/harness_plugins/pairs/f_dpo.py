"""f-DPO: DPO under another divergence than the reverse KL (Wang et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness import check_idle, hookimpl, torch

from .base import RatioLoss, Side
from .theory import normalised


@dataclass
class FDPO(RatioLoss):
    """DPO whose regulariser is the Jensen-Shannon, the forward KL or an alpha divergence.

    `reverse_kl` is the same loss as `dpo`, and counts as that row.
    """

    name, paper = "f_dpo", "https://arxiv.org/abs/2309.16240"
    aliases = {"f_dpo_forward_kl": "divergence=forward_kl", "f_dpo_alpha": "divergence=alpha"}
    tuning_space = RatioLoss.tuning_space | {"divergence": ["js", "forward_kl", "alpha"]}

    beta: float = 0.1  # strength of the divergence
    divergence: str = "js"  # js, forward_kl, alpha or reverse_kl, of the policy from the reference
    alpha: float = 0.5  # of the alpha divergence, in (0, 1): 0 is the reverse KL, 1 the forward one

    def check(self) -> None:
        super().check()
        if self.divergence not in ("js", "forward_kl", "alpha", "reverse_kl"):
            raise ValueError(
                f"divergence is js, forward_kl, alpha or reverse_kl, not {self.divergence!r}"
            )
        if not 0 < self.alpha < 1:
            raise ValueError("alpha must lie in (0, 1)")
        if self.divergence != "alpha":
            check_idle(self, "alpha", "divergence=alpha")

    def reward(self, y: Side):
        """beta f'(rho) up to a constant: js log(rho / (1 + rho)), forward KL -1 / rho,
        alpha (1 - rho^-alpha) / alpha.

        A departure beyond the range of floats: rho^-1 is taken at e^60 at most.
        """
        if self.divergence == "js":
            return self.beta * torch.nn.functional.logsigmoid(y.ratio)
        if self.divergence == "forward_kl":
            return -self.beta * torch.exp((-y.ratio).clamp(max=60.0))
        if self.divergence == "alpha":
            return -self.beta / self.alpha * torch.expm1((-self.alpha * y.ratio).clamp(max=60.0))
        return self.beta * y.ratio

    def pair_loss(self, w: Side, l: Side):
        """-log sigma(beta f'(rho_w) - beta f'(rho_l))."""
        return torch.nn.functional.softplus(self.reward(l) - self.reward(w))

    def optimum(self, problem):
        """f'(rho) = (r + c) / beta, if labels follow Bradley-Terry on the reward."""
        if self.shuffle_labels:
            return None
        if self.divergence == "reverse_kl":
            return problem.tilted(self.beta)
        first, last = LIMITS[self.divergence]
        last = 1 / self.alpha if self.divergence == "alpha" else last
        best = problem.reward.amax(-1, keepdim=True)

        def log_weight(c):
            return problem.ref.log() + self.log_ratio((problem.reward + c) / self.beta)

        return normalised(log_weight, self.beta * first - best, self.beta * last - best)

    def log_ratio(self, x):
        """Return log rho where f'(rho) = x, up to the constants that `reward` leaves out of f'."""
        if self.divergence == "js":  # rho / (1 + rho) = e^x / 2
            return x - torch.log(2 - torch.exp(x))
        if self.divergence == "forward_kl":  # -1 / rho = x
            return -torch.log(-x)
        return -torch.log1p(-self.alpha * x) / self.alpha  # rho^-alpha = 1 - alpha x


# x at which rho is 1, so that no completion is above the reference, and at which rho is infinite
LIMITS = {"js": (0.0, math.log(2)), "forward_kl": (-1.0, 0.0), "alpha": (0.0, math.inf)}


@hookimpl
def register_methods(register):
    register(FDPO)
