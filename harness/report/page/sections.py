"""The sections of a page: each holds the comparable runs of one suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import unknown
from ...core.records import Damaged
from ..selection.comparable import OWN_CODE, grounds_of
from ..selection.filters import Record
from ..selection.run_files import left_out, sound
from ..selection.select import Selection, rows_of, suite_records, unfinished
from .settings import text_of

Ground = tuple[str, ...]  # the values, in the order of the names
EDITION = (  # distinguishes seeds of one row that different code computed
    "edition of a method's code"
)


@dataclass(frozen=True)
class Section:
    """Comparable runs of one suite."""

    key: str  # for anchors
    title: str
    selection: Selection
    ground: Mapping[str, str]  # digests of the inputs that its runs share
    apart: Sequence[str] = ()  # inputs in which sections of this suite differ


def sections(results: Path, study: str | None, suite: str | None) -> list[Section]:
    """Return the sections of a page: suites by name, the largest section of a suite first."""
    damaged: list[Damaged] = []
    records = sound(suite_records(results, study, damaged, suite), damaged)
    if not records:
        raise damaged[-1]
    suites = sorted({str(r["suite"]) for r in records})
    if suite is not None and suite not in suites:
        raise unknown("suite with runs", suite, suites)
    shown: list[Section] = []
    for name in [suite] if suite else suites:
        groups = _by_ground([r for r in records if r["suite"] == name])
        for group, title in zip(groups, _titles(name, groups), strict=True):
            selection = Selection(
                name,
                rows_of(group.records),
                results,
                study,
                unfinished(results, name, study),
                damaged=left_out(name, damaged),
            )
            shown.append(Section(f"s{len(shown)}", title, selection, group.ground, group.apart))
    return shown


@dataclass
class _Group:
    records: list[Record]
    ground: dict[str, str]
    apart: list[str]


def _by_ground(records: Sequence[Record]) -> list[_Group]:
    """Return comparable records in groups.

    A failed run has no digests. It joins the runs of its recipe, or else the largest group.
    """
    good = [r for r in records if "failure" not in r]
    grounds = list(zip(good, grounds_of(good), strict=True))
    names = [
        name for name in dict.fromkeys(name for _, g in grounds for name in g) if name != OWN_CODE
    ]
    groups: dict[Ground, list[Record]] = {}
    codes: dict[tuple[Ground, str], list[str]] = {}  # of a recipe, in order of first use
    for r, ground in grounds:
        common = tuple(str(ground.get(name)) for name in names)
        known = codes.setdefault((common, r["recipe"]), [])
        own = str(ground.get(OWN_CODE))
        known.extend([own] if own not in known else [])
        groups.setdefault((*common, str(known.index(own))), []).append(r)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    names = [*names, EDITION]
    apart = [name for i, name in enumerate(names) if len({ground[i] for ground in groups}) > 1]
    sections = [
        _Group(own, dict(zip(names, ground, strict=True)), apart) for ground, own in ordered
    ]
    for group in sections:
        group.ground.pop(EDITION) if EDITION not in apart else None
    sections = sections or [_Group([], {}, [])]  # all runs failed
    for r in records:
        if "failure" in r:
            _home(r, sections).records.append(r)
    return sections


def _home(failed: Record, groups: Sequence[_Group]) -> _Group:
    alike = (g for g in groups if any(r["recipe"] == failed["recipe"] for r in g.records))
    return next(alike, groups[0])


def _titles(suite: str, groups: Sequence[_Group]) -> list[str]:
    """Return the titles of groups: the suite, and the difference if there are several groups."""
    if len(groups) == 1:
        return [suite]
    titles = [", ".join(_choices(group, groups)) for group in groups]
    if len(set(titles)) < len(titles) or not all(titles):  # then digests name the difference
        titles = [
            ", ".join(f"{name} {group.ground[name]}" for name in group.apart) for group in groups
        ]
    return [f"{suite}: {title}" for title in titles]


def _choices(group: _Group, groups: Sequence[_Group]) -> list[str]:
    """Return the suite options and the shared seed in which a group differs from others."""
    options: list[Mapping[str, object]] = [g.records[0].get("suite_options", {}) for g in groups]
    own = group.records[0].get("suite_options", {})
    choices = [
        f"{k}={text_of(v)}" for k, v in own.items() if len({text_of(o.get(k)) for o in options}) > 1
    ]
    if len({g.records[0].get("shared_seed") for g in groups}) > 1:
        choices.append(f"shared_seed={group.records[0].get('shared_seed')}")
    return choices
