"""Methods at an equal value of KL, FLOPs, tokens or seconds, interpolated along their sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ...core.errors import UsageError, unknown
from ...core.table import Cell, Table
from ...statistics.intervals import Array, two_way_interval, win_rate_interval
from ..selection.filters import Record
from ..selection.select import Row, Selection, is_guest
from ..selection.sweeps import Sweep, scores_on_common, seeds_text, sweeps
from . import captions, columns, tables
from .footnotes import Footnotes, open_footnote

QUANTITIES = {
    "kl": "nats of KL",
    "flops": "training FLOPs",
    "tokens": "tokens",
    "seconds": "training seconds",
}
COLUMNS = [
    "method",
    "seeds",
    "win-rate vs baseline [95 %]",
    "gold",
    "KL (nats)",
    "length",
    "train TFLOP",
    "between",
]
SAME = 1e-9  # relative difference below which two values are equal: means are rounded
FIGURES = ("win_rate", "gold", "kl", "length")


@dataclass(frozen=True)
class Point:
    """A row as a point of its sweep."""

    at: float  # the quantity, mean over seeds
    row: Row
    name: str  # its position on the sweep


@dataclass(frozen=True)
class Between:
    """The position of a value on a sweep: between two points, or at one (`share` 0)."""

    low: Point
    high: Point
    share: float  # of the higher one


@dataclass(frozen=True)
class Mix:
    """A sweep at the value: the weighted mix of its two neighbours."""

    name: str
    where: Between
    scores: Mapping[str, Array]  # {figure: (S, P)}
    flops: float

    @property
    def grounds(self) -> tuple[int, ...]:
        """The ground of each seed."""
        return self.where.low.row.grounds

    @property
    def rows(self) -> list[Row]:
        """The neighbours; a single one if the value is that of a point."""
        low, high = self.where.low.row, self.where.high.row
        return [low] if self.where.share == 0 else [high] if self.where.share == 1 else [low, high]


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    figures: dict[str, Any]  # unrounded; those of a mix have win-rate, KL, ...
    rows: Sequence[Row]  # the rows of runs that it is made of
    note: str  # a mix's neighbours with their shares, or why there is no mix

    @property
    def name(self) -> str:
        """The sweep, or the row that failed."""
        return str(self.figures["method"])


def parse_match(text: str) -> tuple[str, float | None]:
    """Return (quantity, value) of `kl=2` or `kl`; raise UsageError for another text."""
    quantity, given, value = text.partition("=")
    if quantity not in QUANTITIES:
        raise unknown("quantity to match", quantity, QUANTITIES)
    if not given:
        return quantity, None
    try:
        at = float(value)
    except ValueError:
        at = math.nan
    if not (math.isfinite(at) and at >= 0):
        raise UsageError(
            f"--match {text}: a value is a number of at least 0, like --match kl=2 or --match"
            " flops=1e12."
        )
    return quantity, at


def matched(selection: Selection, quantity: str, at: float | None = None) -> Table:
    """Return the table of sweeps at an equal value of a quantity.

    The points of a sweep are ordered by the quantity, not by the option. So exactly one pair of
    neighbours encloses a value. If several points share a neighbour's value (FLOPs of a sweep of
    beta), the table has no mix and gives this reason. A mix has the scores (1 - w) x + w y on each
    prompt, with x of the lower and y of the higher neighbour. Intervals and bold type are computed
    from these scores.

    Args:
        selection: The runs.
        quantity: A key of QUANTITIES.
        at: The value; None for the largest that all sweeps reach.
    """
    _check(selection, quantity)
    known = [row for row in selection.rows if row.good and not _unknown(row, quantity)]
    points = {s.name: _points(s, quantity) for s in sweeps(known)}
    value = _common(points, quantity) if at is None else at
    mixes_by_name = {name: _at(name, own, value) for name, own in points.items()}
    mixes = sorted(
        (m for m in mixes_by_name.values() if isinstance(m, Mix)), key=lambda m: (-_won(m), m.name)
    )
    head = {"matched": quantity, "value": value}
    rest = [
        _left(name, points[name], why, head)
        for name, why in mixes_by_name.items()
        if isinstance(why, str)
    ]
    rest += [_failed(row, head) for row in selection.rows if not row.good]
    unknown_rows = [row for row in selection.rows if row.good and _unknown(row, quantity)]
    rest += [_left_out(row, _unknown(row, quantity), head) for row in unknown_rows]
    if not mixes:
        reasons = "; ".join(f"{line.name}: {line.note}" for line in rest)
        at_all = f"{value:.4g} {QUANTITIES[quantity]}"
        raise UsageError(f"No sweep reaches {at_all}, and nothing is extrapolated ({reasons}).")
    which = ", the largest that all sweeps reach" if at is None else ""
    title = f"{selection.description}: at {value:.4g} {QUANTITIES[quantity]}{which}"
    lines = [_line(mix, head) for mix in mixes]
    scores = {m.name: m.scores["win_rate"] for m in mixes}
    grounds = {m.name: m.grounds for m in mixes}
    borrowed = tables.mark_best([line.figures for line in lines], {"win_rate": scores}, grounds)
    caption = _caption(selection, list(grounds.values()), borrowed)
    return _table(selection, title, [*lines, *rest], caption, quantity)


def _check(selection: Selection, quantity: str) -> None:
    """Raise UsageError if runs cannot be compared at an equal value of this quantity."""
    if quantity not in QUANTITIES:
        raise unknown("quantity to match", quantity, QUANTITIES)
    if selection.criteria.mixed:
        raise UsageError(
            "--match interpolates between comparable runs, prompt by prompt: leave --mixed out."
        )
    if reason := selection.no_win_rate:
        raise UsageError(f"--match interpolates win-rates. There is {reason}.")


def amount(record: Record, quantity: str) -> float:
    """Return the quantity of a finished run: the KL of its policy, or a cost of its training."""
    own = record["cost"]["method"]
    if quantity == "kl":
        return max(0.0, float(record["evaluation"]["kl"]["mean"]))
    if quantity == "tokens":
        return float(own["tokens_generated"] + own["tokens_trained"])
    return float(own[quantity])


def _unknown(row: Row, quantity: str) -> str:
    """Return why a finished row has no such quantity; empty if it has one."""
    first = row.good[0]
    if quantity == "kl":
        return str(first["evaluation"].get("kl_missing", ""))
    return "trained elsewhere, at an unknown cost" if is_guest(first) else ""


def _points(sweep: Sweep, quantity: str) -> list[Point]:
    points = [
        Point(fmean(amount(r, quantity) for r in row.good), row, _short(sweep, row))
        for row in sweep.rows
    ]
    return sorted(points, key=lambda point: (point.at, point.row.name))


def _short(sweep: Sweep, row: Row) -> str:
    return (sweep.point(row) or row.name) if len(sweep.rows) > 1 else row.name


def _common(points: Mapping[str, Sequence[Point]], quantity: str) -> float:
    """Return the largest value that all sweeps reach, of those in which the quantity changes."""
    several = {name: own for name, own in points.items() if own[0].at < own[-1].at}
    if not several:
        raise UsageError(
            "Nothing to match: no method has two settings that differ in a numeric option and"
            f" in {QUANTITIES[quantity]}. Sweep an option in a study file:"
            " `sweep = {beta = [0.03, 0.1, 0.3]}` (docs/studies.md)."
        )
    value, lowest = (
        min(own[-1].at for own in several.values()),
        max(own[0].at for own in several.values()),
    )
    if lowest > value:
        ranges = "; ".join(f"{name}: {_range(own)}" for name, own in several.items())
        raise UsageError(
            f"No value of {QUANTITIES[quantity]} is within all sweeps ({ranges}). Give one, --match"
            f" {quantity}=VALUE, or select methods with --methods."
        )
    return value


def _between(points: Sequence[Point], value: float) -> Between | str:
    """Return the position of a value on a sweep, or the reason why it has none."""
    if len(points) < 2:
        return f"one point, at {points[0].at:.4g}"
    value = next((p.at for p in points if math.isclose(p.at, value, rel_tol=SAME)), value)
    if not points[0].at <= value <= points[-1].at:
        return f"not reached: its points are at {_range(points)}"
    low = [p for p in points if p.at == max(q.at for q in points if q.at <= value)]
    high = [p for p in points if p.at == min(q.at for q in points if q.at >= value)]
    for equal in (low, high):
        if len(equal) > 1:
            return (
                f"not one curve: {_listed(equal)} have the same value {equal[0].at:.4g}; select one"
                " with --where"
            )
    share = (value - low[0].at) / (high[0].at - low[0].at) if high[0].at > low[0].at else 0.0
    return Between(low[0], high[0], share)


def _range(points: Sequence[Point]) -> str:
    return f"{points[0].at:.4g} to {points[-1].at:.4g}"


def _listed(points: Sequence[Point]) -> str:
    return " and ".join(p.name for p in points)


def _at(name: str, points: Sequence[Point], value: float) -> Mix | str:
    """Return the mix of a sweep at a value, or the reason why there is none."""
    where = _between(points, value)
    return where if isinstance(where, str) else _mixed(name, where)


def _mixed(name: str, where: Between) -> Mix | str:
    """Return the mix of two neighbours, or the reason why there is none."""
    low, high = where.low.row, where.high.row
    if len(low.good) != len(high.good):
        counts = " and ".join(f"{len(p.row.good)} of {p.name}" for p in (where.low, where.high))
        return f"seeds differ ({counts}): the two neighbours cannot be mixed"
    if low.grounds != high.grounds:
        return "grounds differ: the two neighbours cannot be mixed"
    ours, theirs = scores_on_common([low, high])
    w = where.share
    scores = {
        figure: (1 - w) * ours[figure] + w * theirs[figure]
        for figure in FIGURES
        if figure in ours and figure in theirs
    }
    flops = [fmean(amount(r, "flops") for r in row.good) for row in (low, high)]
    return Mix(name, where, scores, (1 - w) * flops[0] + w * flops[1])


# -- the table -------------------------------------------------------------------------------------


def _won(mix: Mix) -> float:
    return float(mix.scores["win_rate"].mean())


def _line(mix: Mix, head: Mapping[str, Any]) -> Line:
    """Return a mix as a row, with intervals."""
    kinds = [r["evaluation"]["kl_estimator"] for row in mix.rows for r in row.good]
    figures = {
        "method": mix.name,
        **head,
        "seeds": len(mix.scores["win_rate"]),
        "failed": _failures(mix.rows),
    }
    for name in FIGURES:
        estimate = (
            win_rate_interval(mix.scores[name], grounds=mix.grounds)
            if name == "win_rate"
            else two_way_interval(mix.scores[name], grounds=mix.grounds)
        )
        figures |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    figures["kl_estimator"] = next((kind for kind in kinds if columns.kl_mark(kind)), kinds[0])
    points = {"low": mix.where.low, "high": mix.where.high}
    figures |= {"flops": mix.flops, "share": mix.where.share}
    figures |= {f"{side}_point": p.row.name for side, p in points.items()}
    return Line(
        figures | {f"{side}_at": p.at for side, p in points.items()}, mix.rows, _neighbours(mix)
    )


def _neighbours(mix: Mix) -> str:
    """Return the points of a mix with their shares: `beta=0.1 (30 %), beta=0.3 (70 %)`."""
    low, high, share = mix.where.low, mix.where.high, mix.where.share
    if len(mix.rows) == 1:
        return f"at {(high if share == 1 else low).name}"
    return f"{low.name} ({1 - share:.0%}), {high.name} ({share:.0%})"


def _left(name: str, points: Sequence[Point], why: str, head: Mapping[str, Any]) -> Line:
    """Return a sweep without a mix as a row, with the reason."""
    rows = [p.row for p in points]
    ends = {"low_at": points[0].at, "high_at": points[-1].at}
    return Line({"method": name, **head, "failed": _failures(rows), "why": why, **ends}, rows, why)


def _failed(row: Row, head: Mapping[str, Any]) -> Line:
    """Return a row for runs that all failed: it is shown, but it is not a point of a sweep."""
    return _left_out(row, f"failed: {row.records[0]['failure']}", head)


def _left_out(row: Row, why: str, head: Mapping[str, Any]) -> Line:
    """Return a row that is not a point of a sweep, with the reason."""
    counts = {"seeds": len(row.good), "failed": len(row.failed)}
    return Line({"method": row.name, **head, **counts, "why": why}, [row], why)


def _failures(rows: Sequence[Row]) -> int:
    return sum(len(row.failed) for row in rows)


def _table(
    selection: Selection, title: str, lines: Sequence[Line], caption: str, quantity: str
) -> Table:
    """Return the table with the footnotes of its own rows."""
    shown = [row for line in lines for row in line.rows]
    footnotes = Footnotes(replace(selection, rows=shown))
    of = {row.name: footnotes.of(i) for i, row in enumerate(shown)}
    marks = [
        tuple(dict.fromkeys(mark for row in line.rows for mark in of[row.name])) for line in lines
    ]
    return Table(
        title,
        list(COLUMNS),
        [_cells(line, own) for line, own in zip(lines, marks, strict=True)],
        _notes(selection, shown, quantity),
        [
            tables.with_footnotes(line.figures, footnotes, own)
            for line, own in zip(lines, marks, strict=True)
        ],
        caption,
        {
            **open_footnote([line.figures for line in lines], ["win_rate"]),
            **footnotes.texts,
        },
        [[str(r["folder"]) for row in line.rows for r in row.records] for line in lines],
    )


def _cells(line: Line, marks: tuple[str, ...]) -> list[Cell]:
    f, head = line.figures, [Cell(line.name), Cell(seeds_text(line.rows), marks=marks)]
    if "win_rate" not in f:
        return [*head, Cell(line.note), *[Cell("")] * (len(COLUMNS) - 3)]
    return [
        *head,
        columns.estimate("win_rate", ".3f")(f),
        Cell(f"{f['gold']:.2f}" if "gold" in f else "-"),
        Cell(f"{f['kl']:.2f}{columns.kl_mark(f['kl_estimator'])}"),
        Cell(f"{f['length']:.1f}"),
        Cell(f"{f['flops'] / 1e12:.3g}"),
        Cell(line.note),
    ]


def _notes(selection: Selection, shown: Sequence[Row], quantity: str) -> list[str]:
    took = {
        "kl": "KL is that of the evaluated policies, mean over seeds",
        "tokens": "Tokens are those the method generated and trained on",
        "flops": "FLOPs are those of the method's own training",
        "seconds": "Seconds are those of the method's own training",
    }[quantity]
    apart = (
        ""
        if quantity == "kl"
        else "; shared stages (SFT, preferences, reward model) are counted separately"
    )
    how = (
        f"{took}{apart}. Every figure is interpolated linearly, prompt by prompt, between the two"
        " runs of a sweep next to the value. Nothing is extrapolated. A mix is not a trained"
        " policy. Intervals treat the position between the two runs as known."
        f" {tables.NOTES['kl']}"
    )
    names = {row.name for row in shown}
    others = [
        f"{row.name} {row.seeds}" for row in selection.rows if row.failed and row.name not in names
    ]
    hidden = [f"Failed runs of settings that are not shown: {'; '.join(others)}."] if others else []
    return [how, *hidden, *tables.unfinished_notes(selection), *tables.bounds_notes(shown)]


def _caption(selection: Selection, grounds: Sequence[Sequence[int]], borrowed: bool) -> str:
    text = (
        f"{captions.figures_text(selection, grounds)} All are computed from the interpolated scores"
        " of every prompt."
    )
    several = any(len(set(own)) > 1 for own in grounds)
    return f"{text} {captions.bold_text(len(grounds), borrowed, several)}".strip()
