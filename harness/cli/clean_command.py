"""`harness clean`: list what a results folder holds, and delete what no run needs."""

from __future__ import annotations

from pathlib import Path

import click

from .echo import echo


@click.command()
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Where runs and shared artifacts live.",
)
@click.option("--delete", is_flag=True, help="Delete what is marked; without it nothing is.")
@click.option(
    "--older-than",
    type=click.FloatRange(0),
    default=0.0,
    metavar="DAYS",
    help="Mark only what was last written before so many days.",
)
@click.option("--failed", is_flag=True, help="Mark the folders of failed runs too.")
@click.option(
    "--policy-of",
    "policies",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Mark the saved policy of this run too; its record stays.",
)
def clean(
    results: Path, delete: bool, older_than: float, failed: bool, policies: tuple[Path, ...]
) -> None:
    """List what a results folder holds and what needs it; delete what no run needs.

    Marked by itself: artifacts that no run refers to, and checkpoints of finished runs.
    """
    from ..core.errors import UsageError
    from ..experiments import clean as cleaning

    if not results.is_dir():
        raise UsageError(f"--results {results}: there is no such folder.")
    items = cleaning.survey(results, failed, policies)
    marked = [item for item in items if item.deletable and item.age >= older_than]
    for item in sorted(items, key=lambda item: (item.kind, item.path)):
        mark = "delete" if item in marked else ""
        needed = item.state or "needed by " + (", ".join(item.needed_by) or "no run")
        size = _size(cleaning.size_of([item.path]))
        echo(f"{mark:<6} {item.kind:<18} {size:>9}  {item.path}  ({needed})")
    total = _size(cleaning.size_of([results]))
    freed = _size(cleaning.size_of([item.path for item in marked]))
    echo(f"{total} in {results}; {len(marked)} marked to delete, {freed}")
    if delete:
        cleaning.delete(results, marked)
        echo(f"deleted; {_size(cleaning.size_of([results]))} left")
    elif marked:
        echo("Nothing was deleted. Add --delete to delete what is marked.")


def _size(count: int) -> str:
    """Return a number of bytes in the largest unit below it."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} B"
