"""GPO: Generalized Preference Optimization (Tang et al. 2024), further convex losses."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..population import hinge
from .base import RatioLoss, Side
from .theory import least


@dataclass
class GPO(RatioLoss):
    """A pair loss f(beta (s_w - s_l)) with another f than DPO's, IPO's and SLiC's.

    The paper's other members are rows of their own: logistic is `dpo`, squared is `ipo`, hinge is
    `hinge_norm`.
    """

    name, paper = "gpo", "https://arxiv.org/abs/2402.05749"
    tuning_space = RatioLoss.tuning_space | {
        "function": ["exponential", "truncated-quadratic", "savage"]
    }

    beta: float = 0.1  # scale of the log-ratios; for `exponential` the KL strength is 2 beta
    function: str = "exponential"  # exponential, truncated-quadratic or savage

    def check(self) -> None:
        super().check()
        if self.function not in FUNCTIONS:
            others = "logistic is dpo, squared is ipo, hinge is hinge_norm"
            raise ValueError(f"function is {', '.join(FUNCTIONS)}, not {self.function!r}; {others}")

    def pair_loss(self, w: Side, l: Side):
        """f(beta (s_w - s_l)); f is one of FUNCTIONS."""
        return FUNCTIONS[self.function](self.beta * (w.ratio - l.ratio))

    def optimum(self, problem):
        """exponential: p e^-h + (1 - p) e^h is least at h = logit(p) / 2, so pi* at 2 beta.

        savage is a proper loss, so it has pi* at beta. truncated-quadratic wants h = 2 p - 1, which
        cannot be had for every pair at once: minimised.
        """
        if self.shuffle_labels:
            return None
        if self.function != "truncated-quadratic":
            return problem.tilted((2 if self.function == "exponential" else 1) * self.beta)

        def loss(s_w, s_l, softness):
            return hinge(1 - self.beta * (s_w - s_l), softness) ** 2

        return least(loss, problem)


FUNCTIONS = {
    "exponential": lambda h: torch.exp((-h).clamp(max=80.0)),  # 80: what a float32 can hold
    "truncated-quadratic": lambda h: torch.relu(1 - h) ** 2,
    "savage": lambda h: torch.sigmoid(-h) ** 2,
}


@hookimpl
def register_methods(register):
    register(GPO)
