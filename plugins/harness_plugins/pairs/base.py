"""The common part of methods whose loss is a function of a pair's two completions.

A method states `pair_loss`. The base class sums log-probabilities over tokens, weighs a labeller's
doubt, logs the margin and goes over the pairs.
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

    ratio: Tensor  # (B,) s = log pi(y|x) / pi_ref(y|x), summed over tokens, nats
    logp: Tensor  # (B,) log pi(y|x), summed over tokens, nats
    length: Tensor  # (B,) tokens, the end of sequence included


@dataclass
class PairLoss(PairOptions):
    """A method that learns from pairs by a loss of the two completions of each.

    It makes no use of other pairs of the batch, so the loss of a pair is the same in any batch.
    """

    kind = "offline preference"
    needs = frozenset({"pairs"})
    uses_reference: ClassVar[bool] = True  # False: `Side.ratio` is `Side.logp`

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
        sums = logp.sum(-1)
        ratio = (logp - batch["ref_logp"]).sum(-1) if self.uses_reference else sums
        columns = (x.unbind(1) for x in (ratio, sums, batch["mask"].sum(-1)))
        w, l = (Side(*column) for column in zip(*columns, strict=True))
        return w, l

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
        if not self.uses_reference:
            return pairs
        return pairs.with_columns(ref_logp=lab.reference.logp(pairs))

    def train(self, lab: Lab) -> Policy:
        """One pass after another over the pairs."""
        for pairs in self.pairs(lab):
            lab.step(self.loss, self.prepared(lab, pairs))
        return lab.policy


def in_both_orders(loss: Callable[[Side, Side], Tensor], w: Side, l: Side, p: Tensor) -> Tensor:
    """Return p L(w, l) + (1 - p) L(l, w) (B,): a labeller's doubt p weighs both orders.

    The other order is not computed where all labels are plain: an infinite loss times 0 is NaN.
    """
    kept = p * loss(w, l)
    return kept + (1 - p) * loss(l, w) if bool((p < 1).any()) else kept
