"""What stands side by side on a page: the runs of one suite on identical ground; unlike ground is a
section apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import unknown
from ..selection.select import OWN_CODE, Record, Selection, ground_of, rows_of, suite_records
from .settings import text_of

Ground = tuple[str, ...]  # the values, in the order of the names
EDITION = (  # seeds of one row that were made by different code are apart
    "edition of a method's code"
)


@dataclass(frozen=True)
class Section:
    """One suite on one ground."""

    key: str  # for anchors
    title: str
    selection: Selection
    ground: Mapping[str, str]  # hashes of what its runs share
    apart: Sequence[str] = ()  # names of what sets it apart from the other sections of its suite


def sections(results: Path, study: str | None, suite: str | None) -> list[Section]:
    """Return the sections of a page: suites by name, and of a suite the ground with the most runs
    first.
    """
    records = suite_records(results, study)
    suites = sorted({str(r["suite"]) for r in records})
    if suite is not None and suite not in suites:
        raise unknown("suite with runs", suite, suites)
    found: list[Section] = []
    for name in [suite] if suite else suites:
        groups = _by_ground([r for r in records if r["suite"] == name])
        for group, told in zip(groups, _titles(name, groups), strict=True):
            selection = Selection(name, rows_of(group.records), results, study)
            found.append(Section(f"s{len(found)}", told, selection, group.ground, group.apart))
    return found


@dataclass
class _Group:
    records: list[Record]
    ground: dict[str, str]
    apart: list[str]


def _by_ground(records: Sequence[Record]) -> list[_Group]:
    """Return records by ground. A failed run has none: it goes with its recipe, or else with the
    most runs.
    """
    grounds = [(r, ground_of(r)) for r in records if "failure" not in r]
    names = [
        name for name in dict.fromkeys(name for _, g in grounds for name in g) if name != OWN_CODE
    ]
    groups: dict[Ground, list[Record]] = {}
    codes: dict[tuple[Ground, str], list[str]] = {}  # of a recipe on a ground, as they are met
    for r, ground in grounds:
        common = tuple(str(ground.get(name)) for name in names)
        known = codes.setdefault((common, r["recipe"]), [])
        own = str(ground.get(OWN_CODE))
        known.extend([own] if own not in known else [])
        groups.setdefault((*common, str(known.index(own))), []).append(r)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    names = [*names, EDITION]
    apart = [name for i, name in enumerate(names) if len({ground[i] for ground in groups}) > 1]
    found = [_Group(own, dict(zip(names, ground, strict=True)), apart) for ground, own in ordered]
    for group in found:
        group.ground.pop(EDITION) if EDITION not in apart else None
    found = found or [_Group([], {}, [])]  # nothing but failures
    for r in records:
        if "failure" in r:
            _home(r, found).records.append(r)
    return found


def _home(failed: Record, groups: Sequence[_Group]) -> _Group:
    alike = (g for g in groups if any(r["recipe"] == failed["recipe"] for r in g.records))
    return next(alike, groups[0])


def _titles(suite: str, groups: Sequence[_Group]) -> list[str]:
    """Return the suite's name, with what sets each group apart where there are several."""
    if len(groups) == 1:
        return [suite]
    told = [", ".join(_choices(group, groups)) for group in groups]
    if len(set(told)) < len(told) or not all(told):  # then the hashes say it
        told = [
            ", ".join(f"{name} {group.ground[name]}" for name in group.apart) for group in groups
        ]
    return [f"{suite}: {which}" for which in told]


def _choices(group: _Group, groups: Sequence[_Group]) -> list[str]:
    """Return what was asked for in a group and not in another: options of the suite, the shared
    seed.
    """
    options: list[Mapping[str, object]] = [g.records[0].get("suite_options", {}) for g in groups]
    own = group.records[0].get("suite_options", {})
    told = [
        f"{k}={text_of(v)}" for k, v in own.items() if len({text_of(o.get(k)) for o in options}) > 1
    ]
    if len({g.records[0].get("shared_seed") for g in groups}) > 1:
        told.append(f"shared_seed={group.records[0].get('shared_seed')}")
    return told
