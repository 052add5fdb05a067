"""The meter: seconds, FLOPs, tokens, queries, labels, resident models and peak memory, by phase. No
torch here.

Time is exclusive: a phase inside another counts once, for the inner one. Everything but time and
memory is deterministic. The lab meters every call, so cost is measured, never declared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

SHARED_PHASES = ("sft", "preferences", "reward_model", "evaluate")
# sync: copying the weights to an engine that draws from a copy of its own
OWN_PHASES = ("rollout", "score", "reference", "update", "sync")
JUDGE = "judge"  # the cost of a judge in an evaluation
PHASES = (*SHARED_PHASES, *OWN_PHASES, JUDGE)
PhasePeak = Callable[[bool], int]  # reset?, -> peak bytes since the last reset


@dataclass
class Cost:
    """What one phase used."""

    seconds: float = 0.0
    # of all threads of this process; varies little with the load of the machine
    cpu_seconds: float = 0.0
    flops: float = 0.0  # multiply-adds count two; counted from shapes, padding included
    # of these: read from a shared cache instead of computed, see reference_cache.py
    flops_reused: float = 0.0
    tokens_generated: int = 0
    # of prompts and completions in the policy's training steps, a prompt once per completion
    tokens_trained: int = 0
    pairs: int = 0  # preference pairs trained on, repetitions counted
    samples: int = 0  # completions generated
    steps: int = 0  # optimiser steps
    reward_queries: int = 0  # completions scored by a learned reward, once per ensemble member
    verifier_queries: int = 0
    labels: int = 0  # pairwise comparisons by people or simulated people, or in the data
    ai_labels: int = 0  # comparisons or grades by a model or a rule
    peak_memory: int = 0  # bytes: resident set, or the accelerator's allocation where there is one

    def add(self, other: Cost) -> None:
        """Add another cost; memory takes the larger."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            setattr(self, f.name, max(mine, theirs) if f.name == "peak_memory" else mine + theirs)


class Meter:
    """Counts costs by phase. `peak` reads (and may reset) the peak memory of the process."""

    def __init__(self, peak: PhasePeak | None = None) -> None:
        self.phases: dict[str, Cost] = {}
        self.models: dict[
            str, dict[str, int]
        ] = {}  # role -> parameters and bytes resident while it was used
        self._peak = peak or resident_peak
        self._stack: list[str] = []
        self._mark, self._cpu_mark = time.perf_counter(), time.process_time()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside to a phase."""
        assert name in PHASES, name
        self._settle()
        self._stack.append(name)
        self._peak(True)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Exclude what happens inside from every phase; its cost is counted elsewhere."""
        self._settle()
        self._stack.append("")
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def add(self, **amounts: float) -> None:
        """Add to the current phase: `meter.add(flops=..., tokens_generated=...)`."""
        self._current().add(Cost(**amounts))  # type: ignore[arg-type]

    def hold(self, role: str, parameters: int, size: int) -> None:
        """Record that a model is resident in a role."""
        self.models[role] = {"parameters": parameters, "bytes": size}

    def total(self, phases: tuple[str, ...] = PHASES) -> Cost:
        """Return the sum over phases."""
        whole = Cost()
        for name in phases:
            whole.add(self.phases.get(name, Cost()))
        return whole

    def snapshot(self) -> dict[str, Any]:
        """Return everything counted so far, JSON-able."""
        self._settle()
        return {
            "phases": {name: asdict(cost) for name, cost in self.phases.items()},
            "models": dict(self.models),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continue counting from a snapshot."""
        self.phases = {name: Cost(**cost) for name, cost in snapshot["phases"].items()}
        self.models = {role: dict(size) for role, size in snapshot["models"].items()}

    def _current(self) -> Cost:
        assert self._stack and self._stack[-1], "cost outside of any phase"
        return self.phases.setdefault(self._stack[-1], Cost())

    def _settle(self) -> None:
        """Add the time since the last change, and the memory peak, to the current phase."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._stack and not self._stack[-1]:
            self._peak(True)
        elif self._stack:
            cost = self._current()
            cost.seconds += now - self._mark
            cost.cpu_seconds += cpu - self._cpu_mark
            cost.peak_memory = max(cost.peak_memory, self._peak(True))
        self._mark, self._cpu_mark = now, cpu


def merge(snapshots: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of several snapshots by phase, as if one meter had counted them."""
    whole = Meter()
    for snapshot in snapshots.values():
        for name, cost in snapshot["phases"].items():
            whole.phases.setdefault(name, Cost()).add(Cost(**cost))
        whole.models |= snapshot["models"]
    return {
        "phases": {name: asdict(cost) for name, cost in whole.phases.items()},
        "models": whole.models,
    }


def resident_peak(reset: bool) -> int:
    """Return the peak resident set of this process in bytes since the last successful reset."""
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux: the peak since the start of the process
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with status.open(encoding="utf-8") as stream:
        peak = next(
            (int(line.split()[1]) * 1024 for line in stream if line.startswith("VmHWM:")), 0
        )
    if reset:
        start_peak_anew()
    return peak


def start_peak_anew() -> bool:
    """Reset the peak of the resident set; return False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True
