"""DPO-Positive (Pal et al. 2024, Smaug)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, logprobs, torch

from ..population import hinge
from .base import RatioLoss, Side
from .theory import least


@dataclass
class DPOP(RatioLoss):
    """DPO with a penalty where the chosen completion is less likely than under the reference."""

    name, paper = "dpop", "https://arxiv.org/abs/2402.13228"
    tuning_space = RatioLoss.tuning_space | {"dpop_lambda": {"times": [0.1, 10.0]}}

    beta: float = 0.3  # strength of the KL constraint; the paper has 0.3
    dpop_lambda: float = 50.0  # the paper's lambda: weight of the penalty inside the sigmoid

    def check(self) -> None:
        super().check()
        if self.dpop_lambda < 0:
            raise ValueError("dpop_lambda must not be negative")

    def pair_loss(self, w: Side, l: Side):
        """-log sigma(beta (s_w - s_l - lambda max(0, -s_w))).

        The policy starts at the reference, where s_w is 0 up to rounding. There is no penalty
        within `logprobs.TIE` nats of 0, so that rounding does not decide the first gradient.
        """
        fallen = torch.where(w.ratio < -logprobs.TIE, -w.ratio, 0.0)
        penalty = self.dpop_lambda * fallen
        return torch.nn.functional.softplus(-self.beta * (w.ratio - l.ratio - penalty))

    def optimum(self, problem):
        """No closed form: the loss of all pairs, minimised."""

        def loss(s_w, s_l, softness):
            fallen = hinge(-s_w, softness)
            return torch.nn.functional.softplus(self.beta * (s_l - s_w + self.dpop_lambda * fallen))

        return None if self.shuffle_labels else least(loss, problem)


@hookimpl
def register_methods(register):
    register(DPOP)
