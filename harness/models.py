"""Load, copy and save models; the scalar model behind reward models and critics; what a model costs to run."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import UsageError

HUB_HINT = "A folder in Hugging Face format (config.json, *.safetensors, tokenizer files) or a hub id was expected."


def load_tokenizer(name: str | Path) -> Any:
    """Return the tokenizer of a folder or hub id. No code from the hub is executed."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {name}: no tokenizer could be loaded. {HUB_HINT} ({_first_line(error)})") from error


def load_causal(name: str | Path, compute: str = "float32") -> nn.Module:
    """Return the causal language model of a folder or hub id, from safetensors only, dropout off.

    Weights are float32; `compute` is the type of every forward pass, whoever runs it: copies inherit it, and so old,
    new and reference log-probabilities come from the same arithmetic.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            str(name), dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"--model {name}: no model could be loaded. {HUB_HINT} ({_first_line(error)})") from error
    trunk_of(model).compute_dtype = getattr(torch, compute)
    return frozen(model)


def in_memory(model: nn.Module) -> nn.Module:
    """Return the model, every weight in memory of its own: as read they lie in a mapped file, as its header has it.

    Rounding can tell how they lie. What is trained lies the same whether it was read or copied.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def computing(model: nn.Module) -> AbstractContextManager[Any]:
    """Return the context in which a causal or scalar model's forward passes run: autocast, if it computes in bf16."""
    trunk = model.trunk if isinstance(model, ScalarModel) else getattr(model, "base_model", model)
    dtype = getattr(trunk, "compute_dtype", torch.float32)
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=dtype)


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Have autocast keep its copies of the weights inside `computing`: it keeps those of what takes gradients only.

    For passes without gradients. The copies are gone when the outermost `computing` ends.
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


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Have a causal model compute in float32 for a while, where rounding would hide what is looked for."""
    trunk: Any = trunk_of(model)
    before = getattr(trunk, "compute_dtype", torch.float32)
    trunk.compute_dtype = torch.float32
    try:
        yield
    finally:
        trunk.compute_dtype = before


def save_causal(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer in hub format (safetensors)."""
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)


def frozen(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode, without gradients. Nothing here ever runs with dropout on."""
    return model.eval().requires_grad_(False)


def learning(model: nn.Module) -> nn.Module:
    """Return the model, which now takes gradients, dropout still off (a ratio at step 0 must be exactly 1)."""
    return model.eval().requires_grad_(True)


def trainable(model: nn.Module) -> nn.Module:
    """Return a copy of the model that takes gradients."""
    return learning(copy.deepcopy(model))


def unfilled(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a module whose parameters hold no numbers yet; on the device "meta" they take no memory."""
    blank: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device=device), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, blank)


def trunk_of(model: nn.Module) -> nn.Module:
    """Return a causal model without its head: token ids to hidden states."""
    trunk: nn.Module = model.base_model  # type: ignore[assignment]
    if trunk is model:
        raise UsageError(f"{type(model).__name__} has no separate trunk (`base_model`): no reward model can be built.")
    return trunk


class ScalarModel(nn.Module):
    """A trunk and a linear head: one number per position. Behind reward models and critics."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)

    def initialise(self, seed: int, std: float | None = None) -> ScalarModel:
        """Draw the head from N(0, 1 / (d + 1)) (2403.17031, sect. 4) or with another std; 0 starts every value at 0."""
        width = self.head.in_features
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(1, width, generator=generator) * (1 / math.sqrt(width + 1) if std is None else std)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.zero_()
        return self

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return (R, S) scalars from token ids (R, S)."""
        hidden = self.trunk(**inputs, use_cache=False).last_hidden_state
        scalars: Tensor = self.head(hidden)[..., 0]
        return scalars


def scalar_on(causal: nn.Module) -> ScalarModel:
    """Return a scalar model on a causal model's own trunk, whose head is left behind."""
    return ScalarModel(trunk_of(causal), hidden_size(causal)).to(next(causal.parameters()).device)


def scalar_from(causal: nn.Module) -> ScalarModel:
    """Return a scalar model on a copy of a causal model's trunk."""
    return ScalarModel(copy.deepcopy(trunk_of(causal)), hidden_size(causal)).to(next(causal.parameters()).device)


def hidden_size(model: nn.Module) -> int:
    """Return the width of the hidden states."""
    return int(model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors; tensors that share memory are written once each."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read named tensors."""
    return load_file(path, device=str(device))


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 over names, shapes and bytes of the parameters."""
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def size_of(model: nn.Module) -> tuple[int, int]:
    """Return (parameters, bytes) of a model, shared tensors counted once."""
    unique = {(p.untyped_storage()._cdata, p.storage_offset()): p for p in model.parameters()}.values()  # on meta, too
    return sum(p.numel() for p in unique), sum(p.numel() * p.element_size() for p in unique)


@dataclass(frozen=True)
class LastParts:
    """The modules of a trunk's last layer, by name within it, that its attention is handed something by."""

    before: tuple[str, ...]  # all that run before the attention
    keys: tuple[str, ...]  # of these, what keys or values depend on
    queries: tuple[str, ...]  # what queries depend on


@dataclass(frozen=True)
class LastCost:
    """Weights of the last layer that a token is multiplied with, in the parts of `LastParts`; FLOPs per pair."""

    weights: int
    before: int
    keys: int
    queries: int
    attention: int


@dataclass(frozen=True)
class Passed:
    """How many tokens, read heads and pairs of query and key a pass computes, and how many in the last layer."""

    tokens: int
    head: int
    pairs: int
    read: int
    read_pairs: int


@dataclass(frozen=True)
class ForwardCost:
    """FLOPs of a forward pass from its shapes. Linear layers, the head, and full (not causal) attention are counted.

    Not counted: what grows with neither weights nor pairs of tokens (norms, activations, the scan of a state space).

    `linear` and `head` are weights touched per token; `attention` is FLOPs per (query, key) pair. Training costs three
    forwards: one, and two for the gradients of activations and weights. `last` is the last layer's part of it, where
    that computes only the states that are read.
    """

    linear: int
    head: int
    attention: int
    last: LastCost | None = None

    def flops(self, tokens: int, head_tokens: int, pairs: int) -> float:
        """Return FLOPs for `tokens` through the trunk, `head_tokens` through the head, `pairs` of query and key."""
        return 2.0 * self.linear * tokens + 2.0 * self.head * head_tokens + float(self.attention) * pairs

    def reading(self, passed: Passed, backward: bool = False) -> float:
        """Return FLOPs of a pass whose last layer computes only the states that are read: forward, or half a backward.

        Forward, its modules before the attention run on all tokens and again on those that are read; backward, keys and
        values get a gradient from the first time and queries from the second.
        """
        assert self.last is not None
        twice = self.last.before * passed.tokens
        if backward:
            twice = self.last.keys * passed.tokens + (self.last.queries - self.last.before) * passed.read
        linear = (self.linear - self.last.weights) * passed.tokens + self.last.weights * passed.read + twice
        attention = self.attention * passed.pairs - self.last.attention * (passed.pairs - passed.read_pairs)
        return 2.0 * linear + 2.0 * self.head * passed.head + float(attention)

    def padded(self, rows: int, width: int, kept: int) -> float:
        """Return FLOPs for rows of one width, the head on `kept` positions of each."""
        return self.flops(rows * width, rows * kept, rows * width * width)


def forward_cost(model: nn.Module) -> ForwardCost:
    """Return the cost of a causal or scalar model's forward pass; counted once per model, copies inherit it."""
    known = getattr(model, "forward_cost", None)
    if known is None:
        known = model.forward_cost = _forward_cost(model)  # type: ignore[assignment]
    return known


def frozen_cost(model: nn.Module) -> ForwardCost:
    """Return the cost of the matrices in a model's forward pass that take no gradient; 0 if all do."""
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    if all(p.requires_grad for p in model.parameters()):
        return ForwardCost(0, 0, 0, LastCost(0, 0, 0, 0, 0))
    head = _head_of(model)
    linear, last = _weights(trunk, trunk.modules(), frozen=True), _last_cost(trunk, 0, frozen=True)
    return ForwardCost(linear, 0 if head.weight.requires_grad else head.in_features * head.out_features, 0, last)


def _head_of(model: nn.Module) -> Any:
    return model.head if isinstance(model, ScalarModel) else model.get_output_embeddings()  # type: ignore[operator]


def _forward_cost(model: nn.Module) -> ForwardCost:
    head = _head_of(model)
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    linear = _weights(trunk, trunk.modules())
    assert linear, f"no weight matrices found in {type(trunk).__name__}: its cost cannot be counted"
    layers, each = _attention_cost(trunk.config.get_text_config())  # type: ignore[operator, union-attr]
    return ForwardCost(linear, head.in_features * head.out_features, layers * each, _last_cost(trunk, each))


def _last_cost(trunk: nn.Module, attention: int, frozen: bool = False) -> LastCost | None:
    parts: LastParts | None = getattr(trunk, "last_parts", None)
    if parts is None:
        return None
    named = dict(last_layer(trunk).named_modules())

    def weights(names: tuple[str, ...]) -> int:  # an adapter's modules lie below those that were there before it
        below = [m for n, m in named.items() if any(n == name or n.startswith(f"{name}.") for name in names)]
        return _weights(trunk, below, frozen)

    every = _weights(trunk, named.values(), frozen)
    return LastCost(every, weights(parts.before), weights(parts.keys), weights(parts.queries), attention)


def last_layer(trunk: nn.Module) -> nn.Module:
    """Return the last of a trunk's layers; ValueError where it is not plain which list of modules holds them."""
    count = trunk.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    lists = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise ValueError(f"{len(lists)} lists of {count} modules: which of them holds the layers is not known")
    return lists[0][-1]


def _attention_cost(config: Any) -> tuple[int, int]:
    """Return how many layers attend, and FLOPs per (query, key) pair in each: scores and weighted values."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0, 0
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return sum("attention" in kind and "linear" not in kind for kind in kinds), int(4 * heads * width)


def _weights(trunk: nn.Module, modules: Iterable[nn.Module], frozen: bool = False) -> int:
    """Return the weights a token is multiplied with in some modules of a trunk."""
    those, config = list(modules), trunk.config.get_text_config()  # type: ignore[operator, union-attr]
    return sum(_matrix_weights(m, frozen) for m in those) + _expert_weights(those, config, frozen)


def _matrix_weights(module: nn.Module, frozen: bool = False) -> int:
    """Return the weights a token is multiplied with in this module itself: every matrix that is not an embedding.

    `frozen`: only those that take no gradient.
    """
    if isinstance(module, nn.Embedding):
        return 0
    kernels = isinstance(module, nn.Conv1d)  # (out, in / groups, width): each weight meets a token once
    matrices = [p for p in module.parameters(recurse=False) if p.dim() == 2 or (kernels and p.dim() == 3)]
    return sum(p.numel() for p in matrices if not (frozen and p.requires_grad))


def _expert_weights(modules: list[nn.Module], config: Any, frozen: bool) -> int:
    """Return the weights of mixture-of-experts layers that a token is multiplied with: of the experts it is sent to."""
    layers = [m for m in modules if not isinstance(m, nn.Conv1d)]
    stacked = [p for m in layers for p in m.parameters(recurse=False) if p.dim() == 3]
    stacked = [p for p in stacked if not (frozen and p.requires_grad)]
    if not stacked:
        return 0
    used = getattr(config, "num_experts_per_tok", None)
    assert used, f"{config.model_type} has 3-D weights and no num_experts_per_tok: its cost cannot be counted"
    return sum(p.numel() // p.shape[0] * used for p in stacked)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
