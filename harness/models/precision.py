"""Weights in bfloat16: probes in float32, and the effect of bfloat16 on log-probabilities.

A bfloat16 number has 8 significant bits. Weights in bfloat16 take half the memory, and forward
passes compute in bfloat16 as well. Such weights are trained through float32 copies
(training/master_weights.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .flops import layers_of
from .loading import trunk_of
from .nf4 import numbers_of, restoring_in

ROUNDING = "rounding"  # an attribute of the trunk: nats per token that bfloat16 changes
SMALL = 10_000_000  # parameters; smaller models gain nothing from bfloat16
ALLOWED = 0.01  # nats per token; above it the run gives a warning


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Have a causal model compute in float32 inside the context, for probes.

    The values of its weights are the same.
    """
    trunk: Any = trunk_of(model)
    before = getattr(trunk, "compute_dtype", torch.float32)
    trunk.compute_dtype = torch.float32
    try:
        with _weights_in_float32(trunk, model), restoring_in(trunk, torch.float32):
            yield
    finally:
        trunk.compute_dtype = before


@contextmanager
def _weights_in_float32(trunk: nn.Module, model: nn.Module) -> Iterator[None]:
    """Give a model float32 weights inside the context, with the same values.

    One layer at a time is converted, while it runs, so that no second copy of the model is needed.
    A conversion to float32 and back changes no number.
    """
    low = {p: p.dtype for p in model.parameters() if _is_low(p)}
    if not low:
        yield
        return
    layers = _layers(trunk)
    inside = {p for layer in layers for p in layer.parameters()}
    with ExitStack() as stack:
        stack.callback(_convert, low, None)  # the weights are restored even after an error
        _convert({p: low[p] for p in low if p not in inside}, torch.float32)
        for layer in layers:
            own = {p: low[p] for p in layer.parameters() if p in low}
            before = layer.register_forward_pre_hook(lambda *_, own=own: _convert(own, torch.float))
            after = layer.register_forward_hook(lambda *_, own=own: _convert(own, None))
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


def _is_low(p: nn.Parameter) -> bool:
    return p.dtype in (torch.bfloat16, torch.float16)


def _convert(weights: dict[nn.Parameter, torch.dtype], dtype: torch.dtype | None) -> None:
    """Give weights a dtype; None: the one that each had."""
    for p, was in weights.items():
        if p.dtype != (dtype or was):
            p.data = p.data.to(dtype or was)


def _layers(trunk: nn.Module) -> list[nn.Module]:
    """Return a trunk's layers; the whole trunk where their list is ambiguous."""
    try:
        return list(layers_of(trunk))
    except ValueError:
        return [trunk]


def note_on_rounding(model: Any, rounding: float) -> str | None:
    """Return a message on the rounding of a model in bfloat16, or None.

    Args:
        model: The causal language model.
        rounding: Nats per token by which its log-probabilities differ from those in float32, as a
            mean over random tokens.
    """
    if rounding < ALLOWED:
        return None
    size = sum(numbers_of(p) for p in model.parameters())
    small = f" Use float32 for a model of {size / 1e6:.1f}M parameters." if size < SMALL else ""
    return (
        "bfloat16: the log-probabilities of random tokens differ from those in float32 by"
        f" {rounding:.2g} nats a token on average. A KL of that size per token is rounding"
        f" error.{small}"
    )
