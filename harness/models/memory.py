"""Batches when memory runs out: halve them and try again, where the result does not change.

Rows are independent: each completion has its own noise, and a row's scores, log-probabilities and
part of the loss do not depend on the rest of the batch. So a batch may be computed in smaller
parts, and results differ by rounding error only. Costs are counted as if the batch had not been
halved.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from ..core.errors import HarnessError

T = TypeVar("T")
DECODING, SCORING, TRAINING = "decoding", "scoring", "training"
OPTIONS = {
    DECODING: "--decode-batch-tokens",
    SCORING: "--micro-batch-tokens",
    TRAINING: "--micro-batch-tokens",
}
# what torch's allocators and the GPU's libraries raise as a plain RuntimeError
_MESSAGES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class MemoryRanOut(HarnessError):
    """Memory ran out with the smallest possible batch."""


@dataclass
class BatchSizes:
    """The batch sizes of one process, in tokens: halved when memory runs out.

    Args:
        tell: Called with one message when a kind of batch is halved for the first time.
        halves: Whether they may be halved. Processes with sharded weights compute in lockstep, so
            one alone cannot take smaller batches.
    """

    tell: Callable[[str], None] = lambda message: None
    halved: dict[str, int] = field(default_factory=dict)  # kind -> tokens of a batch at most
    halves: bool = True

    def tokens(self, kind: str, limit: int) -> int:
        """Return how many tokens a batch of a kind may hold now, `limit` at most."""
        return min(limit, self.halved.get(kind, limit))

    def attempt(self, kind: str, limit: int, row: int, compute: Callable[[int], T]) -> T:
        """Return compute(tokens), with half as many tokens each time that memory runs out.

        Args:
            kind: "decoding", "scoring" or "training".
            limit: Tokens of a batch that the options allow.
            row: Tokens of the smallest row. A batch holds one row at least.
            compute: Called with the tokens that a batch may hold; it can be called again.

        Raises:
            MemoryRanOut: Memory ran out although each batch held one row only.
        """
        while True:
            tokens = self.tokens(kind, limit)
            try:
                return compute(tokens)
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                if tokens <= row:
                    raise MemoryRanOut(_smallest(kind, row, self.halves)) from error
                if not self.halves:
                    raise MemoryRanOut(_lockstep(kind, tokens)) from error
            # the error has been freed here, and with it the frames that referenced the failed batch
            free_memory()
            self._halve(kind, tokens)

    def _halve(self, kind: str, tokens: int) -> None:
        first, self.halved[kind] = kind not in self.halved, max(1, tokens // 2)
        if first:
            self.tell(
                f"Memory ran out while {kind} batches of {tokens} tokens. They are halved until"
                " they fit, which changes results by rounding error at most. To begin with"
                f" smaller ones: {OPTIONS[kind]} {self.halved[kind]}."
            )


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def free_memory() -> None:
    """Free what is not referenced any more, and give cached blocks of a GPU back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory of a GPU, or of this machine or the container it limits."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.exists() else "max"
    return min(installed, int(text)) if text.isdigit() else installed


def _lockstep(kind: str, tokens: int) -> str:
    return (
        f"Memory ran out while {kind} batches of {tokens} tokens. With --shard batches are not"
        f" halved, because all processes compute in lockstep. Begin with smaller ones:"
        f" {OPTIONS[kind]} {max(1, tokens // 2)}."
    )


def _smallest(kind: str, row: int, halves: bool) -> str:
    whole = "" if halves else " --shard shards weights, and no sequence over processes."
    return (
        f"Memory ran out while {kind} a batch of one row, of {row} tokens or more: no smaller"
        f" batch exists.{whole} These settings need less memory: --activation-checkpointing, --set"
        " lora_rank=16, shorter"
        " prompts and completions, or a smaller model."
    )
