"""What LoRA adds to the weights of a base: merged into them, described, and written to files."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.model_folder import ADAPTER_WEIGHTS
from .lora import (
    OWN,
    WRAPPED,
    adapted,
    adapter_of,
    base_of,
    is_layer,
    lora_on,
    lora_trunk,
    own_state,
    plain_state,
    without_adapters,
)
from .nf4 import restore
from .sharded_tensors import sharded_as
from .tensor_files import as_dtype, save_tensors


@dataclass(frozen=True)
class Adaptation:
    """What the adapter of a model changes: counts of matrices by the last parts of their names."""

    rank: int
    alpha: float
    adapted: Mapping[str, int]
    untouched: Mapping[str, int]  # matrices without an adapter; embeddings and head never have one

    def __str__(self) -> str:
        """Return one or two sentences for a user."""
        text = f"LoRA of rank {self.rank} adapts {_listed(self.adapted)}."
        if self.untouched:
            text += f" It leaves as they are: {_listed(self.untouched)}."
        return text


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Return the base of a model with its adapter added to the weights; other models as they are.

    The base is changed, and has no adapters any more. Matrices in nf4 are restored.
    """
    if not adapted(model):
        return model
    added = dict(deltas(model))
    plain = restore(without_adapters(base_of(model)))
    for name, delta in added.items():
        weight = plain.get_parameter(name)
        weight.add_(sharded_as(delta, weight))
    return plain


@torch.no_grad()
def whole_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a causal model by their names in hub format, its adapter merged."""
    base = base_of(model) if adapted(model) else model
    added = dict(deltas(model)) if adapted(model) else {}
    for name, tensor in plain_state(base).items():
        name = name.replace(WRAPPED, "")  # layers stay wrapped when their last adapter has ended
        yield name, tensor + added[name].to(tensor) if name in added else tensor


def deltas(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield for each adapted matrix its name in the plain model, and what the adapter adds."""
    for name, layer in _adapted_weights(model):
        yield name, layer.get_delta_weight(adapter_of(model))


def _adapted_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield for each adapted matrix its name in the plain model, and PEFT's layer around it."""
    for name, layer in model.named_modules():
        if is_layer(layer) and adapter_of(model) in layer.lora_A:
            weight = getattr(layer, "parameter_name", "weight")  # stacked experts have other names
            yield f"{name.replace(WRAPPED, '')}.{weight}", layer


def adaptation(model: nn.Module) -> Adaptation | None:
    """Return what a model's adapter changes, or None where it has none."""
    lora = lora_on(model)
    if lora is None:
        return None
    names = [name for name, _ in _adapted_weights(model)]
    head = model.get_output_embeddings()  # type: ignore[operator]
    matrices = [
        f"{name.replace(WRAPPED, '')}.{weight}"
        for name, module in model.named_modules()
        if not isinstance(module, nn.Embedding) and module is not head and OWN not in name
        for weight, p in module.named_parameters(recurse=False)
        if p.dim() > 1
    ]
    untouched = [name for name in matrices if name not in names]
    return Adaptation(lora.rank, lora.alpha, _by_ending(names), _by_ending(untouched))


def _by_ending(names: list[str]) -> dict[str, int]:
    """Return {the last two parts of a name, without `.weight`: how many have them}."""
    parts = [name.removesuffix(".weight").split(".")[-2:] for name in names]
    return dict(Counter(".".join(part) for part in parts))


# -- files -----------------------------------------------------------------------------------------


def rounded(model: nn.Module, dtype: str) -> None:
    """Round the tensors that a model does not share to a dtype; in memory they keep their own."""
    with torch.no_grad():
        for tensor in own_state(model).values():
            tensor.copy_(as_dtype(tensor, dtype))


def save_adapter(model: nn.Module, base: str, folder: Path, dtype: str = "") -> None:
    """Write a model's adapter in PEFT's format; `peft.PeftModel.from_pretrained` loads it.

    Args:
        model: A causal model with an adapter.
        base: The folder or hub id of the base model, which the file of the adapter names.
        folder: A new folder.
        dtype: The dtype of the file; empty: the dtype in memory.
    """
    known: Any = lora_trunk(model).peft_config
    config: Any = copy.deepcopy(known[adapter_of(model)])
    config.base_model_name_or_path, config.task_type = base, "CAUSAL_LM"
    config.inference_mode = True
    tensors = {
        f"base_model.model.{name.replace('.default', '')}": as_dtype(t, dtype) if dtype else t
        for name, t in own_state(model).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_tensors(tensors, folder / ADAPTER_WEIGHTS)
