"""Irrelevant variations of a training: layouts, micro-batches, the order of rows and padding."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..models.batches import Batch, PromptBatch
from ..models.initial_checkpoint import InitialCheckpoint
from ..models.loading import trunk_of
from ..models.logprobs import padded
from ..models.tokens import Tokens
from ..training.trainer import Term, Trainer, reduce_share

FEW_TOKENS = 200  # of a micro-batch: a few rows
# How far a step's gradient may differ, relative to its norm, and its loss, relative to the loss (or
# to 1 where that is larger). In most built-in methods float32 rounding is 3e-6 or less. A larger
# gap is looked at in double precision.
GRADIENT = 1e-5


class Looking(Trainer):
    """Records what the losses received at the first step, the policy's own log-probabilities, and
    gradients.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: list[tuple[Batch, Tensor, Tensor]] = []

    def step(self, terms: Sequence[Term], progress: float) -> dict[str, float]:
        """Record, then take the step."""
        if not self.steps:
            self.seen = [self._look(term) for term in terms if term.of.name == "policy"]
        return super().step(terms, progress)

    def _look(self, term: Term) -> tuple[Batch, Tensor, Tensor]:
        with torch.no_grad():
            logp = term.of.compute(term.batch)
        leaf = logp.clone().requires_grad_()
        returned = term.loss(leaf, term.batch)
        losses = returned[0] if isinstance(returned, tuple) else returned
        (gradient,) = torch.autograd.grad(
            reduce_share(losses, term.batch, term.batch, term.reduction), leaf
        )
        if logp.dim() == 4:  # further columns beside the log-probabilities
            logp, gradient = logp[..., 0], gradient.abs().amax(-1)
        return term.batch, logp, gradient


class Varying(Trainer):
    """Computes loss and gradient of every step under irrelevant variations too, and records the
    largest difference.

    Layouts are compared in double precision as well, and so is every variation whose gap is above
    GRADIENT: a difference there is not rounding.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        variations = ("micro-batches", "order", "layout")
        self.gaps = dict.fromkeys((*variations, *map(doubled, variations)), (0.0, 0.0))

    def step(self, terms: Sequence[Term], progress: float) -> dict[str, float]:
        """Compare losses and gradients, then take the step."""
        usual, modules = self._taken(terms), [term.of.module for term in terms]
        self._note("micro-batches", usual, self._taken(terms, FEW_TOKENS))
        self._note("order", usual, self._taken([_reversed(term) for term in terms]))
        with padded(modules):
            self._note("layout", usual, self._taken(terms))
        for module in modules:
            module.double()
        usual = self._taken(terms)
        with padded(modules):
            self._note(doubled("layout"), usual, self._taken(terms))
        if self.gaps["micro-batches"][1] > GRADIENT:
            self._note(doubled("micro-batches"), usual, self._taken(terms, FEW_TOKENS))
        if self.gaps["order"][1] > GRADIENT:
            turned = self._taken([_reversed(term) for term in terms])
            self._note(doubled("order"), usual, turned)
        for module in modules:
            module.float()  # the same numbers as before
        return super().step(terms, progress)

    def _note(
        self, variation: str, usual: tuple[float, Tensor], other: tuple[float, Tensor]
    ) -> None:
        off = abs(other[0] - usual[0]) / max(1.0, abs(usual[0]))
        gap = float((other[1] - usual[1]).norm() / usual[1].norm().clamp(min=1e-12))
        before = self.gaps[variation]
        self.gaps[variation] = (max(before[0], off), max(before[1], gap))

    def _taken(self, terms: Sequence[Term], micro_batch_tokens: int = 0) -> tuple[float, Tensor]:
        limit, self.micro_batch_tokens = (
            self.micro_batch_tokens,
            micro_batch_tokens or self.micro_batch_tokens,
        )
        loss = sum(self._accumulate(term, self.micro_batch_tokens)["loss"] for term in terms)
        self.micro_batch_tokens = limit
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        for p in parameters:
            p.grad = None
        return loss, gradient


def doubled(variation: str) -> str:
    """Return the name of a variation in double precision."""
    return f"{variation} doubled"


@contextmanager
def plain_layouts(start: InitialCheckpoint) -> Iterator[None]:
    """Have the start checkpoint, and all models made from it, use the padded layout and its own
    cache inside the context.
    """
    trunks = [
        trunk_of(start.outline),
        trunk_of(start.model()),
    ]  # models that are read, copied or loaded inherit from these
    before = [
        (trunk, name, getattr(trunk, name))
        for trunk in trunks
        for name in ("share_prompt", "share_cache")
    ]
    try:
        for trunk, name, _ in before:
            setattr(trunk, name, False)
        yield
    finally:
        for trunk, name, was in before:
            setattr(trunk, name, was)


def _reversed(term: Term) -> Term:
    return dataclasses.replace(term, batch=term.batch.select(range(term.batch.shape[0])[::-1]))


def widening(tokens: Tokens) -> Tokens:
    """Return the tokenizer's rules with unnecessary padding on every batch."""

    class Widening(Tokens):
        def prompt_batch(self, prompts: Any, device: Any = "cpu") -> PromptBatch:
            widened = super().prompt_batch(prompts, device)
            return PromptBatch(
                widened.prompts, pad(widened.ids, (3, 0), value=self.pad), pad(widened.mask, (3, 0))
            )

        def batch(self, *args: Any, **more: Any) -> Batch:
            widened = super().batch(*args, **more)
            columns = {name: pad(column, (0, 2)) for name, column in widened.columns.items()}
            return Batch(widened.prompts, columns, widened.temperature)

    widened = copy.copy(tokens)
    widened.__class__ = Widening
    return widened
