"""The whole extension surface: eight hooks that register plugins, four that observe a run.

A plugin is a module named in the `harness` entry-point group (or a file given with `-p`). It
implements any of these with `@hookimpl`; an implementation may take fewer arguments than the
specification, so hooks can grow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ..core.spec import RunSpec
    from ..models.engine import Engine
    from .contracts import Judge, Labeller, Launcher, Method, Reporter, Suite, Verifier

hookspec = pluggy.HookspecMarker("harness")
hookimpl = pluggy.HookimplMarker("harness")


@hookspec
def register_methods(register: Callable[[type[Method]], None]) -> None:
    """Register alignment methods."""


@hookspec
def register_suites(register: Callable[[type[Suite]], None]) -> None:
    """Register suites: prompts, demonstrations, preferences, perhaps a verifier."""


@hookspec
def register_judges(register: Callable[[type[Judge]], None]) -> None:
    """Register judges: they score completions for evaluation and are never shown to a method."""


@hookspec
def register_labellers(register: Callable[[type[Labeller]], None]) -> None:
    """Register labellers: they rank sampled completions where a suite has no fixed preferences."""


@hookspec
def register_verifiers(register: Callable[[type[Verifier]], None]) -> None:
    """Register verifiers: they check answers against gold answers or rules."""


@hookspec
def register_engines(register: Callable[[type[Engine]], None]) -> None:
    """Register rollout engines."""


@hookspec
def register_reporters(register: Callable[[type[Reporter]], None]) -> None:
    """Register table formats."""


@hookspec
def register_launchers(register: Callable[[type[Launcher]], None]) -> None:
    """Register launchers: they carry out the runs of a study."""


# -- life cycle: observers return nothing; an exception in one is reported and never stops a run ---


@hookspec
def run_started(spec: RunSpec, folder: Path, plan: object) -> None:
    """A run holds its folder and is about to make or load its stages.

    `plan` says what it will do and about how long (experiments/plan.py); `str(plan)` is its text.
    """


@hookspec
def step_logged(
    spec: RunSpec,
    phase: str,
    step: int,
    total: int,
    metrics: Mapping[str, float],
    shown: Sequence[str],
) -> None:
    """A stage or the method finished step `step` of `total` (0: unknown); `phase` says which.

    `shown` names the metrics that a method declares to be telling, in order.
    """


@hookspec
def activity_changed(spec: RunSpec, activity: str, step: int, total: int, ended: bool) -> None:
    """An activity without metrics began (`step` 0), did `step` of `total` (0: unknown), or ended.

    Loading, evaluation and writing are such activities. They may nest. An empty `activity` that
    ended is the run itself, finished or not.
    """


@hookspec
def run_finished(spec: RunSpec, folder: Path, result: Mapping[str, object]) -> None:
    """A run was evaluated and its result stored."""
