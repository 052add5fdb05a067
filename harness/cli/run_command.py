"""`harness run`: train one method on one suite, evaluate it, and record everything."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import click

from ..api.registry import Registry
from ..core.execution import NOT_SHARDED, SHARDS
from ..core.save_schedule import parse_interval
from ..core.spec import SAVED_DTYPES, SAVED_KINDS, STARTS, WEIGHTS
from .dry_run import of_run
from .echo import echo, say, warn
from .options import plugin_files, results_option, settings_option, tracked


@click.command()
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
    "--reward-model",
    metavar="PATH_OR_HUB_ID",
    help=(
        "Score answers with this sequence classifier instead of a trained reward model. It reads"
        " them by its own tokenizer and chat template."
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
@settings_option("--engine-set", "engine_settings", "Set an option of the rollout engine.")
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
    "--shard",
    type=click.Choice(SHARDS),
    default=NOT_SHARDED,
    show_default=True,
    help="Of all weights that a run holds: full shards them over its processes.",
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
@tracked
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
        warn(
            f"--quick lowers nothing: {spec.suite_name} says nothing of quick runs, or the"
            " settings are as low. This is a run of full size."
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if dry_run:
        return echo(of_run(spec, registry, options["results"]))
    started = click.get_current_context().obj
    run_options = RunOptions(**how, warn=warn, say=say, started=started)
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
