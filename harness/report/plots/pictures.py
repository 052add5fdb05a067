"""`harness plot`: which picture goes to which file, and what could not be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...core.errors import UsageError, unknown
from ..output import check_output, write_output
from ..selection.select import Filter, select
from . import KINDS, STYLES, NothingToDraw, render

ALL = "all"


def draw_files(results: Path, asked: Filter, kind: str, output: Path | None) -> Iterator[str]:
    """Write pictures and yield a line for each, written or left out; kind and file name are checked
    before any.
    """
    targets = targets_of(kind, output, results)
    if output is not None:
        check_output(output)
    selection = select(results, asked)
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
    """Return {kind: file}; raise UsageError for a kind that does not exist or a file that is no
    picture's.
    """
    if kind not in KINDS and kind != ALL:
        raise unknown("kind of picture", kind, [*KINDS, ALL])
    if output is None:
        return {name: results / f"{name}.png" for name in (KINDS if kind == ALL else [kind])}
    if output.suffix[1:].lower() not in STYLES:
        known = ", ".join(f".{style}" for style in STYLES)
        raise UsageError(f"--output {output}: the ending says what to write, one of {known}.")
    if kind != ALL:
        return {kind: output}
    return {name: output.with_name(f"{output.stem}-{name}{output.suffix}") for name in KINDS}
