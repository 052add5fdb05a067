"""Models whose weights are sharded over the processes of a run (`--shard full`).

Each process holds a block of the rows of every weight. A layer is gathered when a pass reaches it,
and freed after that. Gradients are summed over processes while they are sharded, in float32. This
is `torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, 2304.11277), applied to each layer and to
the rest of the model.

The harness calls trunk and head separately, so a pass over a sharded model is computed by
`in_pass`. Decoding takes unlike numbers of steps in each process, so it has all weights gathered
meanwhile (`gathered_weights`). Adapters and the heads of scalar models stay whole: they are small.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from ..core.errors import UsageError
from .flops import layers_of
from .loading import ScalarModel, trunk_of
from .lora import adapted

T = TypeVar("T")
_ROOT = "harness_sharded_root"  # attribute of a trunk: returns the sharded model that holds it


def root_of(model: nn.Module) -> Any:
    """Return the sharded model that a model's trunk belongs to; None where it is not sharded."""
    trunk = getattr(model, "trunk", getattr(model, "base_model", model))
    return vars(trunk).get(_ROOT, lambda: None)()


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard the weights of a causal or scalar model over all processes, in place.

    A model with an adapter is left as it is: its base is sharded, and the adapter is whole. So is
    one that is sharded already.

    Args:
        model: The model, on the CPU or on `device`. Its weights may be those of a mapped file: a
            process copies its own rows only.
        device: Where the rows are kept.

    Raises:
        UsageError: The layers of the model are not known, or its weights are of several dtypes.
    """
    if adapted(model) or root_of(model) is not None:
        return model
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import register_fsdp_forward_method

    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    whole = set(model.head.parameters()) if isinstance(model, ScalarModel) else set()
    _check_dtypes(model, whole)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for layer in _layers(trunk):
        _shard_module(layer, mesh, set())
    _shard_module(model, mesh, whole)
    for p in whole:
        p.data = p.data.to(device)
    vars(model)["harness_pass"] = types.MethodType(lambda self, compute: compute(), model)
    register_fsdp_forward_method(model, "harness_pass")
    vars(trunk)[_ROOT] = weakref.ref(model)
    return model


def _layers(trunk: nn.Module) -> nn.ModuleList:
    try:
        return layers_of(trunk)
    except ValueError as error:
        raise UsageError(
            f"--shard full: {type(trunk).__name__} has {error}. Leave the option out."
        ) from error


def _check_dtypes(model: nn.Module, whole: set[nn.Parameter]) -> None:
    dtypes = {p.dtype for p in model.parameters() if p not in whole}
    if len(dtypes) > 1:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UsageError(
            f"--shard full: {type(model).__name__} has weights in {named}, and only weights of one"
            " dtype are sharded. Leave the option out."
        )


def _shard_module(module: Any, mesh: Any, whole: set[nn.Parameter]) -> None:
    """Shard what of a module is not sharded yet, as one group."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(
        module, mesh=mesh, reshard_after_forward=True, mp_policy=precision, ignored_params=whole
    )
    # shares of a loss are summed, not averaged
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    # every process reduces the same weights, whatever its rows use
    module.set_reduce_scatter_unused_params(True, recurse=False)


def in_pass(model: nn.Module, compute: Callable[[], T]) -> T:
    """Return compute(), which passes a batch through a model, and gather its weights as needed.

    All processes call this together, equally often, and equally often with gradients.
    """
    root = root_of(model)
    if root is None:
        return compute()
    result: T = root.harness_pass(compute)
    return result


@contextmanager
def gathered_weights(model: nn.Module) -> Iterator[None]:
    """Have all weights of a sharded model in every process inside the context.

    Passes in it need no other process. All processes enter it together.
    """
    root = root_of(model)
    if root is None:
        yield
        return
    modules = [m for m in root.modules() if hasattr(m, "set_reshard_after_forward")]
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
