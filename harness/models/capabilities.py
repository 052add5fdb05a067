"""What a model can do, found out by trying it on made-up tokens when a start checkpoint is first
read.

What is found is noted on the trunk, and copies of the model inherit it: `share_prompt` and
`plain_head` (logprobs.py), `last_parts` (last_layer.py), `share_cache` and `keeps_cache`
(rollout.py). Only one answer is refused: that padding changes what a model says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..core.data import Prompt
from ..core.errors import UsageError
from .generation import Cached, Repeated, SharedDecoding, prefill
from .last_layer import find_parts
from .loading import in_float32, trunk_of
from .logprobs import (
    apply_head,
    completion_logits,
    completion_logp,
    packed_inputs,
    padded,
    padded_logits,
    padded_states,
)
from .packing import pack
from .tokens import Batch, PromptBatch

FOUND_BY_TRYING = ("share_prompt", "plain_head", "last_parts", "share_cache", "keeps_cache")
SHARING_TOLERANCE = 1e-4  # nats by which two ways to compute may differ in float32
# what a model raises that is built otherwise than a way to compute takes it to be
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


def find_out(model: nn.Module, sharing: bool) -> None:
    """Note how a causal model can run, `sharing` if a prompt may be computed once; UsageError where
    it sees padding.
    """
    check_padding(model)
    if not (sharing and enable_sharing(model)):
        find_head(model)
    find_cache(model)
    if sharing:
        enable_shared_cache(model)


def inherit(model: nn.Module, known: nn.Module) -> None:
    """Note on a model what was found out on another of its kind."""
    found = vars(trunk_of(known))
    for name in FOUND_BY_TRYING:
        if name in found:
            setattr(trunk_of(model), name, found[name])


def check_padding(model: nn.Module) -> None:
    """Raise UsageError for a model whose log-probabilities change with the padding before a prompt.

    Prompts of unlike lengths are padded to one width. A model that does not heed the mask (a
    recurrence that reads every token) would be trained, and judged, on something else than it is
    told.
    """
    probe = made_up(model)
    prompts, unseen = probe.prompts, int((probe.prompts.mask[0] == 0).sum())
    bare: Any = PromptBatch(
        prompts.prompts[:1], prompts.ids[:1, unseen:], prompts.mask[:1, unseen:]
    )
    alone = Batch(bare, {name: column[:1] for name, column in probe.columns.items()})
    with torch.no_grad(), in_float32(model), padded([model]):
        off = float((completion_logp(model, probe)[:1] - completion_logp(model, alone)).abs().max())
    if not off < SHARING_TOLERANCE:
        raise UsageError(
            f"{type(model).__name__} cannot be used: padding before a prompt changes its"
            f" log-probabilities by {off:.2g} nats, for it does not heed the attention mask. Use a"
            " model that does (attention, or a state space like Mamba)."
        )


def enable_sharing(model: nn.Module) -> bool:
    """Let a causal model use the packed layout from now on if it gives the padded one's numbers;
    return whether.

    It is tried on made-up tokens, several completions per prompt and one: a convolution, a
    recurrence or a bias built from the padding mask shows as a difference, and the model keeps the
    padded layout. A window of attention may be longer than any trial, so a model whose
    configuration names one is not even tried. Copies of the model inherit the answer.
    """
    trunk: Any = trunk_of(model)
    trunk.share_prompt, trunk.last_parts = False, None
    vars(model).pop("forward_cost", None)  # of another way to compute
    if attends_locally(model):
        return False
    probes = (made_up(model), made_up(model).flat())
    with torch.no_grad(), in_float32(model):
        told = [completion_logp(model, batch) for batch in probes]
        for trunk.plain_head in (
            True,
            False,
        ):  # a head apart, or whatever the model does with its states
            trunk.share_prompt = True
            trunk.share_prompt = _agrees(model, probes, told)
            if trunk.share_prompt:
                break
        if trunk.share_prompt and trunk.plain_head:
            _find_last_layer(model, probes, told)
    return bool(trunk.share_prompt)


def _find_last_layer(model: nn.Module, probes: tuple[Batch, Batch], told: list[Tensor]) -> None:
    """Note how the last layer computes only the states that are read, if it can."""
    trunk: Any = trunk_of(model)
    packing = pack(probes[0])
    try:
        trunk.last_parts = find_parts(trunk, packing, packed_inputs(trunk, packing))
    except _REFUSALS:
        return
    if not _agrees(model, probes, told):
        trunk.last_parts = None


def _agrees(model: nn.Module, probes: tuple[Batch, Batch], told: list[Tensor]) -> bool:
    """Return whether a way to compute can be gone and gives the log-probabilities that have been
    told.
    """
    try:
        found = [completion_logp(model, batch) for batch in probes]
    except _REFUSALS:
        return False
    return (
        max(float((a - b).abs().max()) for a, b in zip(told, found, strict=True))
        < SHARING_TOLERANCE
    )


def find_head(model: nn.Module) -> bool:
    """Note whether a causal model's logits are its head's product with the trunk's states, and
    nothing else; return it.

    It is tried on made-up tokens in the padded layout: a scale, a cap or a bias of the logits shows
    as a difference.
    """
    trunk: Any = trunk_of(model)
    probe = made_up(model)
    with torch.no_grad(), in_float32(model), padded([model]):
        told = padded_logits(model, probe).log_softmax(-1)
        try:
            apart = apply_head(model, padded_states(model, probe)).log_softmax(-1)
            trunk.plain_head = (
                float((told - apart)[probe["mask"] > 0].abs().max()) < SHARING_TOLERANCE
            )
        except _REFUSALS:
            trunk.plain_head = False
    return bool(trunk.plain_head)


def enable_shared_cache(model: nn.Module) -> bool:
    """Let a causal model decode on shared prompts if that gives the padded layout's numbers; return
    whether it does.

    It is tried on made-up tokens, with rows leaving on the way. A model whose attention cannot be
    exchanged, or is told of a window, a cap or a bias, keeps its own cache. Copies of the model
    inherit the answer.
    """
    trunk: Any = trunk_of(model)
    trunk.share_cache = False
    if attends_locally(model):
        return False
    trunk.share_cache = _decodes(model, lambda made, b, k, t: SharedDecoding(made, b.prompts, k, t))
    return bool(trunk.share_cache)


def find_cache(model: nn.Module) -> bool:
    """Note whether a causal model can decode on its own cache, repeated for completions; return it."""
    trunk: Any = trunk_of(model)
    trunk.keeps_cache = _decodes(model, lambda made, b, k, t: Repeated(made, b.prompts, k))
    return bool(trunk.keeps_cache)


def _decodes(model: nn.Module, cached: Callable[[Any, Batch, int, int], Cached]) -> bool:
    """Return whether decoding on a cache gives the padded layout's numbers on made-up tokens."""
    probe = made_up(model)
    with torch.no_grad(), in_float32(model), padded([model]):
        told = completion_logits(model, probe).flatten(0, 1)  # (R, T, V)
        try:
            off = [
                float((told[rows, t] - logits).abs().max())
                for rows, t, logits in _forced(model, probe, cached)
            ]
        except _REFUSALS:
            return False
    return max(off) < SHARING_TOLERANCE


def _forced(
    model: nn.Module, batch: Batch, cached: Callable[[Any, Batch, int, int], Cached]
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Yield (rows, t, logits before token t) of a decoding that is told what to say and loses rows
    that have ended.
    """
    b, k, limit = batch.shape
    ids, lengths = batch["completion_ids"].flatten(0, 1), batch.lengths.flatten()
    _, prefilled = prefill(model, batch.prompts)
    cache, rows = cached(prefilled, batch, k, limit), torch.arange(b * k, device=ids.device)
    for t in range(1, limit):
        left = (lengths[rows] > t).nonzero()[:, 0]
        if len(left) < len(rows):
            cache.keep(left)
            rows = rows[left]
        yield rows, t, cache.next_logits(model, ids[rows, t - 1])


def attends_locally(model: nn.Module) -> bool:
    """Return whether a model's configuration says that a layer sees less than all that came before."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return bool(window or getattr(config, "attention_chunk_size", None)) or set(layers) != {
        "full_attention"
    }


def made_up(model: nn.Module) -> Batch:
    """Return a small batch of made-up tokens with unequal lengths: 2 prompts, 3 completions each."""
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (2, 50), generator=generator)  # type: ignore
    prompt_mask = torch.ones(2, 20, dtype=torch.long)
    prompt_mask[0, :7] = 0
    mask = (torch.arange(10) < torch.tensor([[4], [10], [1], [7], [3], [9]])).float().view(2, 3, 10)
    prompts = PromptBatch(
        [Prompt(str(i), "") for i in range(2)], ids[:, :20].to(device), prompt_mask.to(device)
    )
    columns = {"completion_ids": ids[:, 20:].reshape(2, 3, 10).to(device), "mask": mask.to(device)}
    return Batch(prompts, columns)
