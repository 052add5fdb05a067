"""The last layer computes only the states that are read: of all other tokens it needs the keys and
values alone.

A token's state in a lower layer is needed for the keys and values of the layers above it. The state
the last layer makes is needed only where a head reads it: where a completion's token is predicted
or has been read. So of a prompt's other tokens the last layer's attention, output projection and
feed-forward network are no part of what any loss depends on. The layer's module runs as it is, by a
forward hook of torch: on all tokens until its attention has been handed their keys and values,
which ends that pass, and on those tokens whose states are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .attention import attending
from .flops import LastParts, last_layer
from .packing import Asking, Packing, gather


class _Handed(Exception):
    """The attention has been handed the keys and values: the rest of the layer is not wanted."""


class _Narrowed:
    """An `Attention` as the packing has it, but in the last layer, where only some tokens ask."""

    def __init__(self, packing: Packing, asking: Asking) -> None:
        self.packing, self.asking = packing, asking
        self.inside = False
        self.handed: tuple[Tensor, Tensor] | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attend as a packing does; in the last layer raise once what it needs is here, then attend
        from a few.
        """
        if not self.inside:
            return self.packing.attend(layer, query, key, value, scaling)
        if self.handed is None:
            self.handed = key, value
            raise _Handed
        return self.packing.attend_from(self.asking, query, *self.handed, scaling)

    def enter(
        self, layer: nn.Module, told: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Find keys and values of all tokens; return the layer's arguments for those that are read."""
        self.inside = True
        try:
            layer.forward(*told, **named)
        except _Handed:
            return self._some(told), self._some(named)
        raise ValueError("the last layer did not attend as it was told to")

    def _some(self, told: Any) -> Any:
        if isinstance(told, Tensor) and told.dim() > 1 and told.shape[:2] == self.packing.ids.shape:
            return gather(told[0], self.asking.read)[None]
        if isinstance(told, dict):
            return {name: self._some(one) for name, one in told.items()}
        return tuple(self._some(one) for one in told) if isinstance(told, tuple) else told


@contextmanager
def reading(trunk: nn.Module, packing: Packing, read: Tensor) -> Iterator[None]:
    """Have a trunk attend as a packing says, and return states (1, M, d) of some tokens (M,),
    ascending places.
    """
    how = _Narrowed(packing, packing.asking(read))
    hook = last_layer(trunk).register_forward_pre_hook(how.enter, with_kwargs=True)
    try:
        with attending(trunk, how):
            yield
    finally:
        hook.remove()


class _Watched(_Narrowed):
    """A `_Narrowed` that looks at what the last layer's attention is handed."""

    def __init__(self, packing: Packing, asking: Asking) -> None:
        super().__init__(packing, asking)
        self.ran: list[str] = []
        self.before: tuple[str, ...] = ()  # what had run when it was handed them
        self.of_keys = self.of_queries = (
            False  # whether they depend on a weight that takes a gradient
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Attend as ever, and note what is asked of it."""
        if self.inside and self.handed is None:
            self.before, self.of_keys = tuple(self.ran), key.requires_grad or value.requires_grad
        elif self.inside:
            self.of_queries = query.requires_grad
        return super().attend(layer, query, key, value, scaling)


def find_parts(trunk: nn.Module, packing: Packing, inputs: dict[str, Any]) -> LastParts:
    """Return by which modules the last layer's attention is handed keys, values and queries: by
    trying.

    Which of them keys depend on is found by letting one module's weights at a time take gradients.
    """
    layer, read = last_layer(trunk), torch.unique(packing.states[..., :-1])
    grads = {p: p.requires_grad for p in trunk.parameters()}
    named = {
        n: m
        for n, m in layer.named_modules()
        if any(p.dim() > 1 for p in m.parameters(recurse=False))
    }

    def watched(module: nn.Module | None) -> _Watched:
        trunk.requires_grad_(False)
        how = _Watched(packing, packing.asking(read))
        hooks = [
            m.register_forward_hook(lambda *_, n=n: how.ran.append(n)) for n, m in named.items()
        ]
        hooks.append(layer.register_forward_pre_hook(how.enter, with_kwargs=True))
        if module is not None:
            module.requires_grad_(True)
        try:
            with torch.enable_grad(), attending(trunk, how):
                trunk(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return how

    try:
        before = watched(None).before
        told = {name: watched(named[name]) for name in before}
    finally:
        for parameter, was in grads.items():
            parameter.requires_grad_(was)
    of_keys, of_queries = (
        tuple(n for n in before if getattr(told[n], what)) for what in ("of_keys", "of_queries")
    )
    return LastParts(before, of_keys, of_queries)
