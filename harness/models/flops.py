"""What a model costs to run: FLOPs of forward and backward passes, from the shapes of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .loading import ScalarModel, trunk_of


@dataclass(frozen=True)
class LastParts:
    """The modules of a trunk's last layer, by name within it, that its attention is handed
    something by.
    """

    before: tuple[str, ...]  # all that run before the attention
    keys: tuple[str, ...]  # of these, what keys or values depend on
    queries: tuple[str, ...]  # what queries depend on


@dataclass(frozen=True)
class LastCost:
    """Weights of the last layer that a token is multiplied with, in the parts of `LastParts`; FLOPs
    per pair.
    """

    weights: int
    before: int
    keys: int
    queries: int
    attention: int


@dataclass(frozen=True)
class Passed:
    """How many tokens, read heads and pairs of query and key a pass computes, and how many in the
    last layer.
    """

    tokens: int
    head: int
    pairs: int
    read: int
    read_pairs: int


@dataclass(frozen=True)
class ForwardCost:
    """FLOPs of a forward pass from its shapes. Linear layers, the head, and full (not causal)
    attention are counted.

    Not counted: what grows with neither weights nor pairs of tokens (norms, activations, the scan
    of a state space).

    `linear` and `head` are weights touched per token; `attention` is FLOPs per (query, key) pair.
      Training costs three
    forwards: one, and two for the gradients of activations and weights. `last` is the last
      layer's part of it, where
    that computes only the states that are read.
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
        """Return FLOPs of a pass whose last layer computes only the states that are read: forward,
        or half a backward.

        Forward, its modules before the attention run on all tokens and again on those that are
        read; backward, keys and values get a gradient from the first time and queries from the
        second.
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


def forward_cost(model: nn.Module) -> ForwardCost:
    """Return the cost of a causal or scalar model's forward pass; counted once per model, copies
    inherit it.
    """
    known = getattr(model, "forward_cost", None)
    if known is None:
        known = model.forward_cost = _forward_cost(model)  # type: ignore[assignment]
    return known


def frozen_cost(model: nn.Module) -> ForwardCost:
    """Return the cost of the matrices in a model's forward pass that take no gradient; 0 if all do."""
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    if all(p.requires_grad for p in model.parameters()):
        return ForwardCost(0, 0, 0, LastCost(0, 0, 0, 0, 0))
    head = _head_of(model)
    linear, last = _weights(trunk, trunk.modules(), frozen=True), _last_cost(trunk, 0, frozen=True)
    return ForwardCost(
        linear, 0 if head.weight.requires_grad else head.in_features * head.out_features, 0, last
    )


def _head_of(model: nn.Module) -> Any:
    return model.head if isinstance(model, ScalarModel) else model.get_output_embeddings()  # type: ignore[operator]


def _forward_cost(model: nn.Module) -> ForwardCost:
    head = _head_of(model)
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    linear = _weights(trunk, trunk.modules())
    assert linear, f"no weight matrices found in {type(trunk).__name__}: its cost cannot be counted"
    layers, each = _attention_cost(trunk.config.get_text_config())  # type: ignore[operator, union-attr]
    return ForwardCost(
        linear, head.in_features * head.out_features, layers * each, _last_cost(trunk, each)
    )


def _last_cost(trunk: nn.Module, attention: int, frozen: bool = False) -> LastCost | None:
    parts: LastParts | None = getattr(trunk, "last_parts", None)
    if parts is None:
        return None
    named = dict(last_layer(trunk).named_modules())

    def weights(
        names: tuple[str, ...],
    ) -> int:  # an adapter's modules lie below those that were there before it
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
    """Return the last of a trunk's layers; ValueError where it is not plain which list of modules
    holds them.
    """
    count = trunk.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    lists = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise ValueError(
            f"{len(lists)} lists of {count} modules: which of them holds the layers is not known"
        )
    return lists[0][-1]


def _attention_cost(config: Any) -> tuple[int, int]:
    """Return how many layers attend, and FLOPs per (query, key) pair in each: scores and weighted
    values.
    """
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0, 0
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return sum("attention" in kind and "linear" not in kind for kind in kinds), int(
        4 * heads * width
    )


def _weights(trunk: nn.Module, modules: Iterable[nn.Module], frozen: bool = False) -> int:
    """Return the weights a token is multiplied with in some modules of a trunk."""
    those, config = list(modules), trunk.config.get_text_config()  # type: ignore[operator, union-attr]
    return sum(_matrix_weights(m, frozen) for m in those) + _expert_weights(those, config, frozen)


def _matrix_weights(module: nn.Module, frozen: bool = False) -> int:
    """Return the weights a token is multiplied with in this module itself: every matrix that is not
    an embedding.

    `frozen`: only those that take no gradient.
    """
    if isinstance(module, nn.Embedding):
        return 0
    kernels = isinstance(
        module, nn.Conv1d
    )  # (out, in / groups, width): each weight meets a token once
    matrices = [
        p for p in module.parameters(recurse=False) if p.dim() == 2 or (kernels and p.dim() == 3)
    ]
    return sum(p.numel() for p in matrices if not (frozen and p.requires_grad))


def _expert_weights(modules: list[nn.Module], config: Any, frozen: bool) -> int:
    """Return the weights of mixture-of-experts layers that a token is multiplied with: of the
    experts it is sent to.
    """
    layers = [m for m in modules if not isinstance(m, nn.Conv1d)]
    stacked = [p for m in layers for p in m.parameters(recurse=False) if p.dim() == 3]
    stacked = [p for p in stacked if not (frozen and p.requires_grad)]
    if not stacked:
        return 0
    used = getattr(config, "num_experts_per_tok", None)
    assert used, (
        f"{config.model_type} has 3-D weights and no num_experts_per_tok: its cost cannot be counted"
    )
    return sum(p.numel() // p.shape[0] * used for p in stacked)
