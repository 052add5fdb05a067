"""`harness study`: make the runs of a study file."""

from __future__ import annotations

from pathlib import Path

import click

from ..api.registry import Registry
from .dry_run import of_study
from .echo import echo
from .options import plugin_files, results_option, settings_option, tracking_options


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the runs, their progress and the estimated remaining cost; run nothing.",
)
@click.option("--retry-failed", is_flag=True, help="Try failed runs again too.")
@click.option(
    "--jobs", "-j", type=click.IntRange(1), help="Runs at a time: the launcher's option `jobs`."
)
@click.option(
    "--launcher", metavar="NAME", help="Start the runs with this launcher instead of the study's."
)
@settings_option("--launcher-set", "settings", "Set an option of the launcher.")
@results_option
@tracking_options
@plugin_files
def study(
    registry: Registry,
    file: Path,
    dry_run: bool,
    retry_failed: bool,
    jobs: int | None,
    launcher: str | None,
    settings: tuple[str, ...],
    results: Path,
    track: tuple[str, ...],
    track_project: str,
) -> int:
    """Run a study file (.toml): methods, suites, seeds, sweeps, tuning.

    The same command resumes it. After an edit of the file only the new runs are made.
    """
    from ..core.options import parse_settings
    from ..experiments.study import show, work
    from ..experiments.study.file import read_study
    from ..experiments.study.state import Estimates, state_of
    from ..experiments.trackers import Tracking, check_trackers

    check_trackers(track)
    study_file = read_study(file)
    work.load_plugins(study_file, registry)
    options = parse_settings([*settings, *([f"jobs={jobs}"] if jobs else [])], "--launcher-set")
    chosen = work.launcher_of(study_file, registry, launcher, options)
    if dry_run:
        plan = work.plan(study_file, registry, results)
        states = [state_of(cell, results) for cell in plan.cells]
        echo(show.dry_run(plan, states, Estimates(results)))
        echo(of_study(plan.cells, registry, results), nl=False)
        return 0
    done = work.Work(
        study_file,
        registry,
        results,
        chosen,
        retry_failed,
        show.watch_for(results, study_file.name),
        Tracking(track, track_project, study_file.name),
    ).carry_out()
    return int(not done)
