"""Commands that read records: table, plot, report, power, compare, reproduce.

Each imports what it needs late.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..api.registry import Registry
from ..core.errors import UsageError
from .echo import echo
from .options import (
    methods_filter,
    output_option,
    plugin_files,
    results_option,
    study_filter,
    suite_filter,
    where_filter,
)

if TYPE_CHECKING:
    from ..report.selection.filters import Filter
    from ..statistics.power import Design

MOST_SEEDS = 500  # the largest number of seeds that `harness power` suggests


@click.command()
@suite_filter
@methods_filter
@study_filter
@where_filter
@click.option(
    "--match",
    metavar="QUANTITY[=VALUE]",
    help="Methods at an equal kl, flops, tokens or seconds, interpolated along their sweeps.",
)
@click.option(
    "--columns",
    default="",
    metavar="KEY,...",
    help="Only these columns, in this order; `all` for every column that has values.",
)
@click.option(
    "--spread",
    type=click.Choice(["interval", "sd"]),
    default="interval",
    show_default=True,
    help="Behind a mean: its 95 % interval, or the standard deviation over seeds.",
)
@click.option(
    "--judges",
    default="",
    metavar="NAME,...",
    help="The win-rate by each of these judges in a column; the other columns are of the first.",
)
@click.option("--each", is_flag=True, help="A row per run instead of one per method.")
@click.option(
    "--mixed",
    is_flag=True,
    help="Show runs that are not comparable too, with a footnote.",
)
@click.option(
    "--across",
    is_flag=True,
    help="One table of ranks across models and suites, and whether the order of methods holds.",
)
@click.option(
    "--ratings",
    is_flag=True,
    help="Bradley-Terry ratings against the baseline, also at equal length and Markdown.",
)
@click.option(
    "--format",
    "style",
    show_default="md",
    help="The table format: a registered reporter. On a terminal the default fits its width.",
)
@output_option("Write to a file, or to one file per suite: NAME-SUITE.")
@results_option
@plugin_files
def table(
    registry: Registry,
    results: Path,
    match: str | None,
    columns: str,
    spread: str,
    judges: str,
    across: bool,
    ratings: bool,
    style: str | None,
    output: Path | None,
    **criteria: Any,
) -> int:
    """Compare the runs of every suite in a table, or of one suite."""
    from .tables import TableRequest, print_across, print_tables, write_tables

    for name, is_asked in (("--across", across), ("--ratings", ratings)):
        other = ratings if across else False
        if is_asked and (match or columns or spread == "sd" or criteria["mixed"] or other):
            raise UsageError(
                f"{name} has columns of its own: leave --match, --columns, --spread, --mixed and"
                f" {'--ratings' if across else '--across'} out."
            )
    if across and criteria["each"]:
        raise UsageError("--across has rows of its own: leave --each out.")
    if match and (columns or criteria["each"]):
        raise UsageError("--match has columns and rows of its own: leave --columns and --each out.")
    if spread == "sd" and (match or criteria["each"]):
        raise UsageError(
            "--spread sd needs the seeds of a row: leave --match and --each out, which have none."
        )
    names = list(dict.fromkeys(filter(None, map(str.strip, judges.split(",")))))
    if names and (match or across or ratings or criteria["mixed"]):
        raise UsageError("--judges: leave --match, --across, --ratings and --mixed out.")
    reporter = registry.get("reporters", style or "md")()
    request = TableRequest(
        results,
        _filter(**criteria),
        reporter,
        style is not None,
        columns,
        match,
        spread,
        ratings,
        names,
    )
    if across:
        return print_across(request, output)
    return print_tables(request) if output is None else write_tables(request, output)


def _filter(
    suite: str | None,
    study: str | None,
    where: tuple[str, ...],
    methods: str | None = None,
    **more: Any,
) -> Filter:
    """Return the filter that the options of a command describe."""
    from ..core.options import parse_settings
    from ..report.selection.filters import Filter

    names = [name.strip() for name in methods.split(",")] if methods else []
    return Filter(suite, study, names, parse_settings(where, "--where"), **more)


@click.command()
@click.option(
    "--kind",
    default="frontier",
    show_default=True,
    help="frontier, cost, curves, overoptimization or wins; all of them with `all`. ranks: one"
    " picture across models and suites.",
)
@suite_filter
@study_filter
@methods_filter
@where_filter
@output_option(
    "Output file: .png, .svg or .pdf; otherwise KIND.png in --results. Several suites add -SUITE to"
    " the name, `all` adds -KIND."
)
@results_option
def plot(kind: str, output: Path | None, results: Path, **criteria: Any) -> None:
    """Draw runs: win-rate against KL or cost, learning curves, over-optimisation, wins."""
    from ..report.plots.pictures import draw_files

    for line in draw_files(results, _filter(**criteria), kind, output):
        echo(line)


@click.command()
@click.argument("names", nargs=-1, metavar="[STUDY | BUNDLE...]")
@results_option
@click.option("--suite", "-s", help="Only the runs of this suite.")
@click.option(
    "--prompts",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Prompts of each suite in the sample browser, the first ones.",
)
@output_option("Output file; otherwise STUDY.html, or leaderboard.html, in --results.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    metavar="FILE_OR_FOLDER",
    help="Pack the STUDY's records into one file for others, in place of a page.",
)
@click.pass_context
def report(ctx: click.Context, /, names: tuple[str, ...], output: Path | None, **how: Any) -> None:
    """Write an HTML page of a STUDY or of all runs: tables, plots, samples, provenance.

    Of BUNDLE files, which `--bundle` wrote, it is a leaderboard: a table for each suite and model,
    and for each row the command that repeats it.
    """
    from ..report.output import check_output, write_output
    from .bundles import leaderboard_of, pack_study, sort_names

    given = {o for o in how if ctx.get_parameter_source(o) is not ParameterSource.DEFAULT}
    study, bundles = sort_names(names, given, output)
    if how["bundle"] is not None:
        return echo(pack_study(how["results"], study, how["bundle"]))
    if output is not None:
        check_output(output)
    if bundles:
        text, name = leaderboard_of(bundles, how["suite"]), "leaderboard"
    else:
        text, name = page_of(study, **how), study or "report"
    output = output or how["results"] / f"{name}.html"
    write_output(output, text)
    echo(f"wrote {output} ({len(text.encode()) / 1e6:.1f} MB)")
    if not bundles and find_spec("matplotlib") is None:
        echo("The page has no plots: they need matplotlib, the extra `plots` of this package.")


def page_of(study: str | None, results: Path, suite: str | None, prompts: int, bundle: None) -> str:
    """Return the page of a study or of all runs."""
    from ..report.page import page

    return page(results, study, suite, prompts)


@click.command()
@click.option(
    "--prompts", type=click.IntRange(2), default=512, show_default=True, help="Evaluated prompts."
)
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Seeds of each method."
)
@click.option(
    "--effect",
    type=click.FloatRange(0, 1, min_open=True),
    help="A difference of win-rates (0.03: three points): adds power, prompts and seeds for it.",
)
@click.option(
    "--ties",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of prompts that tie.",
)
@click.option(
    "--seed-sd",
    type=click.FloatRange(0),
    default=0.02,
    show_default=True,
    help="Standard deviation of the win-rate between seeds; used with several.",
)
@click.option(
    "--prompt-share",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Of a score's variance on a prompt, what seeds of a method share; used with several.",
)
@click.option(
    "--correlation",
    type=click.FloatRange(-1, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Of two methods' scores on a prompt.",
)
@click.option(
    "--rows",
    type=click.IntRange(2),
    default=2,
    show_default=True,
    help="Rows of the table. Bold type is stepwise: this is the power of its first step, which is"
    " corrected for all pairs of rows. Later steps correct for fewer.",
)
def power(effect: float | None, **study: Any) -> None:
    """Show which difference of win-rates a study can detect."""
    from ..statistics.power import Design, assumptions, report

    design = Design(**study)
    try:
        columns, rows = report(design, effect)
        if effect is not None:
            columns.append("seeds for 80% power")
            for row, difference in zip(rows, (False, True), strict=True):
                row.append(_seeds_cell(design, effect, difference))
    except ValueError as error:
        raise UsageError(f"No such study: {error}.") from error
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, ["-" * width for width in widths], *rows]:
        echo(
            "| "
            + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            + " |"
        )
    echo(f"\n{assumptions(design)}")


def seeds_needed(
    design: Design, effect: float, difference: bool, wanted: float = 0.8
) -> int | None:
    """Return the smallest number of seeds, at least two, with the wanted power.

    Return None if MOST_SEEDS have less power: then the prompts are too few.
    """
    from ..statistics.power import power as power_of

    def enough(seeds: int) -> bool:
        return power_of(replace(design, seeds=seeds), effect, difference) >= wanted

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _seeds_cell(design: Design, effect: float, difference: bool) -> str:
    if design.correlation > design.prompt_share:  # impossible with several seeds
        return "-"
    seeds = seeds_needed(design, effect, difference)
    return f"no number is enough with {design.prompts} prompts" if seeds is None else str(seeds)


@click.command()
@click.argument("folder", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--sample",
    type=click.IntRange(0),
    metavar="N",
    help="Of a BUNDLE: repeat N finished runs drawn at random; 0 checks its seals only.  [default:"
    " 1]",
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="SUITE/METHOD/RUN",
    help="Of a BUNDLE: repeat this run; may be given several times.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the repeated run in this new results folder.",
)
@click.option(
    "--loose", is_flag=True, help="Accept figures that lie in each other's 95 % intervals."
)
@click.option("--anyway", is_flag=True, help="Continue although code or data have changed.")
@click.option(
    "--data-folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="The folder that holds the files of a suite file now.",
)
@plugin_files
def reproduce(
    registry: Registry,
    folder: Path,
    data_folder: Path | None,
    sample: int | None,
    runs: tuple[str, ...],
    **how: Any,
) -> int:
    """Repeat a recorded run from scratch and compare it digest by digest.

    RUN is a run folder. Of a BUNDLE, a file that `harness report STUDY --bundle` wrote, every seal
    is checked, and a run drawn at random is repeated. Exit code 0: reproduced; 1: something
    differs.
    """
    from ..experiments.bundle import is_bundle
    from ..experiments.reproduce import ReproduceOptions, read_run, summary
    from ..experiments.reproduce import reproduce as made_again

    options = ReproduceOptions(**how)
    if is_bundle(str(folder)):
        from .bundles import reproduce_bundle

        return reproduce_bundle(folder, registry, options, data_folder, sample, runs)
    if sample is not None or runs:
        raise UsageError(f"--sample and --run choose runs of a bundle, and {folder} is no bundle.")
    verdict = made_again(read_run(folder, data_folder), registry, options, echo)
    echo(summary(verdict, how["into"]))
    return int(not verdict.reproduced)


@click.command()
@click.argument("a")
@click.argument("b")
@suite_filter
@study_filter
@where_filter
@click.option(
    "--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@results_option
def compare(a: str, b: str, style: str, results: Path, **criteria: Any) -> None:
    """Compare two runs or methods, prompt by prompt, in every suite that has runs of both.

    A and B are run folders, methods, or labels as `harness table` shows them. Two folders that
    lm-evaluation-harness wrote with --log_samples are compared task by task.
    """
    from ..report.comparison.lm_eval_logs import is_log_folder

    if is_log_folder(a) or is_log_folder(b):
        _compare_logs(a, b, style, criteria)
        return
    from ..report.comparison.compare import compared, suites_to_compare
    from ..report.comparison.side_by_side import as_json, show

    chosen = _filter(**criteria)
    suites = suites_to_compare(results, (a, b), chosen)
    comparisons = [compared(results, (a, b), replace(chosen, suite=name)) for name in suites]
    if style == "json":
        echo(as_json(comparisons))
        return
    for i, comparison in enumerate(comparisons):
        echo("\n" if i else "", nl=False)
        show(comparison)


def _compare_logs(a: str, b: str, style: str, criteria: dict[str, Any]) -> None:
    """Compare two folders of sample logs of lm-evaluation-harness."""
    from ..report.comparison.lm_eval_logs import compared_logs, logs_as_json
    from ..report.comparison.side_by_side import json_text, show_logs

    if any(criteria.values()):
        raise UsageError(
            "--suite, --study and --where select runs, but A or B is a folder of sample logs of"
            " lm-evaluation-harness."
        )
    comparison = compared_logs(a, b)
    if style == "json":
        echo(json_text(logs_as_json(comparison)))
    else:
        show_logs(comparison)


COMMANDS = (table, plot, report, power, compare, reproduce)
