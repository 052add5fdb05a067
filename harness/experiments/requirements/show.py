"""The requirements of a run and of a study, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...api.registry import Registry
from ...core import run_folder
from ...core.errors import HarnessError, UsageError
from ...core.execution import NOT_SHARDED
from ...core.spec import RunSpec
from ...core.table import aligned
from ..plan import duration, plan_of
from .moments import Machine, Moment
from .stages import Configured, Stage, stages_of

MIB, GIB = 2**20, 2**30
CPU_RATE = 50e9  # FLOP/s of a thread, and of a GPU: assumed where no run tells
GPU_RATE = 1e14
BUDGETS = (("weights", "gradients", "optimiser"), ("activations", "logits", "cache"))
CAVEATS = (
    "Memory is that of tensors, for texts as long as the limits allow. Python and its libraries"
    " take about 0.5 GiB more.",
    "On a CPU the allocator keeps freed blocks, so the resident set can be larger (1.6 times in one"
    " measurement). With MALLOC_MMAP_THRESHOLD_=262144 it is close to this.",
)


@dataclass(frozen=True)
class Rate:
    """FLOPs per second, and where the number is from."""

    flops: float
    source: str


@dataclass(frozen=True)
class Requirements:
    """What a run takes."""

    spec: RunSpec
    stages: Sequence[Stage]
    seconds: float
    source: str  # of the seconds
    memory: int = 0  # bytes of the device; 0: not known

    @property
    def peak(self) -> tuple[str, Moment]:
        """The stage and the moment of most memory."""
        stage = max(self.stages, key=lambda stage: stage.peak.total)
        return stage.name, stage.peak

    @property
    def disk(self) -> int:
        """Bytes that the run leaves."""
        return sum(stage.disk for stage in self.stages)

    @property
    def passing(self) -> int:
        """Bytes of checkpoints at a time."""
        return max(stage.passing for stage in self.stages)


def requirements_of(
    spec: RunSpec, registry: Registry, results: Path, machine: Machine
) -> Requirements:
    """Return what a run takes, from its configuration; nothing is loaded, and nothing is written.

    Raises:
        UsageError: The model has no configuration, or its passes cannot be laid out.
    """
    if spec.execution.shard != NOT_SHARDED and spec.execution.processes == 1:
        raise UsageError(
            f"--dry-run: --shard {spec.execution.shard} shards weights over processes, and this run"
            " has one. Say how many it would have: WORLD_SIZE=8 harness run ... --dry-run"
        )
    run = Configured(spec, registry, machine)
    stages = stages_of(run)
    plan = plan_of(spec, run.built, results)
    if plan.seconds is not None and spec.model is None:
        whole = plan.seconds + (plan.shared_seconds or 0.0)
        return Requirements(spec, stages, whole, "of runs like this one", machine.memory)
    rate = rate_of(spec, results)
    seconds = sum(s.flops for s in stages) / rate.flops
    return Requirements(spec, stages, seconds, rate.source, machine.memory)


def rate_of(spec: RunSpec, results: Path) -> Rate:
    """Return the FLOPs per second of finished runs with the same model, or an assumed rate."""
    named = spec.model or "embedded"
    try:
        records = [
            r for _, r in run_folder.runs(results) if r.get("model", {}).get("name") == named
        ]
    except HarnessError:  # a damaged record; tables name it
        records = []
    costs = [r["cost"]["method"] for r in records if "cost" in r]
    seconds = sum(cost["seconds"] for cost in costs)
    if seconds:
        measured = sum(cost["flops"] for cost in costs) / seconds
        source = (
            f"at {measured / 1e9:.3g} GFLOP/s, measured in {len(costs)} runs of this model here"
        )
        return Rate(measured, source)
    gpu = spec.execution.device.startswith("cuda")
    assumed = GPU_RATE if gpu else CPU_RATE * spec.execution.threads
    return Rate(assumed, f"at an assumed {assumed / 1e9:.3g} GFLOP/s: no run of this model is here")


def described(needs: Requirements) -> str:
    """Return the stages of a run and what they take."""
    shards = needs.spec.execution.shard != NOT_SHARDED
    names = [*(name for names in BUDGETS for name in names), *(["gathered"] if shards else [])]
    rows = [["stage", "moment", *names, "MiB", "GFLOP"]]
    rows += [_row(stage, shards) for stage in needs.stages]
    name, moment = needs.peak
    weights = [f"{stage.name}: {_weights(stage.peak)}" for stage in needs.stages]
    return "\n".join(
        [
            *aligned(rows),
            "",
            f"weights in MiB ({needs.spec.weights})",
            *(f"  {line}" for line in weights),
            "",
            f"peak memory: {_size(moment.total)}{_of(needs.spec)}, in {name} ({moment.name})",
            *_too_much(needs),
            f"disk: {_size(needs.disk)}, and up to {_size(needs.passing)} of checkpoints meanwhile",
            f"time: about {duration(needs.seconds)}, {needs.source}",
            *CAVEATS,
        ]
    )


def _too_much(needs: Requirements) -> list[str]:
    """Return what to change where a stage takes more than the device has."""
    moment = needs.peak[1]
    if not needs.memory or moment.total <= needs.memory:
        return []
    return [
        f"does not fit: this device has {_size(needs.memory)}. A batch holds one row at least, and"
        " no row is split over processes. Less takes: --activation-checkpointing, a smaller"
        " --micro-batch-tokens, --weights bfloat16, --set lora_rank=16, or shorter texts."
    ]


def _of(spec: RunSpec) -> str:
    """Return what the memory is of, where a run has several processes."""
    count = spec.execution.processes
    return f" in each of {count} processes" if count > 1 else ""


def _row(stage: Stage, shards: bool) -> list[str]:
    moment = stage.peak
    values = (
        sum(moment.weights.values()),
        moment.gradients,
        moment.optimiser,
        moment.activations,
        moment.logits,
        moment.cache,
        *([moment.gathered] if shards else []),
        moment.total,
    )
    return [stage.name, moment.name, *map(_mib, values), f"{stage.flops / 1e9:.3g}"]


def _weights(moment: Moment) -> str:
    return ", ".join(f"{role} {_mib(size)}" for role, size in moment.weights.items()) or "none"


def _mib(size: float) -> str:
    return f"{size / MIB:.1f}" if size < 100 * MIB else f"{size / MIB:.0f}"


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def of_study(needs: Mapping[str, Requirements], grounds: Mapping[str, Any]) -> str:
    """Return what the runs of a study take together, shared stages once.

    Args:
        needs: Requirements by the name of the run.
        grounds: What decides the shared stages of each run.
    """
    name, run = max(needs.items(), key=lambda item: item[1].peak[1].total)
    stage, moment = run.peak
    once: dict[tuple[Any, str], tuple[Stage, float]] = {}
    for label, one in needs.items():
        whole = sum(s.flops for s in one.stages) or 1.0
        for part in one.stages:
            key = (grounds[label] if part.shared else label, part.name)
            once.setdefault(key, (part, one.seconds * part.flops / whole))
    disk = sum(part.disk for part, _ in once.values())
    seconds = sum(took for _, took in once.values())
    sources = sorted({one.source for one in needs.values()})
    return "\n".join(
        [
            f"peak memory: {_size(moment.total)}, in {stage} ({moment.name}) of {name}",
            f"disk: {_size(disk)}, shared stages once",
            f"time: about {duration(seconds)} one after the other, {'; '.join(sources)}",
            *CAVEATS,
        ]
    )
