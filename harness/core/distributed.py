"""The processes of a run: how rows are sharded, and sums over all processes.

Every process runs the same code on the same data with the same random numbers. Only forward and
backward passes and decoding are split by rows, and their results are summed. So method code does
not depend on the number of processes. Only the main process writes. Start several with `torchrun
--nproc_per_node 2 -m harness run ...`, or on GPUs with `accelerate launch -m harness run ...`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .watchdog import RankWatch

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
BUCKET = 2**24  # numbers, 64 MiB in float32: gradients that are summed over processes at once


def is_main() -> bool:
    """Return whether this process writes files and output; callable before torch is imported."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """Return how many processes a launcher started; callable before torch is imported."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def end_with_parent() -> None:
    """Have the kernel end this process with SIGKILL when its parent ends (Linux only). Without it
    the processes of a killed torchrun would continue and hold their locks.
    """
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class DistributedContext:
    """The processes of a run, seen from one of them."""

    def __init__(self, rank: int = 0, size: int = 1, main: bool | None = None) -> None:
        self.rank, self.size = rank, size
        self.main = rank == 0 if main is None else main  # whether this is the process that writes
        self._watch = RankWatch(rank, size)

    def alone(self) -> DistributedContext:
        """Return a context in which this process computes everything by itself.

        Every process then has the same results, and still only the main process writes.
        """
        return DistributedContext(0, 1, self.main)

    def rounds(self, parts: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """Yield (part, own) for this process's parts; equally many for every process.

        A process without a part of its own in the last round gets the last part, with `own` False.
        It computes that part and gives it weight 0. So all processes run equally many forward and
        backward passes, which may be collective. No parts are no rounds, for every process.
        """
        for first in range(0, len(parts), self.size):
            number = first + self.rank
            own = number < len(parts)
            yield parts[number if own else -1], own

    def shard(self, n: int) -> slice:
        """Return this process's contiguous share of n rows."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes."""
        if self.size > 1:
            from torch import distributed

            with self._watch.waiting():
                for tensor in tensors:
                    distributed.all_reduce(tensor)

    def all_reduce_gradients(self, parameters: Iterable[Any], bucket: int = BUCKET) -> None:
        """Replace gradients by their sums over all processes, if any process has some.

        Small gradients are summed together, at most `bucket` numbers at once; a larger one is
        summed where it is. So no copy of all gradients is made.
        """
        if self.size == 1:
            return
        import torch

        own = list(parameters)
        if not own:
            return
        any_has = torch.tensor(float(any(p.grad is not None for p in own)), device=own[0].device)
        self.all_reduce(any_has)
        if not any_has:
            return
        for p in own:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        for some in _buckets([p.grad for p in own], bucket):
            self._reduce_together(some)

    def _reduce_together(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one collective call."""
        import torch

        if len(tensors) == 1 and tensors[0].is_contiguous():
            self.all_reduce(tensors[0])
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, summed in zip(tensors, parts, strict=True):
            tensor.copy_(summed.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        with self._watch.waiting():
            distributed.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, value: T) -> T:
        """Return the main process's value; all wait for it."""
        return self.gather(value)[0]

    def barrier(self) -> None:
        """Wait until every process has reached this call."""
        self.gather(None)


def _buckets(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Yield neighbours of one dtype and device, at most `limit` numbers or one tensor at a time."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alike = bucket and (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and not (alike and sum(t.numel() for t in [*bucket, tensor]) <= limit):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


ALONE = DistributedContext()


def merged(sums: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the sum of named numbers over processes."""
    whole: dict[str, float] = {}
    for one in sums:
        for name, value in one.items():
            whole[name] = whole.get(name, 0.0) + value
    return whole


def leave_process_group() -> None:
    """Destroy the process group, if there is one.

    The interpreter aborts if the group's threads outlive it.
    """
    torch = sys.modules.get("torch")
    if (
        torch is not None
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    ):
        torch.distributed.destroy_process_group()
