"""Weights in nf4: frozen matrices of 4 bits, on which adapters are trained (QLoRA).

Each block of 64 weights has a scale, and the scales are rounded to 8 bits in blocks of 256. The
matrices of the layers are converted; embeddings, norms and the head are not. A pass restores one
matrix at a time in the dtype that it computes in. The conversion is by the package bitsandbytes.
Dettmers et al. 2023 (https://arxiv.org/abs/2305.14314), sect. 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UsageError

BLOCK, SCALES = 64, 256  # weights of a scale, and scales of a second scale
TABLES = 4 * (16 + 256 + 1)  # bytes: the values of 4 and of 8 bits, and the mean of the scales
LEFT = 0.1  # largest share of the layers' weights that may stay unconverted
HALF_STEP = 0.16  # block scales: the largest distance of a weight from its 4-bit value
_SHAPE = "harness_shape"  # an attribute of a packed weight without contents: its shape in the model


def check_installed() -> None:
    """Raise UsageError where the package that converts weights is missing."""
    if find_spec("bitsandbytes") is None:
        raise UsageError(
            "--weights nf4 needs the package bitsandbytes: pip install 'alignment-harness[nf4]'."
        )


def is_packed(p: Tensor) -> bool:
    """Return whether a weight is in nf4."""
    return getattr(p, "quant_state", None) is not None or hasattr(p, _SHAPE)


def holds_packed(model: nn.Module) -> bool:
    """Return whether some weights of a model are in nf4."""
    return any(map(is_packed, model.parameters()))


def numbers_of(p: Tensor) -> int:
    """Return how many weights a tensor holds; a tensor in nf4 has two in a byte."""
    return _shape_of(p).numel()


def bytes_of(p: Tensor) -> int:
    """Return the bytes of a weight; in nf4 with its scales."""
    return packed_bytes(numbers_of(p)) if is_packed(p) else p.nbytes


def packed_bytes(numbers: int) -> int:
    """Return the bytes of a matrix in nf4 with its scales."""
    scales = ceil(numbers / BLOCK)
    return ceil(numbers / 2) + scales + 4 * ceil(scales / SCALES) + TABLES


def _shape_of(p: Any) -> torch.Size:
    state = getattr(p, "quant_state", None)
    shape: torch.Size = getattr(p, _SHAPE, p.shape) if state is None else torch.Size(state.shape)
    return shape


def without_contents(p: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Return a parameter of the same size without contents, on a device."""
    data = torch.empty(p.shape, dtype=p.dtype, device=device)
    blank = nn.Parameter(data, requires_grad=p.requires_grad)
    if is_packed(p):
        setattr(blank, _SHAPE, _shape_of(p))
    return blank


def convertible(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers of a trunk whose matrices can be converted, by name.

    Raises:
        UsageError: Other matrices hold more than a tenth of its weights.
    """
    layers = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    others = {
        name: p
        for module_name, module in model.named_modules()
        if not isinstance(module, nn.Embedding) and module_name not in layers
        for name, p in module.named_parameters(module_name, recurse=False)
        if p.dim() > 1
    }
    left = sum(p.numel() for p in others.values())
    every = left + sum(layer.weight.numel() for layer in layers.values())
    if left > LEFT * every:
        largest = max(others, key=lambda name: others[name].numel())
        raise UsageError(
            f"--weights nf4: {100 * left / every:.0f} % of the weights in the layers of"
            f" {type(model).__name__} are in no linear layer, such as {largest}, and cannot be"
            " converted. Use --weights bfloat16."
        )
    return layers


def packed_size(model: nn.Module, trunk: nn.Module) -> int:
    """Return the bytes that a plain model would take in nf4."""
    layers = {id(layer.weight) for layer in convertible(trunk).values()}
    unique = {id(p): p for p in model.parameters()}
    return sum(packed_bytes(p.numel()) if i in layers else p.nbytes for i, p in unique.items())


def convert(trunk: nn.Module, computes: torch.dtype) -> None:
    """Put the matrices of a trunk in nf4, in place, one layer after the other.

    Args:
        trunk: A causal model without its head, on the CPU.
        computes: The dtype that passes restore a matrix in.

    Raises:
        UsageError: The package is missing, or a matrix cannot be converted.
    """
    check_installed()
    for name, layer in convertible(trunk).items():
        parent, _, last = name.rpartition(".")
        setattr(trunk.get_submodule(parent), last, _converted(name, layer, computes))
    trunk.is_loaded_in_4bit = True  # type: ignore[assignment]  # read by PEFT


def _converted(name: str, layer: nn.Linear, computes: torch.dtype) -> nn.Module:
    """Return a linear layer with its matrix in nf4."""
    from bitsandbytes.nn import Linear4bit

    converted: Any = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=computes,
        quant_type="nf4",
        device="meta",
    )
    kind, weight = type(converted.weight), layer.weight.detach().contiguous()
    converted.weight = kind(weight, requires_grad=False, quant_type="nf4", module=None).to("cpu")
    converted.bias, converted.quant_state = layer.bias, None
    # otherwise a pass in evaluation mode rewrites the matrix in a form that has no gradients
    converted.support_avx512bf16_for_cpu = False
    _check_restored(name, weight, converted.weight)
    return converted  # type: ignore[no-any-return]


def _check_restored(name: str, weight: Tensor, packed: Any) -> None:
    """Refuse a matrix whose 4-bit values are not near its weights.

    If a row is not a multiple of a block, bitsandbytes 0.50 restores it wrongly on a CPU, without
    an error.
    """
    block = weight.float().flatten()
    block = nn.functional.pad(block, (0, -len(block) % BLOCK)).view(-1, BLOCK)
    allowed = float(block.abs().amax(1).max()) * HALF_STEP
    off = float((_restored(packed).float() - weight.float()).abs().max())
    if not off <= 1.1 * allowed + 1e-12:
        raise UsageError(
            f"--weights nf4: the installed bitsandbytes does not restore the matrix {name} of shape"
            f" {tuple(weight.shape)}: a weight is off by {off:.2g}. It needs rows of a multiple of"
            f" {BLOCK} weights. Use --weights bfloat16."
        )


def _restored(packed: Any) -> Tensor:
    """Return the values of a matrix in nf4, in the dtype that it had before."""
    from bitsandbytes.functional import dequantize_4bit

    values: Tensor = dequantize_4bit(packed.data, packed.quant_state)
    return values


@torch.no_grad()
def restore(model: nn.Module) -> nn.Module:
    """Give a model's matrices in nf4 the dtype that they had before, in place; return the model."""
    for name, module in list(model.named_modules()):
        weight: Any = getattr(module, "weight", None)
        if weight is None or getattr(weight, "quant_state", None) is None:
            continue
        rows, columns = weight.quant_state.shape
        plain = nn.Linear(columns, rows, bias=module.bias is not None, device="meta")
        plain.weight = nn.Parameter(_restored(weight), requires_grad=False)
        plain.bias = module.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain.eval())
    vars(getattr(model, "base_model", model)).pop("is_loaded_in_4bit", None)
    return model


@contextmanager
def restoring_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Have passes restore matrices in a dtype inside the context."""
    layers: list[Any] = [m for m in model.modules() if is_packed(getattr(m, "weight", _NONE))]
    before = [layer.compute_dtype for layer in layers]
    try:
        for layer in layers:
            layer.compute_dtype = dtype
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.compute_dtype = was


_NONE = torch.empty(0)
