"""LoRA: models that share one frozen base and train low-rank matrices of their own.

Every linear layer of the base but the head gets a low-rank update for each adapter, and only the
updates are trained. A model is the base with one of the adapters switched on. The reference is the
base with all of them off. So policy, reference, critic and reward models share one module and one
set of base weights. The layers are PEFT's. Hu et al. 2021 (https://arxiv.org/abs/2106.09685), eq.
3.
"""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .sharded_tensors import sharded_as

M = TypeVar("M", bound=nn.Module)
OWN = "lora_"  # in the name of every tensor of an adapter
_OWNER = re.compile(r"(?<=\.)(lora_\w+\.)([^.]+)")  # an adapter's part and name
WRAPPED = ".base_layer"  # in the name of a weight below PEFT's layers
# attributes of an adapted trunk: its adapters, PEFT's layers, and the adapter that is switched on
_ADAPTERS, _LAYERS, _ON = "harness_adapters", "harness_layers", "harness_adapter_on"
_NAME, _BASE = "harness_adapter", "harness_base"  # attributes of a model with an adapter


@dataclass(frozen=True)
class Lora:
    """How an adapter is made.

    Attributes:
        rank: The rank of each matrix's update.
        alpha: The update's scale times the rank.
        seed: Decides the initial values.
        role: Begins the adapter's name.
    """

    rank: int
    alpha: float
    seed: int
    role: str = "policy"


class Adapted(nn.Module):
    """A causal model with one adapter switched on, over a base that others use too.

    It has the interface of the base. Its parameters are those of the base and of its adapter.
    """

    def __init__(self, base: nn.Module, name: str) -> None:
        super().__init__()
        bind(self, base, lora_trunk(base), name)

    @property
    def base(self) -> Any:
        """The causal model below the adapter."""
        return base_of(self)

    @property
    def base_model(self) -> nn.Module:
        """The trunk of the base."""
        trunk: nn.Module = self.base.base_model
        return trunk

    @property
    def config(self) -> Any:
        """The configuration of the base."""
        return self.base.config

    def get_output_embeddings(self) -> nn.Module:
        """Return the head of the base."""
        head: nn.Module = self.base.get_output_embeddings()
        return head

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base with the adapter on."""
        with switched(self.base_model, adapter_of(self)):
            return self.base(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules of the base, without those of other adapters."""
        return _not_of(self.base.named_modules(*args, **kwargs), _others(self))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the base and of the adapter."""
        return _not_of(self.base.named_parameters(*args, **kwargs), _others(self))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tensors of the base and of the adapter."""
        state = self.base.state_dict(*args, **kwargs)
        return dict(_not_of(state.items(), _others(self)))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.base._apply(fn, recurse)  # dtype and device are those of the base
        return self


# -- adapters of a base ----------------------------------------------------------------------------


def beside(model: nn.Module, lora: Lora) -> Adapted:
    """Return a causal model that is a frozen one with a new adapter of output 0.

    y = W x + (alpha / rank) B A x; A is drawn as PEFT draws it, from the seed, and B is 0. PEFT
    also adapts the stacked weights of experts, where it knows the architecture. The adapter is
    float32, whatever the weights are. It is removed when the returned model is no longer used.
    """
    trunk: nn.Module = model.base_model  # type: ignore[assignment]
    return Adapted(model, attach(trunk, lora))


def attach(trunk: nn.Module, lora: Lora) -> str:
    """Add an adapter of output 0 to a trunk, switched off; return its name."""
    from peft import LoraConfig, inject_adapter_in_model

    adapters = vars(trunk).setdefault(_ADAPTERS, {})
    names = (f"{lora.role}{i or ''}" for i in range(len(adapters) + 1))
    name = next(name for name in names if name not in adapters)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        exclude_modules=_routers(trunk) or None,
    )
    learned = {p: p.requires_grad for p in trunk.parameters()}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PEFT warns that GPT-2's layers are transposed, and handles them
        torch.manual_seed(lora.seed)
        inject_adapter_in_model(config, trunk, name)
    for p, was in learned.items():  # PEFT trains only the newest adapter
        p.requires_grad_(was)
    for key, p in trunk.named_parameters():  # PEFT uses the dtype of its weight
        if _owner(key) == name:
            p.data = p.data.float()
            p.requires_grad_(True)
    adapters[name] = lora
    vars(trunk)[_LAYERS] = [m for m in trunk.modules() if is_layer(m)]
    trunk.eval()
    _switch(trunk, vars(trunk).get(_ON))
    return name


def bind(model: nn.Module, base: nn.Module, trunk: nn.Module, name: str) -> None:
    """Make a model stand for a base with an adapter on, and remove the adapter with the model.

    Args:
        model: The model.
        base: The module that shares its weights with the model; it stays in memory with it.
        trunk: The trunk that has the adapter.
        name: The adapter's name.
    """
    vars(model)[_NAME], vars(model)[_BASE] = name, lambda: base  # not as a submodule of the model
    weakref.finalize(model, _remove, trunk, name).atexit = False


def share_adapter(model: nn.Module, other: nn.Module) -> None:
    """Let a model on the same trunk use the adapter of another model, which keeps owning it."""
    if adapted(other):
        vars(model)[_NAME], vars(model)[_BASE] = adapter_of(other), lambda: other


def lora_trunk(model: nn.Module) -> nn.Module:
    """Return the trunk of a causal or scalar model, or the module itself."""
    trunk: nn.Module = getattr(model, "trunk", getattr(model, "base_model", model))
    return trunk


def _routers(model: nn.Module) -> list[str]:
    """Return the linear layers that return more than a product: PEFT cannot wrap them."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "Router" in type(module).__name__
    ]


def _remove(trunk: nn.Module, name: str) -> None:
    """Free the tensors of an adapter."""
    vars(trunk).get(_ADAPTERS, {}).pop(name, None)
    getattr(trunk, "peft_config", {}).pop(name, None)
    for layer in vars(trunk).get(_LAYERS, []):
        for part in (*layer.adapter_layer_names, *layer.other_param_names):
            held = getattr(layer, part, None)
            if held is not None and name in held:
                del held[name]


@contextmanager
def switched(trunk: nn.Module, name: str | None) -> Iterator[None]:
    """Have one adapter of a trunk on inside the context, and the others off; None: all off."""
    before = vars(trunk).get(_ON)
    if _LAYERS not in vars(trunk) or before == name:
        yield
        return
    _switch(trunk, name)
    try:
        yield
    finally:
        _switch(trunk, before)


def switched_on(trunk: nn.Module) -> str | None:
    """Return the name of the adapter that is on; None where all are off, or none exists."""
    name: str | None = vars(trunk).get(_ON)
    return name


def _switch(trunk: nn.Module, name: str | None) -> None:
    for layer in vars(trunk)[_LAYERS]:  # as PEFT's `set_adapter`, without changing gradients
        layer._disable_adapters = name is None
        layer._active_adapter = [] if name is None else [name]
    vars(trunk)[_ON] = name


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is PEFT's layer around a matrix."""
    return hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")


# -- models ----------------------------------------------------------------------------------------


def adapter_of(model: nn.Module) -> str | None:
    """Return the name of the adapter that a model has switched on; None where it has none."""
    name: str | None = vars(model).get(_NAME)
    return name


def adapted(model: nn.Module) -> bool:
    """Return whether a model has an adapter that the harness made."""
    return adapter_of(model) is not None


def base_of(model: nn.Module) -> nn.Module:
    """Return the module below a model's adapter; the model itself where it has none."""
    base: Callable[[], nn.Module] = vars(model).get(_BASE, lambda: model)
    return base()


def carries(model: nn.Module) -> bool:
    """Return whether a causal model is itself the base of adapters."""
    return bool(vars(lora_trunk(model)).get(_ADAPTERS))


def lora_on(model: nn.Module) -> Lora | None:
    """Return how a model's adapter was made; None where it has none."""
    lora: Lora | None = vars(lora_trunk(model)).get(_ADAPTERS, {}).get(adapter_of(model))
    return lora


def own_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model's trunk, without those of other adapters."""
    return [module for _, module in _not_of(lora_trunk(model).named_modules(), _others(model))]


def _others(model: nn.Module) -> set[str]:
    """Return the adapters on a model's trunk that are not the model's."""
    return set(vars(lora_trunk(model)).get(_ADAPTERS, ())) - {adapter_of(model)}


def _owner(name: str) -> str | None:
    """Return the adapter that a module or a parameter belongs to by its name."""
    match = _OWNER.search(f".{name}")
    return match[2] if match else None


def _not_of(named: Iterable[tuple[str, Any]], adapters: set[str]) -> Iterator[Any]:
    return ((name, one) for name, one in named if _owner(name) not in adapters)


def held(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that a model uses, by name."""
    return _not_of(model.named_parameters(), _others(model))


def own(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a model shares with no other: an adapter's and a head's, or all.

    The names do not depend on the adapter's name.
    """
    adapter = adapter_of(model)
    if adapter is None:
        return dict(held(model))
    shared = set(base_of(model).parameters()) - {
        p for name, p in model.named_parameters() if _owner(name) == adapter
    }
    return {
        _OWNER.sub(r"\1default", name): p for name, p in model.named_parameters() if p not in shared
    }


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a model does not share: an adapter's and a head's, or all."""
    if adapted(model):
        return {name: p.detach() for name, p in own(model).items()}
    return plain_state(model)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model that is not adapted, by the names they have without others'
    adapters.
    """
    state: dict[str, Tensor] = model.state_dict()
    if not carries(model):
        return state
    kept = _not_of(state.items(), _others(model))
    return {name.replace(WRAPPED, ""): tensor for name, tensor in kept}


@torch.no_grad()
def load_own(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of `own_state`; raise RuntimeError if it is of another model.

    A process takes its own rows of what is sharded in the model.
    """
    if not adapted(model):
        there = model.state_dict()
        model.load_state_dict({n: sharded_as(t, there.get(n)) for n, t in state.items()})
        return
    mine = own(model)
    if mine.keys() != state.keys():
        raise RuntimeError("these are not the tensors of this adapter")
    for name, p in mine.items():
        p.copy_(state[name])


def learn(model: M, yes: bool = True) -> M:
    """Return a model with gradients for its own parameters: an adapter and a head, or all."""
    for p in own(model).values():
        p.requires_grad_(yes)
    return model


def size_of_own(model: nn.Module) -> tuple[int, int]:
    """Return (parameters, bytes) of a model's own tensors; 0 for a base without tensors of its
    own.
    """
    mine = own(model).values() if adapted(model) else []
    return sum(p.numel() for p in mine), sum(p.nbytes for p in mine)


def unchanged(model: nn.Module) -> bool:
    """Return whether an adapter's update is still zero."""
    return not any(p.any() for name, p in own(model).items() if f"{OWN}B" in name)


# -- removing --------------------------------------------------------------------------------------


def without_adapters(model: nn.Module) -> nn.Module:
    """Return a causal model after removing PEFT's layers from it."""
    trunk = lora_trunk(model)
    if _LAYERS in vars(trunk):
        _unwrap(trunk)
        for attribute in (_ADAPTERS, _LAYERS, _ON, "peft_config"):
            vars(trunk).pop(attribute, None)
    return model


def _unwrap(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if is_layer(child):
            child = child.get_base_layer()  # type: ignore[operator]
            setattr(module, name, child)
        _unwrap(child)
