"""`harness evaluate RUN...`: evaluate trained policies again, with another judge or on other
prompts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..api.registry import Registry
from ..api.resolve import evaluated_anew
from ..core.errors import HarnessError, UsageError
from ..core.records import Damaged, show_damaged
from .echo import echo
from .options import plugin_files, settings_option


@dataclass(frozen=True)
class Request:
    """How runs are evaluated again."""

    judge: str | None
    judge_settings: tuple[str, ...]
    stage_settings: tuple[str, ...]
    greedy: bool
    against: str | None
    answer_timeout: float
    tasks: str | None = None
    task_data: str | None = None

    def evaluation(self) -> tuple[str, ...]:
        """Return all settings of the stage `evaluation`."""
        greedy = ("evaluation.greedy=true",) if self.greedy else ()
        against = () if self.against is None else (f"evaluation.against={self.against}",)
        tasks = () if self.tasks is None else (f"evaluation.tasks={self.tasks}",)
        folder = self.task_data or (self.tasks and os.environ.get("HARNESS_TASK_DATA"))
        data = (f"evaluation.task_data={folder}",) if folder else ()
        return (*self.stage_settings, *greedy, *against, *tasks, *data)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--judge",
    metavar="NAME",
    help="Judge by this plugin instead of the suite's; labeller:NAME is a labeller as a judge.",
)
@settings_option("--judge-set", "judge_settings", "Set an option of the judge.")
@click.option("--greedy", is_flag=True, help="Answer with the most probable token each time.")
@click.option(
    "--against",
    metavar="FILE|RUN|references",
    help="Compare with fixed answers: a JSON-lines file, another run, or those of the data.",
)
@click.option(
    "--tasks",
    metavar="TASK,...",
    help="Run tasks of lm-evaluation-harness: stock tasks, YAML files, or folders of them.",
)
@click.option(
    "--task-data",
    metavar="DIR",
    help="The folder that task files of your own read; or set HARNESS_TASK_DATA.",
)
@settings_option(
    "--stage-set",
    "stage_settings",
    "Set an option of the evaluation, for example evaluation.prompts=1024.",
    "evaluation.NAME=VALUE",
)
@click.option(
    "--answer-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="The longest wait for one answer of a judge or helper process.",
)
@plugin_files
def evaluate(runs: tuple[Path, ...], registry: Registry, **options: Any) -> None:
    """Evaluate finished runs again, and train nothing.

    RUN is the folder of a run. Its trained policy is read from the artifacts beside it. The result
    is a run of its own: tables show it beside others with the same judge.
    """
    damaged = []
    for run in runs:
        try:
            _evaluate(run, Request(**options), registry)
        except Damaged as error:
            show_damaged(error)
            damaged.append(error)
    if damaged:
        raise HarnessError(
            f"{len(damaged)} of {len(runs)} runs are damaged: nothing of them is shown."
        )


def _evaluate(run: Path, request: Request, registry: Registry) -> None:
    from ..experiments.prepare import RunOptions
    from ..experiments.reproduce import read_spec
    from ..experiments.run import check_saved, execute
    from .display import show

    results = _results_of(run)
    spec = evaluated_anew(
        read_spec(run), request.judge, request.evaluation(), registry, request.judge_settings
    )
    warn = lambda text: echo(text, err=True)  # noqa: E731
    how = RunOptions(
        results, answer_timeout=request.answer_timeout, warn=warn, say=warn, train=False
    )
    outcome = execute(spec, registry, how)
    show(outcome)
    check_saved(outcome)


def _results_of(run: Path) -> Path:
    """Return the results folder of a run RESULTS/runs/SUITE/METHOD/seedN-FINGERPRINT."""
    if not (run / "spec.json").is_file():
        raise UsageError(
            f"{run} is not the folder of a run: it has no spec.json. Name a folder below"
            f" results{os.sep}runs."
        )
    return run.resolve().parents[3]
