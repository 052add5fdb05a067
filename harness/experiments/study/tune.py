"""Tuning: the same number of trials for every method, on the validation split; what is chosen, and
by what rule.

The rule: of a method's trials on a suite, the settings with the highest mean of `select` on the
validation split, the earlier trial where two are equal. A trial that failed counts as a trial and
is never chosen. The first trial is the settings as they are, so tuning cannot lose on that split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from ...api.registry import Registry
from ...core import run_folder
from ...core.digests import canonical
from ...core.errors import UsageError
from ...core.seeds import derive
from .cells import Cell, cells_of
from .file import Entry, Study, Tune, described
from .spaces import Space, check_times, draw, read_space
from .state import DONE, LEFT, State, state_of

# the seed of trials, or the next one that is not reported: no lucky trial is a reported run
TRIAL_SEED = 10_000
ATTEMPTS = 100  # attempts at a new point before a space counts as exhausted


@dataclass(frozen=True)
class Search:
    """The trials of one method on one suite."""

    entry: Entry
    suite: str
    points: tuple[Mapping[str, Any], ...]  # of the space; the first is empty
    cells: tuple[Cell, ...]
    space: Space
    shipped: bool  # whether the space is the method's own; else the study names it

    @property
    def suite_name(self) -> str:
        """Return what the suite is called in records."""
        return self.cells[0].spec.suite_name


@dataclass(frozen=True)
class Choice:
    """The result of a search: the index of the chosen trial, or None, and every trial's state and
    figure.
    """

    search: Search
    chosen: int | None
    states: tuple[State, ...]
    figures: tuple[float | None, ...]

    @property
    def label(self) -> str:
        """Return the label of the runs with the chosen settings; without others, of the untuned
        ones.
        """
        suffix = {None: "", 0: " (default, tuned)"}.get(self.chosen, " (tuned)")
        return f"{self.search.entry.label}{suffix}"

    @property
    def open(self) -> bool:
        """Whether some trials have not ended; then nothing is chosen yet."""
        return any(state.status == LEFT for state in self.states)


def searches(study: Study, tune: Tune, registry: Registry) -> list[Search]:
    """Return the trials of every tuned method on every suite."""
    tuned_entries = [e for e in study.entries if e.label not in tune.leave]
    pairs = [(e, suite) for e in tuned_entries for suite in e.suites]
    all_searches = [_search(study, tune, registry, entry, suite) for entry, suite in pairs]
    return [
        search for search in all_searches if not search.cells[0].refused
    ]  # the runs with untuned settings state the reason


def choose(search: Search, tune: Tune, results: Path) -> Choice:
    """Return the choices that the trials allow so far."""
    states = tuple(state_of(cell, results) for cell in search.cells)
    figures = tuple(
        _figure(cell, tune.select, results) if state.status == DONE else None
        for cell, state in zip(search.cells, states, strict=True)
    )
    finished = [(-figure, place) for place, figure in enumerate(figures) if figure is not None]
    still = any(state.status == LEFT for state in states)
    return Choice(search, None if still or not finished else min(finished)[1], states, figures)


def tuned(study: Study, registry: Registry, choice: Choice) -> list[Cell]:
    """Return the runs of the chosen settings on the test split, one for every seed."""
    if choice.chosen is None:
        return []
    search = choice.search
    return cells_of(
        study, registry, search.entry, search.suite, choice.label, search.points[choice.chosen]
    )


def tune_json(tune: Tune, choices: Sequence[Choice], cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the stored form of tuning; `cells` are the plan's, whose rows may have another entry's
    name.
    """
    rows = {
        (c.spec.suite_name, name): c.label
        for c in cells
        if not c.trial
        for name in (c.label, *c.also)
    }
    entries = [
        {
            "method": c.search.entry.label,
            "suite": c.search.suite_name,
            "chosen": c.chosen,
            "space": {key: str(axis) for key, axis in c.search.space.items()},
            "shipped": c.search.shipped,
            "label": c.label,
            "row": rows.get(
                (c.search.suite_name, c.label), c.label
            ),  # the index of the chosen settings
            "trials": [
                {
                    "options": dict(point),
                    "fingerprint": cell.fingerprint,
                    "folder": str(cell.spec.folder),
                    "status": state.kind or state.status,
                    tune.select: figure,
                }
                for point, cell, state, figure in zip(
                    c.search.points, c.search.cells, c.states, c.figures, strict=True
                )
            ],
        }
        for c in choices
    ]
    rule = (
        f"highest mean {tune.select} on the validation split, the earlier trial where two are equal"
    )
    return {"trials": tune.trials, "seed": tune.seed, "rule": rule, "searches": entries}


def space_of(study: Study, tune: Tune, registry: Registry, entry: Entry) -> Space:
    """Return the space of an entry: the study's, or that of its method.

    Raises:
        UsageError: Neither names one.
    """
    if entry.label in tune.spaces:
        return tune.spaces[entry.label]
    own = registry.get("methods", entry.name).tuning_space
    if not own:
        raise UsageError(
            f"{study.path}: [tune]: the method {entry.name} declares no search space. Name one,"
            f" [tune.space.{entry.label}], or put {entry.label!r} into `leave`: which methods get"
            " no trials is named."
        )
    return read_space(own, f"The tuning_space of the method {entry.name}")


def trial_seeds(entry: Entry) -> tuple[int]:
    """Return the seed of an entry's trials: none of those that are reported."""
    return (next(s for s in count(TRIAL_SEED) if s not in entry.seeds),)


def _search(study: Study, tune: Tune, registry: Registry, entry: Entry, suite: str) -> Search:
    """Draw points until there are enough different runs. Each point depends only on earlier ones,
    so trials can be added.
    """
    space, where = space_of(study, tune, registry, entry), f"{study.path}: {entry.label}"
    (usual, *_) = cells_of(study, registry, entry, suite, entry.label, {})
    check_times(space, usual.spec.options, where)
    rng = Random(derive("tune", tune.seed, entry.label, suite.rpartition("/")[2]))
    trials: dict[str, tuple[Mapping[str, Any], Cell]] = {}
    points: dict[str, Mapping[str, Any]] = {canonical({}): {}}
    for _ in range(ATTEMPTS * tune.trials):
        drawn = draw(space, rng, usual.spec.options)
        points.setdefault(canonical(drawn), drawn)
    for point in points.values():
        label = f"{entry.label}, trial {len(trials) + 1}{described(point)}"
        values = {**point, "stage.evaluation.split": "validation"}
        (cell,) = cells_of(
            study, registry, entry, suite, label, values, trial_seeds(entry), trial=True
        )
        assert cell.spec.stages["evaluation"]["split"] == "validation", (
            "a trial may not see the test split"
        )
        trials.setdefault(cell.fingerprint, (point, cell))
        if len(trials) == tune.trials or cell.refused:
            return Search(
                entry,
                suite,
                tuple(p for p, _ in trials.values()),
                tuple(c for _, c in trials.values()),
                space,
                entry.label not in tune.spaces,
            )
    raise UsageError(
        f"{where}: its search space has {len(trials)} different settings, the"
        f" untuned ones included, but every method needs {tune.trials} trials. Widen the space, or"
        " lower trials."
    )


def _figure(cell: Cell, select: str, results: Path) -> float:
    result = run_folder.read_result(results / cell.spec.folder)
    assert result is not None
    if select not in result["evaluation"]:
        why = result["evaluation"]["judge"].get("no_win_rate", "")
        raise UsageError(
            f"select = {select}: {cell.spec.suite_name} does not measure it. "
            + (f"There is {why}." if why else "Choose by win_rate or gold.")
        )
    return float(result["evaluation"][select]["mean"])
