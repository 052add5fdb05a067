"""Trackers of experiments on the hooks of a run: wandb, trackio, TensorBoard and MLflow.

They are those of `accelerate.tracking`. A tracker reads what a run records, and changes nothing of
it. All text passes `redact`. An error in a tracker is reported once, and the run goes on.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..api.hookspecs import hookimpl
from ..api.registry import Registry
from ..core.errors import UsageError, unknown
from ..core.run_folder import ROLLOUTS, SAMPLES, flatten
from ..core.secrets import redact
from ..core.spec import RunSpec

TRACKERS = ("mlflow", "tensorboard", "trackio", "wandb")  # each has the name of its package
PROJECT = "alignment-harness"
HOOKS = ("stdin", "stdout", "stderr", "excepthook", "displayhook", "unraisablehook")
ROWS = 16  # of sampled completions that a tracker is given
FIGURES = ("win_rate", "gold", "proxy", "accuracy", "kl", "length")
COLUMNS = ("step", "prompt", "completion", "reward")


@dataclass(frozen=True)
class Tracking:
    """What is tracked, and under which names."""

    names: tuple[str, ...] = ()
    project: str = PROJECT
    group: str = ""  # runs of one study stand together

    def arguments(self) -> tuple[str, ...]:
        """Return the options of `harness run` that ask for the same."""
        if not self.names:
            return ()
        asked = [word for name in self.names for word in ("--track", name)]
        return (*asked, "--track-project", self.project, "--track-group", self.group)


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that is unknown, or whose package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if find_spec(name) is None:
            raise UsageError(
                f"--track {name} needs a package: pip install 'alignment-harness[{name}]'"
            )


def register_trackers(registry: Registry, tracking: Tracking, results: Path) -> None:
    """Register each tracker as an observer of the runs of this process.

    Raises:
        UsageError: A tracker is unknown, or its package is missing.
    """
    names = tuple(dict.fromkeys(tracking.names))
    check_trackers(names)
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):  # else it would be refused
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        os.environ["MLFLOW_TRACKING_URI"] = (results.absolute() / "mlruns").as_uri()
    for name in names:
        registry.manager.register(Observer(name, tracking, results.absolute()), f"tracker {name}")


class Observer:
    """One tracker as an observer of a run."""

    def __init__(self, name: str, tracking: Tracking, results: Path) -> None:
        self.name, self.tracking, self.results = name, tracking, results
        self._run: tuple[RunSpec, Path] | None = None
        self._tracker: Any = None
        self._logged = 0
        self._failed = False

    @hookimpl
    def run_started(self, spec: RunSpec, folder: Path) -> None:
        """Note which run it is. The tracker starts with the first value, after devices."""
        self._close()  # of a run that failed
        self._run, self._logged, self._failed = (spec, folder), 0, False

    @hookimpl
    def step_logged(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Track the metrics of a step of a stage or of the method."""
        values = {f"{phase}/{k}": float(v) for k, v in metrics.items() if k != "step"}
        self._guarded(lambda tracker: self._log(tracker, {**values, f"{phase}/step": float(step)}))

    @hookimpl
    def run_finished(self, spec: RunSpec, folder: Path, result: Mapping[str, Any]) -> None:
        """Track the figures of the result, and sampled completions."""

        def finish(tracker: Any) -> None:
            self._log(tracker, figures_of(result))
            self._completions(tracker, folder)

        self._guarded(finish)
        self._close()

    def _close(self) -> None:
        """Close the tracker. That of a run that fails closes itself at the end of the process."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.finish()

    def _guarded(self, use: Callable[[Any], None]) -> None:
        """Use the tracker, and leave it alone for the rest of a run after an error."""
        if self._failed or self._run is None:
            return
        numbers = random.getstate()  # trackers draw names from them, and hook into sys
        hooks = {name: getattr(sys, name) for name in HOOKS}
        try:
            if self._tracker is None:
                self._tracker = self._started()
            use(self._tracker)
        except BaseException:
            self._failed = True
            raise
        finally:
            random.setstate(numbers)
            for name, hook in hooks.items():
                setattr(sys, name, hook)

    def _log(self, tracker: Any, values: Mapping[str, float]) -> None:
        self._logged += 1
        tracker.log(dict(values), step=self._logged)

    # -- starting ----------------------------------------------------------------------------------

    def _started(self) -> Any:
        """Return the running tracker, with the configuration of the run."""
        assert self._run is not None
        spec, folder = self._run
        tracker = getattr(self, f"_{self.name}")(f"{spec.suite_name}-{spec.method}-{folder.name}")
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration(config_of(spec))
        return tracker

    def _wandb(self, name: str) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        identity = name.replace("/", "-")
        return WandBTracker(
            self.tracking.project,
            name=name,
            id=identity,  # a run that is resumed goes on under the same name
            resume="allow",
            group=self.tracking.group or None,
            dir=str(self.results),
            settings=wandb.Settings(console="off"),  # output is not redacted where it reads it
        )

    def _trackio(self, name: str) -> Any:
        from accelerate.tracking import TrackioTracker

        group = {"group": self.tracking.group} if self.tracking.group else {}
        return TrackioTracker(self.tracking.project, name=name, resume="allow", **group)

    def _tensorboard(self, name: str) -> Any:
        from accelerate.tracking import TensorBoardTracker

        return TensorBoardTracker(name, self.results / "tensorboard" / self.tracking.group)

    def _mlflow(self, name: str) -> Any:
        from accelerate.tracking import MLflowTracker

        return MLflowTracker(self.tracking.group or self.tracking.project, run_name=name)

    # -- completions -------------------------------------------------------------------------------

    def _completions(self, tracker: Any, folder: Path) -> None:
        """Give the tracker sampled completions, in the form that it can show."""
        rows = completions_of(folder)
        if self.name == "wandb":
            tracker.log_table("completions", columns=list(COLUMNS), data=rows, step=self._logged)
        elif self.name == "tensorboard":
            for row in rows:
                tracker.log({"completions": _as_text(row)}, step=int(row[0] or 0))
        elif self.name == "trackio":
            import pandas
            import trackio

            table = trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(COLUMNS)))
            tracker.log({"completions": table}, step=self._logged)
        else:
            import mlflow

            columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
            mlflow.log_dict(columns, "completions.json")


def _as_text(row: Sequence[Any]) -> str:
    _, prompt, completion, reward = row
    score = "" if reward is None else f"\n\nreward {reward:.4g}"
    return f"{prompt}\n\n**completion**\n\n{completion}{score}"


def config_of(spec: RunSpec) -> dict[str, Any]:
    """Return every setting of a run by name, as plain values without secrets."""
    values = flatten({k: v for k, v in asdict(spec).items() if k != "code"})
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """Return a value as every tracker takes it."""
    if isinstance(value, (bool, int, float)):
        return value
    return redact(value if isinstance(value, str) else json.dumps(value))


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the main figures of a result: means with their intervals, tasks, and the cost."""
    evaluation = result["evaluation"]
    values: dict[str, float] = {}
    for name in FIGURES:
        if isinstance(evaluation.get(name), Mapping):
            values |= _interval(f"evaluation/{name}", evaluation[name])
    for task, about in evaluation.get("tasks", {}).items():
        if "mean" in about:
            values |= _interval(f"tasks/{task}", about)
            values[f"tasks/{task}_alignment_tax"] = float(about["tax"]["difference"])
    if "guest" not in result:  # the cost of a guest's training is unknown
        own = result["cost"]["method"]
        values |= {f"cost/{n}": float(own[n]) for n in ("seconds", "flops", "peak_memory")}
    return values


def _interval(name: str, estimate: Mapping[str, float]) -> dict[str, float]:
    ends = {f"{name}_{end}": float(estimate[end]) for end in ("low", "high") if end in estimate}
    return {name: float(estimate["mean"]), **ends}


def completions_of(folder: Path) -> list[list[Any]]:
    """Return sampled completions of a run: of the last turns of training, and evaluated answers."""
    rollouts = [
        [row["step"], row["prompt"], row["completion"], row.get("reward")]
        for row in _rows(folder / ROLLOUTS)[-ROWS // 2 :]
    ]
    answers = [
        [None, row["prompt"], row["answer"], row.get("gold")]
        for row in _rows(folder / SAMPLES)[: ROWS - len(rollouts)]
    ]
    return [[redact(v) if isinstance(v, str) else v for v in row] for row in (*rollouts, *answers)]


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines: Iterable[str] = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
