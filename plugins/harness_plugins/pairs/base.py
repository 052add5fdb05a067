"""The common part of methods whose loss is a function of a pair's two completions.

A method states `pair_loss`. The base class sums log-probabilities over tokens, weighs both orders
by the label's probability, logs the margin and goes over the pairs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from harness import PairOptions, Policy, logprobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness import Batch, Lab


class Side(NamedTuple):
    """One completion of each of B pairs: all the chosen ones, or all the rejected ones."""

    ratio: Tensor  # (B,) s = log pi(y|x) / pi_ref(y|x), summed; without a reference log pi(y|x)
    logp: Tensor  # (B,) log pi(y|x), summed over tokens, nats
    length: Tensor  # (B,) tokens, the end of sequence included


@dataclass
class PairLoss(PairOptions):
    """A method that learns from pairs by a loss of the two completions of each; no reference.

    It makes no use of other pairs of the batch, so the loss of a pair is the same in any batch.
    """

    kind = "offline preference"
    needs = frozenset({"pairs"})
    passes: ClassVar[float] = 1.0  # cost of a step in steps of DPO, for estimates
    tuning_space = PairOptions.tuning_space | {"beta": {"times": [0.2, 5.0]}}

    beta: float = 0.1  # scale of the implicit reward

    @abstractmethod
    def pair_loss(self, w: Side, l: Side) -> Tensor:
        """Return the loss (B,) of pairs whose chosen completions are w and rejected ones l."""

    def reward(self, y: Side) -> Tensor:
        """Return the implicit reward (B,) of completions: beta s, as in DPO."""
        return self.beta * y.ratio

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.beta <= 0:
            raise ValueError("beta must be above 0")

    def sides(self, logp: Tensor, batch: Batch) -> tuple[Side, Side]:
        """Return the chosen and the rejected completions of log-probabilities (B, 2, T)."""
        (w, l), (n_w, n_l) = logp.sum(-1).unbind(1), batch["mask"].sum(-1).unbind(1)
        return Side(w, w, n_w), Side(l, l, n_l)

    def loss(self, logp: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (B,) of pairs, and metrics; `logp` (B, 2, T), chosen first."""
        w, l = self.sides(logp, batch)
        return in_both_orders(self.pair_loss, w, l, batch["p"]), self.metrics(w, l)

    def metrics(self, w: Side, l: Side) -> dict[str, Tensor]:
        """Return the margin of the implicit reward, whether it is right, and the chosen reward."""
        r_w, r_l = self.reward(w), self.reward(l)
        h = r_w - r_l
        return {"margin": h, "accuracy": logprobs.ordered_right(h), "chosen_reward": r_w}

    def prepared(self, lab: Lab, pairs: Batch) -> Batch:
        """Return the pairs with the columns that the loss needs."""
        return pairs

    def train(self, lab: Lab) -> Policy:
        """One pass after another over the pairs."""
        for pairs in self.pairs(lab):
            lab.step(self.loss, self.prepared(lab, pairs))
        return lab.policy


@dataclass
class RatioLoss(PairLoss):
    """A pair loss of log-ratios to the reference."""

    def sides(self, logp: Tensor, batch: Batch) -> tuple[Side, Side]:
        """Return the chosen and the rejected completions with their log-ratios."""
        w, l = super().sides(logp, batch)
        s_w, s_l = (logp - batch["ref_logp"]).sum(-1).unbind(1)
        return w._replace(ratio=s_w), l._replace(ratio=s_l)

    def prepared(self, lab: Lab, pairs: Batch) -> Batch:
        """Return the pairs with the reference's log-probabilities."""
        return pairs.with_columns(ref_logp=lab.reference.logp(pairs))


def in_both_orders(loss: Callable[[Side, Side], Tensor], w: Side, l: Side, p: Tensor) -> Tensor:
    """Return p L(w, l) + (1 - p) L(l, w) (B,): a label probability p weighs both orders.

    The other order is not computed where all labels are plain: an infinite loss times 0 is NaN.
    """
    kept = p * loss(w, l)
    return kept + (1 - p) * loss(l, w) if bool((p < 1).any()) else kept
