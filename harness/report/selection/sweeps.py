"""Sweeps: the rows of one method that differ only in numeric options are points of one curve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...statistics.intervals import Array
from .comparable import own_reward
from .figures import answers_of, complete, of_prompts
from .select import Row

Words = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sweep:
    """The rows of one curve; a single row if nothing was swept."""

    name: str
    rows: Sequence[Row]
    options: tuple[str, ...]  # numeric options in which they differ

    def point(self, row: Row) -> str:
        """Return the swept options of a row, `beta=0.1`; empty if none differ."""
        values = row.records[0]["options"]
        return ", ".join(f"{name}={values[name]:g}" for name in self.options)

    def value(self, row: Row) -> str:
        """Return the swept options of a row; of a single option only its value."""
        return self.point(row).partition("=")[2] if len(self.options) == 1 else self.point(row)

    @property
    def title(self) -> str:
        """The name of the sweep and its options, `ppo, over beta`."""
        return f"{self.name}, over {', '.join(self.options)}" if self.options else self.name


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """Return finished rows as sweeps, in the order of their first rows.

    Rows of one sweep share the study's entry (or the method) and all options that are not numbers:
    DPO and DPO on shuffled labels are two sweeps.
    """
    groups: dict[tuple[str, Words], list[Row]] = {}
    for row in rows:
        if row.good:
            groups.setdefault((row.entry, _words(row)), []).append(row)
    names = [_name(key, group, groups) for key, group in groups.items()]
    unique = [
        f"{n} [{g[0].name}]" if names.count(n) > 1 else n
        for n, g in zip(names, groups.values(), strict=True)
    ]
    return [
        Sweep(name, group, _swept(group))
        for name, group in zip(unique, groups.values(), strict=True)
    ]


def _words(row: Row) -> Words:
    """Return the settings of a row that are not numbers."""
    record = row.records[0]
    words = {name: str(value) for name, value in record["options"].items() if not _is_number(value)}
    words |= {f"reward_model.{name}": str(value) for name, value in own_reward(record).items()}
    return tuple(sorted({**words, "quick": str(bool(record.get("quick")))}.items()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(key: tuple[str, Words], group: Sequence[Row], groups: Iterable[tuple[str, Words]]) -> str:
    """Return the name of a sweep: of its only row, or its entry's name.

    Sweeps of one entry are named by the settings in which they differ.
    """
    if len(group) == 1:
        return group[0].name
    entry, words = key
    others = [dict(other) for name, other in groups if name == entry]
    differences = ", ".join(
        f"{n}={v}" for n, v in words if any(other.get(n) != v for other in others)
    )
    return f"{entry} ({differences})" if differences else entry


def _swept(group: Sequence[Row]) -> tuple[str, ...]:
    """Return the numeric options in which rows differ; those set by hand if records have them."""
    first = group[0].records[0]
    options = [row.records[0]["options"] for row in group]
    known = [name for name in first["options"] if all(_is_number(o.get(name)) for o in options)]
    differing = [name for name in known if len({o[name] for o in options}) > 1]
    set_by_hand = {name for row in group for name in row.records[0].get("asked", differing)}
    return tuple(name for name in differing if name in set_by_hand) or tuple(differing)


def seeds_text(rows: Sequence[Row]) -> str:
    """Return the seeds of rows, `2 or 3/4`: three of four runs finished."""
    return " or ".join(dict.fromkeys(row.seeds for row in rows))


def scores_of(row: Row) -> dict[str, Array]:
    """Return {figure: scores (S seeds, P prompts)} of the finished runs, with `win_rate`.

    Prompts on which a score is missing are left out.
    """
    return scores_on_common([row])[0]


def scores_on_common(rows: Sequence[Row]) -> list[dict[str, Array]]:
    """Return the scores of rows on the prompts on which no score of any row is missing."""
    figures = [answers_of(row).figures for row in rows]
    kept = complete(*(scores for row in figures for scores in row.values()))
    return [
        {
            "win_rate" if name == "win" else name: of_prompts(scores, kept)
            for name, scores in row.items()
        }
        for row in figures
    ]


def prompts_of_all_grounds(rows: Sequence[Row], scores: Sequence[Array]) -> list[Array]:
    """Return scores (S, P) as (seeds, prompts of all common grounds), the grounds side by side.

    With unequal numbers of seeds, the first ones of each ground are taken.
    """
    common = sorted(set.intersection(*(set(row.grounds) for row in rows)))
    if len({ground for row in rows for ground in row.grounds}) < 2:
        return list(scores)
    least = min(row.grounds.count(ground) for row in rows for ground in common)
    return [
        np.concatenate(
            [
                own[[i for i, g in enumerate(row.grounds) if g == ground][:least]]
                for ground in common
            ],
            axis=1,
        )
        for row, own in zip(rows, scores, strict=True)
    ]


def measured(rows: Iterable[Row], *names: str) -> list[Row]:
    """Return the finished rows in which all runs have these figures of the evaluation."""
    return [
        row
        for row in rows
        if row.good and all(n in r["evaluation"] for r in row.good for n in names)
    ]
