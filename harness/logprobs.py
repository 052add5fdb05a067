"""Forward passes over a batch: log-probabilities, values and scores of completion tokens. Shifting happens here only.

A row is a left-padded prompt and a right-padded completion. The state before completion token t is the position just
left of it, so T + 1 positions are kept: positions 0..T-1 predict the tokens, positions 1..T have read them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .models import ScalarModel
from .tokens import Batch


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `position_ids`, (B * K, Q + T) each."""
    b, k, t = batch.shape
    prompt_ids, prompt_mask = (x.repeat_interleave(k, 0) for x in (batch.prompts.ids, batch.prompts.mask))
    ids = torch.cat([prompt_ids, batch["completion_ids"].view(b * k, t)], 1)
    mask = torch.cat([prompt_mask, batch["mask"].view(b * k, t).to(prompt_mask.dtype)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def completion_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, V) logits of the distributions that the completion tokens were drawn from, in float32.

    They are divided by the batch's temperature, so every log-probability belongs to the sampling distribution.
    """
    b, k, t = batch.shape
    inputs = _accepted(model, inputs_of(batch))
    extra: dict[str, Any] = {"logits_to_keep": t + 1} if _takes(model, "logits_to_keep") else {}
    logits: Tensor = model(**inputs, use_cache=False, **extra).logits[:, -(t + 1) : -1]
    return (logits.float() / batch.temperature).view(b, k, t, -1)


def completion_logp(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T) log-probabilities of the completion tokens; exactly 0 where there is no token."""
    logits = completion_logits(model, batch)
    chosen = logits.gather(-1, batch["completion_ids"][..., None])[..., 0]
    return torch.where(batch["mask"] > 0, chosen - logits.logsumexp(-1), 0.0)


def completion_states(model: ScalarModel, batch: Batch) -> Tensor:
    """Return (B, K, T + 1) scalars: before the first completion token, and after each."""
    b, k, t = batch.shape
    scalars: Tensor = model(**_accepted(model.trunk, inputs_of(batch)))[:, -(t + 1) :]
    return scalars.float().view(b, k, t + 1)


def completion_values(model: ScalarModel, batch: Batch) -> Tensor:
    """Return (B, K, T) critic values of the states before each completion token; 0 where there is no token."""
    return torch.where(batch["mask"] > 0, completion_states(model, batch)[..., :-1], 0.0)


def completion_scores(model: ScalarModel, batch: Batch, pooling: str) -> Tensor:
    """Return (B, K) scores: the scalar after the last token, or the mean or sum of the scalars after every token."""
    after = completion_states(model, batch)[..., 1:]
    if pooling == "last":
        return after.gather(-1, (batch.lengths - 1).clamp(min=0)[..., None])[..., 0]
    total = torch.where(batch["mask"] > 0, after, 0.0).sum(-1)
    return total / batch["mask"].sum(-1).clamp(min=1) if pooling == "mean" else total


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of x where mask is 1, over every dimension."""
    return (x * mask).sum() / mask.sum()


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Return (x - mean) / sqrt(var + 1e-8) over the masked entries, population variance; masked entries become 0.

    `shift_mean=False` keeps the mean, as rewards are whitened (2403.17031, sect. 5).
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def in_micro_batches(compute: Callable[[Batch], Tensor], batch: Batch, max_tokens: int) -> Tensor:
    """Return compute over the whole batch without gradients, part by part: (B, K) or (B, K, T)."""
    b, k, t = batch.shape
    out: Tensor | None = None
    with torch.no_grad():
        for rows in micro_batches(batch, max_tokens):
            part = compute(batch.select(rows))
            if out is None:
                shape = (b, k, t) if part.dim() == 3 else part.shape[:0] + (b, *part.shape[1:])
                out = part.new_zeros(shape)
            if part.dim() == 3:
                out[rows, :, : part.shape[2]] = part
            else:
                out[rows] = part
    assert out is not None
    return out


def micro_batches(batch: Batch, max_tokens: int) -> list[list[int]]:
    """Return rows in parts of at most `max_tokens` (padding included), shortest first; at least one row a part."""
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


def _accepted(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop `position_ids` for a model whose positions are relative and that does not take them."""
    if _takes(model, "position_ids"):
        return inputs
    return {name: value for name, value in inputs.items() if name != "position_ids"}
