"""FLOPs of forward and backward passes and of decoding, from the shapes of a model's weights.

`ModelFlops` counts them. The rest of this module computes the cost per token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .batches import Batch
from .layouts import head_apart, keeps_cache, packs, reads_some
from .loading import ScalarModel, trunk_of
from .lora import held, own_modules
from .nf4 import numbers_of
from .packing import pairs_of


@dataclass(frozen=True)
class LastParts:
    """The modules of the last layer that run before its attention, by name."""

    before: tuple[str, ...]  # all of them
    keys: tuple[str, ...]  # those that keys or values depend on
    queries: tuple[str, ...]  # those that queries depend on


@dataclass(frozen=True)
class LastCost:
    """Weights of the last layer per token, by the parts of `LastParts`, and FLOPs per pair."""

    weights: int
    before: int
    keys: int
    queries: int
    attention: int


@dataclass(frozen=True)
class Passed:
    """Counts of a pass: tokens, tokens through the head, (query, key) pairs; the last layer
    separately.
    """

    tokens: int
    head: int
    pairs: int
    read: int
    read_pairs: int


@dataclass(frozen=True)
class ForwardCost:
    """FLOPs of a forward pass: linear layers, the head, and full (not causal) attention.

    Not counted: norms, activations, and the scan of a state space.

    `linear` and `head` are weights per token; `attention` is FLOPs per (query, key) pair. Training
    costs three forward passes: one, and two for the gradients of activations and weights. `last` is
    set if the last layer computes only the states that are read.
    """

    linear: int
    head: int
    attention: int
    last: LastCost | None = None

    def flops(self, tokens: int, head_tokens: int, pairs: int) -> float:
        """Return FLOPs for `tokens` through the trunk, `head_tokens` through the head, `pairs` of
        query and key.
        """
        return (
            2.0 * self.linear * tokens
            + 2.0 * self.head * head_tokens
            + float(self.attention) * pairs
        )

    def reading(self, passed: Passed, backward: bool = False) -> float:
        """Return FLOPs of a forward pass, or half a backward pass, with a narrowed last layer.

        In the forward pass the modules before its attention run on all tokens, then again on the
        tokens that are read. In the backward pass keys and values get their gradient from the
        first run, and queries from the second.
        """
        assert self.last is not None
        twice = self.last.before * passed.tokens
        if backward:
            twice = (
                self.last.keys * passed.tokens
                + (self.last.queries - self.last.before) * passed.read
            )
        linear = (
            (self.linear - self.last.weights) * passed.tokens
            + self.last.weights * passed.read
            + twice
        )
        attention = self.attention * passed.pairs - self.last.attention * (
            passed.pairs - passed.read_pairs
        )
        return 2.0 * linear + 2.0 * self.head * passed.head + float(attention)

    def padded(self, rows: int, width: int, kept: int) -> float:
        """Return FLOPs for rows of one width, the head on `kept` positions of each."""
        return self.flops(rows * width, rows * kept, rows * width * width)


class ModelFlops:
    """The FLOPs of a causal or scalar model on a batch, in the model's layout.

    All FLOP counts of a run come from here. Padding is counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def forward(self, batch: Batch) -> float:
        """Return the FLOPs of a forward pass over a batch (B, K, T)."""
        return self._pass(batch, forward_cost(self.model))

    def backward(self, batch: Batch) -> float:
        """Return the FLOPs of a backward pass: gradients of activations and of unfrozen weights."""
        half = self._pass(batch, forward_cost(self.model), backward=True)
        return 2 * half - self._pass(batch, self._frozen, backward=True)

    def decode(self, batch: Batch) -> float:
        """Return the FLOPs of decoding: each prompt once, each token once, attention to its prefix.

        Without a cache every token costs a pass over the whole sequence.
        """
        cost, (b, _, _) = forward_cost(self.model), batch.shape
        prompt = batch.prompts.ids.shape[1]
        fed = batch.lengths.flatten().double() - 1  # the last token is never fed back
        if keeps_cache(self.model):
            tokens, pairs = fed.sum(), (fed * prompt + fed * (fed + 1) / 2).sum()
        else:  # passes of prompt + 1 to prompt + fed tokens
            widths = [range(prompt + 1, prompt + int(n) + 1) for n in fed]
            tokens, pairs = (torch.tensor(sum(w**p for row in widths for w in row)) for p in (1, 2))
        return cost.flops(
            b * prompt + int(tokens), b + int(fed.sum()), b * prompt * prompt + int(pairs)
        )

    @cached_property
    def _frozen(self) -> ForwardCost:
        return frozen_cost(self.model)

    def _pass(self, batch: Batch, cost: ForwardCost, backward: bool = False) -> float:
        """Return the FLOPs of a forward pass at some cost per token, or of half a backward pass."""
        if packs(self.model):
            return self._packed(batch, cost, backward)
        (b, k, t), scalar = batch.shape, isinstance(self.model, ScalarModel)
        width, generated = batch.prompts.ids.shape[1] + t, int(batch["mask"].sum())
        if not scalar and head_apart(self.model, batch):
            return cost.flops(b * k * width, generated, b * k * width * width)
        return cost.padded(b * k, width, width if scalar else t + 1)

    def _packed(self, batch: Batch, cost: ForwardCost, backward: bool) -> float:
        b, scalar = batch.shape[0], isinstance(self.model, ScalarModel)
        generated = int(batch["mask"].sum())
        tokens, pairs = int(batch.prompts.mask.sum()) + generated, pairs_of(batch)
        if not reads_some(self.model):
            return cost.flops(tokens, tokens if scalar else generated, pairs)
        # a last token's state predicts nothing
        ends = 0 if scalar else int((batch.lengths > 0).sum())
        read = b + generated - ends
        head = read if scalar else generated
        read_pairs = pairs_of(batch, asking=True, ends=scalar)
        return cost.reading(Passed(tokens, head, pairs, read, read_pairs), backward)


def forward_cost(model: nn.Module) -> ForwardCost:
    """Return the cost of a model's forward pass, computed once; copies inherit it."""
    known = getattr(model, "forward_cost", None)
    if known is None:
        known = model.forward_cost = _forward_cost(model)  # type: ignore[assignment]
    return known


def row_flops(model: nn.Module, tokens: int, read: int, pairs: int) -> float:
    """Return the FLOPs of a forward pass over some tokens, before there is a batch.

    Args:
        model: A causal or scalar model; it needs no weights.
        tokens: Tokens of the row.
        read: Tokens whose states the head reads.
        pairs: Pairs of a query and a key that a layer computes.
    """
    return forward_cost(model).flops(tokens, read, pairs)


def pass_flops(model: nn.Module, rows: int, width: int, keys: int) -> float:
    """Return the FLOPs of a forward pass that reads every state.

    Args:
        model: A causal or scalar model.
        rows: Rows of the pass.
        width: New tokens of each row.
        keys: Keys of each row after the pass: `width`, and those of a cache.
    """
    pairs = rows * (width * keys - width * (width - 1) // 2)
    return row_flops(model, rows * width, rows * width, pairs)


def frozen_cost(model: nn.Module) -> ForwardCost:
    """Return the cost of a model's frozen matrices in a forward pass; 0 if there are none."""
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    if all(p.requires_grad for _, p in held(model)):
        return ForwardCost(0, 0, 0, LastCost(0, 0, 0, 0, 0))
    head = _head_of(model)
    modules = own_modules(model)
    linear, last = _weights(trunk, modules, frozen=True), _last_cost(trunk, modules, 0, frozen=True)
    return ForwardCost(
        linear, 0 if head.weight.requires_grad else head.in_features * head.out_features, 0, last
    )


def _head_of(model: nn.Module) -> Any:
    return model.head if isinstance(model, ScalarModel) else model.get_output_embeddings()  # type: ignore[operator]


def _forward_cost(model: nn.Module) -> ForwardCost:
    head = _head_of(model)
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    linear = _weights(trunk, own_modules(model))
    assert linear, f"no weight matrices found in {type(trunk).__name__}: its cost cannot be counted"
    layers, each = _attention_cost(trunk.config.get_text_config())  # type: ignore[operator, union-attr]
    return ForwardCost(
        linear,
        head.in_features * head.out_features,
        layers * each,
        _last_cost(trunk, own_modules(model), each),
    )


def _last_cost(
    trunk: nn.Module, modules: list[nn.Module], attention: int, frozen: bool = False
) -> LastCost | None:
    parts: LastParts | None = getattr(trunk, "last_parts", None)
    if parts is None:
        return None
    known = set(modules)  # without other adapters
    named = {n: m for n, m in last_layer(trunk).named_modules() if m in known}

    def weights(
        names: tuple[str, ...],
    ) -> int:  # the modules of an adapter are children of the original ones
        below = [
            m
            for n, m in named.items()
            if any(n == name or n.startswith(f"{name}.") for name in names)
        ]
        return _weights(trunk, below, frozen)

    every = _weights(trunk, named.values(), frozen)
    return LastCost(
        every, weights(parts.before), weights(parts.keys), weights(parts.queries), attention
    )


def last_layer(trunk: nn.Module) -> nn.Module:
    """Return the last of a trunk's layers; raise ValueError if the list of layers is ambiguous."""
    return layers_of(trunk)[-1]


def layers_of(trunk: nn.Module) -> nn.ModuleList:
    """Return the list of a trunk's layers; raise ValueError if it is ambiguous."""
    count = trunk.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    lists = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise ValueError(
            f"{len(lists)} lists of {count} modules: cannot tell which list holds the layers"
        )
    return lists[0]


def _attention_cost(config: Any) -> tuple[int, int]:
    """Return the number of attention layers, and FLOPs per (query, key) pair in each."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0, 0
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return sum("attention" in kind and "linear" not in kind for kind in kinds), int(
        4 * heads * width
    )


def _weights(trunk: nn.Module, modules: Iterable[nn.Module], frozen: bool = False) -> int:
    """Return the number of weights per token in some modules of a trunk."""
    those, config = list(modules), trunk.config.get_text_config()  # type: ignore[operator, union-attr]
    return sum(_matrix_weights(m, frozen) for m in those) + _expert_weights(those, config, frozen)


def _matrix_weights(module: nn.Module, frozen: bool = False) -> int:
    """Return the number of weights per token of a module itself: its matrices but embeddings.

    `frozen` counts only weights without gradients.
    """
    if isinstance(module, nn.Embedding):
        return 0
    kernels = isinstance(
        module, nn.Conv1d
    )  # (out, in / groups, width): each weight is used once per token
    matrices = [
        p for p in module.parameters(recurse=False) if p.dim() == 2 or (kernels and p.dim() == 3)
    ]
    return sum(numbers_of(p) for p in matrices if not (frozen and p.requires_grad))


def _expert_weights(modules: list[nn.Module], config: Any, frozen: bool) -> int:
    """Return the weights per token of mixture-of-experts layers: those of active experts."""
    layers = [m for m in modules if not isinstance(m, nn.Conv1d)]
    stacked = [p for m in layers for p in m.parameters(recurse=False) if p.dim() == 3]
    stacked = [p for p in stacked if not (frozen and p.requires_grad)]
    if not stacked:
        return 0
    used = getattr(config, "num_experts_per_tok", None)
    assert used, (
        f"{config.model_type} has 3-D weights and no num_experts_per_tok: FLOPs cannot be counted"
    )
    return sum(p.numel() // p.shape[0] * used for p in stacked)
