"""LoRA: a policy that shares the start checkpoint's weights and trains low-rank matrices.

The policy is a second module over the tensors of the frozen start checkpoint. Every linear layer
but the head gets a low-rank update, and only the updates are trained. So a reference takes no extra
memory. The layers are PEFT's. Hu et al. 2021
(https://arxiv.org/abs/2106.09685), eq. 3.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.model_folder import ADAPTER_WEIGHTS
from .loading import as_dtype, save_tensors

OWN = "lora_"  # in the name of every tensor of an adapter
_MARK = "harness_adapter"  # PEFT's `peft_config` is also on models that others have adapted


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


def beside(model: nn.Module, rank: int, alpha: float, seed: int) -> nn.Module:
    """Return a causal model over the weights of a frozen one, with an adapter of output 0.

    y = W x + (alpha / rank) B A x; A is drawn as PEFT draws it, from the seed, and B is 0. PEFT
    also adapts the stacked weights of experts, where it knows the architecture. The adapter is
    float32, whatever the weights are.
    """
    from peft import LoraConfig, inject_adapter_in_model

    same: dict[int, Any] = {id(p): p for p in model.parameters()}
    over = copy.deepcopy(model, same)
    vars(over).pop("forward_cost", None)  # that of the model without adapter
    vars(over)["lender"] = lambda: (
        model
    )  # keeps the start checkpoint in memory, so that it is not read again
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        exclude_modules=_routers(over) or None,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PEFT warns that GPT-2's layers are transposed, and handles them
        torch.manual_seed(seed)
        inject_adapter_in_model(config, over)
    for name, p in over.named_parameters():  # PEFT gives it the dtype of the weight below it
        if OWN in name:
            p.data = p.data.float()
    vars(over)[_MARK] = (rank, alpha)
    return over.eval()


def _routers(model: nn.Module) -> list[str]:
    """Return the linear layers that return more than a product: PEFT cannot wrap them."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "Router" in type(module).__name__
    ]


def adapted(model: nn.Module) -> bool:
    """Return whether a model has an adapter that `beside` made."""
    return _MARK in vars(model)


def deltas(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield for each adapted matrix its name in the plain model, and what the adapter adds."""
    for name, layer in _adapted_weights(model):
        yield name, layer.get_delta_weight("default")


def _adapted_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield for each adapted matrix its name in the plain model, and PEFT's layer around it."""
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            weight = getattr(layer, "parameter_name", "weight")  # stacked experts have other names
            yield f"{name.replace('.base_layer', '')}.{weight}", layer


def adaptation(model: nn.Module) -> Adaptation | None:
    """Return what a model's adapter changes, or None where it has none."""
    if not adapted(model):
        return None
    names = [name for name, _ in _adapted_weights(model)]
    head = model.get_output_embeddings()  # type: ignore[operator]
    matrices = [
        f"{name.replace('.base_layer', '')}.{weight}"
        for name, module in model.named_modules()
        if not isinstance(module, nn.Embedding) and module is not head and OWN not in name
        for weight, p in module.named_parameters(recurse=False)
        if p.dim() > 1
    ]
    untouched = [name for name in matrices if name not in names]
    rank, alpha = vars(model)[_MARK]
    return Adaptation(rank, alpha, _by_ending(names), _by_ending(untouched))


def _by_ending(names: list[str]) -> dict[str, int]:
    """Return {the last two parts of a name, without `.weight`: how many have them}."""
    parts = [name.removesuffix(".weight").split(".")[-2:] for name in names]
    return dict(Counter(".".join(part) for part in parts))


def unchanged(model: nn.Module) -> bool:
    """Return whether an adapter still changes nothing."""
    return not any(p.any() for name, p in model.named_parameters() if f"{OWN}B" in name)


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a model does not share: an adapter's, or all."""
    state = model.state_dict()
    return {name: t for name, t in state.items() if OWN in name} if adapted(model) else state


def rounded(model: nn.Module, dtype: str) -> None:
    """Round the tensors that a model does not share to a dtype; in memory they keep their own."""
    with torch.no_grad():
        for tensor in own_state(model).values():
            tensor.copy_(as_dtype(tensor, dtype))


def save_adapter(model: nn.Module, base: str, folder: Path, dtype: str = "") -> None:
    """Write a model's adapter in PEFT's format; `peft.PeftModel.from_pretrained` loads it.

    Args:
        model: A model with an adapter.
        base: The folder or hub id of the base model, which the file of the adapter names.
        folder: A new folder.
        dtype: What the matrices are written in; empty: as they are in memory.
    """
    from peft import get_peft_model_state_dict

    config: Any = copy.deepcopy(model.peft_config["default"])  # type: ignore[index]
    config.base_model_name_or_path, config.task_type = base, "CAUSAL_LM"
    config.inference_mode = True
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {
        f"base_model.model.{name}": as_dtype(t, dtype) if dtype else t for name, t in state.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_tensors(tensors, folder / ADAPTER_WEIGHTS)


def load_own(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of `own_state`; raise RuntimeError if it is of another model."""
    if not adapted(model):
        model.load_state_dict(state)
    elif own_state(model).keys() != state.keys():
        raise RuntimeError("these are not the tensors of this adapter")
    else:
        model.load_state_dict(state, strict=False)


def size_of_adapter(model: nn.Module) -> tuple[int, int]:
    """Return (parameters, bytes) of a model's adapter, 0 where it has none."""
    own = [p for name, p in model.named_parameters() if OWN in name]
    return sum(p.numel() for p in own), sum(p.nbytes for p in own)
