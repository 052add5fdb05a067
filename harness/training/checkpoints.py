"""Checkpoints for restarts, and snapshots of the policy for the evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.digests import file_digest
from ..core.fault_points import fault_point
from ..core.files import make_folder, publish
from ..core.progress import CHECKPOINTS, activity
from ..core.records import CHANGED, Damaged, read_object, rerun, write_sealed
from ..core.save_schedule import SaveCosts, SaveInterval, SaveSchedule
from ..models.lora import own_state
from ..models.tensor_files import follow_tensors, load_tensors, save_tensors, size_in_file

INSTEAD = "The one before it is used."


class Checkpoints:
    """The last two checkpoints in a folder. Each is verified when it is read; the older one is the
    fallback.

    `stages` are the contents of the shared stages, by kind. A checkpoint of training on other
    contents is not read.
    """

    def __init__(
        self,
        folder: Path,
        every: SaveInterval,
        writes: bool = True,
        stages: Mapping[str, str] | None = None,
        costs: SaveCosts | None = None,
    ) -> None:
        self.folder, self.writes = make_folder(folder), writes
        self.stages = dict(stages or {})
        self.schedule = SaveSchedule(every, costs or SaveCosts())
        self.damaged: list[str] = []
        self.outdated: list[str] = []

    def due(self, turn: int, tensors: Callable[[], Mapping[str, Tensor]]) -> bool:
        """Return whether this process writes a checkpoint of these tensors after a turn."""
        return self.writes and self.schedule.due(turn, lambda: size_in_file(tensors()))

    def save(self, turn: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, if this process writes; the one before the last is removed.

        Another process takes part in gathering sharded tensors. So a checkpoint holds whole ones,
        and can be read by any number of processes.
        """
        if not self.writes:
            follow_tensors(tensors)
            return
        saving = self.schedule.saving(turn, size_in_file(tensors))
        with activity(CHECKPOINTS, "writing a checkpoint"), saving:
            work, final = self.folder / ".partial", self.folder / f"turn-{turn:08d}"
            shutil.rmtree(work, ignore_errors=True)
            fault_point("checkpoint.begin")
            work.mkdir()
            digest = save_tensors(tensors, work / "tensors.safetensors")
            fault_point("checkpoint.tensors")
            whole = {**state, "tensors": digest, "stages": self.stages}
            write_sealed(work / "state.json", whole)
            shutil.rmtree(final, ignore_errors=True)
            fault_point("checkpoint.sealed")
            publish(work, final)
            fault_point("checkpoint.published")
            for old in self._folders()[:-2]:
                shutil.rmtree(old)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest readable checkpoint, or None.

        Damaged ones are named in `damaged`, those of other stages in `outdated`.
        """
        for folder in reversed(self._folders()):
            try:
                state = read_object(
                    folder / "state.json", "The one before it is used.", sealed=True
                )
                if state["stages"] != self.stages:
                    self.outdated.append(folder.name)
                    continue
                if state["tensors"] == file_digest(folder / "tensors.safetensors"):
                    return load_tensors(folder / "tensors.safetensors"), state
            except (Damaged, OSError, ValueError, KeyError):
                pass
            self.damaged.append(folder.name)
        return None

    def clear(self) -> None:
        """Remove all checkpoints, once their result is safe elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("turn-*"))


class Snapshots:
    """Copies of the policy at `count` evenly spaced turns, which the evaluator measures after
    training.
    """

    def __init__(self, folder: Path, count: int, writes: bool = True) -> None:
        self.folder, self.count, self.writes = make_folder(folder), count, writes

    def offer(
        self, turn: int, total: int, step: int, policy: nn.Module, used: Mapping[str, float]
    ) -> None:
        """Keep the policy and its costs if this turn of `total` is one of the evenly spaced
        ones.
        """
        if turn not in {round(total * (i + 1) / self.count) for i in range(self.count)}:
            return
        if not self.writes:
            follow_tensors(own_state(policy))
        else:
            part = self.folder / ".partial.safetensors"
            digest = save_tensors(own_state(policy), part)
            write_sealed(self.folder / f"step-{step:06d}.json", {**used, "tensors": digest})
            part.replace(self.folder / f"step-{step:06d}.safetensors")

    def kept(self) -> dict[int, Path]:
        """Return {step: file of the policy}, in order.

        Beside each file lies a .json with the used part of each budget.
        """
        return {
            int(file.stem.removeprefix("step-")): file
            for file in sorted(self.folder.glob("step-*.safetensors"))
        }


def read_snapshot(file: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors of a snapshot, and what had been used of each budget; raise Damaged."""
    remedy = rerun(file.parent.parent)
    used = read_object(file.with_suffix(".json"), remedy, sealed=True)
    if used.pop("tensors", None) != file_digest(file):
        raise Damaged(file, CHANGED, remedy)
    return load_tensors(file), used
