"""Load, copy and save models; the scalar model behind reward models and critics."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from ..core.files import write_json, writing
from ..core.spec import NF4
from .hub_format import load_tokenizer as load_tokenizer
from .hub_format import read_model
from .lora import (
    Lora,
    adapted,
    adapter_of,
    attach,
    bind,
    held,
    plain_state,
    share_adapter,
    switched,
    without_adapters,
)
from .lora_weights import deltas
from .nf4 import bytes_of, convert, numbers_of, restore, without_contents
from .sharded_tensors import gathered, own_part
from .tensor_files import as_dtype as as_dtype
from .tensor_files import load_tensors as load_tensors
from .tensor_files import save_tensors as save_tensors


@dataclass(frozen=True)
class Arithmetic:
    """The dtypes of a model, by name.

    Attributes:
        compute: Of every forward pass: float32 or bfloat16.
        weights: In memory: float32, bfloat16, or nf4 for the matrices of the layers.
    """

    compute: str = "float32"
    weights: str = "float32"

    @property
    def read(self) -> torch.dtype:
        """The dtype that weights are read in. With nf4, weights outside the layers keep it."""
        dtype: torch.dtype = getattr(torch, self.compute if self.weights == NF4 else self.weights)
        return dtype


FLOAT32 = Arithmetic()


def load_causal(name: str | Path, arithmetic: Arithmetic = FLOAT32) -> nn.Module:
    """Return the causal language model of a folder or hub id, from safetensors only, dropout off.

    A PEFT adapter is merged into its base model.

    Copies inherit the arithmetic, so old, new and reference log-probabilities agree.
    """
    model = read_model(name, arithmetic.read)
    trunk_of(model).compute_dtype = getattr(torch, arithmetic.compute)
    if arithmetic.weights == NF4:
        convert(trunk_of(model), getattr(torch, arithmetic.compute))
        in_memory(model)  # a weight that is not copied would keep the whole file mapped
    return frozen(model)


def in_memory(model: nn.Module) -> nn.Module:
    """Return the model with every weight copied out of the memory-mapped file.

    The alignment of weights can change rounding. After this, loaded and copied models are equal.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@contextmanager
def computing(model: nn.Module) -> Iterator[None]:
    """Enter the context of a model's forward passes: its adapter is on, and no other.

    A model that computes in bf16 has autocast.
    """
    trunk = model.trunk if isinstance(model, ScalarModel) else getattr(model, "base_model", model)
    dtype = getattr(trunk, "compute_dtype", torch.float32)
    with ExitStack() as stack:
        stack.enter_context(switched(trunk, adapter_of(model)))
        if dtype != torch.float32:
            device = next(model.parameters()).device.type
            stack.enter_context(torch.autocast(device, dtype=dtype))
        yield


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Make autocast cache its casts of frozen weights, as it does for trainable ones.

    For passes without gradients. The cache is freed when the outermost `computing` ends.
    """
    frozen_ones = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    frozen_ones = [p for p in frozen_ones if torch.is_autocast_enabled(p.device.type)]
    for p in frozen_ones:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen_ones:
            p.requires_grad_(False)


def save_causal(
    model: nn.Module, tokenizer: Any, folder: Path, dtype: str = "", writes: bool = True
) -> None:
    """Write model and tokenizer in hub format (safetensors), in a dtype or that of the weights.

    Sharded weights are gathered one after another, so all processes call this. Those that do not
    write keep none of them.
    """
    dtype = dtype or str(next(model.parameters()).dtype).removeprefix("torch.")
    cast: dict[int, Tensor] = {}  # tied weights stay one tensor
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in cast:
            whole = gathered(tensor.detach())
            cast[id(tensor)] = as_dtype(whole, dtype) if writes else tensor
        state[name] = cast[id(tensor)]
    if not writes:
        return
    size = sum(tensor.nbytes for tensor in cast.values())
    with writing(folder, size):
        model.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
    config = folder / "config.json"
    if config.is_file():  # transformers writes it in the main process only
        write_json(config, json.loads(config.read_text(encoding="utf-8")) | {"dtype": dtype})
    tokenizer.save_pretrained(folder)


def frozen(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode, without gradients.

    Dropout is never on.
    """
    return model.eval().requires_grad_(False)


def learning(model: nn.Module) -> nn.Module:
    """Return the model with gradients on and dropout off, so that the ratio at step 0 is 1."""
    model.eval()
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())  # 4-bit matrices are never trained
    return model


def trainable(model: nn.Module) -> nn.Module:
    """Return a copy of the model that takes gradients."""
    return learning(copy.deepcopy(model))


def unfilled(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy with uninitialised parameters; on the device "meta" they take no memory."""
    blank: dict[int, Any] = {id(p): without_contents(p, device) for p in model.parameters()}
    return copy.deepcopy(model, blank)


def trunk_of(model: nn.Module) -> nn.Module:
    """Return a causal model without its head: token ids to hidden states."""
    trunk: nn.Module = model.base_model  # type: ignore[assignment]
    if trunk is model:
        raise UsageError(
            f"{type(model).__name__} has no separate trunk (`base_model`): no reward model can be"
            " built."
        )
    return trunk


class ScalarModel(nn.Module):
    """A trunk and a linear head: one number per position. Reward models and critics are scalar
    models.
    """

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)

    def initialise(self, seed: int, std: float | None = None) -> ScalarModel:
        """Draw the head from N(0, 1 / (d + 1)) (2403.17031, sect. 4), or with another std."""
        width = self.head.in_features
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(1, width, generator=generator) * (
            1 / math.sqrt(width + 1) if std is None else std
        )
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.zero_()
        return self

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return (R, S) scalars from token ids (R, S)."""
        return self.scalars(self.trunk(**inputs, use_cache=False).last_hidden_state)

    def scalars(self, hidden: Tensor) -> Tensor:
        """Return (...,) float32 scalars of hidden states (..., d); bfloat16 would round them."""
        with torch.autocast(hidden.device.type, enabled=False):
            scalars: Tensor = self.head(hidden.to(self.head.weight.dtype))[..., 0]
        return scalars


def scalar_on(causal: nn.Module) -> ScalarModel:
    """Return a scalar model on a causal model's trunk, with its adapter and without its head."""
    model = ScalarModel(trunk_of(causal), hidden_size(causal)).to(next(causal.parameters()).device)
    share_adapter(model, causal)
    return model


def scalar_beside(holder: nn.Module, lora: Lora) -> ScalarModel:
    """Return a scalar model on another model's trunk, with a new adapter of output 0.

    Args:
        holder: A causal or scalar model, which keeps its trunk; its own adapter is not used.
        lora: The adapter.
    """
    trunk = holder.trunk if isinstance(holder, ScalarModel) else trunk_of(holder)
    width = int(trunk.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]
    model = ScalarModel(trunk, width)
    model.head.to(next(trunk.parameters()).device)
    bind(model, holder, trunk, attach(trunk, lora))
    return model


def scalar_from(causal: nn.Module) -> ScalarModel:
    """Return a scalar model on a copy of a causal model's trunk."""
    return ScalarModel(copy.deepcopy(trunk_of(causal)), hidden_size(causal)).to(
        next(causal.parameters()).device
    )


def plain_scalar(model: ScalarModel) -> ScalarModel:
    """Return a copy of a scalar model, with the adapter merged into its trunk."""
    added = dict(deltas(model)) if adapted(model) else {}
    trunk = restore(without_adapters(copy.deepcopy(model.trunk)))
    plain = ScalarModel(trunk, model.head.in_features).to(model.head.weight.device)
    plain.head.load_state_dict(model.head.state_dict())
    for name, delta in added.items():
        plain.get_parameter(name).data += delta
    return plain.eval()


def hidden_size(model: nn.Module) -> int:
    """Return the width of the hidden states."""
    return int(model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 over names, shapes and bytes of the parameters, without adapters.

    Sharded ones are gathered one after another, so all processes call this.
    """
    whole = hashlib.sha256()
    for name, tensor in sorted(plain_state(model).items()):
        whole.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = gathered(tensor.detach()).cpu().contiguous().view(-1)
        whole.update(flat.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def size_of(model: nn.Module) -> tuple[int, int]:
    """Return (parameters, bytes) of a model, shared tensors once, without others' adapters."""
    unique = {
        (own_part(p).untyped_storage()._cdata, own_part(p).storage_offset()): p
        for _, p in held(model)
    }.values()  # on meta, too
    return sum(numbers_of(p) for p in unique), sum(bytes_of(p) for p in unique)
