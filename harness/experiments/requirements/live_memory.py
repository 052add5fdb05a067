"""Bytes that a computation holds at once, counted on the device "meta" without computing anything.

Tensors on "meta" have shapes and storages without contents. A dispatch mode sees every operation of
a forward and a backward pass, adds the storages that it makes, and takes off those that are freed.
Scratch inside of kernels is not seen, but for those in `SCRATCH`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operations that hold a copy of their first argument while they run
SCRATCH = frozenset({torch.ops.aten.logsumexp.default})


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations inside the context make, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._known: dict[int, int] = {}  # address of a storage: its bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it made."""
        for tensor in _on_meta(args):  # what was there before, and views of it
            self._add(tensor.untyped_storage(), counted=False)
        out = func(*args, **(kwargs or {}))
        scratch = args[0].nbytes if func in SCRATCH else 0
        self.peak = max(self.peak, self.live + scratch)
        for tensor in _on_meta(out):
            self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: Any, counted: bool = True) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes() if counted else 0
        self.live += self._known[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


def _on_meta(values: Any) -> list[torch.Tensor]:
    leaves = tree_leaves(values)
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.device.type == "meta"]


@contextmanager
def fused_attention() -> Iterator[None]:
    """Replace torch's attention by the fused kernel, which keeps no table of weights.

    On "meta" torch would take its plain products, whose tables no device with a fused kernel makes.
    """
    functional: Any = torch.nn.functional
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def _fused(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


def peak_bytes(compute: Callable[[], Any]) -> int:
    """Return the most bytes that a computation on "meta" holds at once, beside what it was given.

    Its result is held at its end.
    """
    with LiveBytes() as live, fused_attention():
        result = compute()
    del result
    return int(live.peak)
