"""Footnotes of tables: failed runs, budgets, execution settings, tuning, incomparable runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.execution import EVALUATION, TRAINING
from ...core.movement import sentence
from ...core.run_folder import unspent
from ...experiments.study.state import CLASSES, LEFT, TUNING, read_tuning, study_folder
from ..selection.comparable import own_reward, unlike
from ..selection.filters import Record
from ..selection.run_files import spec_of
from ..selection.select import Row, Selection, is_guest

DAGGER = "\u2020"  # marks a figure, not a row


class Footnotes:
    """The footnotes of a selection; equal texts share a mark.

    `more` are further texts of rows, by row index.
    """

    def __init__(
        self, selection: Selection, more: Mapping[int, Sequence[str]] | None = None
    ) -> None:
        self.texts: dict[str, str] = {}  # by mark
        self._marks: dict[int, tuple[str, ...]] = {}
        tuning, usual = tuning_of(selection), usual_settings(selection.good)
        texts = [
            [
                *_failures(row),
                *_elsewhere(row),
                *_rewarded(row),
                *_unmoved(row),
                *_budget(row),
                *_execution(row, usual),
                *tuning.get(row.records[0].get("cell"), []),
                *(more or {}).get(i, []),
            ]
            for i, row in enumerate(selection.rows)
        ]
        marks: dict[str, str] = {}
        for i, row_texts in enumerate(texts):
            for text in row_texts:
                marks.setdefault(text, _letter(len(marks)))
            self._marks[i] = tuple(marks[text] for text in row_texts)
        self.texts = {mark: text for text, mark in marks.items()}
        odd = {} if selection.of_bundles else unlike(selection.good)  # only with --mixed
        for name, values in odd.items():
            differences = "; ".join(
                f"{value}: {', '.join(sorted(set(names)))}" for value, names in values.items()
            )
            mark = _letter(len(self.texts))
            self.texts[mark] = f"NOT COMPARABLE (--mixed): runs differ in {name} ({differences})."
            self._marks |= {
                i: (*self._marks[i], mark) for i, row in enumerate(selection.rows) if row.good
            }

    def of(self, row: int) -> tuple[str, ...]:
        """Return the marks of a row."""
        return self._marks[row]


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else f"{_letter(i // 26 - 1)}{_letter(i % 26)}"


def _failures(row: Row) -> Iterator[str]:
    kinds = Counter(CLASSES.get(str(r.get("status")), str(r.get("status"))) for r in row.failed)
    if kinds and row.good:
        classes = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        yield (
            f"{len(row.failed)} of {len(row.records)} runs failed ({classes}). The figures are of"
            " the other runs only, which favours a method that fails."
        )


def _elsewhere(row: Row) -> Iterator[str]:
    """Yield the footnotes on a model that was trained elsewhere."""
    if not row.good or not is_guest(row.good[0]):
        return
    yield ("Trained elsewhere: its training cost is unknown. Seeds change its answers only.")
    if reason := row.good[0]["evaluation"].get("kl_missing"):
        yield f"KL cannot be measured: {reason}."


def _rewarded(row: Row) -> Iterator[str]:
    """Yield the footnote on a reward model that was not trained here."""
    if scorer := own_reward(row.good[0]) if row.good else None:
        yield (
            f"Its reward, and its proxy score, is that of the model {Path(scorer['name']).name}"
            f" ({scorer['weights'][:12]}), with mean 0 and standard deviation 1 over the start"
            " checkpoint's answers."
        )


def _unmoved(row: Row) -> Iterator[str]:
    """Yield a footnote for each sign that the training of a row's runs changed nothing."""
    yield from dict.fromkeys(filter(None, map(sentence, row.good)))


def _budget(row: Row) -> Iterator[str]:
    if not row.good:
        return
    budget = {
        name: limit
        for name, limit in (spec_of(row.good[0]).get("budget") or {}).items()
        if limit is not None
    }
    if budget:
        limits = ", ".join(f"{name} {limit:.6g}" for name, limit in budget.items())
        completions = (
            spec_of(row.good[0]).get("stages", {}).get("preferences", {}).get("completions", 2)
        )
        early = any(unspent(record, completions) for record in row.good)
        yield f"Budget: {limits}." + (" Training ended before the limit." if early else "")


def settings_of(record: Record) -> dict[str, tuple[Any, ...]]:
    """Return {execution setting: values} of a run; several if it was resumed with another."""
    recorded = record.get("execution")
    if not recorded:  # an old record
        return {}
    used = [*recorded[TRAINING], recorded[EVALUATION]]
    return {name: tuple(dict.fromkeys(s.get(name) for s in used)) for name in used[-1]}


def usual_settings(records: Sequence[Record]) -> dict[str, tuple[Any, ...]]:
    """Return the most frequent value of each execution setting over runs."""
    counts: dict[str, Counter[tuple[Any, ...]]] = {}
    for record in records:
        for name, values in settings_of(record).items():
            counts.setdefault(name, Counter())[values] += 1
    return {name: count.most_common(1)[0][0] for name, count in counts.items()}


def _execution(row: Row, usual: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """Yield a footnote if a run of the row was computed with other settings than most runs."""
    other: dict[str, list[str]] = {}
    for record in row.good:
        for name, values in settings_of(record).items():
            text = " then ".join(str(value) for value in values)
            if values != usual[name] and text not in other.setdefault(name, []):
                other[name].append(text)
    if other:
        differences = "; ".join(
            f"{name} {' and '.join(values)}, most runs {' then '.join(map(str, usual[name]))}"
            for name, values in other.items()
        )
        yield (
            f"Computed with different execution settings ({differences}). They change time, memory"
            " and rounding. Sampling can enlarge a difference in rounding."
        )


def _search(search: Mapping[str, Any], how: str) -> Iterator[str]:
    trials, chosen = search["trials"], search["chosen"]
    if chosen is not None:
        other = search.get("label", search["row"])  # the label of another entry with the same run
        outcome = (
            f", as {other}" if other != search["row"] else "" if chosen else ", settings unchanged"
        )
        yield f"Tuned{outcome}: the best of {len(trials)} trials ({how})."
    elif not any(trial["status"] == LEFT for trial in trials):
        yield f"Tuned, settings unchanged: all {len(trials)} trials failed ({how})."


def tuning_of(selection: Selection) -> dict[str | None, list[str]]:
    """Return {label: footnotes on tuning}; empty if the study does not tune."""
    if selection.study is None:
        return {}
    tune = read_tuning(study_folder(selection.results, selection.study) / TUNING)
    notes: dict[str | None, list[str]] = {}
    for s in tune.get("searches", ()):  # several entries may have chosen the same settings
        own = "the method's own space, " if s.get("shipped") else ""
        if s["suite"] == selection.suite:
            notes.setdefault(s["row"], []).extend(
                _search(s, f"random search, {own}seed {tune['seed']}; {tune['rule']}")
            )
    return notes


# -- of figures -----------------------------------------------------------------------------------


def open_footnote(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, str]:
    """Return the footnote, by its mark, on rows that could not be excluded because their own seeds
    vary.
    """
    judged = [key for key in keys if key.startswith("win_rate.")]  # by further judges
    titles = {key: f"win-rate by {key.partition('.')[2]}" for key in judged}
    ranges = [
        f"{row['method']} from {row[f'{name}_open']} ({title})"
        for name, title in {"win_rate": "win-rate", "gold": "gold", **titles}.items()
        for row in rows
        if f"{name}_open" in row and name in keys
    ]
    if not ranges:
        return {}
    return {
        DAGGER: "Not bold, and not significantly worse than the best: the seeds of the row itself"
        f" differ too much. Means of its seeds: {'; '.join(ranges)}."
    }


def collapses(figures: Mapping[str, Any]) -> list[str]:
    """Return the footnote on seeds that collapsed; empty where none did."""
    if not figures.get("collapsed") or figures["seeds"] < 2:
        return []
    return [
        f"{figures['collapsed']} of {figures['seeds']} seeds collapsed: their win-rates are below a"
        " quarter, beyond their intervals. With collapsed seeds, intervals over seeds cover less"
        " than 95 %."
    ]


def of_grounds(figures: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the footnote on a row without a finished run on some ground of the table."""
    most = max((f.get("grounds", 1) for f in rows if "failure" not in f), default=1)
    own = figures.get("grounds", 1)
    if own == most or "failure" in figures:
        return []
    return [
        f"No finished run on {most - own} of {most} grounds. Tests compare the row with others on"
        " the grounds that both have."
    ]


def held_out_text(held_out: Mapping[str, Any]) -> str:
    """Return a judge's agreement with held-out preferences, with a warning if it is near chance."""
    interval = f" [{held_out['low']:.3f}, {held_out['high']:.3f}]" if "low" in held_out else ""
    doubt = f", and is {held_out['doubt']}" if "doubt" in held_out else ""
    share = f"{held_out['accuracy']:.3f}{interval}"
    return f"agrees with {share} of {held_out['pairs']:.0f} held-out pairs{doubt}"
