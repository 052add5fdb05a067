"""Split a batch into micro-batches that fit in memory, and compute on each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..core.distributed import ALONE, DistributedContext
from .tokens import Batch


def in_micro_batches(
    compute: Callable[[Batch], Tensor],
    batch: Batch,
    max_tokens: int,
    per_token: bool = True,
    count: Callable[[Batch], None] | None = None,
    distributed: DistributedContext = ALONE,
) -> Tensor:
    """Return compute(batch) without gradients, in micro-batches: (B, K, T) if `per_token`, or (B,
    K).

    The micro-batches are split over processes; every process calls `count` on all of them.
    """
    b, k, t = batch.shape
    out = torch.zeros((b, k, t) if per_token else (b, k), device=batch["mask"].device)
    with torch.no_grad():
        for number, rows in enumerate(micro_batches(batch, max_tokens)):
            part = batch.select(rows)
            if count:
                count(part)
            if distributed.has(number):
                if per_token:
                    out[rows, :, : part.shape[2]] = compute(part).float()
                else:
                    out[rows] = compute(part).float()
    distributed.all_reduce(out)
    return out


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
