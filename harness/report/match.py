"""Methods at an equal value of KL, FLOPs, tokens or seconds: interpolated along their sweeps, never extrapolated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..errors import UsageError, unknown
from ..statistics.compare import best_group
from ..statistics.intervals import Array, two_way_interval, win_rate_interval
from .select import Record, Row, Selection
from .sweeps import Sweep, scores_of, sweeps
from .table import Cell, Table

QUANTITIES = {"kl": "nats of KL", "flops": "training FLOPs", "tokens": "tokens", "seconds": "training seconds"}
COLUMNS = ["method", "seeds", "win-rate vs SFT [95 %]", "gold", "KL (nats)", "length", "train TFLOP", "between"]
SAME = 1e-9  # values that differ by a smaller share are one: means are rounded
FIGURES = ("win_rate", "gold", "kl", "length")


@dataclass(frozen=True)
class Point:
    """A row as a point of its sweep."""

    at: float  # the quantity, mean over seeds
    row: Row
    name: str  # where on the sweep it lies


@dataclass(frozen=True)
class Between:
    """Where a value lies on a sweep: between two neighbours, or at a point (`share` 0 of the same)."""

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
    def points(self) -> list[Point]:
        """The neighbours, one where the value lies at a point."""
        low, high = self.where.low, self.where.high
        return [low] if self.where.share == 0 else [high] if self.where.share == 1 else [low, high]


def parse_match(text: str) -> tuple[str, float | None]:
    """Return (quantity, value) of `kl=2` or `kl`; raise UsageError for what is neither."""
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
        raise UsageError(f"--match {text}: a value is a number of at least 0, like --match kl=2 or --match flops=1e12.")
    return quantity, at


def matched(selection: Selection, quantity: str, at: float | None = None) -> Table:
    """Return sweeps side by side at an equal value of a quantity; without one, the largest that all sweeps reach.

    Points of a sweep are ordered by the quantity, not by the option swept: exactly one pair of neighbours then holds a
    value, however it goes up and down along the option. Where several points lie at just the neighbour's value (FLOPs
    of a sweep of beta) which to take is not decided here: the sweep says so instead. The mix is of per-prompt scores,
    (1 - w) times those of the lower point and w times those of the higher, so intervals and bold are as elsewhere.
    """
    if quantity not in QUANTITIES:
        raise unknown("quantity to match", quantity, QUANTITIES)
    points = {s.name: _points(s, quantity) for s in sweeps(selection.rows)}
    value = _common(points, quantity) if at is None else at
    mixes, left = [], {}
    for name, own in points.items():
        found = _between(own, value)
        mix = found if isinstance(found, str) else _mixed(name, found)
        if isinstance(mix, str):
            left[name] = mix
        else:
            mixes.append(mix)
    if not mixes:
        told = "; ".join(f"{name}: {why}" for name, why in left.items())
        at_all = f"{value:.4g} {QUANTITIES[quantity]}"
        raise UsageError(f"No sweep can be read off at {at_all}; nothing is extrapolated ({told}).")
    mixes.sort(key=lambda m: (-float(m.scores["win_rate"].mean()), m.name))
    return _table(selection, quantity, value, at is None, mixes, {n: (points[n], why) for n, why in left.items()})


def amount(record: Record, quantity: str) -> float:
    """Return how much of a quantity a finished run came to: KL of its policy, or what its training took."""
    own = record["cost"]["method"]
    if quantity == "kl":
        return max(0.0, float(record["evaluation"]["kl"]["mean"]))
    if quantity == "tokens":
        return float(own["tokens_generated"] + own["tokens_trained"])
    return float(own[quantity])


def _points(sweep: Sweep, quantity: str) -> list[Point]:
    points = [Point(fmean(amount(r, quantity) for r in row.good), row, _short(sweep, row)) for row in sweep.rows]
    return sorted(points, key=lambda point: (point.at, point.row.name))


def _short(sweep: Sweep, row: Row) -> str:
    return (sweep.point(row) or row.name) if len(sweep.rows) > 1 else row.name


def _common(points: Mapping[str, Sequence[Point]], quantity: str) -> float:
    """Return the largest value that all sweeps reach along which the quantity moves."""
    several = {name: own for name, own in points.items() if own[0].at < own[-1].at}
    if not several:
        raise UsageError(
            f"Nothing to match: no method has two settings that differ in a number and in {QUANTITIES[quantity]}. "
            "Sweep one, `sweep = {beta = [0.03, 0.1, 0.3]}` in a study file (docs/studies.md)."
        )
    value, lowest = min(own[-1].at for own in several.values()), max(own[0].at for own in several.values())
    if lowest > value:
        told = "; ".join(f"{name}: {_range(own)}" for name, own in several.items())
        raise UsageError(
            f"No value of {QUANTITIES[quantity]} lies on all sweeps ({told}). Name one, --match {quantity}=VALUE, or "
            "choose with --methods."
        )
    return value


def _between(points: Sequence[Point], value: float) -> Between | str:
    """Return where a value lies on a sweep, or why that cannot be said."""
    if len(points) < 2:
        return f"one point, at {points[0].at:.4g}"
    value = next((p.at for p in points if math.isclose(p.at, value, rel_tol=SAME)), value)
    if not points[0].at <= value <= points[-1].at:
        return f"not reached: its points lie at {_range(points)}"
    low = [p for p in points if p.at == max(q.at for q in points if q.at <= value)]
    high = [p for p in points if p.at == min(q.at for q in points if q.at >= value)]
    for there in (low, high):
        if len(there) > 1:
            return f"not one curve: {_listed(there)} lie at the same {there[0].at:.4g}; choose with --where"
    share = (value - low[0].at) / (high[0].at - low[0].at) if high[0].at > low[0].at else 0.0
    return Between(low[0], high[0], share)


def _range(points: Sequence[Point]) -> str:
    return f"{points[0].at:.4g} to {points[-1].at:.4g}"


def _listed(points: Sequence[Point]) -> str:
    return " and ".join(p.name for p in points)


def _mixed(name: str, where: Between) -> Mix | str:
    """Return a sweep's mix at a value, or why there is none."""
    low, high = where.low.row, where.high.row
    if len(low.good) != len(high.good):
        told = " and ".join(f"{len(p.row.good)} of {p.name}" for p in (where.low, where.high))
        return f"seeds differ, {told}: its two neighbours cannot be mixed"
    ours, theirs = scores_of(low), scores_of(high)
    w = where.share
    scores = {figure: (1 - w) * ours[figure] + w * theirs[figure] for figure in FIGURES}
    flops = [fmean(amount(r, "flops") for r in row.good) for row in (low, high)]
    return Mix(name, where, scores, (1 - w) * flops[0] + w * flops[1])


# -- the table ---------------------------------------------------------------------------------------------------------


def _table(
    selection: Selection, quantity: str, value: float, chosen: bool, mixes: Sequence[Mix],
    left: Mapping[str, tuple[Sequence[Point], str]],
) -> Table:  # fmt: skip
    bold = best_group({m.name: m.scores["win_rate"] for m in mixes})
    best = mixes[0].name if mixes else ""
    which = ", the largest that all sweeps reach" if chosen else ""
    rows = [_cells(m, bold[m.name], m.name == best) for m in mixes]
    rows += [
        [Cell(name), Cell(_seeds(own)), Cell(why), *[Cell("")] * (len(COLUMNS) - 3)]
        for name, (own, why) in left.items()
    ]
    return Table(
        f"{selection.suite}: at {value:.4g} {QUANTITIES[quantity]}{which}", list(COLUMNS), rows, _notes(quantity),
        [_plain(m, quantity, value, bold[m.name]) for m in mixes]
        + [_plain_left(name, own, why, quantity, value) for name, (own, why) in left.items()],
        _caption(len(mixes)),
        runs=[_folders(m.points) for m in mixes] + [_folders(own) for own, _ in left.values()],
    )  # fmt: skip


def _cells(mix: Mix, bold: bool, best: bool) -> list[Cell]:
    win = win_rate_interval(mix.scores["win_rate"])
    gold, kl, length = (float(mix.scores[name].mean()) for name in ("gold", "kl", "length"))
    return [
        Cell(mix.name), Cell(str(win.seeds)),
        Cell(f"{win.mean:.3f}", f"[{win.low:.3f}, {win.high:.3f}]", bold, best),
        Cell(f"{gold:.2f}"), Cell(f"{kl:.2f}"), Cell(f"{length:.1f}"), Cell(f"{mix.flops / 1e12:.3g}"),
        Cell(_told(mix)),
    ]  # fmt: skip


def _told(mix: Mix) -> str:
    """Return the points a mix is of, each with its share: `beta=0.1 (30 %), beta=0.3 (70 %)`."""
    where = mix.where
    if len(mix.points) == 1:
        return f"at {mix.points[0].name}"
    return f"{where.low.name} ({1 - where.share:.0%}), {where.high.name} ({where.share:.0%})"


def _plain(mix: Mix, quantity: str, value: float, bold: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"method": mix.name, "matched": quantity, "value": value}
    row["seeds"] = len(mix.scores["win_rate"])
    for name in FIGURES:
        found = win_rate_interval(mix.scores[name]) if name == "win_rate" else two_way_interval(mix.scores[name])
        row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    points = (mix.where.low, mix.where.high)
    row |= {"flops": mix.flops, "bold": bold, "share": mix.where.share}
    row |= {f"{side}_point": p.row.name for side, p in zip(("low", "high"), points, strict=True)}
    return row | {f"{side}_at": p.at for side, p in zip(("low", "high"), points, strict=True)}


def _plain_left(name: str, points: Sequence[Point], why: str, quantity: str, value: float) -> dict[str, Any]:
    ends = {"low_at": points[0].at, "high_at": points[-1].at}
    return {"method": name, "matched": quantity, "value": value, "why": why} | ends


def _seeds(points: Sequence[Point]) -> str:
    return ", ".join(dict.fromkeys(str(len(p.row.good)) for p in points))


def _folders(points: Sequence[Point]) -> list[str]:
    return [str(r["folder"]) for p in points for r in p.row.good]


def _notes(quantity: str) -> list[str]:
    took = {
        "kl": "KL is that of the evaluated policies, mean over seeds",
        "tokens": "Tokens are those the method generated and trained on",
        "flops": "FLOPs are those of the method's own training",
        "seconds": "Seconds are those of the method's own training",
    }[quantity]
    apart = "" if quantity == "kl" else "; shared stages (SFT, preferences, reward model) are billed apart"
    return [
        f"{took}{apart}. Every figure is interpolated linearly between the two runs of a sweep that lie next to the "
        "value, prompt by prompt; nothing is extrapolated. A mix is no policy that was trained, and intervals take the "
        "place of the value between the two as known."
    ]


def _caption(mixes: int) -> str:
    told = "Intervals of 95 % are for seeds and prompts, made on the interpolated scores of every prompt."
    if mixes < 2:
        return told
    return f"{told} Bold: not significantly worse than the best win-rate (paired test, Holm over all pairs, 5 %)."
