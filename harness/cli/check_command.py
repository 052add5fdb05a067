"""`harness check NAME`: the proofs on a plugin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ..api.registry import Registry
from ..core.errors import UsageError
from ..core.suite_file import is_suite_file
from .echo import echo
from .options import output_option, plugin_files, settings_option

CHECKED = ("methods", "suites", "labellers", "verifiers", "judges")


@click.command()
@click.argument("name", required=False)
@click.option(
    "--suite",
    "-s",
    help="Where a method, labeller or verifier is tried; otherwise an embedded suite, or examples.",
)
@click.option(
    "--model", metavar="PATH_OR_HUB_ID", help="The model that a suite is tried with; or its own."
)
@settings_option("--set", "settings", "Set an option of the plugin.")
@settings_option(
    "--optimum-set",
    "optimum_settings",
    "Set an option in the run that is compared with the method's optimum.",
)
@click.option("--quick", is_flag=True, help="Only the small proofs: no run of full size.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE|RUN",
    help="What a judge is compared with: human preferences (JSON lines), or a run's judge.",
)
@click.option(
    "--export",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the conformance set of all methods, or of NAME: tensors, losses and gradients.",
)
@output_option("Write the report, as Markdown, to a file too.")
@plugin_files
def check(
    registry: Registry,
    name: str | None,
    quick: bool,
    output: Path | None,
    against: Path | None,
    folder: Path | None,
    **choices: Any,
) -> int:
    """Check a method, suite, judge, labeller or verifier: determinism, honest costs, gain.

    A judge is compared with human preferences (--against): accuracy, Cohen's kappa, Spearman.
    --export checks nothing: it writes a set against which any library can test its losses.

    A method takes two or three minutes on two cores, with --quick half a minute. A name of several
    kinds is told apart as in `harness check verifier.exact`. NAME may be a suite file, with
    --model.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if folder is not None:
        _only_for_export(quick, output, against, choices)
        return _export(folder, name, registry, choices["settings"])
    if name is None:
        raise UsageError("Name what to check, as in `harness check dpo`.")
    choices |= {"full": not quick, "processes": not quick}
    return _checked(name, registry, output, against, choices)


def _checked(
    name: str,
    registry: Registry,
    output: Path | None,
    against: Path | None,
    choices: dict[str, Any],
) -> int:
    """Run the proofs, print each finding, and return the exit code."""
    import tempfile

    from ..check import FAILED, Options, report
    from ..check import check as proofs
    from ..check.judges import judge_findings, unused
    from ..report.output import check_output, write_output

    kind, plain = _kind_of(registry.name_of("methods", name), registry)
    unused(against, kind)
    if output is not None:
        check_output(output)
    findings = []
    with tempfile.TemporaryDirectory(prefix="harness-check-") as work:
        options = Options(**choices, results=Path(work), say=_say)
        proved = (
            proofs(kind, plain, registry, options)
            if against is None
            else judge_findings(plain, registry, options, against)
        )
        for finding in proved:
            findings.append(finding)
            colour = "red" if finding.status == FAILED else None
            echo(f"{finding.status:<8} {finding.proof:<32} {finding.detail}", fg=colour)
            if output is not None:
                write_output(output, report(name, findings))
    return int(any(f.status == FAILED for f in findings))


def _only_for_export(
    quick: bool, output: Path | None, against: Path | None, choices: dict[str, Any]
) -> None:
    """Raise UsageError if --export is given with an option that it does not use."""
    given = {"--quick": quick, "--output": output, "--against": against}
    given |= {"--suite": choices["suite"], "--model": choices["model"]}
    given["--optimum-set"] = choices["optimum_settings"]
    idle = [flag for flag, value in given.items() if value]
    if idle:
        raise UsageError(f"--export checks nothing, so {', '.join(idle)} has no meaning with it.")


def _export(folder: Path, name: str | None, registry: Registry, settings: tuple[str, ...]) -> int:
    """Write the conformance set, and say what is in it."""
    from ..check.conformance import export

    if name is None and settings:
        raise UsageError("--set is of one method: name it, as in `harness check dpo --export ...`.")
    only = None if name is None else registry.name_of("methods", name)
    manifest = export(folder, registry, only, settings, _say)
    methods = len({case["method"] for case in manifest["cases"]})
    count = f"{len(manifest['cases'])} cases of {methods} method{'s' * (methods != 1)}"
    echo(f"wrote {folder}: {count}")
    return 0


def _kind_of(name: str, registry: Registry) -> tuple[str, str]:
    """Return the kind of a name, and the name as it is registered."""
    if is_suite_file(name):
        return "suites", name
    kinds, plain = registry.kinds_of(name, CHECKED)
    if not kinds and name.endswith(".py"):
        raise UsageError(
            f"{name} is a file: load it with -p {name}, and name the method, suite, labeller,"
            " verifier or judge in it."
        )
    if not kinds:
        registry.get("methods", name)
    return kinds[0], plain


def _say(line: str) -> None:
    echo(f"... {line}", err=True)
