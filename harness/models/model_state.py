"""The state of a shared model when it was read, and the changes since.

Weights are compared by their version counters, which is quick, and by sums of their bits, which
also finds changes through `.data` or NumPy. Everything else (buffers, forward functions, hooks,
layers, the configuration) is compared by the model's output on a few random tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .capabilities import made_up
from .logprobs import completion_logp
from .sharded_tensors import own_part

COLUMNS = 4096  # width of the matrix whose rows and columns of bits are summed
# packages whose code may replace a model's own forward function
LIBRARIES = frozenset({"torch", "transformers", "peft", "accelerate", "kernels", "harness"})
Answer = Callable[[nn.Module], Tensor]


class ModelState:
    """The state of a model: its weights, its settings and what it computes."""

    def __init__(self, model: nn.Module, answer: Answer | None = None) -> None:
        self._answer = answer or log_probabilities
        self._tensors = dict(model.named_parameters())
        self._versions = [tensor._version for tensor in self._tensors.values()]
        self._sums = {name: bit_sums(tensor) for name, tensor in self._tensors.items()}
        self._rewritten: set[str] = set()  # weights set to their own values
        self._settings = _settings(model)
        self._answers = self._answer(model)

    def touched(self) -> str:
        """Return the name of a weight that was written to since; empty where none was.

        This reads version counters only. It does not see writes through `.data` or NumPy. PEFT
        overwrites parameters of experts with their own values in every pass; only `changed` reads
        such weights again.
        """
        pairs = zip(self._tensors.items(), self._versions, strict=True)
        for name in [name for (name, t), version in pairs if t._version != version]:
            if name in self._rewritten:
                continue
            if bit_sums(self._tensors[name]) != self._sums[name]:
                return name
            self._rewritten.add(name)
        return ""

    def changed(self, model: nn.Module) -> str:
        """Return what differs from the recorded state; empty where nothing does."""
        held = {id(tensor) for tensor in model.parameters()}
        for name, tensor in self._tensors.items():
            if id(tensor) not in held:
                return f"the weight {name}, which was replaced"
            if bit_sums(tensor) != self._sums[name]:
                return f"the weight {name}"
        if _settings(model) != self._settings:
            return "its configuration"
        foreign = foreign_code(model)
        if foreign:
            return foreign
        same = torch.equal(self._answer(model), self._answers)
        return "" if same else "its output: a buffer, a layer, a hook or a forward function changed"


def log_probabilities(model: nn.Module) -> Tensor:
    """Return the log-probabilities of random tokens under a causal model."""
    with torch.no_grad():
        return completion_logp(model, made_up(model))


def bit_sums(tensor: Tensor) -> str:
    """Return a digest of the sums of a tensor's bits along two sides.

    The sums are exact integers (modulo 2**64) and are computed on the tensor's device.
    """
    words = _words(own_part(tensor.detach()))
    rows = len(words) // COLUMNS
    table, rest = words[: rows * COLUMNS].view(rows, COLUMNS), words[rows * COLUMNS :]
    parts = [table.sum(0), table.sum(1), rest] if rows else [rest]
    whole = hashlib.blake2b(f"{tuple(tensor.shape)}{tensor.dtype}".encode(), digest_size=16)
    for part in parts:
        whole.update(part.cpu().numpy().tobytes())
    return whole.hexdigest()


def _words(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes as integers of the largest width that divides them."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    if flat.storage_offset() % 8 == 0 and len(flat) % 8 == 0:
        return flat.view(torch.int64)
    return flat.to(torch.int64)


def _settings(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    return "" if config is None else str(config.to_dict())


def foreign_code(model: nn.Module) -> str:
    """Return a description of foreign code that replaces a model's own; empty for none.

    A class and its forward function must be defined in one package, or in a library's.
    """
    for module in model.modules():
        for owner, function in _forwards(module):
            package = str(getattr(function, "__module__", owner)).partition(".")[0]
            if package not in LIBRARIES and package != owner.partition(".")[0]:
                return f"the forward function of {type(module).__name__}, by code of {package}"
    return ""


def _forwards(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (module of the class, function) for a layer's forward function and its hooks."""
    cls = next((c for c in type(module).__mro__ if "forward" in vars(c)), type(module))
    yield cls.__module__, vars(cls).get("forward")
    if "forward" in vars(module):
        yield cls.__module__, vars(module)["forward"]
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        yield cls.__module__, hook
