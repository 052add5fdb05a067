"""`harness evaluate RUN...`: evaluate trained policies again, with another judge or on other
prompts.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..api.registry import Registry
from ..api.resolve import evaluated_anew
from ..core.errors import HarnessError, UsageError
from ..core.records import Damaged, show_damaged
from .echo import echo
from .options import plugin_files, settings_option


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--judge", metavar="NAME", help="Judge by this plugin instead of the suite's.")
@settings_option(
    "--stage-set",
    "stage_settings",
    "Set an option of the evaluation, for example evaluation.prompts=1024.",
    "evaluation.NAME=VALUE",
)
@plugin_files
def evaluate(
    runs: tuple[Path, ...], judge: str | None, stage_settings: tuple[str, ...], registry: Registry
) -> None:
    """Evaluate finished runs again, and train nothing.

    RUN is the folder of a run. Its trained policy is read from the artifacts beside it. The result
    is a run of its own: tables show it beside others with the same judge.
    """
    damaged = []
    for run in runs:
        try:
            _evaluate(run, judge, stage_settings, registry)
        except Damaged as error:
            show_damaged(error)
            damaged.append(error)
    if damaged:
        raise HarnessError(
            f"{len(damaged)} of {len(runs)} runs are damaged: nothing of them is shown."
        )


def _evaluate(
    run: Path, judge: str | None, stage_settings: tuple[str, ...], registry: Registry
) -> None:
    from ..experiments.prepare import RunOptions
    from ..experiments.reproduce import read_spec
    from ..experiments.run import check_saved, execute
    from .display import show

    results = _results_of(run)
    spec = evaluated_anew(read_spec(run), judge, stage_settings, registry)
    warn = lambda text: echo(text, err=True)  # noqa: E731
    outcome = execute(spec, registry, RunOptions(results, warn=warn, say=warn, train=False))
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
