"""Tensors whose rows are sharded over the processes of a run: their parts, and the whole.

A sharded tensor is a DTensor: each process holds a contiguous block of its rows. Such a tensor is
recognised by its attribute `placements`, so nothing heavy is imported where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the rows of a tensor are sharded over processes."""
    return hasattr(tensor, "placements")


def own_part(tensor: Any) -> Tensor:
    """Return this process's rows of a tensor, in the same memory; all of one that is whole."""
    if not is_sharded(tensor):
        return tensor  # type: ignore[no-any-return]
    part: Tensor = tensor._local_tensor
    return part


@torch.no_grad()
def gathered(tensor: Any) -> Tensor:
    """Return a whole tensor from the parts of all processes, which all call this."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return whole


def gather_along(tensors: Iterable[Tensor]) -> None:
    """Take part in gathering tensors that another process needs; keep none of them."""
    for tensor in tensors:
        gathered(tensor)


def part_of(whole: Tensor, like: Any) -> Tensor:
    """Return this process's rows of a whole tensor, as those of `like` are sharded."""
    if not is_sharded(like):
        return whole
    mesh = like.device_mesh
    rows = -(-whole.shape[0] // mesh.size())
    first = min(whole.shape[0], rows * mesh.get_local_rank())
    return whole[first : first + rows]


def as_part_of(part: Tensor, like: Any) -> Tensor:
    """Return a sharded tensor of the shape of `like` whose rows here are `part`."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    tensor: Tensor = DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return tensor


def sharded_as(whole: Tensor, like: Any) -> Tensor:
    """Return a tensor sharded as `like`, from the whole one, which every process has."""
    if is_sharded(whole) or not is_sharded(like):
        return whole
    part = part_of(whole, like).to(own_part(like).device)
    return as_part_of(part, like)
