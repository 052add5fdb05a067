"""Select runs from a results folder, group them into rows, and refuse incomparable runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.errors import UsageError, unknown
from ...core.records import Damaged, show_damaged
from ...core.run_folder import (
    FAILURE,
    RESULT,
    has_seal,
    runs,
)
from ...core.spec import FORMER_METHODS, START
from ...experiments.study.state import Place, places_of, refused_of
from .comparable import check_comparable, check_grounds, own_reward, settings_of, shared_seed_of
from .filters import Filter, Record, check_names, is_wanted, names_of, whole_names
from .run_files import left_out, sound, suite_of, withheld, without_doubtful
from .task_runs import with_tasks_of

Key = tuple[str, str, str | None]  # of a row: method, recipe, and the label in a study


def is_guest(record: Record) -> bool:
    """Return whether a run is of a model that was trained elsewhere: its cost is unknown."""
    return "guest" in record


def counted(good: int, failed: int, grounds: int = 1) -> str:
    """Return the number of finished runs, `4/5` if some failed; of several grounds `3 x 3`, grounds
    and seeds of each.
    """
    if grounds > 1 and not failed and good % grounds == 0:
        return f"{grounds} x {good // grounds}"
    of_grounds = f" on {grounds} grounds" if grounds > 1 else ""
    return f"{good}/{good + failed}{of_grounds}" if failed else f"{good}{of_grounds}"


@dataclass(frozen=True)
class Row:
    """One row of a table: the runs of one method with the same settings, a seed each, on one
    ground or on several.
    """

    name: str
    method: str
    records: Sequence[Record]
    entry: str  # of the study file: rows of one entry are points of one curve

    @property
    def good(self) -> list[Record]:
        """The finished runs, by ground and seed."""
        return sorted(
            (r for r in self.records if "failure" not in r),
            key=lambda r: (shared_seed_of(r), int(r["seed"])),
        )

    @property
    def grounds(self) -> tuple[int, ...]:
        """The shared seed of each finished run, in the order of `good`."""
        return tuple(shared_seed_of(r) for r in self.good)

    @property
    def failed(self) -> list[Record]:
        """The failed runs."""
        return [r for r in self.records if "failure" in r]

    @property
    def seeds(self) -> str:
        """The number of finished runs, as `counted` writes it."""
        return counted(len(self.good), len(self.failed), len(set(self.grounds)))

    def is_called(self, name: str) -> bool:
        """Return whether a name is the method's, a former name of it, or the study entry's."""
        return name in (self.method, self.entry) or FORMER_METHODS.get(name) == self.method

    def mean(self, figure: str) -> float:
        """Return the mean over seeds of a figure of the evaluation; nan where a run has none."""
        means = [(r["evaluation"].get(figure) or {}).get("mean", float("nan")) for r in self.good]
        return fmean(means) if means else float("nan")


@dataclass(frozen=True)
class Selection:
    """Comparable runs of one suite, in rows: the row `start` first, then by win-rate."""

    suite: str
    rows: Sequence[Row]
    results: Path
    study: str | None = None
    unfinished: Sequence[str] = ()  # runs of this selection that have not ended
    # {label in the study: why the suite cannot serve it}
    refused: Mapping[str, str] = field(default_factory=dict)
    criteria: Filter = field(default_factory=Filter)
    damaged: Sequence[str] = ()  # files that exclude a run, each with the remedy
    # whether the runs are of bundles: their inputs are equal by digest, their code may differ
    of_bundles: bool = False

    @property
    def description(self) -> str:
        """The suite and the criteria: they distinguish two tables of one suite."""
        criteria = self.criteria.description
        return f"{self.suite} ({criteria})" if criteria else self.suite

    @property
    def records(self) -> list[Record]:
        """The records of all rows."""
        return [r for row in self.rows for r in row.records]

    @property
    def good(self) -> list[Record]:
        """The finished runs of all rows."""
        return [r for row in self.rows for r in row.good]

    @property
    def no_win_rate(self) -> str:
        """Why finished runs have no win-rate, as their judge's accuracy says; empty without."""
        return "; ".join(dict.fromkeys(filter(None, map(withheld, self.good))))

    @property
    def unsealed(self) -> int:
        """The number of records of older versions: no digest protects their figures."""
        return sum(not has_seal(r) for r in self.records)


def select(results: Path, criteria: Filter) -> Selection:
    """Return the selected runs, one per recipe and seed; raise UsageError if incomparable.

    `criteria.mixed` allows runs that are not.
    """
    damaged: list[Damaged] = []
    suite, records = chosen(results, criteria, damaged)
    if not criteria.mixed:
        check_comparable([r for r in records if "failure" not in r])
    rows = rows_of(records, criteria.each)
    if not criteria.mixed and not criteria.each:
        check_grounds({row.name: row.grounds for row in rows})
    left = unfinished(results, suite, criteria.study)
    refused = refused_of(results, criteria.study, suite) if criteria.study is not None else {}
    return Selection(
        suite,
        rows,
        results,
        criteria.study,
        left,
        refused,
        criteria,
        left_out(suite, damaged),
    )


def unfinished(results: Path, suite: str, study: str | None) -> list[str]:
    """Return the names of the runs of a suite, or of a study, that have not ended."""
    suite_folder = results / "runs" / suite
    if study is None:
        named = {
            folder: f"{folder.parent.name} {folder.name}"
            for folder in suite_folder.glob("*/*")
            if _begun(folder)
        }
    else:
        places = {Path(folder): place.label for folder, place in places_of(results, study).items()}
        named = {
            f: f"{label} {f.name}" for f, label in places.items() if f.parent.parent == suite_folder
        }
    return sorted(
        name
        for f, name in named.items()
        if not any((f / end).exists() for end in (RESULT, FAILURE))
    )


def _begun(folder: Path) -> bool:
    return (folder / "spec.json").exists()


def chosen(
    results: Path, criteria: Filter, damaged: list[Damaged] | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """Return the suite and its records, comparable or not; damaged ones are added to `damaged`."""
    records = _matching(results, criteria, [] if damaged is None else damaged)
    suites = sorted({r["suite"] for r in records})
    if criteria.suite is None and len(suites) > 1:
        raise UsageError(f"Name one suite with --suite: there are runs of {', '.join(suites)}.")
    suite = criteria.suite or suites[0]
    if suite not in suites:
        raise unknown("suite with runs", suite, suites)
    matching = [r for r in records if r["suite"] == suite]
    return suite, _named_by_entry(matching) if criteria.where else matching


def suites_of(results: Path, criteria: Filter) -> list[str]:
    """Return the suites of the matching runs, sorted; only that of the filter if it names one."""
    if criteria.suite is not None:
        return [criteria.suite]
    return sorted({r["suite"] for r in _matching(results, criteria, [])})


def _matching(results: Path, criteria: Filter, damaged: list[Damaged]) -> list[dict[str, Any]]:
    """Return the records of all suites that match methods and options; raise UsageError if none."""
    every = suite_records(results, criteria.study, damaged, criteria.suite)
    if criteria.where:  # the options are read from the specs
        every = sound(every, damaged)
    known = names_of(every)
    names = whole_names(criteria.methods, known)
    criteria = replace(
        criteria, methods=[n if n in known else FORMER_METHODS.get(n, n) for n in names]
    )
    check_names(every, criteria)
    if criteria.judge is not None:
        every = _judged_by(every, criteria.judge)
    records = sound([r for r in every if is_wanted(r, criteria)], damaged)
    if not records and damaged:
        raise damaged[-1]
    if not records:
        what = " and ".join([*criteria.methods, *(f"{k}={v}" for k, v in criteria.where.items())])
        raise UsageError(f"No run in {results} matches all of: {what}.")
    return records


def _judged_by(records: Sequence[dict[str, Any]], judge: str) -> list[dict[str, Any]]:
    """Return the runs that a judge evaluated, and those that failed.

    Raises:
        UsageError: The judge evaluated no run.
    """
    judges = {judge_of(r) for r in records if "failure" not in r}
    if judge not in judges:
        raise unknown("judge with runs", judge, judges)
    return [r for r in records if "failure" in r or judge_of(r) == judge]


def judge_of(record: Record) -> str:
    """Return the name of the judge that evaluated a run; "" for a failed or an older run."""
    judge = record.get("evaluation", {}).get("judge")
    return str(judge.get("name", "")) if isinstance(judge, Mapping) else ""


def _named_by_entry(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records with the entry as label, for every entry of which --where left one row."""
    rows: dict[Any, set[Any]] = {}
    for r in records:
        rows.setdefault(r.get("entry"), set()).add(r.get("label"))
    return [
        r | {"label": r["entry"]} if "entry" in r and len(rows[r["entry"]]) == 1 else r
        for r in records
    ]


def suite_records(
    results: Path,
    study: str | None = None,
    damaged: list[Damaged] | None = None,
    suite: str | None = None,
) -> list[dict[str, Any]]:
    """Return all records below a results folder, or those of a study.

    Each has its `folder`; those of a study also have `label` and `entry`. A damaged record of the
    suite, or of any suite, is shown on stderr and added to `damaged`.
    """
    errors: list[Damaged] = []
    recorded = runs(results, errors)
    places = places_of(results, study) if study is not None else {}
    if study is not None:
        recorded = ((f, {**r, **_named(places[str(f)])}) for f, r in recorded if str(f) in places)
    records = _newest(recorded)
    for error in errors:
        here = study is None or str(error.path.parent) in places
        if here and suite in (None, suite_of(error)):
            show_damaged(error)
            (errors if damaged is None else damaged).append(error)
    if not records and errors:
        raise errors[0]
    if not records:
        raise UsageError(
            f"There is no run below {results}. Make one: harness run --method ppo --suite"
            " summarization"
        )
    return records


def _named(place: Place) -> dict[str, str]:
    return {
        "label": place.label,
        "entry": place.entry,
        "cell": place.label,
    }  # `label` may be replaced by the entry


def _newest(records: Iterable[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the newest record of each recipe, seed and label, with the tasks of all of them.

    A study may hold a recipe twice under two labels, for example with and without snapshots.
    """
    alike: dict[tuple[str, int, str | None], list[dict[str, Any]]] = {}
    for folder, record in records:
        key = (record["recipe"], record["seed"], record.get("label"))
        alike.setdefault(key, []).append({**without_doubtful(record), "folder": str(folder)})
    newest = []
    for every in alike.values():
        best = max(every, key=lambda r: str(r.get("finished_at", "")))  # of equals the first
        newest.append(with_tasks_of(best, [r for r in every if r is not best]))
    return newest


# -- rows ------------------------------------------------------------------------------------------


def rows_of(records: Iterable[Record], each: bool = False) -> list[Row]:
    """Return records as named rows: one per method, recipe and label, or one per run."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        key = (record["method"], settings_of(record), record.get("label"))
        groups.setdefault(key, []).append(record)
    names = _row_names(groups)
    rows = [
        Row(names[key], key[0], group, group[0].get("entry", key[0]))
        for key, group in groups.items()
    ]
    if each:
        several = len({shared_seed_of(r) for row in rows for r in row.records}) > 1
        rows = [
            replace(row, name=f"{row.name}, {_seeds_named(r, several)}", records=[r])
            for row in rows
            for r in row.records
        ]
    return sorted(rows, key=order_of)


def order_of(row: Row) -> tuple[bool, float, str, str]:
    """Return what rows are sorted by: the row `start` first, then by win-rate."""
    return (row.method != START, _strength(row), row.method, str(row.records[0]["recipe"]))


def _seeds_named(record: Record, several: bool) -> str:
    """Return the name of a run within its row; with its ground where there are several."""
    ground = f", shared seed {shared_seed_of(record)}" if several else ""
    return f"seed {record['seed']}{ground}"


def _strength(row: Row) -> float:
    """Return what rows are sorted by: high win-rates first, then rows without one, failed last."""
    mean = row.mean("win_rate")
    return 1.0 if not row.good else 0.5 if math.isnan(mean) else -mean


def _row_names(groups: Mapping[Key, Sequence[Record]]) -> dict[Key, str]:
    """Return the names of rows: the method, with the options in which its rows differ."""
    differing = {method: _differing(groups, method) for method in {key[0] for key in groups}}
    names = {}
    for key, group in groups.items():
        options, set_by_hand = group[0]["options"], group[0].get("asked")
        settings = ", ".join(
            f"{o}={options[o]}"
            for o in options
            if o in differing[key[0]] and (set_by_hand is None or o in set_by_hand)
        )
        if scorer := own_reward(group[0]):
            named = f"reward_model={Path(scorer['name']).name}"
            settings = ", ".join(filter(None, [settings, named]))
        quick = " quick" if group[0].get("quick") else ""
        name = group[0].get("label")  # in a study
        if is_guest(group[0]) and not name:  # it is distinguished by its model
            name = f"{key[0]} {Path(group[0]['guest']['name']).name}"
        names[key] = f"{name or key[0]}{quick}" + (
            f" ({settings})" if settings and not name else ""
        )
    count = Counter(names.values())
    return {
        key: f"{name} [{key[1][:4]}]" if count[name] > 1 else name for key, name in names.items()
    }


def _differing(groups: Mapping[Key, Sequence[Record]], method: str) -> set[str]:
    """Return the options that are not the same in all rows of a method."""
    values: dict[str, set[str]] = {}
    rows = [group[0]["options"] for key, group in groups.items() if key[0] == method]
    for options in rows:
        for name in options:
            values.setdefault(name, set()).add(repr(options[name]))
    return {
        n
        for n, texts in values.items()
        if len(texts) > 1 or sum(n in options for options in rows) < len(rows)
    }
