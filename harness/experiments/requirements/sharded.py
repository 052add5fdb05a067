"""Memory of one process of a run with `--shard full`.

A process holds an equal part of all weights, gradients and moments, but for adapters and models of
the hub that judge or reward, which are whole. A pass gathers the embeddings and the head, and two
layers at a time: one computes, and the next one is fetched. A backward pass has their gradients
whole too, and copies them to be summed. Drawing completions gathers all weights of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ...models.flops import layers_of
from ...models.loading import ScalarModel, trunk_of
from ...models.lora import base_of

LAYERS = 2  # that are gathered at once


class Whole(int):
    """Bytes that every process holds, whether the run is sharded or not."""


@dataclass(frozen=True)
class Parts:
    """Bytes of the weights of a model, by how they are gathered."""

    rest: int  # embeddings, head and all that is in no layer
    layer: int  # the largest layer

    @classmethod
    def of(cls, model: Any) -> Parts:
        """Return the parts of a causal or scalar model; an adapter on it is not counted."""
        base = model if isinstance(model, ScalarModel) else base_of(model)
        trunk = base.trunk if isinstance(base, ScalarModel) else trunk_of(base)
        sizes = [_bytes(layer) for layer in layers_of(trunk)]
        return cls(_bytes(base) - sum(sizes), max(sizes))

    @property
    def gathered(self) -> int:
        """Bytes that a pass without gradients has whole."""
        return self.rest + LAYERS * self.layer


def _bytes(module: nn.Module) -> int:
    kept = {id(p): p for name, p in module.named_parameters() if "lora_" not in name}
    return sum(p.nbytes for p in kept.values())


@dataclass(frozen=True)
class Processes:
    """The processes of a run, which share the weights if it is sharded."""

    count: int
    shards: bool

    def part(self, size: int) -> int:
        """Return what one process holds of bytes that are sharded."""
        return -(-size // self.count) if self.shards else size

    def weights(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return what one process holds of weights by role."""
        return {k: v if isinstance(v, Whole) else self.part(v) for k, v in sizes.items()}

    def rows(self, shape: Any) -> Any:
        """Return the rows of which one process draws completions."""
        return replace(shape, rows=-(-shape.rows // self.count))
