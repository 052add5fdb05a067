"""What `harness report` and `harness reproduce` do with bundles."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

from ..api.registry import Registry
from ..core.errors import Refused, UsageError
from .echo import echo

if TYPE_CHECKING:
    from ..experiments.bundle import Bundle
    from ..experiments.reproduce import ReproduceOptions


def sort_names(
    names: Sequence[str], given: set[str], output: Path | None
) -> tuple[str | None, list[Path]]:
    """Return the study and the bundles that the arguments of `harness report` name.

    Args:
        names: The arguments.
        given: Names of the options on the command line.
        output: The output file, if one was named.

    Raises:
        UsageError: They do not go together.
    """
    from ..experiments.bundle import is_bundle

    bundles = [Path(name) for name in names if is_bundle(name)]
    if bundles and len(bundles) < len(names):
        study = next(name for name in names if not is_bundle(name))
        raise UsageError(f"{study!r} is a study, and {bundles[0]} is a bundle: name one kind.")
    if len(names) > 1 and not bundles:
        raise UsageError(f"Name one study, not {len(names)}: {', '.join(names)}.")
    if "bundle" in given and (bundles or not names or output or given & {"suite", "prompts"}):
        raise UsageError(
            "--bundle packs one STUDY whole: harness report STUDY --bundle FILE_OR_FOLDER, without"
            " --suite, --prompts and --output."
        )
    if bundles and "prompts" in given:
        raise UsageError("--prompts is of the sample browser, which a page of bundles has not.")
    return (None if bundles or not names else names[0]), bundles


def pack_study(results: Path, study: str | None, target: Path) -> str:
    """Pack a study; return the line about it."""
    from ..experiments.bundle import pack
    from ..report.output import check_output

    assert study is not None, "sort_names refuses --bundle without a study"
    check_output(target / "bundle" if target.is_dir() else target)
    packed = pack(results, study, target)
    missing = f", {packed.missing} missing" if packed.missing else ""
    return (
        f"wrote {packed.path} ({packed.size / 1e3:.0f} kB): {packed.finished} finished runs,"
        f" {packed.failed} failed{missing}. Check it: harness reproduce {packed.path} --sample 1"
    )


def leaderboard_of(paths: Sequence[Path], suite: str | None) -> str:
    """Return the page of bundles."""
    from ..experiments.bundle import opened
    from ..report.page.leaderboard import leaderboard

    with ExitStack() as stack:
        return leaderboard([stack.enter_context(opened(path)) for path in paths], suite)


def reproduce_bundle(
    path: Path,
    registry: Registry,
    options: ReproduceOptions,
    data_folder: Path | None,
    sample: int | None,
    runs: Sequence[str],
) -> int:
    """Check the seals of a bundle, and repeat runs of it.

    Returns:
        0 if every repeated run was reproduced, 1 if one differs.
    """
    from ..experiments.bundle import opened

    if sample is not None and runs:
        raise UsageError("--sample draws runs, and --run names them: leave one of them out.")
    with opened(path) as bundle:
        echo(f"{'same':<10} {'seals':<32} {bundle.files} files, {len(bundle.runs)} finished runs")
        chosen = list(dict.fromkeys(runs)) or drawn(bundle, 1 if sample is None else sample)
        if options.into is not None and len(chosen) != 1:
            raise UsageError(f"--into takes one run, and {len(chosen)} are to be repeated.")
        for run in chosen:  # a misspelt name ends the command before any is repeated
            bundle.folder(run)
        codes = [_again(bundle, run, registry, options, data_folder) for run in chosen]
    return max(codes, default=0)


def drawn(bundle: Bundle, count: int) -> list[str]:
    """Return runs of a bundle in random order. The system draws them, so its author cannot know
    which.
    """
    if count > len(bundle.runs):
        raise UsageError(f"--sample {count}: {bundle.path} has {len(bundle.runs)} finished runs.")
    return SystemRandom().sample(list(bundle.runs), count)


def _again(
    bundle: Bundle,
    run: str,
    registry: Registry,
    options: ReproduceOptions,
    data_folder: Path | None,
) -> int:
    """Repeat one run of a bundle; return 0 if it was reproduced, else 1."""
    from ..experiments.bundle import servers_of
    from ..experiments.reproduce import read_run, reproduce, summary

    recorded = replace(
        read_run(bundle.folder(run), data_folder), weights=bundle.weights.get(run, {})
    )
    if (servers := servers_of(recorded.spec)) and not options.anyway:
        raise Refused(
            f"{run} of {bundle.path} would send requests to {', '.join(servers)}, with the key of a"
            " variable that its author named. Nothing was run. --anyway carries it out."
        )
    echo(f"{'run':<10} {run}")
    verdict = reproduce(recorded, registry, options, echo)
    echo(summary(verdict, options.into))
    return int(not verdict.reproduced)
