"""The command line: its entry point and the verbs show and new.

Heavy modules are imported inside the commands.
"""

from __future__ import annotations

import sys
import time
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..api.culprits import blamed, foreign, place_of
from ..api.registry import Registry, installed
from ..core.distributed import end_with_parent, leave_process_group, process_count
from ..core.errors import HarnessError, UsageError
from ..core.files import full_disk, is_full
from ..core.interrupts import Terminated, asked_for, watch_signals
from ..core.progress import process_age
from ..core.records import DamagedFiles
from ..core.secrets import redact_streams
from ..core.suite_file import is_suite_file
from .check_command import check
from .clean_command import clean
from .echo import echo
from .evaluate_command import evaluate
from .list_command import list_plugins
from .options import plugin_files, settings_option
from .report_commands import COMMANDS
from .run_command import run
from .study_command import study

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


GROUPS = {  # the commands of `harness --help`, by purpose
    "Run": ("run", "study", "evaluate"),
    "Read": ("table", "plot", "compare", "report"),
    "Extend": ("list", "show", "new", "check"),
    "Trust": ("reproduce", "power", "clean"),
}


class Group(click.Group):
    """A command group that suggests the nearest command and lists its commands in four groups."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Suggest the nearest command for an unknown one."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per group; a command without a group is in the section Other."""
        grouped = {name for names in GROUPS.values() for name in names}
        other = tuple(name for name in self.list_commands(ctx) if name not in grouped)
        for title, names in {**GROUPS, "Other": other}.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name, command.get_short_help_str(90)) for name, command in commands if command]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="alignment-harness")
def cli() -> None:
    """Run LLM alignment methods under identical conditions and compare them.

    \b
    harness run --method ppo --suite summarization    train, evaluate and record one run
    harness study mine.toml                           run methods, suites, seeds and sweeps
    harness table                                     compare the runs so far
    harness compare dpo ppo                           compare two methods prompt by prompt
    harness new method mine                           write a plugin project to start from
    """


@cli.command()
@click.argument("name")
@click.option("--suite", "-s", help="Show the values that a run on this suite would use.")
@click.option(
    "--model", metavar="PATH_OR_HUB_ID", help="Show the values that a run with a model would use."
)
@settings_option("--set", "settings", "Set an option as in a run.")
@plugin_files
def show(registry: Registry, name: str, **choices: Any) -> None:
    """Show a plugin, a stage (stage.sft), a suite file, a model (its folder or hub id), or a run.

    Of a suite file (.toml): its sources, splits, settings and first example. Of a model: its size
    and limits, and how it is scored and decoded. Of a run (its folder): its figures again, and what
    was read, skipped, dropped and cut of its data.
    """
    from .display import ShowRequest, describe, describe_stage, is_run, show_run

    request = ShowRequest(**choices)
    if is_suite_file(name):
        from .show_suite_file import describe_suite_file

        return echo(describe_suite_file(name, registry, request.model))
    if name.startswith("stage."):
        return echo(describe_stage(name.removeprefix("stage."), registry, request))
    if is_run(name):
        return show_run(Path(name))
    kinds, plain = registry.kinds_of(registry.name_of("methods", name))
    if not kinds and (Path(name).is_dir() or "/" in name):
        from ..experiments.model_report import described

        return echo(described(name))
    if not kinds:
        registry.get("methods", name)
    for kind in kinds:
        echo(describe(kind, registry.get(kind, plain), registry, request))


@cli.command()
@click.argument("kind", type=click.Choice(["method", "suite", "verifier", "judge"]))
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("."),
    show_default=True,
    help="The parent folder of the project.",
)
def new(kind: str, name: str, folder: Path) -> None:
    """Write a plugin project that works: entry point, code, tests, README."""
    from .new_project import new_project

    project = new_project(kind, name, folder)
    install = f"pip install -e '{project}[test]'"
    against = f" --against {project / 'preferences.jsonl'}" if kind == "judge" else ""
    echo(f"wrote {project}. Next: {install} && pytest {project} && harness check {name}{against}")


for command in (run, study, check, clean, evaluate, list_plugins, *COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error a user can cause ends in one message and its exit code."""
    watch_signals()
    if process_count() > 1:
        end_with_parent()
    redact_streams()
    DamagedFiles.paths.clear()
    try:
        status = cli.main(standalone_mode=False, obj=time.perf_counter() - process_age())
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HarnessError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("Out of memory. Lower --micro-batch-tokens, or the batch size, and run again.", 1)
    except BaseException as error:
        _end(error)
    else:
        leave_process_group()
        sys.exit((status if isinstance(status, int) else 0) or int(bool(DamagedFiles.paths)))


def _end(error: BaseException) -> None:
    """End the command after an interrupt, or with the name of the plugin behind an error."""
    cause = error.__cause__ if isinstance(error, click.exceptions.Abort) else error
    if isinstance(cause, Terminated):
        _fail("Terminated. Run the same command again to go on.", EXIT_TERMINATED)
    if cause is None or asked_for(cause):
        return _fail("Interrupted. Run the same command again to go on.", EXIT_INTERRUPTED)
    if is_full(cause):
        _fail(full_disk(cause), 1)
    failure = blamed(cause, installed(), "The command")
    if isinstance(cause, Exception) and not foreign(cause, installed()):
        raise cause
    _fail(f"{failure} ({place_of(cause, installed())}).", 1)


def _fail(message: str, code: int) -> None:
    echo(f"harness: {message}", fg="red", err=True)
    sys.exit(code)


__all__ = ["UsageError", "cli", "main"]
