"""The command line: its entry point and the verbs run, study, show and new.

Heavy modules are imported inside the commands.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..api.culprits import blamed, foreign, place_of
from ..api.registry import Registry, installed
from ..core.distributed import end_with_parent, leave_process_group, process_count
from ..core.errors import HarnessError, UsageError
from ..core.files import is_full
from ..core.interrupts import Terminated, asked_for, watch_signals
from ..core.progress import process_age
from ..core.records import DamagedFiles
from ..core.save_schedule import parse_interval
from ..core.secrets import redact_streams
from ..core.spec import SAVED_DTYPES, SAVED_KINDS, STARTS, WEIGHTS
from ..core.suite_file import is_suite_file
from .check_command import check
from .clean_command import clean
from .dry_run import of_run, of_study
from .echo import echo
from .evaluate_command import evaluate
from .list_command import list_plugins
from .options import plugin_files, results_option, settings_option
from .report_commands import COMMANDS

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
@click.option("--method", "-m", required=True, help="The alignment method: see `harness list`.")
@click.option(
    "--suite",
    "-s",
    required=True,
    help="A suite's name, or a suite file (.toml) for your own data.",
)
@settings_option("--set", "settings", "Set an option of the method.")
@settings_option("--suite-set", "suite_settings", "Set an option of the suite.")
@settings_option(
    "--stage-set",
    "stage_settings",
    "Set an option of a stage: sft, preferences, reward_model, evaluation.",
    "STAGE.NAME=VALUE",
)
@click.option(
    "--model", metavar="PATH_OR_HUB_ID", help="The base model; embedded suites bring their own."
)
@click.option(
    "--start",
    type=click.Choice(STARTS),
    default=None,
    show_default="model for a --model with a chat template, else sft",
    help="Start from the model itself, or from the model after SFT on the demonstrations.",
)
@click.option(
    "--reference",
    metavar="PATH_OR_HUB_ID",
    help=(
        "The model that KL is measured to and that methods compare with, of the same architecture"
        " and tokenizer; otherwise the start checkpoint."
    ),
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seeds the method: data order, rollouts, new heads, its answers.",
)
@click.option(
    "--shared-seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seeds what all methods share: data, SFT, preferences, reward model.",
)
@click.option(
    "--budget",
    default="",
    metavar="NAME=N,...",
    help=(
        "End the training of the method after N steps, samples, tokens, flops or labels. Labels"
        " include those of its preferences, which are cut to N."
    ),
)
@click.option(
    "--judge",
    metavar="NAME",
    help="Judge by this plugin instead of the suite's; labeller:NAME is a labeller as a judge.",
)
@settings_option("--judge-set", "judge_settings", "Set an option of the judge.")
@click.option("--labeller", metavar="NAME", help="Label by this plugin instead of the suite's.")
@settings_option(
    "--labeller-set",
    "labeller_settings",
    "Set an option of the labeller that the method learns from.",
)
@click.option("--engine", default="hf", show_default=True, help="The rollout engine.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    show_default="as --weights; bfloat16 with nf4",
    help="Of forward passes.",
)
@click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    default=WEIGHTS[0],
    show_default=True,
    help=(
        "Of weights in memory. In bfloat16 those that are trained have float32 copies; in nf4 (4"
        " bits) adapters are trained on them."
    ),
)
@click.option(
    "--micro-batch-tokens",
    type=click.IntRange(1),
    default=16384,
    show_default=True,
    help="Tokens per forward pass in training and scoring; halved when memory runs out.",
)
@click.option(
    "--decode-batch-tokens",
    type=click.IntRange(1),
    default=131072,
    show_default=True,
    help=(
        "Tokens in decoding at once, prompts included: at most what a quarter of the memory holds,"
        " and halved when memory runs out."
    ),
)
@click.option(
    "--activation-checkpointing",
    is_flag=True,
    help="Compute layers again in the backward pass: less memory, about 1.2 times the time.",
)
@click.option(
    "--prompt-sharing/--no-prompt-sharing",
    default=True,
    show_default=True,
    help="Compute a prompt once for its completions, where the model can.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=lambda: min(2, os.cpu_count() or 1),
    show_default="2",
    envvar="HARNESS_THREADS",
    show_envvar=True,
    help="CPU threads. The embedded model gains from two; runs side by side want one each.",
)
@click.option(
    "--checkpoint-every",
    default="auto",
    show_default=True,
    metavar="auto|off|SECONDS|Nsteps",
    envvar="HARNESS_CHECKPOINT_EVERY",
    show_envvar=True,
    callback=lambda context, parameter, value: parse_interval(value),
    help="Time between checkpoints. auto: they take at most 5 % of the time.",
)
@click.option(
    "--answer-timeout",
    type=click.FloatRange(0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="The longest wait for one answer of a labeller, judge or helper process.",
)
@results_option
@click.option(
    "--save",
    type=click.Choice(SAVED_KINDS),
    default="auto",
    show_default=True,
    help=(
        "What is kept of the policy: the whole model, the LoRA adapter, or none. auto: the adapter"
        " where one is trained, else the whole model."
    ),
)
@click.option(
    "--save-dtype",
    type=click.Choice(SAVED_DTYPES),
    default="auto",
    show_default=True,
    help=(
        "Of the kept weights; auto: as in memory. The policy is rounded to it before it is"
        " evaluated."
    ),
)
@click.option(
    "--snapshots",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Evaluate N policies along training too: gold and proxy as KL grows.",
)
@click.option(
    "--check-rollouts",
    is_flag=True,
    help=(
        "Check sampled log-probabilities against a teacher-forced pass; stop if they differ by"
        " more than rounding error."
    ),
)
@click.option(
    "--quick",
    is_flag=True,
    help="A run of seconds, to see that everything works; its figures mean nothing.",
)
@click.option(
    "--only-stages",
    is_flag=True,
    help="Make the shared stages that all methods of the suite start from, and stop.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print stages, memory, disk and time from the configuration; load and write nothing.",
)
@plugin_files
def run(
    registry: Registry,
    method: str,
    suite: str,
    only_stages: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a method on a suite, evaluate it, and record everything.

    Running the same command again continues after a crash, and does nothing after success.
    """
    from ..api.resolve import Request, resolve
    from ..core.distributed import is_main
    from ..experiments.prepare import RunOptions
    from ..experiments.run import check_saved, execute
    from .display import show

    if options["model"]:  # hashing a large model takes a while
        echo(f"{method} on {suite}: reading {options['model']}", err=True)
    how, settings = _fields(options, RunOptions), _fields(options, Request)
    rest = {name: value for name, value in options.items() if name not in {*how, *settings}}
    spec = resolve(Request(method, suite, **settings, fixed=rest), registry)
    if spec.method != method:
        echo(f"The method {method} is called {spec.method}.", err=True)
    if options["quick"] and not spec.quick:
        _warn(
            f"--quick lowers nothing: {spec.suite_name} says nothing of quick runs, or the"
            " settings are as low. This is a run of full size."
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if dry_run:
        return echo(of_run(spec, registry, options["results"]))
    started = click.get_current_context().obj
    run_options = RunOptions(**how, warn=_warn, say=_say, started=started)
    if only_stages:
        from ..experiments.shared_stages import make_shared_stages

        for artifact in make_shared_stages(spec, registry, run_options):
            echo(f"{'stored' if artifact.reused else 'made'}: {artifact.folder}")
        return
    outcome = execute(spec, registry, run_options)
    if is_main():
        show(outcome)
    check_saved(outcome)


def _fields(options: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    """Return the options of the command line that are fields of a dataclass."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in options.items() if name in names}


@cli.command()
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
) -> int:
    """Run a study file (.toml): methods, suites, seeds, sweeps, tuning.

    The same command resumes it. After an edit of the file only the new runs are made.
    """
    from ..core.options import parse_settings
    from ..experiments.study import show, work
    from ..experiments.study.file import read_study
    from ..experiments.study.state import Estimates, state_of

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
    ).carry_out()
    return int(not done)


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


for command in (check, clean, evaluate, list_plugins, *COMMANDS):
    cli.add_command(command)


def _say(message: str) -> None:
    echo(message, err=True)


def _warn(message: str) -> None:
    echo(message, fg="yellow", err=True)


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
        file = getattr(cause, "filename", None) or "a file"
        again = "Free some space, and run the same command again."
        _fail(f"No space for {file}: {cause}. {again}", 1)
    failure = blamed(cause, installed(), "The command")
    if isinstance(cause, Exception) and not foreign(cause, installed()):
        raise cause
    _fail(f"{failure} ({place_of(cause, installed())}).", 1)


def _fail(message: str, code: int) -> None:
    echo(f"harness: {message}", fg="red", err=True)
    sys.exit(code)


__all__ = ["UsageError", "cli", "main"]
