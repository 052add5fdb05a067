"""Turns that can be interrupted: each turn of the loop ends at a checkpoint boundary."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ..core.data import Budget
from ..core.errors import Diverged
from ..core.global_state import enforce
from ..core.live_rows import LiveFiles
from ..core.meter import OWN_PHASES, Meter
from .checkpoints import Checkpoints, Snapshots
from .trainer import Trainer

OnStep = Callable[[int, int, Mapping[str, float]], None]


@dataclass
class StreamPositions:
    """The positions of a method's streams. Checkpoints hold them, so the keys are strings."""

    done: dict[str, int] = field(default_factory=dict)  # turns, by stream
    left: list[str] = field(default_factory=list)  # streams that were left by `break`
    firsts: dict[str, int] = field(default_factory=dict)  # `first` of each stream
    taken: dict[str, int] = field(default_factory=dict)  # by kind
    # rows that turns took beyond their own, by stream
    further: dict[str, int] = field(default_factory=dict)
    # labels used before each stream began
    labels_before: dict[str, float] = field(default_factory=dict)


class Loop:
    """Counts turns, collects metrics, keeps to a budget, and saves all that a restart needs.

    After a restart the caller's code runs again from its beginning. Completed turns are not yielded
    again.
    """

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: Checkpoints,
        meter: Meter,
        on_step: OnStep,
        budget: Budget | None = None,
        snapshots: Snapshots | None = None,
        labels: int = 0,
        execution: Callable[[], Mapping[str, Any]] | None = None,
        files: LiveFiles | None = None,
    ) -> None:
        self.trainer, self.checkpoints = trainer, checkpoints
        self.meter, self.on_step = meter, on_step
        self.budget, self.snapshots = budget or Budget(), snapshots
        self.labels = labels  # labels that were used before training
        self.execution = execution  # the settings in use
        # the settings that were used: several where training was resumed with others, or where
        # batches were halved
        self.executions: list[Mapping[str, Any]] = []
        # of the artifacts that training read, by folder name
        self.pins: dict[str, Any] = {}
        self.state: dict[str, Any] = {}  # the method's own values; a restart keeps them
        self.rows: list[dict[str, float]] = []  # metrics, one row per turn
        # after how many turns training went on from a checkpoint, one entry per restart
        self.resumed: list[int] = []
        # the position of the current turn, from which random numbers are derived
        self.stream = self.turn = 0
        self.total = 0
        # the position at which the current stream begins among all turns of its kind
        self.first = 0
        # the kind of the current stream, and how many rows a turn takes
        self.kind, self.size = "", 0
        self.open = False  # whether a turn is under way
        self._positions = StreamPositions()
        self._exit: Callable[[], None] | None = None
        self._labels_before = 0.0  # labels used before the current stream began
        self._streams = 0  # streams opened so far
        self._pending: dict[str, list[float]] = {}
        self.files = files  # the files that grow during training
        self.rollouts: Callable[[], list[dict[str, Any]]] = list  # rollouts of the current turn
        self._resume()
        if files is not None:
            files.restart(self.rows)

    @property
    def progress(self) -> float:
        """The completed share of this stream or the used share of the budget, whichever is larger;
        in [0, 1).
        """
        return min(max(self.turn / max(1, self.total), self.budget_share()), 1 - 1e-9)

    def turns(self, total: int, kind: str = "", size: int = 0) -> Iterator[int]:
        """Yield 0 .. total - 1, without turns completed before a restart; stop early when the
        budget is used up.

        `kind` and `size` say what a turn takes, and how much. `first` is then the position at which
        this stream begins, after earlier streams of the kind. A stream that is left by `break`
        counts as finished, its last turn included.
        """
        if self.open:
            raise RuntimeError(
                "streams do not nest: finish one before opening the next, or use lab.minibatches"
            )
        self._settle()
        stream, self._streams = self._streams, self._streams + 1
        key, at = str(stream), self._positions
        if at.done.get(key):  # earlier metrics are in the rows already
            self._pending.clear()
        self.first = at.firsts.setdefault(key, at.taken.get(kind, 0))
        self._labels_before = at.labels_before.setdefault(key, self.used()["labels"])
        self.stream, self.turn, self.total, self.open = stream, at.done.get(key, 0), total, True
        self.kind, self.size = kind, size
        try:
            while self.turn < total and key not in at.left and self.budget_share() < 1:
                try:
                    yield self.turn
                except (
                    GeneratorExit
                ):  # left by `break` or by an exception; the next call tells which
                    self._exit = partial(self._leave, key, self.turn, total, kind, size)
                    self.turn += (
                        # random numbers between streams are derived from this position, as they are
                        # after a restart
                        1
                    )
                    raise
                enforce()
                self._end_turn(key, self.turn, total, kind, size)
                self.turn += 1
        finally:
            self.open = False

    def _leave(self, key: str, turn: int, total: int, kind: str, size: int) -> None:
        self._positions.left.append(key)
        self._end_turn(key, turn, total, kind, size)

    def _settle(self) -> None:
        """Count the last turn of a stream that was left by `break`, since the method goes on."""
        leave, self._exit = self._exit, None
        if leave is not None:
            leave()

    def _end_turn(self, key: str, turn: int, total: int, kind: str, size: int) -> None:
        self._positions.done[key] = turn + 1
        further = self._positions.further.get(key, 0)
        self._positions.taken[kind] = self.first + further + (turn + 1) * size
        self._close_turn(turn, total)

    @property
    def place(self) -> int:
        """The position of the current turn's first row among all rows of its kind."""
        further = self._positions.further.get(str(self.stream), 0)
        return self.first + further + self.turn * self.size

    def take_further(self, rows: int) -> int:
        """Take further rows in the current turn, next after its own; return their position.

        Later turns begin after them.
        """
        position = self.place + self.size
        key = str(self.stream)
        self._positions.further[key] = self._positions.further.get(key, 0) + rows
        return position

    def finish(self) -> None:
        """Complete the metrics after training, and close their files."""
        self._settle()
        if self._pending and self.rows:  # logged after the last turn
            self.rows[-1] |= {
                name: statistics.fmean(values) for name, values in self._pending.items()
            }
        if self.files is not None:
            self.files.close()

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the current turn's row; a name logged several times is averaged."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise Diverged(f"The metric {name} is {float(value)} at step {len(self.rows) + 1}.")
            self._pending.setdefault(name, []).append(float(value))

    def budget_share(self) -> float:
        """Return the largest used share of any limit of the budget; 0 without a budget.

        For labels it is the share of those that were left when training began, in a stream that
        uses labels. A stream that uses none runs to its end.
        """
        used, limits = (
            self.used(),
            {name: limit for name, limit in asdict(self.budget).items() if limit},
        )
        if "labels" in limits:
            used["labels"] -= (
                self.labels if used["labels"] > self._labels_before else used["labels"]
            )
            limits["labels"] = max(limits["labels"] - self.labels, 1e-9)
        return max((used[name] / limit for name, limit in limits.items()), default=0.0)

    def used(self) -> dict[str, float]:
        """Return what the method has used, in the budget's terms; labels include those used before
        training.
        """
        own = self.meter.total(OWN_PHASES)
        tokens = own.tokens_generated + own.tokens_trained
        return {
            "steps": own.steps,
            "samples": own.samples,
            "tokens": tokens,
            "flops": own.flops,
            "labels": self.labels + own.labels + own.ai_labels,
        }

    def left(self) -> dict[str, float]:
        """Return the unused part of each limit of the budget; negative where the last turn exceeded
        it.
        """
        used = self.used()
        return {
            name: limit - used[name]
            for name, limit in asdict(self.budget).items()
            if limit is not None
        }

    def save(self) -> None:
        """Write a checkpoint now; its time counts to no phase."""
        with self.meter.aside():
            if self.files is not None:
                self.files.sync()
            self.checkpoints.save(len(self.rows), self.trainer.tensors(), self.saved_state())

    def saved_state(self) -> dict[str, Any]:
        """Return all that a restart needs beside the tensors, as JSON-able values."""
        if json.loads(json.dumps(self.state)) != self.state:
            raise ValueError(
                "lab.state must survive being written as JSON (text keys; no tuples, no tensors),"
                f" not {self.state!r}"
            )
        return {
            **asdict(self._positions),
            "state": self.state,
            "rows": self.rows,
            "steps": self.trainer.steps,
            "meter": self.meter.snapshot(),
            "executions": self.executions,
            "pins": self.pins,
            "resumed": self.resumed,
        }

    def _close_turn(self, turn: int, total: int) -> None:
        row = {"step": float(len(self.rows) + 1)} | {
            k: statistics.fmean(v) for k, v in self._pending.items()
        }
        self._pending.clear()
        self.rows.append(row)
        if self.files is not None:
            self.files.turn(len(self.rows), row, self.rollouts())
        execution = self.execution() if self.execution is not None else None
        if execution is not None and execution not in self.executions[-1:]:
            self.executions.append(execution)
        self.on_step(turn + 1, total, row)
        if self.snapshots and "policy" in self.trainer.modules:
            self.snapshots.offer(
                turn + 1, total, len(self.rows), self.trainer.modules["policy"], self.used()
            )
        due = self.checkpoints.due(len(self.rows), self.trainer.tensors)
        if self.trainer.sharded:  # the main process decides when; all gather what it writes
            due = self.trainer.distributed.broadcast_from_main(due)
        if due:
            self.save()

    def _resume(self) -> None:
        checkpoint = self.checkpoints.load()
        if checkpoint is None:
            return
        self.trainer.saved, saved = checkpoint
        self.trainer.steps = saved["steps"]
        names = asdict(self._positions)
        self._positions = StreamPositions(**{name: saved[name] for name in names if name in saved})
        self.state, self.rows = saved["state"], saved["rows"]
        self.executions, self.pins = saved["executions"], saved["pins"]
        self.resumed = [*saved["resumed"], len(self.rows)]
        self.meter.restore(saved["meter"])
        self.checkpoints.schedule.resumed(len(self.rows))
