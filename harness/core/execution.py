"""Execution settings: how a run is computed, apart from what decides its results.

Results under unlike settings differ by the rounding of floating-point sums only. So the settings
are in no name of a run or an artifact. Manifests and records hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Execution:
    """The execution settings of a run, as requested or as used."""

    device: str = "auto"  # cpu, cuda, cuda:N or auto; in a record cpu or cuda
    threads: int = 1  # of the CPU
    processes: int = 1  # that share the work
    micro_batch_tokens: int = 16384  # tokens that a forward pass takes at once
    # tokens, prompts included, that decoding holds at once; fewer where the memory is small
    decode_batch_tokens: int = 131072
    activation_checkpointing: bool = False  # compute layers again in the backward pass
    shard: str = "none"  # none, or full: weights are sharded over the processes


SHARDS = NOT_SHARDED, SHARDED = "none", "full"
TRAINING, EVALUATION = "training", "evaluation"  # parts of a run, beside its artifacts
SETTINGS = tuple(f.name for f in fields(Execution))


def from_record(recorded: Mapping[str, Any]) -> Execution:
    """Return the settings that a manifest or a record holds; it may hold more than settings."""
    return Execution(**{name: recorded[name] for name in SETTINGS if name in recorded})


def differing(planned: Execution, used: Execution) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two differ: {name: (value requested, value used)}. `auto` is any
    device, and `cuda:1` is the device `cuda`.
    """
    a, b = asdict(planned), asdict(used)
    a["device"] = b["device"] if a["device"] == "auto" else a["device"].partition(":")[0]
    return {name: (a[name], b[name]) for name in SETTINGS if a[name] != b[name]}
