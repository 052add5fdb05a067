"""Capabilities of a model, probed on random tokens when the start checkpoint is first loaded.

The results are attributes of the trunk, and copies of the model inherit them: `share_prompt` and
`plain_head` (logprobs.py), `last_parts` (last_layer.py), `share_cache` and `keeps_cache`
(generation.py). Only a model whose output depends on padding is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.data import Prompt
from ..core.errors import UsageError
from .batches import Batch, PromptBatch
from .generation import Cached, Repeated, SharedDecoding, prefill
from .last_layer import find_parts
from .loading import trunk_of
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
from .precision import ROUNDING, in_float32, note_on_rounding

FOUND_BY_TRYING = (
    "share_prompt",
    "plain_head",
    "last_parts",
    "share_cache",
    "keeps_cache",
    ROUNDING,
)
FULL, WINDOWED = "full_attention", "sliding_attention"  # as configurations name layers
SHORT_WINDOW = 6  # tokens: shorter than the sequences of a probe
SHARING_TOLERANCE = 1e-4  # nats by which two computations of one value may differ in float32
T = TypeVar("T")
# errors raised when a model's architecture does not match what a fast path assumes
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


def find_out(
    model: nn.Module, sharing: bool, tell: Callable[[str], None] = lambda text: None
) -> None:
    """Probe the capabilities of a causal model.

    Args:
        model: The model.
        sharing: Whether prompt sharing is allowed.
        tell: Called with a message about the model's arithmetic.

    Raises UsageError if the model's output depends on padding.
    """
    check_padding(model)
    if not (sharing and enable_sharing(model)):
        find_head(model)
    find_cache(model)
    if sharing:
        enable_shared_cache(model)
    note = note_on_rounding(model, find_rounding(model))
    if note:
        tell(note)


def inherit(model: nn.Module, known: nn.Module) -> None:
    """Copy the capabilities of a model to another of the same architecture."""
    capabilities = vars(trunk_of(known))
    for name in FOUND_BY_TRYING:
        if name in capabilities:
            setattr(trunk_of(model), name, capabilities[name])


def check_padding(model: nn.Module) -> None:
    """Raise UsageError for a model whose log-probabilities change with the padding before a prompt.

    Prompts of different lengths are padded to one width. A model that ignores the mask (a
    recurrence that reads every token) would be trained and judged on wrong inputs.
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
            f" log-probabilities by {off:.2g} nats, because it ignores the attention mask. Use a"
            " model that applies it (attention, or a state space like Mamba)."
        )


@torch.no_grad()
def find_rounding(model: nn.Module) -> float:
    """Return by how many nats per token a model's arithmetic differs from float32, on average.

    The probe uses random tokens. The result is stored on the trunk; it is 0 in float32.
    """
    trunk: Any = trunk_of(model)
    trunk.rounding = 0.0
    if getattr(trunk, "compute_dtype", torch.float32) != torch.float32:
        probe = made_up(model)
        with in_float32(model):
            expected = completion_logp(model, probe)
        difference = (completion_logp(model, probe) - expected).abs().sum()
        trunk.rounding = float(difference / probe["mask"].sum())
    return float(trunk.rounding)


def enable_sharing(model: nn.Module) -> bool:
    """Enable the packed layout if it agrees with the padded layout; return whether it does.

    The probe uses random tokens, with several completions per prompt and with one. A convolution, a
    recurrence or a bias built from the padding mask causes a difference; the model then keeps the
    padded layout. Attention windows are probed twice: as they are, and shortened to a few tokens,
    because the real windows may be longer than the probe. Copies of the model inherit the result.
    """
    trunk: Any = trunk_of(model)
    trunk.share_prompt, trunk.last_parts = False, None
    vars(model).pop("forward_cost", None)  # of the other layout
    if other_layers(model):
        return False
    probes = (made_up(model), made_up(model).flat())
    with torch.no_grad(), in_float32(model):
        expected = _by_window(model, lambda: [completion_logp(model, batch) for batch in probes])
        for trunk.plain_head in (
            True,
            False,
        ):  # a separate head, or the model's own forward pass
            trunk.share_prompt = True
            trunk.share_prompt = _agrees(model, probes, expected)
            if trunk.share_prompt:
                break
        if trunk.share_prompt and trunk.plain_head:
            _find_last_layer(model, probes, expected)
    return bool(trunk.share_prompt)


def _find_last_layer(model: nn.Module, probes: tuple[Batch, Batch], expected: list[Tensor]) -> None:
    """Enable the narrowed last layer if it agrees with the full one."""
    trunk: Any = trunk_of(model)
    packing = pack(probes[0])
    try:
        trunk.last_parts = find_parts(trunk, packing, packed_inputs(trunk, packing))
    except _REFUSALS:
        return
    if not _agrees(model, probes, expected):
        trunk.last_parts = None


def _agrees(model: nn.Module, probes: tuple[Batch, Batch], expected: list[Tensor]) -> bool:
    """Return whether the current fast path runs and gives the expected log-probabilities."""
    try:
        actual = _by_window(model, lambda: [completion_logp(model, batch) for batch in probes])
    except _REFUSALS:
        return False
    return (
        max(float((a - b).abs().max()) for a, b in zip(expected, actual, strict=True))
        < SHARING_TOLERANCE
    )


def find_head(model: nn.Module) -> bool:
    """Return whether a causal model's logits are a plain product of its head and the states.

    The probe uses random tokens in the padded layout: a scale, a cap or a bias of the logits causes
    a difference. The result is stored on the trunk.
    """
    trunk: Any = trunk_of(model)
    probe = made_up(model)
    with torch.no_grad(), in_float32(model), padded([model]):
        expected = padded_logits(model, probe).log_softmax(-1)
        try:
            apart = apply_head(model, padded_states(model, probe)).log_softmax(-1)
            trunk.plain_head = (
                float((expected - apart)[probe["mask"] > 0].abs().max()) < SHARING_TOLERANCE
            )
        except _REFUSALS:
            trunk.plain_head = False
    return bool(trunk.plain_head)


def enable_shared_cache(model: nn.Module) -> bool:
    """Enable decoding on shared prompts if it agrees with the padded layout; return whether.

    The probe uses random tokens, and rows finish during it; windows are probed as by
    `enable_sharing`. A model keeps its own cache if its attention cannot be replaced or has a bias.
    Copies inherit the result.
    """
    trunk: Any = trunk_of(model)
    trunk.share_cache = False
    if other_layers(model):
        return False

    def decodes() -> list[bool]:
        return [_decodes(model, lambda cache, b, k, t: SharedDecoding(cache, b.prompts, k, t))]

    agreements: list[bool] = _by_window(model, decodes)
    trunk.share_cache = all(agreements)
    return bool(trunk.share_cache)


def find_cache(model: nn.Module) -> bool:
    """Return whether a causal model can decode on its own cache, and store it on the trunk."""
    trunk: Any = trunk_of(model)
    trunk.keeps_cache = _decodes(model, lambda cache, b, k, t: Repeated(cache, b.prompts, k))
    return bool(trunk.keeps_cache)


def _decodes(model: nn.Module, cached: Callable[[Any, Batch, int, int], Cached]) -> bool:
    """Return whether decoding on a cache agrees with the padded layout on random tokens."""
    probe = made_up(model)
    with torch.no_grad(), in_float32(model), padded([model]):
        expected = completion_logits(model, probe).flatten(0, 1)  # (R, T, V)
        try:
            off = [
                float((expected[rows, t] - logits).abs().max())
                for rows, t, logits in _forced(model, probe, cached)
            ]
        except _REFUSALS:
            return False
    return max(off) < SHARING_TOLERANCE


def _forced(
    model: nn.Module, batch: Batch, cached: Callable[[Any, Batch, int, int], Cached]
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Yield (rows, t, logits before token t) of a teacher-forced decoding; finished rows leave."""
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


def other_layers(model: nn.Module) -> str:
    """Return in words which layers of a model are neither full attention nor attention with a
    window, by its configuration; empty if none.
    """
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    kinds = set(getattr(config, "layer_types", None) or ()) - {FULL, WINDOWED}
    if getattr(config, "attention_chunk_size", None):
        kinds.add("chunked_attention")
    return ", ".join(sorted(kinds)).replace("_", " ")


def window_of(model: nn.Module) -> int | None:
    """Return the narrowest window of a model's attention in tokens; None if it has none."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and WINDOWED not in kinds:
        return None
    widths = [holder.sliding_window for holder in _windowed(model)]
    return min(widths, default=None)


def _windowed(model: nn.Module) -> list[Any]:
    """Return the modules and configurations that hold the width of a window."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    holders = [*model.modules(), *configs.values()]
    return [h for h in holders if isinstance(getattr(h, "sliding_window", None), int)]


def _by_window(model: nn.Module, compute: Callable[[], list[T]]) -> list[T]:
    """Return the results of a computation with the model's own windows, and with short windows."""
    agreements, windowed = compute(), _windowed(model)
    if not windowed:
        return agreements
    before = [holder.sliding_window for holder in windowed]
    try:
        for holder in windowed:
            holder.sliding_window = SHORT_WINDOW
        return agreements + compute()
    finally:
        for holder, width in zip(windowed, before, strict=True):
            holder.sliding_window = width


def made_up(model: nn.Module) -> Batch:
    """Return a small batch of random tokens, unequal lengths: 2 prompts, 3 completions each."""
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
