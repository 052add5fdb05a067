"""Which runs stand side by side: chosen from a results folder, grouped into rows, unlike ground
refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.errors import HarnessError, UsageError, unknown
from ...core.run_folder import FAILURE, RESULT, SAMPLES, flatten, rows_behind, runs
from ...core.spec import FORMER_METHODS, START
from ...experiments.study.state import Place, places_of, refused_of

Record = Mapping[str, Any]
Key = tuple[str, str, str | None]  # of a row: method, recipe, label where it is a study's
OWN_CODE = "the code of it"  # of a row's runs, not of all
CODE = {"the harness's code": "harness", OWN_CODE: "method"}  # digests in a run's provenance


def counted(good: int, failed: int) -> str:
    """Return how many runs finished, of how many where some failed."""
    return f"{good}/{good + failed}" if failed else str(good)


@dataclass(frozen=True)
class Row:
    """One row of a table: the runs, a seed each, of one method with the same settings."""

    name: str
    method: str
    records: Sequence[Record]
    entry: str  # whose setting it is, where a study sweeps: rows of one entry lie on one curve

    @property
    def good(self) -> list[Record]:
        """The finished runs, by seed."""
        return sorted((r for r in self.records if "failure" not in r), key=lambda r: int(r["seed"]))

    @property
    def failed(self) -> list[Record]:
        """The runs that came to nothing."""
        return [r for r in self.records if "failure" in r]

    @property
    def seeds(self) -> str:
        """How many runs finished, `4/5` where some failed."""
        return counted(len(self.good), len(self.failed))

    def is_called(self, name: str) -> bool:
        """Return whether a name is that of the method, now or formerly, or of the study's entry."""
        return name in (self.method, self.entry) or FORMER_METHODS.get(name) == self.method

    def mean(self, figure: str) -> float:
        """Return the mean over seeds of a figure of the evaluation; nan where a run has none."""
        found = [r["evaluation"].get(figure, {}).get("mean", float("nan")) for r in self.good]
        return fmean(found) if found else float("nan")


@dataclass(frozen=True)
class Filter:
    """What to choose: a suite (or the only one), a study, methods by name or label, options by
    value.
    """

    suite: str | None = None
    study: str | None = None
    methods: Sequence[str] = ()
    where: Mapping[str, str] = field(default_factory=dict)  # {option: value}, as in a study file
    each: bool = False  # a row per run
    mixed: bool = False  # whether unlike ground is allowed

    @property
    def told(self) -> str:
        """What it leaves of a suite or study, `beta=0.1; only ppo, dpo`; empty where that is
        everything.
        """
        options = ", ".join(f"{name}={value}" for name, value in self.where.items())
        return "; ".join(
            filter(None, [options, f"only {', '.join(self.methods)}" if self.methods else ""])
        )


@dataclass(frozen=True)
class Selection:
    """Runs of one suite on identical ground, in rows: the row `start` first, then by win-rate."""

    suite: str
    rows: Sequence[Row]
    results: Path
    study: str | None = None
    unfinished: Sequence[str] = ()  # runs that would belong here and have not ended
    # {label in the study: why the suite cannot serve it}
    refused: Mapping[str, str] = field(default_factory=dict)
    asked: Filter = field(default_factory=Filter)  # what they were chosen by

    @property
    def told(self) -> str:
        """The suite, with what its runs were chosen by: two tables of one suite are told apart by
        it.
        """
        return f"{self.suite} ({self.asked.told})" if self.asked.told else self.suite

    @property
    def records(self) -> list[Record]:
        """The records of all rows."""
        return [r for row in self.rows for r in row.records]

    @property
    def good(self) -> list[Record]:
        """The finished runs of all rows."""
        return [r for row in self.rows for r in row.good]


def select(results: Path, asked: Filter) -> Selection:
    """Return the runs asked for, one per recipe and seed; raise UsageError where they cannot stand
    side by side.
    """
    suite, records = chosen(results, asked)
    if not asked.mixed:
        check_ground([r for r in records if "failure" not in r])
    left = unfinished(results, suite, asked.study)
    refused = refused_of(results, asked.study, suite) if asked.study is not None else {}
    return Selection(
        suite, rows_of(records, asked.each), results, asked.study, left, refused, asked
    )


def unfinished(results: Path, suite: str, study: str | None) -> list[str]:
    """Return the names of a suite's runs, or a study's, that have neither a result nor the record
    of a failure.
    """
    there = results / "runs" / suite
    if study is None:
        named = {
            folder: f"{folder.parent.name} {folder.name}"
            for folder in there.glob("*/*")
            if _begun(folder)
        }
    else:
        places = {Path(folder): place.label for folder, place in places_of(results, study).items()}
        named = {f: f"{label} {f.name}" for f, label in places.items() if f.parent.parent == there}
    return sorted(
        name
        for f, name in named.items()
        if not any((f / end).exists() for end in (RESULT, FAILURE))
    )


def _begun(folder: Path) -> bool:
    return (folder / "spec.json").exists()


def chosen(results: Path, asked: Filter) -> tuple[str, list[dict[str, Any]]]:
    """Return the suite and its records, without a check of their ground."""
    records = _matching(results, asked)
    suites = sorted({r["suite"] for r in records})
    if asked.suite is None and len(suites) > 1:
        raise UsageError(f"Name one suite with --suite: there are runs of {', '.join(suites)}.")
    suite = asked.suite or suites[0]
    if suite not in suites:
        raise unknown("suite with runs", suite, suites)
    found = [r for r in records if r["suite"] == suite]
    return suite, _named_by_entry(found) if asked.where else found


def suites_of(results: Path, asked: Filter) -> list[str]:
    """Return the suites of the matching runs, sorted: one where the filter names it."""
    if asked.suite is not None:
        return [asked.suite]
    return sorted({r["suite"] for r in _matching(results, asked)})


def _matching(results: Path, asked: Filter) -> list[dict[str, Any]]:
    """Return the records of all suites that match methods and options; raise UsageError if none."""
    there = suite_records(results, asked.study)
    known = _names(there)
    names = _whole(asked.methods, known)
    asked = replace(asked, methods=[n if n in known else FORMER_METHODS.get(n, n) for n in names])
    _check_names(there, asked)
    records = [r for r in there if _wanted(r, asked)]
    if not records:
        what = " and ".join([*asked.methods, *(f"{k}={v}" for k, v in asked.where.items())])
        raise UsageError(f"No run in {results} matches all of: {what}.")
    return records


def _named_by_entry(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records named without the setting that --where chose: by the entry, if one row of it
    is left.
    """
    rows: dict[Any, set[Any]] = {}
    for r in records:
        rows.setdefault(r.get("entry"), set()).add(r.get("label"))
    return [
        r | {"label": r["entry"]} if "entry" in r and len(rows[r["entry"]]) == 1 else r
        for r in records
    ]


def suite_records(results: Path, study: str | None = None) -> list[dict[str, Any]]:
    """Return all records below a results folder, or a study's, each with its `folder`, and `label`
    and `entry`.
    """
    found = runs(results)
    if study is not None:
        places = places_of(results, study)
        found = ((f, {**r, **_named(places[str(f)])}) for f, r in found if str(f) in places)
    records = _newest(found)
    if not records:
        raise UsageError(
            f"There is no run below {results}. Make one: harness run --method ppo --suite"
            " summarization"
        )
    return records


def _names(records: Sequence[Record]) -> set[str]:
    """Return what runs can be chosen by: methods, and a study's labels."""
    return {r["method"] for r in records} | {r["label"] for r in records if "label" in r}


def _whole(parts: Sequence[str], known: set[str]) -> list[str]:
    """Return names that were separated at commas, those put together again that have commas in
    them.
    """
    names: list[str] = []
    rest = list(parts)
    while rest:
        n = next((n for n in range(len(rest), 1, -1) if ", ".join(rest[:n]) in known), 1)
        names.append(", ".join(rest[:n]))
        rest = rest[n:]
    return names


def _check_names(records: Sequence[Record], asked: Filter) -> None:
    """Refuse a method that no run is of, and an option or value that no run has, with what there
    is.
    """
    methods = _names(records)
    for method in asked.methods:
        if method not in methods:
            raise unknown("method with runs", method, methods)
    for name, value in asked.where.items():
        values = [v for v in (_option(r, name) for r in records) if v is not None]
        if not values:
            raise unknown(
                "option of these runs", name, {o for r in records for o in _option_names(r)}
            )
        if not any(_written_as(v, value) for v in values):
            told = ", ".join(sorted({json.dumps(v).strip('"') for v in values}))
            raise UsageError(f"No run has {name}={value}. There are: {told}.")


def _option_names(record: Record) -> list[str]:
    spec = spec_of(record) if "failure" not in record else {}
    rest = {"stage": flatten(spec.get("stages", {})), "labeller": spec.get("labeller_options", {})}
    rest |= {"suite": record.get("suite_options", {})}
    return [
        *record["options"],
        *(f"{head}.{name}" for head, options in rest.items() for name in options),
    ]


def _named(place: Place) -> dict[str, str]:
    return {
        "label": place.label,
        "entry": place.entry,
        "cell": place.label,
    }  # the label may yet give way to the entry


def _wanted(record: Record, asked: Filter) -> bool:
    if (
        asked.methods
        and record["method"] not in asked.methods
        and record.get("label") not in asked.methods
    ):
        return False
    return all(_written_as(_option(record, name), value) for name, value in asked.where.items())


def _option(record: Record, name: str) -> Any:
    """Return the value of an option: a method's, `suite.`, `labeller.`, `stage.STAGE.` or
    `run.NAME`; or None.
    """
    head, _, rest = name.partition(".")
    if head == "suite":
        return record["suite_options"].get(rest)
    if head == "stage":
        return flatten(spec_of(record)["stages"]).get(rest)
    if head == "labeller":
        return spec_of(record).get("labeller_options", {}).get(rest)
    if head == "run":
        spec = spec_of(record)
        return {**spec, **spec.get("execution", {})}.get(rest)
    return record["options"].get(name)


def _written_as(value: Any, text: str) -> bool:
    """Return whether a value is what a text on the command line stands for."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value).strip('"') == text
    try:
        return float(text) == value
    except ValueError:
        return False


def spec_of(record: Record) -> dict[str, Any]:
    """Return the resolved spec beside a record."""
    found: dict[str, Any] = json.loads(
        (Path(record["folder"]) / "spec.json").read_text(encoding="utf-8")
    )
    return found


def provenance_of(record: Record) -> dict[str, Any]:
    """Return where a run was made; nothing where it does not say."""
    file = Path(record["folder"]) / "provenance.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def samples_of(record: Record) -> list[dict[str, Any]]:
    """Return what a run answered, a dict per evaluated prompt."""
    file = Path(record["folder"]) / SAMPLES
    if not file.is_file():
        raise HarnessError(
            f"{file} is missing: error bars and comparisons need the answers behind a run's"
            f" figures. Delete the folder {file.parent} and run again."
        )
    rows = rows_behind(record, SAMPLES)
    if not rows or not all(isinstance(row, dict) and "prompt_id" in row for row in rows):
        why = "no answers in it" if not rows else "a line is no answer to a prompt"
        raise HarnessError(
            f"{file} is damaged ({why}). Delete the folder {file.parent} and run again."
        )
    return rows


def check_ground(records: Sequence[Record]) -> None:
    """Raise UsageError when runs were not made on identical ground, or by unlike code, naming what
    differs.
    """
    for name, values in unlike(records).items():
        told = "; ".join(f"{value}: {', '.join(sorted(set(who)))}" for value, who in values.items())
        raise UsageError(
            f"These runs differ in {name} and cannot stand in one table ({told}). Choose with"
            " --methods, --where or --study, run the old ones again, or keep runs of unlike ground"
            " under different --results folders; --mixed puts them side by side with a footnote."
        )


def unlike(records: Sequence[Record]) -> dict[str, dict[str, list[str]]]:
    """Return what runs differ in though they should not: {name: {value: who}}."""
    grounds = [ground_of(r) for r in records]
    names = dict.fromkeys(name for ground in grounds for name in ground if name != OWN_CODE)
    found = {name: _by_value(records, [g.get(name) for g in grounds]) for name in names}
    rows: dict[str, list[int]] = {}
    for i, r in enumerate(records):
        rows.setdefault(r["recipe"], []).append(i)
    for recipe, mine in rows.items():  # seeds of a row are of one code
        codes = [grounds[i].get(OWN_CODE) for i in mine]
        found[f"the code of {records[mine[0]]['method']} ({recipe})"] = _by_value(
            [records[i] for i in mine], codes
        )
    return {name: values for name, values in found.items() if len(values) > 1}


def ground_of(record: Record) -> dict[str, str]:
    """Return what runs that stand side by side share; OWN_CODE is of a row only."""
    return {**record["ground"], **_made_with(record)}


def _by_value(records: Sequence[Record], values: Sequence[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for r, value in zip(records, values, strict=True):
        found.setdefault(str(value), []).append(f"{r.get('label', r['method'])} seed {r['seed']}")
    return found


def _made_with(record: Record) -> dict[str, str]:
    """Return the versions that can change a run's figures: of the harness's code, its method's, and
    two libraries'.
    """
    made = provenance_of(record)
    if not made:
        return {"provenance": "none"}
    versions = {name: str(made["versions"].get(name)) for name in ("torch", "transformers")}
    code = {name: str(made["code"].get(key))[:12] for name, key in CODE.items()}
    return versions | code


def _newest(found: Iterable[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one record per recipe and seed: the newest, where code has changed between runs of the
    same spec.

    Labels of a study stay apart: it may ask for a recipe twice, with and without snapshots say.
    """
    best: dict[tuple[str, int, str | None], dict[str, Any]] = {}
    for folder, record in found:
        key = (record["recipe"], record["seed"], record.get("label"))
        record = {**record, "folder": str(folder)}
        if key not in best or record.get("finished_at", "") > best[key].get("finished_at", ""):
            best[key] = record
    return list(best.values())


# -- rows ------------------------------------------------------------------------------------------


def rows_of(records: Iterable[Record], each: bool = False) -> list[Row]:
    """Return records as named rows: one per method, recipe and label, or one per run."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault((record["method"], record["recipe"], record.get("label")), []).append(
            record
        )
    names = _row_names(groups)
    rows = [
        Row(names[key], key[0], group, group[0].get("entry", key[0]))
        for key, group in groups.items()
    ]
    if each:
        rows = [
            replace(row, name=f"{row.name}, seed {r['seed']}", records=[r])
            for row in rows
            for r in row.records
        ]
    return sorted(
        rows,
        key=lambda row: (row.method != START, _strength(row), row.method, row.records[0]["recipe"]),
    )


def _strength(row: Row) -> float:
    return -row.mean("win_rate") if row.good else 1.0


def _row_names(groups: Mapping[Key, Sequence[Record]]) -> dict[Key, str]:
    """Return row labels: the method, and where it stands several times, the options asked for in
    which rows differ.
    """
    differing = {method: _differing(groups, method) for method in {key[0] for key in groups}}
    names = {}
    for key, group in groups.items():
        mine, asked = group[0]["options"], group[0].get("asked")  # the rest followed from these
        told = ", ".join(
            f"{o}={mine[o]}"
            for o in mine
            if o in differing[key[0]] and (asked is None or o in asked)
        )
        quick = " quick" if group[0].get("quick") else ""
        name = group[0].get("label")  # a study's own word
        names[key] = f"{name or key[0]}{quick}" + (f" ({told})" if told and not name else "")
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
        for n, found in values.items()
        if len(found) > 1 or sum(n in options for options in rows) < len(rows)
    }
