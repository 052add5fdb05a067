"""Plots: each kind draws one figure from a selection of runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.errors import Refused, UsageError, unknown
from ..selection.select import Selection
from . import cost, curves, frontier, overoptimization, wins
from .style import NothingToDraw, printed, settings

__all__ = ["KINDS", "STYLES", "NothingToDraw", "Plot", "drawn", "render"]

STYLES = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Plot:
    """A kind of plot: its description in one line, and the function that draws it."""

    about: str
    draw: Callable[[Selection], Any]


KINDS: dict[str, Plot] = {
    "frontier": Plot("win-rate against KL, the frontier and best-of-n's curve", frontier.draw),
    "cost": Plot(
        "win-rate against training FLOPs, seconds and memory, and FLOPs of an answer", cost.draw
    ),
    "curves": Plot(
        "reward, KL, length and loss along training, and win-rate and gold of snapshots",
        curves.draw,
    ),
    "overoptimization": Plot(
        "gold and proxy against sqrt(KL), with Gao et al.'s forms fitted", overoptimization.draw
    ),
    "wins": Plot(
        "win-rates of all pairs of rows by gold reward, and Bradley-Terry ratings", wins.draw
    ),
}


def need_matplotlib() -> None:
    """Raise Refused if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise Refused("Plots need matplotlib: pip install 'alignment-harness[plots]'.") from error


def drawn(kind: str, selection: Selection) -> Any:
    """Return the matplotlib figure of a kind; raise NothingToDraw if the runs have no data."""
    if kind not in KINDS:
        raise unknown("kind of picture", kind, KINDS)
    with settings():
        return KINDS[kind].draw(selection)


def render(kind: str, selection: Selection, style: str = "png") -> bytes:
    """Return a plot as the bytes of a file: the same bytes for the same records.

    Args:
        kind: A key of KINDS.
        selection: The runs.
        style: `png`, `svg` or `pdf`.

    Raises:
        UsageError: The kind or style is unknown.
        NothingToDraw: The runs have no data for the kind.
        Refused: matplotlib is not installed.
    """
    if style not in STYLES:
        raise UsageError(
            f"A plot is a file of kind {', '.join(STYLES[:-1])} or {STYLES[-1]}, not {style!r}."
        )
    need_matplotlib()
    return printed(drawn(kind, selection), style)
