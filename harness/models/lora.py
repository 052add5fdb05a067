"""LoRA: a policy that shares the start checkpoint's weights and trains low-rank matrices.

The policy is a second module over the tensors of the frozen start checkpoint. Every linear layer
but the head gets a low-rank update, and only the updates are trained. So a reference takes no extra
memory. The layers are PEFT's. Hu et al. 2021
(https://arxiv.org/abs/2106.09685), eq. 3.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    pass

OWN = "lora_"  # in the name of every tensor of an adapter


def beside(model: nn.Module, rank: int, alpha: float, seed: int) -> nn.Module:
    """Return a causal model over the weights of a frozen one, with an adapter of output 0.

    y = W x + (alpha / rank) B A x; A is drawn as PEFT draws it, from the seed, and B is 0.
    """
    from peft import LoraConfig, inject_adapter_in_model

    same: dict[int, Any] = {id(p): p for p in model.parameters()}
    over = copy.deepcopy(model, same)
    vars(over).pop("forward_cost", None)  # that of the model without adapter
    vars(over)["lender"] = lambda: (
        model
    )  # keeps the start checkpoint in memory, so that it is not read again
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")  # type: ignore[arg-type]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PEFT warns that GPT-2's layers are transposed, and handles them
        torch.manual_seed(seed)
        inject_adapter_in_model(config, over)
    return over.eval()


def adapted(model: nn.Module) -> bool:
    """Return whether a model has an adapter."""
    return hasattr(model, "peft_config")


def unchanged(model: nn.Module) -> bool:
    """Return whether an adapter still changes nothing."""
    return not any(p.any() for name, p in model.named_parameters() if f"{OWN}B" in name)


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a model does not share: an adapter's, or all."""
    state = model.state_dict()
    return {name: t for name, t in state.items() if OWN in name} if adapted(model) else state


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
