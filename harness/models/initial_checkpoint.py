"""The start checkpoint: read when somebody asks for it, in memory while somebody holds it, and read
again after that.

So a method that asks for no reference trains beside no second copy of the weights. What need not be
read again is what the model is like without its numbers (`outline`): its architecture, its size,
the FLOPs of a pass, and how it can run.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..core.seeds import derive
from .capabilities import find_out, inherit
from .loading import (
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
from .lora import adapted, beside, unchanged


class InitialCheckpoint:
    """A model that can be read at any time; here are no weights of it, only a weak reference to
    those in memory.
    """

    def __init__(
        self, read: Callable[[], nn.Module], probe: Callable[[nn.Module], None] = lambda model: None
    ) -> None:
        self._read, self._probe = read, probe
        self._there: Callable[[], nn.Module | None] = lambda: None
        self._outline: nn.Module | None = None
        self._device = torch.device("cpu")
        self._digest = ""

    @classmethod
    def of(cls, model: nn.Module) -> InitialCheckpoint:
        """Return a start checkpoint that is in memory all the time: for benchmarks and tests."""
        start = cls(partial(copy.deepcopy, model))
        start._there = weakref.ref(model)  # which `read` keeps alive
        return start

    def model(self) -> nn.Module:
        """Return the frozen model, the same one as long as anybody holds it."""
        found = self._there()
        if found is None:
            found = self._anew()
            self._there = weakref.ref(found)
        return found

    def copy(self) -> nn.Module:
        """Return a frozen model of the caller's own: straight from the disk where there is none to
        copy.
        """
        found = self._there()
        return in_memory(self._anew()) if found is None else copy.deepcopy(found)

    def is_(self, model: nn.Module) -> bool:
        """Return whether this very model is the one that `model()` gave."""
        return self._there() is model

    def equals(self, model: nn.Module) -> bool:
        """Return whether a model has the start checkpoint's weights; that is read for the first
        answer only.
        """
        if self.is_(model):
            return True
        if adapted(model):
            return unchanged(model)
        self._digest = self._digest or weights_digest(self.model())
        return weights_digest(model) == self._digest

    @property
    def outline(self) -> nn.Module:
        """The model without its weights: what tells architecture, size, and the cost of a pass."""
        if self._outline is None:
            self._outlined(self.model())
        assert self._outline is not None
        return self._outline

    def scalar(self) -> ScalarModel:
        """Return a scalar model on a trunk like this one's, its weights not yet filled in."""
        outline = self.outline
        trunk = unfilled(trunk_of(outline), self._device)
        return ScalarModel(trunk, hidden_size(outline)).to(self._device)

    def _anew(self) -> nn.Module:
        model = frozen(self._read())
        self._outlined(model)
        return model

    def _outlined(self, model: nn.Module) -> None:
        """Find out how a model can run; of one read before that is known."""
        if self._outline is None:
            self._probe(model)
            self._device = next(model.parameters()).device
            self._outline = unfilled(model, torch.device("meta"))
            return
        inherit(model, self._outline)


def start_in(folder: Path, dtype: str, device: torch.device, sharing: bool) -> InitialCheckpoint:
    """Return the start checkpoint that lies in a folder in hub format; `sharing`: a prompt may be
    computed once.
    """
    return InitialCheckpoint(
        partial(_read, folder, dtype, device), partial(find_out, sharing=sharing)
    )


def _read(folder: Path, dtype: str, device: torch.device) -> nn.Module:
    return load_causal(folder, dtype).to(device)


def learner(start: InitialCheckpoint, method: object, seed: int) -> nn.Module:
    """Return what a method trains: a copy of the start checkpoint or, as its `lora_rank` says, an
    adapter beside it.
    """
    rank = getattr(method, "lora_rank", 0)
    if not rank:
        return learning(start.copy())
    return beside(
        start.model(),
        rank,
        getattr(method, "lora_alpha", 0.0) or 2.0 * rank,
        derive(seed, "adapter"),
    )


def merged(model: nn.Module, start: InitialCheckpoint) -> nn.Module:
    """Return a plain model that computes what an adapted one does, up to rounding; any other model
    as it is.
    """
    if not adapted(model):
        return model
    plain = start.copy()
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            plain.get_submodule(name).weight.data += layer.get_delta_weight("default")
    return plain
