"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ..api.registry import Registry, installed, load_file

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def plugin_files(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `-p FILE` to a command and pass it the registry."""

    @click.option(
        "-p",
        "--plugin",
        "files",
        multiple=True,
        metavar="FILE",
        help="Load a Python file as a plugin.",
    )
    @wraps(command)
    def with_registry(files: tuple[str, ...], **arguments: Any) -> Any:
        registry = installed()
        for path in files:
            load_file(registry, path)
        return command(registry=registry, **arguments)

    return with_registry


def output_option(description: str) -> Decorator:
    """Return the option --output, a file."""
    return click.option("--output", "-o", type=click.Path(path_type=Path), help=description)


def settings_option(
    flag: str, name: str, description: str, metavar: str = "NAME=VALUE"
) -> Decorator:
    """Return an option that sets options of something, and may be given several times."""
    return click.option(flag, name, multiple=True, metavar=metavar, help=description)


def tracking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--track NAME` and `--track-project NAME` to a command."""
    track = click.option(
        "--track",
        multiple=True,
        metavar="NAME",
        help="Track runs with wandb, trackio, tensorboard or mlflow; may be given several times.",
    )
    project = click.option(
        "--track-project",
        metavar="NAME",
        default="alignment-harness",
        show_default=True,
        help="The project of the trackers.",
    )
    return track(project(command))


def tracked(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of trackers to a command that makes one run, and register the trackers."""

    @tracking_options
    @click.option("--track-group", default="", metavar="NAME", help="The runs' group of trackers.")
    @wraps(command)
    def with_trackers(
        registry: Registry,
        results: Path,
        track: tuple[str, ...],
        track_project: str,
        track_group: str,
        **arguments: Any,
    ) -> Any:
        from ..experiments.trackers import Tracking, register_trackers

        register_trackers(registry, Tracking(track, track_project, track_group), results)
        return command(registry=registry, results=results, **arguments)

    return with_trackers


results_option = click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="The folder of runs and shared artifacts.",
)
suite_filter = click.option("--suite", "-s", help="Only this suite; otherwise every suite in turn.")
study_filter = click.option(
    "--study", metavar="NAME", help="Only the runs of this study, under its labels."
)
methods_filter = click.option("--methods", help="Only these methods or labels, comma-separated.")
where_filter = settings_option(
    "--where",
    "where",
    "Only runs with this option: a method's, suite.NAME, stage.STAGE.NAME or run.NAME, as in"
    " run.quick=true.",
)
