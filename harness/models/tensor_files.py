"""Named tensors in files in the safetensors format, written one after another.

Nothing is copied first: while a file is written, memory holds at most one tensor that is not on the
CPU or not contiguous. Tensors that share memory, such as tied embeddings, are written once. A
sharded tensor is gathered when it is written, so all processes have to call this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..core.files import hashed_file
from .sharded_tensors import gather_along, gathered, is_sharded, own_part

SHARED = "shared"  # key of the file's metadata: {name: name of the tensor that is the same}
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write named tensors as safetensors.

    Args:
        tensors: Tensors of any shape and device. Nothing but dense tensors can be written.
        path: The file; it is replaced.

    Returns:
        The SHA-256 of the file, computed while it is written.
    """
    own, shared = _distinct(tensors)
    head = _head(own, shared)
    size = len(head) + sum(tensor.nbytes for tensor in own.values())
    left = iter(own.values())
    try:
        with hashed_file(path, size) as file:
            file.write(head)
            for tensor in left:
                file.write(_content(tensor))
            return file.digest()
    finally:
        gather_along(left)  # after an error the other processes still wait for this one


def follow_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Take part in `save_tensors` of the process that writes."""
    gather_along(_distinct(tensors)[0].values())


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read named tensors; those that shared memory share it again."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shared = json.loads((file.metadata() or {}).get(SHARED, "{}"))
    return tensors | {name: tensors[same] for name, same in shared.items()}


def size_in_file(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that tensors need in a file, without its header."""
    return sum(tensor.nbytes for tensor in _distinct(tensors)[0].values())


def _distinct(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to write, largest elements first, and {name: name of its equal}."""
    first: dict[Any, str] = {}
    shared: dict[str, str] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        where = (tensor.device, _address(tensor), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and where in first:
            shared[name] = first[where]
        else:
            first[where] = name
            own[name] = tensor
    # readers map the file into memory, so tensors must be aligned to the size of their elements
    return dict(sorted(own.items(), key=lambda item: -item[1].element_size())), shared


def _address(tensor: Tensor) -> int:
    """Return where a tensor begins in memory; a process may hold no row of a sharded one."""
    if not is_sharded(tensor):
        return tensor.data_ptr()
    part = own_part(tensor)
    return part.untyped_storage().data_ptr() + int(part.storage_offset()) * part.element_size()


def _head(own: Mapping[str, Tensor], shared: Mapping[str, str]) -> bytes:
    """Return the length of the header, in 8 bytes, and the header."""
    header: dict[str, Any] = {"__metadata__": {SHARED: json.dumps(shared)}} if shared else {}
    end = 0
    for name, tensor in own.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _content(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor."""
    flat = gathered(tensor.detach()).cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def as_dtype(tensor: Tensor, dtype: str) -> Tensor:
    """Return a tensor in a dtype; numbers that are not floating-point stay as they are."""
    return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
