"""Activation checkpointing: layers keep their inputs and are computed again in the backward pass.

Every layer of a trunk but the last is checkpointed (Chen et al. 2016, 1604.06174). The last layer
may be narrowed by a hook (last_layer.py) that is gone by the time of the backward pass. A layer is
recomputed with the attention of its forward pass, so gradients are bit-identical. FLOPs are counted
without the recomputation, so the count does not depend on this option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..core.errors import UsageError
from .flops import layers_of
from .loading import ScalarModel, trunk_of
from .lora import switched, switched_on

FLAG = "checkpoint_activations"  # an attribute of the trunk; copies of a model inherit it
Context = Callable[[], AbstractContextManager[Any]]


def enable_activation_checkpointing(module: nn.Module) -> None:
    """Checkpoint the layers of a causal or scalar model in passes with gradients.

    A module without a trunk, such as a value head on the policy's trunk, is left as it is.

    Raises:
        UsageError: The model's list of layers is ambiguous.
    """
    if not isinstance(module, ScalarModel) and not hasattr(module, "base_model"):
        return
    trunk = module.trunk if isinstance(module, ScalarModel) else trunk_of(module)
    try:
        layers_of(trunk)
    except ValueError as error:
        raise UsageError(
            f"--activation-checkpointing: {type(trunk).__name__} has {error}. Leave the option out"
            " and lower --micro-batch-tokens instead."
        ) from error
    setattr(trunk, FLAG, True)


@contextmanager
def checkpointing(trunk: nn.Module, again: Context = nullcontext) -> Iterator[None]:
    """Checkpoint a trunk's layers inside the context, if it is enabled and gradients are on.

    Args:
        trunk: The trunk that the forward pass inside the context goes through.
        again: Returns the context manager of the recomputation, for example the attention of a
            packing. The active adapter is kept.
    """
    if not getattr(trunk, FLAG, False) or not torch.is_grad_enabled():
        yield
        return
    adapter = switched_on(trunk)

    @contextmanager
    def recomputing() -> Iterator[None]:
        with again(), switched(trunk, adapter):
            yield

    with ExitStack() as stack:
        for layer in layers_of(trunk)[:-1]:
            stack.enter_context(_checkpointed(layer, recomputing))
        yield


@contextmanager
def _checkpointed(layer: nn.Module, again: Context) -> Iterator[None]:
    """Shadow a layer's `forward` by a checkpointed one; module hooks stay outside of it."""
    once = partial(
        checkpoint,
        layer.forward,
        use_reentrant=False,
        preserve_rng_state=False,  # dropout is off
        context_fn=lambda: (nullcontext(), again()),
    )
    vars(layer)["forward"] = once
    try:
        yield
    finally:
        del vars(layer)["forward"]
