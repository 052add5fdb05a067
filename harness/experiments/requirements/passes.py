"""Memory of one forward pass, training pass or decoding, from a model without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ...core.data import Prompt
from ...core.errors import UsageError
from ...core.model_folder import adapters_in
from ...models.activation_checkpointing import FLAG, checkpointing
from ...models.batches import Batch, PromptBatch
from ...models.capabilities import other_layers
from ...models.flops import LastParts
from ...models.footprint import SAMPLING_TABLES, cache_bytes, decoding_tokens
from ...models.hub_format import meta_model
from ...models.layouts import packs, states_at_once, vocabulary_of
from ...models.loading import ScalarModel, computing, frozen, trunk_of
from ...models.logprobs import Predictions, _packed_states, apply_head
from ...models.packing import Asking, Grid, Packing, pack
from ...training.master_weights import MasterWeights
from .live_memory import peak_bytes

META = torch.device("meta")
# settings of a configuration that scale or cap the logits, so that the head is no plain product
_SCALES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class Shape:
    """A batch: `rows` prompts of `prompt` tokens, `each` completions of `completion` tokens."""

    rows: int
    each: int
    prompt: int
    completion: int

    @property
    def width(self) -> int:
        """Tokens of a prompt and a completion."""
        return self.prompt + self.completion

    def micro(self, tokens: int) -> Shape:
        """Return the largest micro-batch of at most `tokens`, padding included, or of one row."""
        return replace(self, rows=max(1, min(self.rows, tokens // (self.each * self.width))))


@dataclass(frozen=True)
class PassMemory:
    """Bytes of a pass beside the weights, at its peak.

    Attributes:
        activations: Of the layers, and what their backward pass makes for a moment.
        logits: What the head adds.
    """

    activations: int
    logits: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.activations + self.logits


def outline_of(name: str | Path, sharing: bool = True) -> nn.Module:
    """Return a causal model without weights, from its configuration alone.

    The paths it takes are those that its configuration allows: a run finds them out by trying.
    """
    adapters = adapters_in(name)
    return prepared(meta_model(adapters[-1].base if adapters else name), sharing)


def prepared(model: nn.Module, sharing: bool = True) -> nn.Module:
    """Return a model on "meta", frozen, with the fast paths that its configuration allows."""
    trunk: Any = trunk_of(frozen(model))
    config: Any = trunk.config.get_text_config()
    scaled = any((getattr(config, name, None) or 1.0) != 1.0 for name in _SCALES)
    trunk.share_prompt = trunk.share_cache = sharing and not other_layers(model)
    trunk.plain_head = not scaled
    narrows = trunk.share_prompt and trunk.plain_head
    trunk.last_parts = LastParts((), (), ()) if narrows else None
    return model


def padded_layout(model: nn.Module) -> nn.Module:
    """Return a model whose passes are padded: the stage of SFT takes no other."""
    trunk: Any = trunk_of(model)
    trunk.share_prompt, trunk.last_parts = False, None
    return model


def training_memory(model: nn.Module, shape: Shape) -> PassMemory:
    """Return the memory of a forward and a backward pass over a micro-batch.

    Args:
        model: A causal or scalar model on "meta", whose trained parameters take gradients.
            Gradients that they hold before the pass are not counted; those that they get are.
        shape: Of the micro-batch.
    """

    def step() -> None:
        _output(model, shape).sum().backward()  # type: ignore[no-untyped-call]

    whole = peak_bytes(step)
    head = 0 if isinstance(model, ScalarModel) else peak_bytes(lambda: _head_step(model, shape))
    return PassMemory(max(0, whole - head), min(head, whole))


def scoring_memory(model: nn.Module, shape: Shape) -> PassMemory:
    """Return the memory of a forward pass without gradients over a micro-batch."""
    with torch.no_grad():
        whole = peak_bytes(lambda: _output(model, shape))
        head = 0 if isinstance(model, ScalarModel) else peak_bytes(lambda: _head(model, shape))
    return PassMemory(max(0, whole - head), min(head, whole))


def _head_step(model: nn.Module, shape: Shape) -> None:
    _head(model, shape).sum().backward()  # type: ignore[no-untyped-call]


def _head(model: Any, shape: Shape) -> Tensor:
    """Return the log-probabilities of made-up hidden states, by the head alone."""
    width = model.config.get_text_config().hidden_size
    count = shape.rows * shape.each * shape.completion
    weight = next(model.parameters())
    states = torch.empty(count, width, dtype=weight.dtype, device=META)
    return _logp(model, states.requires_grad_(torch.is_grad_enabled()))


def masters_of(parameters: list[nn.Parameter]) -> tuple[MasterWeights, int, int]:
    """Return what an optimizer steps on, and the bytes of copies and of moments (two each)."""
    masters = MasterWeights(parameters)
    copies = {id(p) for p in masters.parameters} - {id(p) for p in parameters}
    extra = sum(p.nbytes for p in masters.parameters if id(p) in copies)
    return masters, extra, sum(8 * p.numel() for p in masters.parameters)


@dataclass(frozen=True)
class DecodeMemory:
    """Bytes of decoding at its peak: keys and values, and the tables that tokens are drawn from."""

    cache: int
    logits: int
    activations: int  # of reading the prompts, or of one step

    @property
    def total(self) -> int:
        """All bytes."""
        return self.cache + self.logits + self.activations


def decoding_memory(model: nn.Module, shape: Shape, batch_tokens: int, memory: int) -> DecodeMemory:
    """Return the memory of drawing `shape.each` completions for `shape.rows` prompts.

    Args:
        model: A causal model on "meta".
        shape: With completions as long as the limit.
        batch_tokens: Tokens in decoding at once, by the options.
        memory: Bytes of the device, of which decoding takes a quarter.
    """
    limit = min(batch_tokens, decoding_tokens(model, shape.width, memory))
    rows = max(1, min(shape.rows * shape.each, limit // shape.width))
    prompts = min(shape.rows, max(1, rows // shape.each))
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    token = cache_bytes(config, next(model.parameters()).element_size())
    shared = getattr(trunk_of(model), "share_cache", False)
    read = prompts * shape.prompt * token
    cache = (read if shared else rows * shape.prompt * token) + rows * shape.completion * token
    tables = SAMPLING_TABLES * 4 * rows * config.vocab_size
    prefill = scoring_memory(model, Shape(prompts, 1, shape.prompt, 1)).activations
    heads = getattr(config, "num_attention_heads", 0) or 0
    step = 3 * rows * heads * shape.width * 4
    return DecodeMemory(cache, tables, max(step, read + prefill - cache - tables))


def batch_of(shape: Shape, vocabulary: int) -> Batch:
    """Return a batch on the CPU with rows of full length."""
    b, k, q, t = shape.rows, shape.each, shape.prompt, shape.completion
    prompts = PromptBatch(
        [Prompt(str(i), "") for i in range(b)],
        torch.zeros(b, q, dtype=torch.long),
        torch.ones(b, q, dtype=torch.long),
    )
    columns = {
        "completion_ids": torch.zeros(b, k, t, dtype=torch.long),
        "mask": torch.ones(b, k, t),
    }
    return Batch(prompts, columns)


class _MetaPacking(Packing):
    """A packing whose layout was made on the CPU, with its tensors on "meta"."""

    whole: Packing

    def asking(self, read: Tensor) -> Asking:
        """Return the layout of the queries of some tokens (M,)."""
        asks = self.whole.asking(read)
        return Asking(
            asks.read.to(META),
            _grid(asks.prompts),
            asks.last.to(META),
            asks.own and _grid(asks.own),
        )


def _grid(grid: Grid) -> Grid:
    return Grid(grid.slots.to(META), grid.rows, grid.width)


def _packing(batch: Batch) -> Packing:
    whole = pack(batch)
    packing = _MetaPacking(
        whole.ids.to(META),
        whole.positions.to(META),
        whole.states,
        _grid(whole.prompts),
        whole.own and _grid(whole.own),
        whole.visible.to(META),
        whole.longest,
    )
    packing.whole = whole
    return packing


def _output(model: nn.Module, shape: Shape) -> Tensor:
    """Return what a pass computes, in the layout of the model."""
    states = states_of(model, shape)
    if isinstance(model, ScalarModel):
        return model.head(states.to(model.head.weight.dtype))  # type: ignore[no-any-return]
    return _logp(model, states)


def _logp(model: nn.Module, states: Tensor) -> Tensor:
    predicted = predictions_of(model, states)
    return predicted.logp(torch.empty(len(predicted.states), dtype=torch.long, device=META))


def predictions_of(model: nn.Module, states: Tensor) -> Predictions:
    """Return the distributions behind hidden states (M, d)."""
    at_once = states_at_once(vocabulary_of(model))
    if not getattr(trunk_of(model), "plain_head", False):  # all logits are made at once
        return Predictions(apply_head(model, states), lambda some: some, 1.0, at_once)
    return Predictions(states, lambda some: apply_head(model, some), 1.0, at_once)


def states_of(model: nn.Module, shape: Shape) -> Tensor:
    """Return the hidden states (M, d) that the head reads.

    Raises:
        UsageError: The forward pass of this architecture needs its weights.
    """
    try:
        return _states(model, shape)
    except Exception as error:  # an architecture's own code: it may raise anything on "meta"
        raise refuse_unknown(model, error) from error


def _states(model: nn.Module, shape: Shape) -> Tensor:
    scalar = isinstance(model, ScalarModel)
    trunk: Any = model.trunk if scalar else trunk_of(model)
    if not packs(model):
        return _padded(trunk, model, shape, scalar)
    batch = batch_of(shape, 1)
    packing = _packing(batch)
    where = packing.states if scalar else packing.states[..., :-1][batch["mask"] > 0]
    states, place = _packed_states(trunk, model, packing, where)
    return states[place]


def _padded(trunk: Any, model: nn.Module, shape: Shape, scalar: bool) -> Tensor:
    """Return the states of padded rows: each completion with a prompt of its own."""
    rows = shape.rows * shape.each
    ids = torch.empty(rows, shape.width, dtype=torch.long, device=META)
    with computing(model), _causal(trunk), checkpointing(trunk, partial(_causal, trunk)):
        states: Tensor = trunk(
            input_ids=ids, position_ids=torch.empty_like(ids), use_cache=False
        ).last_hidden_state
    read = shape.completion + 1
    return states[:, -read:].flatten(0, 1) if scalar else states[:, -read:-1].flatten(0, 1)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """Attend causally along rows, whatever window or cap the model has: for counting only."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(query, key, value, is_causal=True).transpose(1, 2), None


AttentionInterface.register("harness_counted", _attend)


@contextmanager
def _causal(trunk: nn.Module) -> Iterator[None]:
    """Have a trunk attend causally inside the context."""
    config: Any = trunk.config.get_text_config()  # type: ignore[operator, union-attr]
    before, config._attn_implementation = config._attn_implementation, "harness_counted"
    try:
        yield
    finally:
        config._attn_implementation = before


def checkpointed(model: nn.Module, on: bool) -> nn.Module:
    """Return the model, with activation checkpointing or without."""
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    setattr(trunk, FLAG, on)
    return model


def refuse_unknown(model: nn.Module, error: Exception) -> UsageError:
    """Return the error for an architecture whose pass cannot be laid out without weights."""
    return UsageError(
        f"--dry-run: the memory of {type(model).__name__} cannot be estimated without its weights"
        f" ({type(error).__name__}: {error}). `harness show MODEL` says what is known of it."
    )
