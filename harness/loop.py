"""Turns that can be killed: a loop whose every turn is a checkpoint boundary, and the checkpoints themselves."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .data import Budget
from .errors import Diverged
from .files import make_folder, publish, write_json
from .meter import OWN_PHASES, Meter
from .models import load_tensors, save_tensors
from .registry import file_digest
from .spec import digest_of
from .training import Trainer

OnStep = Callable[[int, int, Mapping[str, float]], None]


class Checkpoints:
    """The last two checkpoints below a folder; each is verified when it is read, and the older one stands in."""

    def __init__(self, folder: Path, every: float) -> None:
        self.folder, self.every = make_folder(folder), every
        self._last = time.monotonic()
        self.damaged: list[str] = []

    def due(self) -> bool:
        """Return whether `every` seconds have passed since the last one."""
        return time.monotonic() - self._last >= self.every

    def save(self, turn: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint; the one before the last is removed."""
        work, final = self.folder / ".partial", self.folder / f"turn-{turn:08d}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        save_tensors(dict(tensors), work / "tensors.safetensors")
        whole = {**state, "tensors": file_digest(work / "tensors.safetensors")}
        write_json(work / "state.json", {**whole, "seal": digest_of(whole)})
        shutil.rmtree(final, ignore_errors=True)
        publish(work, final)
        for old in self._found()[:-2]:
            shutil.rmtree(old)
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest readable checkpoint, or None; damaged ones are named in `damaged`."""
        for folder in reversed(self._found()):
            try:
                state: dict[str, Any] = json.loads((folder / "state.json").read_text())
                sealed = state.pop("seal") == digest_of(state)
                if sealed and state["tensors"] == file_digest(folder / "tensors.safetensors"):
                    return load_tensors(folder / "tensors.safetensors"), state
            except (OSError, ValueError, KeyError):
                pass
            self.damaged.append(folder.name)
        return None

    def clear(self) -> None:
        """Remove all checkpoints: what they led to is safe elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("turn-*"))


class Snapshots:
    """Copies of the policy at `count` evenly spaced turns, for the evaluator to measure after training."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = make_folder(folder), count

    def offer(self, turn: int, total: int, step: int, policy: nn.Module) -> None:
        """Keep the policy if this turn, of `total`, is one of the evenly spaced ones."""
        if turn in {round(total * (i + 1) / self.count) for i in range(self.count)}:
            part = self.folder / ".partial.safetensors"
            save_tensors(policy.state_dict(), part)
            part.replace(self.folder / f"step-{step:06d}.safetensors")

    def kept(self) -> dict[int, Path]:
        """Return {step: file}, in order."""
        return {int(file.stem.removeprefix("step-")): file for file in sorted(self.folder.glob("step-*.safetensors"))}


class Loop:
    """Counts turns, collects metrics, keeps to a budget, and saves all that a restart needs.

    After a restart the caller's code runs again from its beginning; turns that were done are not yielded again.
    """

    def __init__(
        self, trainer: Trainer, checkpoints: Checkpoints, meter: Meter, on_step: OnStep, budget: Budget | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:  # fmt: skip
        self.trainer, self.checkpoints, self.meter, self.on_step = trainer, checkpoints, meter, on_step
        self.budget, self.snapshots = budget or Budget(), snapshots
        self.state: dict[str, Any] = {}  # a caller's own numbers; they resume
        self.rows: list[dict[str, float]] = []  # metrics, one row per turn
        self.stream = self.turn = 0  # where the current turn is: what random numbers are derived from
        self.total = 0
        self._done: dict[str, int] = {}
        self._streams = 0
        self._open = False
        self._pending: dict[str, list[float]] = {}
        self._resume()

    @property
    def progress(self) -> float:
        """Share of the current stream that is done, or of the budget where that is more; in [0, 1)."""
        return min(max(self.turn / max(1, self.total), self.budget_share()), 1 - 1e-9)

    def turns(self, total: int) -> Iterator[int]:
        """Yield 0 .. total - 1, less what was done before a restart; stop early when the budget is used up."""
        if self._open:
            raise RuntimeError("streams do not nest: finish one before opening the next, or use lab.minibatches")
        stream, self._streams = self._streams, self._streams + 1
        if self._done.get(str(stream)):  # what was logged before this stream is in the rows already
            self._pending.clear()
        self._open = True
        try:
            for turn in range(self._done.get(str(stream), 0), total):
                if self.budget_share() >= 1:
                    break
                self.stream, self.turn, self.total = stream, turn, total
                yield turn
                self._done[str(stream)] = turn + 1
                self._close_turn(turn, total)
            # where the stream ended, reached now or before a restart: what comes between streams draws from here
            self.stream, self.turn, self.total = stream, self._done.get(str(stream), 0), total
        finally:
            self._open = False

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the current turn's row; a name logged several times is averaged."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise Diverged(f"The metric {name} is {float(value)} at step {len(self.rows) + 1}.")
            self._pending.setdefault(name, []).append(float(value))

    def budget_share(self) -> float:
        """Return the largest used share of any limit of the budget; 0 without one."""
        used = self.used()
        return max((used[name] / limit for name, limit in asdict(self.budget).items() if limit), default=0.0)

    def used(self) -> dict[str, float]:
        """Return what the method itself has used, in the budget's terms."""
        own = self.meter.total(OWN_PHASES)
        tokens = own.tokens_generated + own.tokens_trained
        return {"steps": own.steps, "samples": own.samples, "tokens": tokens, "flops": own.flops}

    def save(self) -> None:
        """Write a checkpoint now."""
        state = {
            "done": self._done, "state": self.state, "rows": self.rows, "steps": self.trainer.steps,
            "meter": self.meter.snapshot(),
        }  # fmt: skip
        self.checkpoints.save(len(self.rows), self.trainer.tensors(), state)

    def _close_turn(self, turn: int, total: int) -> None:
        row = {"step": float(len(self.rows) + 1)} | {k: statistics.fmean(v) for k, v in self._pending.items()}
        self._pending.clear()
        self.rows.append(row)
        self.on_step(turn + 1, total, row)
        if self.snapshots and "policy" in self.trainer.modules:
            self.snapshots.offer(turn + 1, total, len(self.rows), self.trainer.modules["policy"])
        if self.checkpoints.due():
            self.save()

    def _resume(self) -> None:
        found = self.checkpoints.load()
        if found is None:
            return
        self.trainer.saved, saved = found
        self.trainer.steps = saved["steps"]
        self._done, self.state, self.rows = saved["done"], saved["state"], saved["rows"]
        self.meter.restore(saved["meter"])
