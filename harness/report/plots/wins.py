"""Win-rates of all pairs of rows by gold reward, prompt by prompt, and Bradley-Terry ratings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...statistics.intervals import Array
from ...statistics.rating import Ratings, rate
from ..selection.comparable import check_grounds
from ..selection.select import Row, Selection
from ..selection.sweeps import measured, prompts_of_all_grounds, scores_on_common
from .style import COLOURS, GREY, SMALL, NothingToDraw, note, panels, why, wrapped

NAME = 26  # characters of a row's name on one line


def draw(selection: Selection) -> Any:
    """Return the figure."""
    rows = measured(selection.rows, "gold")
    if len(rows) < 2:
        raise NothingToDraw(
            f"A win matrix needs two finished rows with gold scores; {selection.suite} has"
            f" {len(rows)}.{why(selection)}"
        )
    check_grounds({row.name: row.grounds for row in rows})
    scores = prompts_of_all_grounds(rows, [own["gold"] for own in scores_on_common(rows)])
    fit = rate({row.name: own for row, own in zip(rows, scores, strict=True)})
    names = list(fit.ratings)
    order = sorted(range(len(names)), key=lambda i: -fit.ratings[names[i]].elo)
    side = max(2.2, 0.27 * len(rows) + 1.4)
    figure, (matrix, ratings) = panels(1, 2, side + 0.6)
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
    matrix.get_gridspec().set_width_ratios([3.2, 1])
    _draw_matrix(matrix, fit.win_rates[np.ix_(order, order)], [names[i] for i in order])
    _draw_ratings(ratings, fit, [names[i] for i in order])
    note(figure, _note(fit) + _of_grounds(rows))
    return figure


def _draw_matrix(axis: Any, rates: Array, names: Sequence[str]) -> None:
    """Draw win-rates (M, M) in per cent; the diagonal stays empty."""
    m = len(names)
    colours = axis.pcolormesh(
        np.arange(m + 1) - 0.5, np.arange(m + 1) - 0.5, rates, cmap="PuOr_r", vmin=0, vmax=1
    )
    for i, j in np.ndindex(m, m):
        if i != j:
            colour = "white" if luminance(colours.cmap(rates[i, j])) < 0.4 else "black"
            axis.text(
                j,
                i,
                f"{100 * rates[i, j]:.0f}",
                ha="center",
                va="center",
                fontsize=SMALL,
                color=colour,
            )
    axis.set_xlim(-0.5, m - 0.5)
    axis.set_ylim(m - 0.5, -0.5)
    names = [wrapped(name, NAME) for name in names]
    axis.set_xticks(range(m), names, rotation=90 if m > 4 else 0)
    axis.set_yticks(range(m), names)
    axis.set_ylabel("row beats column, % of prompts")
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(length=0)


def luminance(colour: Sequence[float]) -> float:
    """Return the luminance of red, green and blue, 0 to 1 (Rec. 709 weights)."""
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def _draw_ratings(axis: Any, fit: Ratings, names: Sequence[str]) -> None:
    elo = [fit.ratings[name] for name in names]
    bars = [[r.elo - r.low for r in elo], [r.high - r.elo for r in elo]]
    axis.errorbar(
        [r.elo for r in elo],
        range(len(names)),
        xerr=bars,
        linestyle="",
        marker="o",
        color=COLOURS[1],
        capsize=1.5,
        elinewidth=0.8,
    )
    axis.axvline(1000, color=GREY, linewidth=0.6)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), [])
    axis.set_xlabel("rating, Elo points")
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.5)


def _of_grounds(rows: Sequence[Row]) -> str:
    """Return the note on several grounds: their prompts stand side by side."""
    count = len({ground for row in rows for ground in row.grounds})
    return f" Prompts are those of {count} grounds; no spread between grounds." if count > 1 else ""


def _note(fit: Ratings) -> str:
    return (
        "Gold reward on the same prompts, ties half, mean over all pairs of seeds. Ratings:"
        " Bradley-Terry with a weak prior, 1000 on average, 95 % intervals of a bootstrap over"
        f" prompts ({fit.label}). Fitted and observed rates differ by {100 * fit.residual:.1f}"
        f" points (root mean square), most for {fit.worst[0]} and {fit.worst[1]}."
    )
