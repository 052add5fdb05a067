"""The common part of methods whose loss is a function of a prompt's scored completions.

A method states `list_loss`. The base class draws the lists, scores them, and sums log-probabilities
over tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from harness import GradientMethod, Policy, RewardOptions, check_idle, logprobs

from ..slic import EQUAL, shuffled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from harness import Batch, Lab


class Listed(NamedTuple):
    """K completions of each of B prompts, best score first."""

    ratio: Tensor  # (B, K) s = log pi(y|x) / pi_ref(y|x), summed; without a reference log pi(y|x)
    logp: Tensor  # (B, K) log pi(y|x), summed over tokens, nats
    length: Tensor  # (B, K) tokens, the end of sequence included
    score: Tensor  # (B, K) in units of the reward, falling


@dataclass
class ListLoss(RewardOptions, GradientMethod):
    """A method that learns from completions of the start checkpoint and their scores; no reference.

    The loss of a list is the same in any batch.
    """

    kind = "lists"
    needs = frozenset({"prompts", "reward"})
    tuning_space = GradientMethod.tuning_space | {"beta": {"times": [0.2, 5.0]}}

    steps: int = 100  # optimiser steps, one per batch of prompts
    lists: str = "sampled"  # of the start checkpoint, scored by the reward; or those of the data
    num_candidates: int = 8  # completions per prompt that are sampled
    beta: float = 0.1  # scale of the implicit reward
    shuffle_labels: bool = False  # a control: scores are permuted among a prompt's completions

    @abstractmethod
    def list_loss(self, y: Listed) -> Tensor:
        """Return the loss (B,) of lists whose completions are in the order of their scores."""

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        self.check_reward()
        if self.steps < 1 or self.num_candidates < 2:
            raise ValueError("steps must be at least 1, and num_candidates at least 2")
        if self.lists not in ("sampled", "data"):
            raise ValueError(f"lists is sampled or data, not {self.lists!r}")
        if self.lists == "data":
            for name in ("num_candidates", *(f.name for f in fields(RewardOptions))):
                check_idle(self, name, "lists=sampled")
        if self.beta <= 0:
            raise ValueError("beta must be above 0")

    def required(self) -> frozenset[str]:
        """Return what this instance needs."""
        if self.lists == "data":
            return frozenset({"lists"})
        return frozenset({"prompts"}) | self.reward_needs()

    def listed(self, logp: Tensor, batch: Batch) -> Listed:
        """Return the lists of log-probabilities (B, K, T), with falling scores."""
        lp, length = logp.sum(-1), batch["mask"].sum(-1)
        return Listed(lp, lp, length, batch["score"])

    def loss(self, logp: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (B,) of lists, and how many of their pairs are in order."""
        y = self.listed(logp, batch)
        order = y.score.argsort(dim=-1, descending=True, stable=True)
        y = Listed(*(column.gather(-1, order) for column in y))
        # scores and log-probabilities of equal completions differ by rounding
        better = y.score[:, :, None] - y.score[:, None, :] > EQUAL
        right = better * logprobs.ordered_right(y.ratio[:, :, None] - y.ratio[:, None, :])
        accuracy = right.sum((1, 2)) / better.sum((1, 2)).clamp(min=1)
        return self.list_loss(y), {"accuracy": accuracy.to(y.logp)}

    def batches(self, lab: Lab) -> Iterator[Batch]:
        """Yield batches (B, K, T) with column `score` (B, K): lists of the data, or samples of the
        start checkpoint.

        A list with an unknown score is left out.
        """
        if self.lists == "data":
            for lists in lab.lists(steps=self.steps):
                score = lists["score"]
                if self.shuffle_labels:
                    score = shuffled(score, lab.generator("shuffle"))
                yield lists.with_columns(score=score)
            return
        for prompts in lab.prompts(self.steps):
            batch = lab.rollout(prompts, self.num_candidates, of=lab.start)
            score = lab.reward(batch)
            known = (~score.isnan().any(-1)).nonzero()[:, 0].tolist()
            if self.shuffle_labels:
                score = shuffled(score, lab.generator("shuffle"))
            if known:
                yield batch.with_columns(score=score).select(known)

    def prepared(self, lab: Lab, lists: Batch) -> Batch:
        """Return the lists with the columns that the loss needs."""
        return lists

    def train(self, lab: Lab) -> Policy:
        """A step on each batch of lists."""
        for lists in self.batches(lab):
            lab.step(self.loss, self.prepared(lab, lists))
        return lab.policy


@dataclass
class RatioListLoss(ListLoss):
    """A list loss of log-ratios to the reference."""

    def listed(self, logp: Tensor, batch: Batch) -> Listed:
        """Return the lists with their log-ratios."""
        y = super().listed(logp, batch)
        return y._replace(ratio=(logp - batch["ref_logp"]).sum(-1))

    def prepared(self, lab: Lab, lists: Batch) -> Batch:
        """Return the lists with the reference's log-probabilities."""
        return lists.with_columns(ref_logp=lab.reference.logp(lists))
