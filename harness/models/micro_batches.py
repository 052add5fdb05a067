"""Split a batch into micro-batches that fit in memory, and compute on each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.distributed import ALONE, DistributedContext
from .memory import SCORING, BatchSizes
from .tokens import Batch

Handle = Callable[[list[int], Batch], None]


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

    def handle(rows: list[int], part: Batch) -> None:
        if per_token:
            out[rows, :, : part.shape[2]] = compute(part).float()
        else:
            out[rows] = compute(part).float()

    each_part(batch, max_tokens, handle, count, distributed, sizes)
    distributed.all_reduce(out)
    return out


@torch.no_grad()
def each_part(
    batch: Batch,
    max_tokens: int,
    handle: Handle,
    count: Callable[[Batch], None] | None = None,
    distributed: DistributedContext = ALONE,
    sizes: BatchSizes | None = None,
) -> None:
    """Call handle(rows, part) on micro-batches of a batch, without gradients.

    A process handles its share, and calls `count` on every micro-batch of `max_tokens`. When
    memory runs out it handles its micro-batch again in smaller ones: `handle` assigns to rows.
    """
    for number, rows in enumerate(micro_batches(batch, max_tokens)):
        part = batch.select(rows)
        if count:
            count(part)
        if distributed.has(number) and sizes is None:
            handle(rows, part)
        elif distributed.has(number) and sizes is not None:
            sizes.attempt(
                SCORING, max_tokens, smallest_row(part), partial(_in_smaller, rows, part, handle)
            )


def _in_smaller(rows: list[int], part: Batch, handle: Handle, max_tokens: int) -> None:
    """Call `handle` on a micro-batch in parts of at most `max_tokens`."""
    parts = micro_batches(part, max_tokens)
    if len(parts) == 1:
        handle(rows, part)
        return
    for some in parts:
        handle([rows[i] for i in some], part.select(some))


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
    cls: Any = type(model)
    return name in _parameters(cls)


@cache
def _parameters(cls: Any) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)
