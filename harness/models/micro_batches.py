"""Split a batch into micro-batches that fit in memory, and compute on each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.distributed import ALONE, DistributedContext
from ..core.progress import advance
from .batches import Batch
from .lora import base_of
from .memory import SCORING, BatchSizes

T = TypeVar("T")


def in_micro_batches(
    compute: Callable[[Batch], Tensor],
    batch: Batch,
    max_tokens: int,
    per_token: bool = True,
    count: Callable[[Batch], None] | None = None,
    distributed: DistributedContext = ALONE,
    sizes: BatchSizes | None = None,
) -> Tensor:
    """Return compute(batch) without gradients, in micro-batches: (B, K, T) if `per_token`, or (B,
    K).

    The micro-batches are split over processes; every process calls `count` on all of them.
    `sizes` are halved when memory runs out; without them that is an error.
    """
    b, k, t = batch.shape
    out = torch.zeros((b, k, t) if per_token else (b, k), device=batch["mask"].device)

    def keep(rows: list[int], part: Batch, values: Tensor) -> None:
        if per_token:
            out[rows, :, : part.shape[2]] = values.float()
        else:
            out[rows] = values.float()

    each_part(batch, max_tokens, compute, keep, count, distributed, sizes)
    distributed.all_reduce(out)
    return out


@torch.no_grad()
def each_part(
    batch: Batch,
    max_tokens: int,
    compute: Callable[[Batch], T],
    keep: Callable[[list[int], Batch, T], None],
    count: Callable[[Batch], None] | None = None,
    distributed: DistributedContext = ALONE,
    sizes: BatchSizes | None = None,
) -> None:
    """Call keep(rows, part, compute(part)) on micro-batches of a batch, without gradients.

    All processes run the same number of rounds, and each calls `count` on every micro-batch of
    `max_tokens`. In a round without a micro-batch of its own, a process computes one and discards
    the result. When memory runs out, it computes its micro-batch again in smaller parts.
    """
    parts = micro_batches(batch, max_tokens)
    for rows in parts if count else ():
        count(batch.select(rows))  # type: ignore[misc]
    for number, (rows, own) in enumerate(distributed.rounds(parts)):
        advance(number * distributed.size, len(parts))
        part = batch.select(rows)
        work = partial(_in_smaller, rows, part, compute, keep if own else _keep_nothing)
        if sizes is None:
            work(max_tokens)
        else:
            sizes.attempt(SCORING, max_tokens, smallest_row(part), work)


def _keep_nothing(rows: list[int], part: Batch, values: object) -> None:
    """Discard a result."""


def _in_smaller(
    rows: list[int],
    part: Batch,
    compute: Callable[[Batch], T],
    keep: Callable[[list[int], Batch, T], None],
    max_tokens: int,
) -> None:
    """Compute a micro-batch in parts of at most `max_tokens`."""
    parts = micro_batches(part, max_tokens)
    if len(parts) == 1:
        keep(rows, part, compute(part))
        return
    for some in parts:
        smaller = part.select(some)
        keep([rows[i] for i in some], smaller, compute(smaller))


def smallest_row(batch: Batch) -> int:
    """Return the tokens of the shortest row, its K completions and a prompt for each of them."""
    widths = batch.prompts.mask.sum(1) + batch.lengths.max(1).values
    return batch.shape[1] * int(widths.min())


def micro_batches(batch: Batch, max_tokens: int) -> list[list[int]]:
    """Return parts of at most `max_tokens` (padding included) or of one row, shortest first."""
    k = batch.shape[1]
    prompt, completion = batch.prompts.mask.sum(1).tolist(), batch.lengths.max(1).values.tolist()
    order = sorted(range(batch.shape[0]), key=lambda i: (prompt[i] + completion[i], i))
    parts: list[list[int]] = []
    widest = (0, 0)
    for i in order:
        grown = (max(widest[0], prompt[i]), max(widest[1], completion[i]))
        if parts and (len(parts[-1]) + 1) * k * sum(grown) <= max_tokens:
            parts[-1].append(i)
            widest = grown
        else:
            parts.append([i])
            widest = (prompt[i], completion[i])
    return parts


def _takes(model: nn.Module, name: str) -> bool:
    """Return whether a model's forward pass takes an argument."""
    cls: Any = type(base_of(model))
    return name in _parameters(cls)


@cache
def _parameters(cls: Any) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)
