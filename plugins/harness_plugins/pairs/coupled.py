"""The common part of losses that couple the pairs of a batch.

The lab gives a loss a part of the batch at a time. A coupled loss is therefore taken of the whole
batch first, by one forward pass more, and the step follows its gradient: the sum over tokens of
log pi times dL / d log pi has exactly that gradient, in parts of any size.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import Policy, torch

from .base import RatioLoss, Side

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness import Batch, Lab


@dataclass
class CoupledLoss(RatioLoss):
    """A method whose loss is a function of all pairs of a batch at once."""

    passes = 1.25  # one forward pass more of the policy

    @abstractmethod
    def batch_loss(self, w: Side, l: Side, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss (a scalar) of B pairs; `batch["p"]` (B,) is 1 for a plain label."""

    def pair_loss(self, w: Side, l: Side) -> Tensor:
        """Return the loss of each pair as a batch of its own, (B,)."""
        columns = {"p": torch.ones_like(w.ratio[:1])}
        rows = ([Side(*(x[i : i + 1] for x in y)) for y in (w, l)] for i in range(len(w.ratio)))
        return torch.stack([self.batch_loss(*row, columns) for row in rows])

    def measured(self, lab: Lab, logp: Tensor, pairs: Batch) -> Batch:
        """Return the pairs with columns that depend on the policy and on earlier batches."""
        return pairs

    def linearised(self, logp: Tensor, pairs: Batch) -> Batch:
        """Return the pairs with two columns of the whole batch's loss.

        `slope` (B, 2, T) is B times its gradient by the policy's log-probabilities, `level` (B,)
        the rest of its value: the mean over pairs has this gradient and this value.
        """
        with torch.enable_grad():
            leaf = logp.detach().requires_grad_()
            loss = self.batch_loss(*self.sides(leaf, pairs), pairs)
            (slope,) = torch.autograd.grad(loss, leaf)
        slope = slope * len(leaf) * pairs["mask"]
        level = loss.detach() - (slope * leaf.detach()).sum((1, 2))
        return pairs.with_columns(level=level, slope=slope)

    def loss(self, logp: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return values (B,) whose mean is the batch's loss, with its gradient."""
        values = batch["level"] + (batch["slope"] * logp).sum((1, 2))
        return values, self.metrics(*self.sides(logp, batch))

    def train(self, lab: Lab) -> Policy:
        """One pass after another over the pairs, each batch whole."""
        for pairs in self.pairs(lab):
            pairs = self.prepared(lab, pairs)
            logp = lab.policy.logp(pairs)
            lab.step(self.loss, self.linearised(logp, self.measured(lab, logp, pairs)))
        return lab.policy
