"""The look of plots: colours, markers, legends and files. They can be read in grey."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...core.errors import UsageError
from ..selection.select import Selection

# Okabe and Ito's colours without yellow, which is hard to see on white
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = (  # filled, then hollow: seven colours and twenty markers give 140 combinations
    "osD^vPX<>*"
)
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
)
GREY = "#767676"
WIDTH = 7.0  # inches: the text width of a page
POINTS = 8.0  # size of text, points
SMALL = 7.0
LONG = 34  # characters of a label on one line
SALT = (  # salt of the names inside an SVG: fixed, so that equal pictures are equal files
    "alignment-harness"
)
# metadata that would hold the time or the version of matplotlib
EMPTY: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
SETTINGS: dict[str, Any] = {
    "font.size": POINTS,
    "axes.labelsize": POINTS,
    "axes.titlesize": POINTS,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "svg.hashsalt": SALT,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "figure.dpi": 100,
    "axes.formatter.limits": (-3, 4),
}


class NothingToDraw(UsageError):
    """The runs have no data for a kind of plot."""


@dataclass(frozen=True)
class Look:
    """The look of a row or sweep in all plots."""

    colour: str
    marker: str
    dash: Any
    full: bool

    @property
    def point(self) -> dict[str, Any]:
        """Arguments of a marker."""
        return {
            "marker": self.marker,
            "color": self.colour,
            "markerfacecolor": self.colour if self.full else "white",
            "markeredgewidth": 0.9,
        }

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of a line without markers."""
        return {"color": self.colour, "linestyle": self.dash}


def look(index: int) -> Look:
    """Return the look of the index-th row. The first 140 rows differ; in grey the first 20."""
    marker = index % (2 * len(MARKERS))
    full = marker < len(MARKERS)
    return Look(
        COLOURS[index % len(COLOURS)],
        MARKERS[marker % len(MARKERS)],
        DASHES[index % len(DASHES)],
        full,
    )


@contextmanager
def settings() -> Iterator[None]:
    """Draw with these settings and matplotlib's defaults, not with a user's matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def panels(rows: int, columns: int, height: float, width: float = WIDTH) -> tuple[Any, list[Any]]:
    """Return a figure and its axes row by row, without a window or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def panels_and_table(
    rows: int, columns: int, height: float, above: float, below: float
) -> tuple[Any, list[Any], Any]:
    """Return a figure, its axes, and axes for a table below them.

    Args:
        rows: Rows of panels.
        columns: Panels in a row.
        height: Inches of the figure.
        above: Inches of all panels.
        below: Inches of the table.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [above / rows] * rows + [below]
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=heights)
    axes = [figure.add_subplot(grid[i, j]) for i in range(rows) for j in range(columns)]
    table = figure.add_subplot(grid[rows, :])
    table.set_axis_off()
    return figure, axes, table


def printed(figure: Any, style: str) -> bytes:
    """Return a figure as the bytes of a file without date and version."""
    stream = io.BytesIO()
    with settings():
        figure.savefig(stream, format=style, metadata=EMPTY[style])
    return stream.getvalue()


def height(least: float, labels: Sequence[str]) -> float:
    """Return the height of a figure in inches: at least `least`, and enough for its legend."""
    lines = sum(wrapped(label).count("\n") + 1 for label in labels)
    return max(least, 0.3 + 0.155 * lines)


def wrapped(label: str, width: int = LONG) -> str:
    """Return a label, on several lines if it is long."""
    return label if "\n" in label else textwrap.fill(label, width)


def beside(figure: Any, handles: Sequence[Any]) -> None:
    """Put a legend to the right of all panels."""
    figure.legend(handles=handles, loc="outside right upper", handlelength=3)


def note(figure: Any, text: str, width: float = WIDTH) -> None:
    """Put a note below all panels."""
    lines = textwrap.wrap(text, int(width * 17))  # characters of 7 points to an inch, about
    figure.supxlabel("\n".join(lines), fontsize=SMALL, x=0.01, ha="left", color="#333333")


def why(selection: Selection) -> str:
    """Return the sentence that says why runs have no win-rate; empty where they may have one."""
    return f" There is {selection.no_win_rate}." if selection.no_win_rate else ""


def plain_ticks(axis: Any) -> None:
    """Set the ticks of a logarithmic axis at 1, 2 and 5, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def handle(label: str, **how: Any) -> Any:
    """Return a legend entry for something that is not drawn in a panel."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=wrapped(label), **how)


def place_labels(
    axis: Any,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    taken: Any = (),
) -> None:
    """Write a text beside each point, placed to cover other texts and points as little as possible.

    Greedy, in order: each text takes the best of eight places around its point. The
    figure has to be laid out before (`draw_without_rendering`), once for all its axes.
    """
    renderer = axis.figure.canvas.get_renderer()
    around = axis.get_window_extent(renderer)
    boxes = [_around(axis.transData.transform(p)) for p in (*points, *taken)]
    for point, text, colour in zip(points, texts, colours, strict=True):
        best = None
        for place in _PLACES:
            label = _label(axis, text, point, colour, place)
            box = label.get_window_extent(renderer)
            covered = sum(_common(box, other) for other in boxes) + 3 * (
                _area(box) - _common(box, around)
            )
            if best is None or covered < best[0] - 1e-6:
                if best is not None:
                    best[1].remove()
                best = (covered, label, box)
            else:
                label.remove()
        assert best is not None
        boxes.append(best[2])


def _label(
    axis: Any, text: str, point: tuple[float, float], colour: str, place: tuple[int, int, str, str]
) -> Any:
    from matplotlib.patheffects import withStroke

    dx, dy, ha, va = place
    label = axis.annotate(
        text,
        point,
        (dx, dy),
        textcoords="offset points",
        ha=ha,
        va=va,
        fontsize=SMALL,
        color=colour,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=5,
    )
    label.set_in_layout(False)
    return label


_PLACES = (
    (5, 4, "left", "bottom"),
    (5, -4, "left", "top"),
    (-5, 4, "right", "bottom"),
    (-5, -4, "right", "top"),
    (7, 0, "left", "center"),
    (-7, 0, "right", "center"),
    (0, 7, "center", "bottom"),
    (0, -7, "center", "top"),
)


def _around(centre: Any, half: float = 4.0) -> Any:
    from matplotlib.transforms import Bbox

    x, y = centre
    return Bbox([[x - half, y - half], [x + half, y + half]])


def _area(box: Any) -> float:
    return float(box.width * box.height)


def _common(a: Any, b: Any) -> float:
    """Return the common area of two boxes."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))
