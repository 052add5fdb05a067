"""A comparison of two rows as one screen of text, or as JSON for programs."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...core.movement import sentence
from ...core.plain_text import visible
from ..selection.select import Row
from .compare import Compared, Cost, Example, HeadToHead, Measure
from .lm_eval_logs import LogsCompared, grid, notes_of
from .verdict import p_text

if TYPE_CHECKING:
    from ...statistics.length import LengthControlled

WIDTH = 100  # of plain text; a narrower terminal wraps
MOST_LINES = 2  # of the options that differ, and of a text
SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

Grid = list[list[str]]
Part = str | Grid  # a paragraph, or the rows of a table, header first


def show(comparison: Compared) -> None:
    """Print a comparison: with bold heads on a terminal, aligned in plain text elsewhere."""
    print_parts(parts(comparison))


def show_logs(comparison: LogsCompared) -> None:
    """Print a comparison of two folders of lm-evaluation-harness."""
    names: list[Part] = [f"A  {comparison.a}", f"B  {comparison.b}", ""]
    print_parts([*names, grid(comparison), "", *notes_of(comparison)])


def print_parts(content: Sequence[Part]) -> None:
    """Print parts from top to bottom; the last one is the result."""
    shown = [_safe(part) for part in content]
    if not sys.stdout.isatty():
        print("\n".join(_plain(part) for part in shown))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for part in shown:
        if isinstance(part, str):
            console.print(Text(part, style="bold" if part is shown[-1] else ""), highlight=False)
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(part[0]):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in part[1:]:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)


def as_json(comparisons: Sequence[Compared]) -> str:
    """Return one comparison as a JSON object, several as a list.

    A row holds its name, its method and the folders of its finished runs.
    """
    plain = [asdict(c) | {"a": _row_json(c.a), "b": _row_json(c.b)} for c in comparisons]
    return json_text(plain[0] if len(plain) == 1 else plain)


def json_text(value: Any) -> str:
    """Return a value as JSON text, nan as null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return a value with null for nan: JSON has no nan, and one seed has no spread."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "method": row.method,
        "seeds": [r["seed"] for r in row.good],
        "failed": len(row.failed),
        "folders": [r["folder"] for r in row.good],
    }


def parts(comparison: Compared) -> list[Part]:
    """Return the parts of the screen from top to bottom; the result comes last."""
    head = comparison.head
    lines: list[Part] = [
        f"{comparison.suite}: {comparison.prompts} {comparison.split} prompts, the same for both",
        *(f"{side}  {_row_text(row)}" for side, row in (("A", comparison.a), ("B", comparison.b))),
        _cut(f"options (A | B): {'; '.join(comparison.options) or 'the same'}"),
        *_unmoved(comparison),
        "",
        _measures(comparison.measures),
        *(f"({m.note})" for m in comparison.measures if m.note),
        "",
        *_by_prompt(head),
        *_at_equal_length(comparison.controlled),
        [["cost", "A", "B", "A / B"], *map(_cost, comparison.costs)],
    ]
    lines.append("")
    for example in comparison.examples:
        lines += [_cut(f"{example.title}: {example.prompt}")]
        lines += [
            _cut(f"  {side} {gold}  {text}", 13)
            for side, gold, text in zip("AB", _golds(example), example.answers, strict=True)
        ]
    return [*lines, "", "\n".join(textwrap.wrap(comparison.verdict, WIDTH))]


def _golds(example: Example) -> tuple[str, str]:
    """Return the gold scores of an example's answers as text of one width."""
    if example.gold is None:
        return ("--".rjust(7), "--".rjust(7))
    return (f"{example.gold[0]:7.2f}", f"{example.gold[1]:7.2f}")


def _at_equal_length(both: tuple[LengthControlled, LengthControlled] | None) -> list[Part]:
    """Return the line on win-rates at equal length; nothing where there are none."""
    if both is None:
        return []
    sides = (f"{side} {_controlled(lc)}" for side, lc in zip("AB", both, strict=True))
    return [f"length-controlled win-rate (characters): {', '.join(sides)}", ""]


def _by_prompt(head: HeadToHead | None) -> list[Part]:
    if head is None:
        return []
    return [
        f"gold by prompt: A wins {head.wins}, ties {head.ties}, loses {head.losses} (sign test"
        f" {p_text(head.p)}); P(A above B) = {head.improvement:.3f}"
    ]


def _unmoved(comparison: Compared) -> list[Part]:
    """Return a sentence on A or B if training changed nothing."""
    lines: list[Part] = []
    for side, row in (("A", comparison.a), ("B", comparison.b)):
        sentences = dict.fromkeys(filter(None, map(sentence, row.good)))
        lines += [f"{side}: {text}" for text in sentences]
    return lines


def _controlled(controlled: LengthControlled) -> str:
    e = controlled.win_rate
    return (
        f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]"
        if controlled.identified
        else "- (lengths differ too much)"
    )


def _row_text(row: Row) -> str:
    several = len(set(row.grounds)) > 1
    seeds = ", ".join(str(r["seed"]) for r in row.good)
    if several:
        grounds = ", ".join(map(str, sorted(set(row.grounds))))
        seeds = f"{', '.join(dict.fromkeys(seeds.split(', ')))} on shared seeds {grounds}"
    failed = f", {len(row.failed)} more failed" if row.failed else ""
    quick = ", quick: its figures mean nothing" if row.good[0].get("quick") else ""
    return f"{row.name}, seed{'s' * (len(row.good) > 1)} {seeds}{failed}{quick}"


def _measures(measures: Sequence[Measure]) -> Grid:
    rows = [["", "A", "B", "A - B [95 %]", "p"]]
    for m in measures:
        d, n = m.difference, m.digits
        difference = f"{m.a - m.b:+.{n}f}" + (
            f" [{d.low:+.{n}f}, {d.high:+.{n}f}]" if d else " (no values per prompt)"
        )
        rows.append(
            [
                m.label,
                f"{m.a:.{n}f}",
                f"{m.b:.{n}f}",
                difference,
                p_text(d.p).removeprefix("p = ") if d else "-",
            ]
        )
    return rows


def _cost(cost: Cost) -> list[str]:
    a, b = cost.both
    return [cost.label, _scaled(a, cost.unit), _scaled(b, cost.unit), f"{a / b:.2f}" if b else "-"]


def _scaled(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / 2**20:.0f} MiB"
    if unit == "s":
        return f"{value:.1f} s"
    for scale, letter in SCALES:
        if value >= scale:
            return f"{value / scale:.3g} {letter}"
    return f"{value:g}"


def _plain(part: Part) -> str:
    if isinstance(part, str):
        return part
    widths = [max(len(row[i]) for row in part) for i in range(len(part[0]))]
    lines = (
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in part
    )
    return "\n".join(line.rstrip() for line in lines)


def _cut(text: str, indent: int = 2) -> str:
    """Return text on at most MOST_LINES lines, its line breaks replaced by spaces."""
    lines = textwrap.wrap(
        visible(text),
        WIDTH,
        subsequent_indent=" " * indent,
        max_lines=MOST_LINES,
        placeholder=" ...",
    )
    return "\n".join(lines)


def _safe(part: Part) -> Part:
    """Return a part that is safe on a terminal."""
    if isinstance(part, str):
        return visible(part)
    return [[str(_safe(cell)) for cell in row] for row in part]
