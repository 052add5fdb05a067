"""DPO-Shift: a smaller weight of the rejected completion (Yang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from harness import check_idle, hookimpl, torch

from .base import RatioLoss, Side, in_both_orders
from .theory import least


@dataclass
class DPOShift(RatioLoss):
    """DPO with the rejected completion's reward times lambda: the chosen one's falls less."""

    name, paper = "dpo_shift", "https://arxiv.org/abs/2502.07599"
    tuning_space = RatioLoss.tuning_space | {"dpo_lambda": [0.5, 0.75, 0.85, 0.95]}

    beta: float = 0.1  # strength of the KL constraint at lambda 1
    dpo_lambda_strategy: str = "fixed"  # fixed, increase_linear or decrease_linear, over the steps
    dpo_lambda: float = 0.75  # weight of the rejected reward if it is fixed; 1 is DPO
    dpo_lambda_min: float = 0.75  # the least weight if it is not fixed
    dpo_lambda_max: float = 0.95  # the greatest weight if it is not fixed

    def check(self) -> None:
        super().check()
        if self.dpo_lambda_strategy not in ("fixed", "increase_linear", "decrease_linear"):
            raise ValueError(
                "dpo_lambda_strategy is fixed, increase_linear or decrease_linear, not"
                f" {self.dpo_lambda_strategy!r}"
            )
        if not 0 < self.dpo_lambda <= 1 or not 0 < self.dpo_lambda_min <= self.dpo_lambda_max <= 1:
            raise ValueError("weights lie in (0, 1], and dpo_lambda_min is at most dpo_lambda_max")
        if self.dpo_lambda_strategy == "fixed":
            check_idle(self, "dpo_lambda_min", "a dpo_lambda_strategy that changes the weight")
            check_idle(self, "dpo_lambda_max", "a dpo_lambda_strategy that changes the weight")
        else:
            check_idle(self, "dpo_lambda", "dpo_lambda_strategy=fixed")
            if not self.steps:
                raise ValueError("a weight that changes needs the number of steps: set steps")

    def weight(self, turn: int) -> float:
        """Return f(lambda) of an optimiser step; the first is 0."""
        if self.dpo_lambda_strategy == "fixed":
            return self.dpo_lambda
        share = turn / self.steps
        if self.dpo_lambda_strategy == "decrease_linear":
            share = 1 - share
        return self.dpo_lambda_min + share * (self.dpo_lambda_max - self.dpo_lambda_min)

    def loss(self, logp, batch):
        """-log sigma(beta s_w - f(lambda) beta s_l), (B,)."""
        w, l = self.sides(logp, batch)
        shifted = partial(self.pair_loss, weight=batch["dpo_lambda"])
        return in_both_orders(shifted, w, l, batch["p"]), self.metrics(w, l)

    def pair_loss(self, w: Side, l: Side, weight=None):
        """Return the loss with a weight (B,) of the rejected reward, by default the fixed one."""
        weight = self.dpo_lambda if weight is None else weight
        return torch.nn.functional.softplus(weight * self.reward(l) - self.reward(w))

    def prepared(self, lab, pairs):
        """Return the pairs with the reference's log-probabilities and the weight of this step."""
        step = lab.state.setdefault("step", 0)
        lab.state["step"] = step + 1
        weight = torch.full_like(pairs["p"], self.weight(step))
        return super().prepared(lab, pairs).with_columns(dpo_lambda=weight)

    def optimum(self, problem):
        """No closed form: the loss of all pairs, minimised, for a fixed weight; pi* at weight 1."""
        if self.shuffle_labels or self.dpo_lambda_strategy != "fixed":
            return None

        def loss(s_w, s_l, _):
            h = self.beta * s_w - self.dpo_lambda * self.beta * s_l
            return torch.log1p(torch.exp(-h))

        return least(loss, problem)


@hookimpl
def register_methods(register):
    register(DPOShift)
