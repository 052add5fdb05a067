"""`harness plot`: the files of plots, and the plots without data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ...core.errors import UsageError, unknown
from ..output import check_output, suite_file, write_output
from ..selection.filters import Filter
from ..selection.select import select, suites_of
from . import KINDS, STYLES, NothingToDraw, need_matplotlib, ranks, render
from .style import printed, settings

ALL = "all"
RANKS = "ranks"  # one picture of all suites and models


def draw_files(results: Path, criteria: Filter, kind: str, output: Path | None) -> Iterator[str]:
    """Write the plots of every suite and yield a line for each, written or left out.

    The kind and the file name are checked before the first plot is drawn. With several suites
    each file name ends in its suite.
    """
    targets_of(kind, output, results)
    if output is not None:
        check_output(output)
    if kind == RANKS:
        yield _draw_ranks(results, criteria, targets_of(kind, output, results)[kind])
        return
    suites = suites_of(results, criteria)
    if len(suites) == 1:
        yield from _draw_suite(results, criteria, kind, targets_of(kind, output, results))
        return
    drawn = 0
    for suite in suites:
        base = None if output is None else suite_file(output, suite)
        targets = targets_of(kind, base, results)
        if base is None:
            targets = {name: suite_file(file, suite) for name, file in targets.items()}
        try:
            yield from _draw_suite(results, replace(criteria, suite=suite), kind, targets)
            drawn += 1
        except UsageError as error:
            yield f"{suite} left out: {error}"
    if not drawn:
        raise UsageError(f"None of these suites can be drawn: {', '.join(suites)}.")


def _draw_ranks(results: Path, criteria: Filter, target: Path) -> str:
    """Write the picture across suites and models; return the line about it."""
    need_matplotlib()
    with settings():
        picture = printed(ranks.draw(results, criteria), target.suffix[1:].lower())
    write_output(target, picture)
    return f"wrote {target}"


def _draw_suite(
    results: Path, criteria: Filter, kind: str, targets: Mapping[str, Path]
) -> Iterator[str]:
    """Write the plots of one suite; raise UsageError if there are none."""
    selection = select(results, criteria)
    written = 0
    for name, target in targets.items():
        try:
            picture = render(name, selection, target.suffix[1:].lower())
        except NothingToDraw as error:
            if kind != ALL:
                raise
            yield f"no {name}: {error}"
            continue
        write_output(target, picture)
        written += 1
        yield f"wrote {target}"
    if not written:
        raise UsageError(f"Nothing of {selection.suite} can be drawn.")


def targets_of(kind: str, output: Path | None, results: Path) -> dict[str, Path]:
    """Return {kind: file}; raise UsageError for an unknown kind or file extension."""
    if kind not in KINDS and kind not in (ALL, RANKS):
        raise unknown("kind of picture", kind, [*KINDS, RANKS, ALL])
    if output is None:
        return {name: results / f"{name}.png" for name in (KINDS if kind == ALL else [kind])}
    if output.suffix[1:].lower() not in STYLES:
        known = ", ".join(f".{style}" for style in STYLES)
        raise UsageError(f"--output {output}: unsupported file extension, use one of {known}.")
    if kind != ALL:
        return {kind: output}
    return {name: output.with_name(f"{output.stem}-{name}{output.suffix}") for name in KINDS}
