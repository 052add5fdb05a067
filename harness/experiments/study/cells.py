"""The runs of a study. Each is resolved here; what can be refused before the start is
refused here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from ...api.participants import participants
from ...api.registry import Registry
from ...api.resolve import Request, resolve
from ...core.digests import canonical
from ...core.errors import UsageError, unknown
from ...core.jobs import Resources
from ...core.options import build
from ...core.spec import RunSpec
from .file import SHARED_SEED, Entry, RunOptions, Study, described, text_of

PREFIXES = (
    "suite",
    "stage",
    "labeller",
    "judge",
    "engine",
    "run",
)  # of options that are not the method's
OWN = {
    "method",
    "options",
    "asked",
    "seed",
    "budget",
    "snapshots",
    "save",
    "save_dtype",
    "labeller_options",
    "code",
    "stages",
    "execution",
}


@dataclass(frozen=True)
class Cell:
    """One run of a study: its name, its settings and its command line."""

    label: str  # of its row in a table; seed and suite have columns of their own
    spec: RunSpec
    arguments: tuple[str, ...]  # of `harness`, without --results
    refused: str = ""  # why it cannot run
    trial: bool = False  # of tuning: on the validation split, and in no table
    entry: str = ""  # label of the study's entry that it belongs to
    also: tuple[str, ...] = ()  # other labels of the study for the same run
    resources: Resources = Resources()  # that it requests

    @cached_property
    def fingerprint(self) -> str:
        """Return the fingerprint of the run."""
        return self.spec.fingerprint()

    @property
    def name(self) -> str:
        """Return the display name."""
        ground = f", shared seed {self.spec.shared_seed}" if self.spec.shared_seed else ""
        return f"{self.label} on {self.spec.suite_name}, seed {self.spec.seed}{ground}"


def expand(study: Study, registry: Registry) -> list[Cell]:
    """Return the runs of a study without its trials and chosen settings; refuse unknown names."""
    cells: list[Cell] = []
    for entry in study.entries:
        for values in _points(entry.sweep):
            label = entry.label + described(values)
            for suite in entry.suites:
                cells += cells_of(study, registry, entry, suite, label, values)
    return in_order(distinct(cells))


def cells_of(
    study: Study,
    registry: Registry,
    entry: Entry,
    suite: str,
    label: str,
    values: Mapping[str, Any],
    seeds: Sequence[int] = (),
    trial: bool = False,
) -> list[Cell]:
    """Return one point of a method on a suite: a run for every seed of every ground. Trials are on
    the first ground.
    """
    options = {**entry.options, **values}
    where = f"{study.path}: {label} on {suite}"
    of_grounds = [{SHARED_SEED: ground} for ground in entry.shared_seeds] or [{}]
    return [
        cell
        for ground in (of_grounds[:1] if trial else of_grounds)
        for cell in _on_ground(
            registry, entry, suite, label, {**options, **ground}, where, seeds, trial
        )
    ]


def _on_ground(
    registry: Registry,
    entry: Entry,
    suite: str,
    label: str,
    options: Mapping[str, Any],
    where: str,
    seeds: Sequence[int],
    trial: bool,
) -> list[Cell]:
    """Return the runs on one ground, one for every seed."""
    request = request_of(entry.name, suite, options, where)
    try:
        spec = resolve(request, registry)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    refused = unmet(spec, registry)
    resources = resources_of(entry, spec, where)
    return [
        Cell(
            label,
            replace(spec, seed=seed),
            arguments(request, seed, registry.files),
            refused,
            trial,
            entry.label,
            resources=resources,
        )
        for seed in seeds or entry.seeds
    ]


def resources_of(entry: Entry, spec: RunSpec, where: str) -> Resources:
    """Return the resources that a run requests; a run without a GPU, or on a named one, requests
    none.
    """
    device, resources = spec.execution.device, entry.resources
    if device != "cpu" and not device.startswith("cuda:"):
        return resources
    if resources.gpus:
        raise UsageError(
            f"{where}: resources.gpus = {resources.gpus} and device = {device!r}: the GPUs of a job"
            ' would not be used. Leave device out, or set it to "cuda".'
        )
    return replace(resources, gpus=0)


def request_of(method: str, suite: str, options: Mapping[str, Any], where: str) -> Request:
    """Return the request that the command line would make with these options."""
    kinds: dict[str, dict[str, Any]] = {kind: {} for kind in ("", *PREFIXES)}
    for key, value in options.items():
        head, _, rest = key.partition(".")
        if rest and head not in PREFIXES:
            raise UsageError(f"{where}: {key}: {unknown('sort of option', head, PREFIXES)}")
        kinds[head if rest else ""][rest or key] = value
    run = dataclasses.asdict(build(RunOptions, kinds["run"], where))
    for name in ("model", "reference", "reward_model"):
        if run[name] and Path(run[name]).is_dir():  # the same name from every working directory
            run[name] = str(Path(run[name]).resolve())
    settings = {kind: tuple(f"{k}={text_of(v)}" for k, v in kinds[kind].items()) for kind in kinds}
    budget = run.pop("budget")
    return Request(
        method,
        suite,
        settings[""],
        settings["suite"],
        settings["stage"],
        budget,
        settings["labeller"],
        settings["judge"],
        settings["engine"],
        run,
    )


def arguments(request: Request, seed: int, plugins: Iterable[str]) -> tuple[str, ...]:
    """Return the arguments of `harness` for the same run."""
    words = ["run", "--method", request.method, "--suite", request.suite, "--seed", str(seed)]
    for flag, settings in (
        ("--set", request.settings),
        ("--suite-set", request.suite_settings),
        ("--stage-set", request.stage_settings),
        ("--labeller-set", request.labeller_settings),
        ("--judge-set", request.judge_settings),
        ("--engine-set", request.engine_settings),
        ("--plugin", plugins),
    ):
        for setting in settings:
            words += [flag, setting]
    usual = dataclasses.asdict(RunOptions())
    for name, value in {**request.fixed, "budget": request.budget}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{flag}" if value else f"--no-{flag}"] if value != usual[name] else []
        elif value != usual[name] or name == "threads":  # the command line has another default
            words += [f"--{flag}", str(value)]
    return tuple(words)


def unmet(spec: RunSpec, registry: Registry) -> str:
    """Return why a suite cannot serve a method, or an empty string. It reads no data: whether a
    file holds prompts, demonstrations or pairs shows when the run starts.
    """
    built = participants(spec, registry)
    needs = built.method.required()
    cannot = {"labels": built.learns_from is None}
    cannot |= dict.fromkeys(("pairs", "labelled", "reward"), not built.can_prefer)
    cannot["reward"] &= spec.reward_model is None
    missing = sorted(need for need in needs if cannot.get(need))
    verifier = built.suite.make_verifier() if needs & {"verifier", "steps"} else None
    if "verifier" in needs and verifier is None:
        missing.append("verifier")
    if "steps" in needs and not (verifier is not None and verifier.has_steps):
        missing.append("steps")
    return (
        f"the suite cannot give what the method needs: {' and '.join(missing)}" if missing else ""
    )


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells without duplicates; the first cell of a run keeps the other labels in
    `also`.

    Raises:
        UsageError: Two cells differ only in how a run is computed, so one would be left out.
    """
    by_fingerprint: dict[str, Cell] = {}
    for cell in cells:
        first = by_fingerprint.setdefault(cell.fingerprint, cell)
        _check_alike(first, cell)
        if cell.label not in (first.label, *first.also):
            by_fingerprint[cell.fingerprint] = replace(first, also=(*first.also, cell.label))
    return list(by_fingerprint.values())


def _check_alike(first: Cell, cell: Cell) -> None:
    """Refuse two cells that are one run but are computed or kept in two ways."""
    one, other = ({**asdict(c.spec.execution), "save": c.spec.save} for c in (first, cell))
    unlike = [name for name in one if one[name] != other[name]]
    if unlike:
        values = " and ".join(f"{unlike[0]}={v[unlike[0]]}" for v in (one, other))
        raise UsageError(
            f"{first.label!r} and {cell.label!r} are one run, with {values}: run.{unlike[0]}"
            " changes no result, so a study cannot sweep it. Give it one value, for example as"
            f" `{unlike[0]} = ...` at the top of the study file. To measure what it costs, run"
            " `harness run` once for each value, each with a --results folder of its own."
        )


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells in the order to start them: first one for each set of shared stages. Two runs
    never make the same stage twice, because the second waits; so the first ones should differ.
    """
    first = {ground_of(cell): cell for cell in reversed(cells) if not cell.refused}
    leading = [cell for cell in cells if first.get(ground_of(cell)) is cell]
    return leading + [cell for cell in cells if first.get(ground_of(cell)) is not cell]


def ground_of(cell: Cell) -> str:
    """Return the settings that decide the shared stages of a run, as text."""
    values = {k: v for k, v in dataclasses.asdict(cell.spec).items() if k not in OWN}
    return canonical([values, {k: v for k, v in cell.spec.stages.items() if k != "evaluation"}])


def _points(sweep: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*sweep.values()):
        yield dict(zip(sweep, values, strict=True))
