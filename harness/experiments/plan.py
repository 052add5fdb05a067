"""The stages of a run and their estimated time, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..api.participants import Participants
from ..core.errors import HarnessError
from ..core.spec import START, START_SFT, RunSpec
from .study.state import Estimates


@dataclass(frozen=True)
class RunPlan:
    """The stages of a run and their estimated time."""

    method: str
    shared: Sequence[str]  # stages that all methods share, in order; made once
    steps: int  # of the method; 0 where its options give none
    prompts: int  # of the evaluation
    # of training and evaluation; None without an earlier run to estimate from
    seconds: float | None
    # of the shared stages; None without an earlier run to estimate from
    shared_seconds: float | None

    def __str__(self) -> str:
        """Return two lines: the stages, and the time."""
        steps = f"{self.steps} steps of {self.method}" if self.steps else self.method
        training = [] if self.method == START else [steps]
        evaluation = f"evaluation on {self.prompts} prompts"
        return f"stages: {', '.join([*self.shared, *training, evaluation])}\n{self._time()}"

    def _time(self) -> str:
        if self.seconds is None:
            return "time: unknown, no run like this one has finished here"
        own = f"time: about {duration(self.seconds)}"
        if self.shared_seconds is None:
            return f"{own}, and the stages that are not stored yet"
        return f"{own}, and {duration(self.shared_seconds)} more if no stage is stored yet"


def plan_of(spec: RunSpec, built: Participants, results: Path) -> RunPlan:
    """Return the plan of a run. Times come from finished runs below `results`, or from the shipped
    estimates.
    """
    shared = ["sft"] if spec.start == START_SFT else []
    if spec.reward_model:
        shared.append("reward model")
    elif built.can_prefer:
        rewarded = built.suite.proxy or "reward" in built.method.required()
        learns = rewarded or bool(built.method.required() & {"pairs", "labelled"})
        shared += ["preferences"] * learns + ["reward model"] * rewarded
    try:
        estimates = Estimates(results)
        own, stages = estimates.seconds_of(spec), estimates.stage_seconds_of(spec)
    except HarnessError:  # a damaged record of another run; `table` reports it
        own = stages = None
    return RunPlan(
        spec.method,
        shared,
        int(spec.options.get("steps") or 0),
        int(spec.stages["evaluation"]["prompts"]),
        own,
        stages,
    )


def duration(seconds: float) -> str:
    """Return a duration in one or two units: `40 s`, `3 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
