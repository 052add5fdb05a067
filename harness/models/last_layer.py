"""A narrowed last layer: it computes only the states that a head reads.

A state of a lower layer is needed for the keys and values of the layers above it. A state of the
last layer is needed only where a head reads it. For all other tokens, no loss depends on the last
layer's attention output, output projection or feed-forward network. A torch forward hook runs the
unchanged module twice: on all tokens until its attention receives their keys and values, which ends
that pass, then on the tokens whose states are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .attention import attending
from .attention_scores import Scoring
from .flops import LastParts, last_layer
from .packing import Asking, Packing, gather


class _Handed(Exception):
    """The attention has received the keys and values; the rest of the layer is not computed."""


class _Narrowed:
    """The `Attention` of a packing, with queries of some tokens only in the last layer."""

    def __init__(self, packing: Packing, asking: Asking) -> None:
        self.packing, self.asking = packing, asking
        self.inside = False
        self.handed: tuple[Tensor, Tensor] | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Attend as the packing does; in the last layer store keys and values, then attend."""
        if not self.inside:
            return self.packing.attend(layer, query, key, value, scoring)
        if self.handed is None:
            self.handed = key, value
            raise _Handed
        return self.packing.attend_from(self.asking, query, *self.handed, scoring)

    def enter(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Compute keys and values of all tokens; return the layer's arguments for the tokens that
        are read.
        """
        self.inside = True
        try:
            layer.forward(*args, **kwargs)
        except _Handed:
            return self._some(args), self._some(kwargs)
        raise ValueError("the last layer did not call the attention function of the harness")

    def _some(self, value: Any) -> Any:
        if (
            isinstance(value, Tensor)
            and value.dim() > 1
            and value.shape[:2] == self.packing.ids.shape
        ):
            return gather(value[0], self.asking.read)[None]
        if isinstance(value, dict):
            return {name: self._some(one) for name, one in value.items()}
        return tuple(self._some(one) for one in value) if isinstance(value, tuple) else value


@contextmanager
def reading(trunk: nn.Module, packing: Packing, read: Tensor) -> Iterator[None]:
    """Make a trunk use a packing's attention and return states (1, M, d) of the tokens `read`."""
    how = _Narrowed(packing, packing.asking(read))
    hook = last_layer(trunk).register_forward_pre_hook(how.enter, with_kwargs=True)
    try:
        with attending(trunk, how):
            yield
    finally:
        hook.remove()


class _Watched(_Narrowed):
    """A `_Narrowed` that records the inputs of the last layer's attention."""

    def __init__(self, packing: Packing, asking: Asking) -> None:
        super().__init__(packing, asking)
        self.ran: list[str] = []
        self.before: tuple[str, ...] = ()  # modules that ran before it
        self.of_keys = self.of_queries = False  # whether they depend on a trainable weight

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Attend as `_Narrowed` does, and record the call."""
        if self.inside and self.handed is None:
            self.before, self.of_keys = tuple(self.ran), key.requires_grad or value.requires_grad
        elif self.inside:
            self.of_queries = query.requires_grad
        return super().attend(layer, query, key, value, scoring)


def find_parts(trunk: nn.Module, packing: Packing, inputs: dict[str, Any]) -> LastParts:
    """Return the modules of the last layer behind its keys, values and queries, by a probe.

    The probe takes gradients of one module's output at a time, because 4-bit weights have no
    gradients.
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
            hooks.append(module.register_forward_hook(_with_gradient))
        try:
            with torch.enable_grad(), attending(trunk, how):
                trunk(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return how

    def _with_gradient(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.detach().requires_grad_(True)

    try:
        before = watched(None).before
        watches = {name: watched(named[name]) for name in before}
    finally:
        for parameter, was in grads.items():
            parameter.requires_grad_(was)
    of_keys, of_queries = (
        tuple(n for n in before if getattr(watches[n], what)) for what in ("of_keys", "of_queries")
    )
    return LastParts(before, of_keys, of_queries)
