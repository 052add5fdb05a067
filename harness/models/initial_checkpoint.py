"""The start checkpoint: loaded on first use, freed with its last reference, reloaded if needed.

So a method without a reference keeps no second copy of the weights in memory. The `outline` stays:
the model without weights, with its architecture, size, FLOPs of a pass, and capabilities.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..core.seeds import derive
from .capabilities import find_out, inherit
from .loading import (
    Arithmetic,
    ScalarModel,
    frozen,
    hidden_size,
    in_memory,
    learning,
    load_causal,
    trunk_of,
    unfilled,
    weights_digest,
)
from .lora import Lora, adapted, beside, carries, unchanged, without_adapters
from .lora_weights import deltas
from .model_state import ModelState
from .nf4 import holds_packed, restore

M = TypeVar("M", bound=nn.Module)
Shard = Callable[[nn.Module], nn.Module]  # shards a model in place: see sharding.py


class InitialCheckpoint:
    """A model that can be loaded at any time; this object keeps only a weak reference to it."""

    def __init__(
        self,
        read: Callable[[], nn.Module],
        probe: Callable[[nn.Module], None] = lambda model: None,
        shards: Callable[[], Shard | None] = lambda: None,
    ) -> None:
        self._read, self._probe = read, probe
        self.shards = shards  # returns what shards models, where this run shards any
        self._kept: nn.Module | None = None  # the model, where it is sharded: see `model`
        self._there: Callable[[], nn.Module | None] = lambda: None
        self._outline: nn.Module | None = None
        self._device = torch.device("cpu")
        self._digest = ""
        # of the model in memory, and freed with it
        self._states: weakref.WeakKeyDictionary[nn.Module, ModelState] = weakref.WeakKeyDictionary()
        self.source = ""  # the folder or hub id of the model, where it has one

    @classmethod
    def of(cls, model: nn.Module) -> InitialCheckpoint:
        """Return a start checkpoint that stays in memory: for benchmarks and tests."""
        start = cls(partial(copy.deepcopy, model))
        start._there = weakref.ref(model)  # `read` keeps it alive
        return start

    def model(self) -> nn.Module:
        """Return the frozen model; calls return the same object while it is referenced.

        A sharded one stays in memory. Processes free objects at unlike times, and reading it again
        is a pass that all of them have to make.
        """
        model = self._there()
        if model is None:
            model = self.sharded(self._anew())
            self._there = weakref.ref(model)
            self._kept = model if self.shards() is not None else None
            self._states[model] = ModelState(model)
        return model

    def touched(self) -> str:
        """Return the name of a weight that was written to since the model was read; see
        `ModelState`.
        """
        model = self._there()
        state = None if model is None else self._states.get(model)
        return "" if state is None else state.touched()

    def changed(self) -> str:
        """Return how the model in memory differs from the model that was read; see `ModelState`."""
        model = self._there()
        state = None if model is None else self._states.get(model)
        return "" if state is None or model is None else state.changed(model)

    def copy(self) -> nn.Module:
        """Return a new frozen copy, read from disk if the model is not in memory.

        Where this run shards models, it is read from disk, and its weights are those of the mapped
        file: sharding it copies a process's own rows, and no process has all of them.
        """
        if self.shards() is not None:
            return self._anew()
        model = self._there()
        return in_memory(self._anew()) if model is None else without_adapters(copy.deepcopy(model))

    def sharded(self, model: M) -> M:
        """Return a model of this architecture, sharded where this run shards models."""
        shard = self.shards()
        if shard is not None:
            shard(model)
        return model

    def is_(self, model: nn.Module) -> bool:
        """Return whether `model` is the object that `model()` returned."""
        return self._there() is model

    def equals(self, model: nn.Module) -> bool:
        """Return whether a model has the start checkpoint's weights, compared by digest."""
        if self.is_(model):
            return True
        if adapted(model):
            return unchanged(model)
        self._digest = self._digest or weights_digest(self.model())
        return weights_digest(model) == self._digest

    @property
    def outline(self) -> nn.Module:
        """The model without its weights: its architecture, size, and the cost of a pass."""
        if self._outline is None:
            self._outlined(self.model())
        assert self._outline is not None
        return self._outline

    @property
    def carries_adapters(self) -> bool:
        """Whether the model in memory is the base of adapters."""
        model = self._there()
        return model is not None and carries(model)

    def scalar(self) -> ScalarModel:
        """Return a scalar model with this architecture and uninitialised weights.

        Where this run shards models they have no memory yet: what is read is assigned to them.
        """
        outline = self.outline
        device = self._device if self.shards() is None else torch.device("meta")
        trunk = unfilled(trunk_of(outline), device)
        model = ScalarModel(trunk, hidden_size(outline))
        return model if self.shards() is not None else model.to(self._device)

    def _anew(self) -> nn.Module:
        model = frozen(without_adapters(self._read()))
        self._outlined(model)
        return model

    def _outlined(self, model: nn.Module) -> None:
        """Probe the capabilities of a model on the first load; copy them on later loads."""
        if self._outline is None:
            self._probe(model)
            self._device = next(model.parameters()).device
            self._outline = unfilled(model, torch.device("meta"))
            return
        inherit(model, self._outline)


def start_in(
    model: Path | str,
    arithmetic: Arithmetic,
    device: torch.device,
    sharing: bool,
    tell: Callable[[str], None] = lambda text: None,
    shards: Callable[[], Shard | None] = lambda: None,
) -> InitialCheckpoint:
    """Return the start checkpoint of a folder or hub id.

    Args:
        model: The folder or hub id.
        arithmetic: The dtypes of forward passes and of weights.
        device: Where it is used.
        sharing: Whether prompt sharing is allowed.
        tell: Called with messages about the model.
        shards: Returns what shards models; None where this run does not. A model that is to be
            sharded is read and probed on the CPU, in the memory of the mapped file.
    """

    def read() -> nn.Module:
        whole = load_causal(model, arithmetic)
        return whole.to(device) if shards() is None else whole

    start = InitialCheckpoint(read, partial(find_out, sharing=sharing, tell=tell), shards)
    start.source = str(model)
    return start


def learner(start: InitialCheckpoint, method: object, seed: int) -> nn.Module:
    """Return the model that a method trains: a copy, or an adapter if `lora_rank` is set."""
    lora = lora_of(method, seed)
    if lora is None:
        return start.sharded(learning(start.copy()))
    return beside(start.model(), lora)


def lora_of(options: object, seed: int, role: str = "policy") -> Lora | None:
    """Return the adapter that options ask for with `lora_rank`; None where all weights train."""
    rank = getattr(options, "lora_rank", 0)
    if not rank:
        return None
    alpha = getattr(options, "lora_alpha", 0.0) or 2.0 * rank
    purpose = "adapter" if role == "policy" else f"adapter of the {role}"
    return Lora(rank, alpha, derive(seed, purpose), role)


def merged(model: nn.Module, start: InitialCheckpoint) -> nn.Module:
    """Return a model with its LoRA adapter merged into the weights; other models as they are.

    Matrices in nf4 are restored, so the merged weights are those that were trained and measured.
    """
    if not adapted(model):
        return restore(copy.deepcopy(model)) if holds_packed(model) else model
    plain = restore(start.copy())
    for name, delta in deltas(model):
        weight = plain.get_parameter(name)
        weight.data += delta.to(weight.device)
    return plain
