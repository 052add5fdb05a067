"""Forward passes over a batch: log-probabilities, values and scores of completion tokens. Shifting happens here only.

The state before completion token t is the position just left of it, so T + 1 states are kept per completion: states
0..T-1 predict the tokens, states 1..T have read them. Two layouts give the same numbers:

- *padded*: B * K rows, each a left-padded prompt and one right-padded completion. Any model can do it.
- *shared*: B rows, each a prompt and its K completions one after the other without padding between them, which see the
  prompt and themselves but not each other. The prompt is computed once. For attention-only models; `enable_sharing`
  finds out by trying.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .models import ScalarModel, computing, forward_cost, in_float32, trunk_of
from .team import ALONE, Team
from .tokens import Batch, PromptBatch

SHARING_TOLERANCE = 1e-4  # nats by which the two layouts may differ in float32
Layout = tuple[dict[str, Tensor], Tensor | None]  # model inputs; where the states are among the last positions kept


@dataclass(frozen=True)
class Shape:
    """The size of a forward pass: rows of `width` tokens, the last `kept` of which go through the head."""

    rows: int
    width: int
    kept: int


def shape_of(model: nn.Module, batch: Batch) -> Shape:
    """Return the size of a forward pass over a batch."""
    b, k, t = batch.shape
    prompt = batch.prompts.ids.shape[1]
    if _shares(model, batch):
        packed = _packed(batch)
        return Shape(b, prompt + packed, 1 + packed)
    return Shape(b * k, prompt + t, t + 1)


def completion_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, V) logits of the distributions that the completion tokens were drawn from, in float32.

    They are divided by the batch's temperature, so every log-probability belongs to the sampling distribution.
    """
    b, k, t = batch.shape
    logits, index = _kept_logits(model, batch)
    if index is not None:
        logits = logits.gather(1, index[..., None].expand(*index.shape, logits.shape[-1]).flatten(1, 2))
    return logits.reshape(b, k, t + 1, -1)[:, :, :-1]


def completion_logp(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T) log-probabilities of the completion tokens; exactly 0 where there is no token."""
    b, k, t = batch.shape
    logits, index = _kept_logits(model, batch)
    norm, ids = logits.logsumexp(-1), batch["completion_ids"]
    if index is None:
        chosen = logits[:, :-1].gather(-1, ids.reshape(b * k, t, 1)).view(b, k, t)
        logp = chosen - norm[:, :-1].view(b, k, t)
    else:
        rows, before = torch.arange(b, device=ids.device)[:, None, None], index[..., :-1]
        logp = logits[rows, before, ids] - norm[rows, before]
    return torch.where(batch["mask"] > 0, logp, 0.0)


def completion_states(model: ScalarModel, batch: Batch) -> Tensor:
    """Return (B, K, T + 1) scalars: before the first completion token, and after each."""
    b, k, t = batch.shape
    inputs, index = _layout(model, batch)
    with computing(model):
        scalars: Tensor = model(**_accepted(model.trunk, inputs)).float()
    if index is None:
        return scalars[:, -(t + 1) :].view(b, k, t + 1)
    return scalars[:, -shape_of(model, batch).kept :].gather(1, index.flatten(1)).view(b, k, t + 1)


def enable_sharing(model: nn.Module) -> bool:
    """Let a causal model use the shared layout from now on if it gives the padded one's numbers; return whether.

    It is tried on made-up tokens: a convolution, a recurrence or a bias built from the padding mask shows as a
    difference, and the model keeps the padded layout. A window of attention may be longer than any trial, so a model
    whose configuration names one is not even tried. Copies of the model inherit the answer.
    """
    trunk, probe = trunk_of(model), made_up(model)
    if attends_locally(model):
        trunk.share_prompt = False  # type: ignore[assignment]
        return False
    with torch.no_grad(), in_float32(model):
        trunk.share_prompt = False  # type: ignore[assignment]
        apart = completion_logp(model, probe)
        trunk.share_prompt = True  # type: ignore[assignment]
        try:
            shared = completion_logp(model, probe)
            same = bool((apart - shared).abs().max() < SHARING_TOLERANCE)
        except (RuntimeError, ValueError, TypeError, IndexError):  # what a model without 4-D masks raises
            same = False
    trunk.share_prompt = same  # type: ignore[assignment]
    return same


@contextmanager
def padded(models: Iterable[nn.Module]) -> Iterator[None]:
    """Have some causal or scalar models use the padded layout for a while: what the shared one is tested against."""
    trunks = [model.trunk if isinstance(model, ScalarModel) else trunk_of(model) for model in models]
    before = [getattr(trunk, "share_prompt", False) for trunk in trunks]
    try:
        for trunk in trunks:
            trunk.share_prompt = False  # type: ignore[assignment]
        yield
    finally:
        for trunk, was in zip(trunks, before, strict=True):
            trunk.share_prompt = was  # type: ignore[assignment]


def attends_locally(model: nn.Module) -> bool:
    """Return whether a model's configuration says that a layer sees less than all that came before."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return bool(window or getattr(config, "attention_chunk_size", None)) or set(layers) != {"full_attention"}


def made_up(model: nn.Module) -> Batch:
    """Return a small batch of made-up tokens with unequal lengths: 2 prompts, 3 completions each."""
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (2, 50), generator=generator)  # type: ignore
    prompt_mask = torch.ones(2, 20, dtype=torch.long)
    prompt_mask[0, :7] = 0
    mask = (torch.arange(10) < torch.tensor([[4], [10], [1], [7], [3], [9]])).float().view(2, 3, 10)
    prompts = PromptBatch([], ids[:, :20].to(device), prompt_mask.to(device))
    columns = {"completion_ids": ids[:, 20:].reshape(2, 3, 10).to(device), "mask": mask.to(device)}
    return Batch(prompts, columns)


def _shares(model: nn.Module, batch: Batch) -> bool:
    """Return whether the prompt is computed once: where the model can, and where it is less work.

    Many long completions of a short prompt attend over each other's masked places, which can cost more than it saves.
    """
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    b, k, t = batch.shape
    if k == 1 or not getattr(trunk, "share_prompt", False):
        return False
    cost, prompt, packed = forward_cost(model), batch.prompts.ids.shape[1], _packed(batch)
    return cost.padded(b, prompt + packed, 1 + packed) < cost.padded(b * k, prompt + t, t + 1)


def _packed(batch: Batch) -> int:
    """Return the most completion tokens that a prompt has, all its completions together."""
    return int(batch.lengths.sum(1).max())


def _kept_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return float32 logits of the kept positions over temperature, and where each completion's states are in them."""
    inputs, index = _layout(model, batch)
    kept = shape_of(model, batch).kept
    extra: dict[str, Any] = {"logits_to_keep": kept} if _takes(model, "logits_to_keep") else {}
    with computing(model):
        logits: Tensor = model(**_accepted(model, inputs), use_cache=False, **extra).logits[:, -kept:]
    logits = logits.float()
    return logits if batch.temperature == 1 else logits / batch.temperature, index


def _layout(model: nn.Module, batch: Batch) -> Layout:
    return _shared_inputs(batch) if _shares(model, batch) else (_padded_inputs(batch), None)


def _padded_inputs(batch: Batch) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `position_ids`, (B * K, Q + T) each."""
    b, k, t = batch.shape
    prompt_ids, prompt_mask = (x.repeat_interleave(k, 0) for x in (batch.prompts.ids, batch.prompts.mask))
    ids = torch.cat([prompt_ids, batch["completion_ids"].reshape(b * k, t)], 1)
    mask = torch.cat([prompt_mask, batch["mask"].reshape(b * k, t).to(prompt_mask.dtype)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _shared_inputs(batch: Batch) -> Layout:
    """Return inputs of B rows of width Q + P with a (B, 1, S, S) additive mask, and state positions (B, K, T + 1).

    P is the most tokens that the completions of a prompt have together. The positions of each completion go on from the
    prompt's end. State 0 of all K is the prompt's last position; where there is no token, a state is any.
    """
    (b, _, t), prompt, lengths = batch.shape, batch.prompts, batch.lengths
    device, width, packed = prompt.ids.device, prompt.ids.shape[1], _packed(batch)
    row, owner, step = (batch["mask"] > 0).nonzero(as_tuple=True)  # of every completion token
    first = lengths.cumsum(1) - lengths  # (B, K) where a completion begins
    place = width + first[row, owner] + step

    def laid(before: Tensor, tokens: Tensor, none: int) -> Tensor:
        """Return (B, S) of what is before for the prompts and one value per completion token."""
        whole = torch.cat([before, torch.full((b, packed), none, dtype=before.dtype, device=device)], 1)
        whole[row, place] = tokens.to(before.dtype)
        return whole

    ids = laid(prompt.ids, batch["completion_ids"][row, owner, step], 0)
    owners = laid(torch.full_like(prompt.ids, -1), owner, -2)  # -1 is the prompt, -2 is nobody
    length = prompt.mask.sum(1)
    positions = laid((prompt.mask.cumsum(1) - 1).clamp(min=0), length[row] + step, 0)
    real = laid(prompt.mask.bool(), torch.ones_like(row), False)
    causal = torch.ones(width + packed, width + packed, dtype=torch.bool, device=device).tril()
    seen = (owners[:, None, :] == owners[:, :, None]) | (owners[:, None, :] == -1)
    allowed = (causal & seen & real[:, None, :]) | torch.eye(
        width + packed, dtype=torch.bool, device=device
    )  # no empty rows
    mask = torch.zeros(allowed.shape, device=device).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    after = first[..., None] + torch.arange(1, t + 1, device=device)  # among the last 1 + P positions
    index = torch.cat([torch.zeros_like(first)[..., None], after.clamp(max=packed)], -1)
    return {"input_ids": ids, "attention_mask": mask[:, None], "position_ids": positions}, index


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


def in_micro_batches(
    compute: Callable[[Batch], Tensor], batch: Batch, max_tokens: int, per_token: bool = True,
    count: Callable[[Batch], None] | None = None, team: Team = ALONE,
) -> Tensor:  # fmt: skip
    """Return compute over the whole batch without gradients, part by part: (B, K, T), or (B, K) not `per_token`.

    The parts are shared out over the processes; `count` sees every one of them in every process.
    """
    b, k, t = batch.shape
    out = torch.zeros((b, k, t) if per_token else (b, k), device=batch["mask"].device)
    with torch.no_grad():
        for number, rows in enumerate(micro_batches(batch, max_tokens)):
            part = batch.select(rows)
            if count:
                count(part)
            if team.has(number):
                if per_token:
                    out[rows, :, : part.shape[2]] = compute(part).float()
                else:
                    out[rows] = compute(part).float()
    team.add_up(out)
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
