"""RunSpec: everything that decides a run, resolved and validated before anything starts, and its
fingerprint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.data import Budget
from ..core.digests import (
    code_digest,
    combined_digest,
    digest_of,
    package_digest,
    source_digest,
)
from ..core.distributed import process_count
from ..core.errors import UsageError, unknown
from ..core.execution import SETTINGS, Execution
from ..core.fixed_answers import answer_files
from ..core.global_state import put_back
from ..core.model_folder import model_digest
from ..core.options import build, options_of, parse_settings
from ..core.settings import STAGES, PreferenceOptions
from ..core.spec import (
    START_MODEL,
    WEIGHTS,
    RunSpec,
    check_save,
    compute_dtype,
    parse_budget,
)
from ..core.suite_file import SuiteFile, is_suite_file, read_suite_file
from ..core.task_files import check_tasks, tasks_digest
from .adapters import class_of, options_of_class, written_as
from .contracts import Labeller, Method, Suite
from .hub_reward import check_reward_model
from .participants import Participants, participants
from .quantised import check_adapters
from .quick import lowered
from .registry import Registry
from .settings_sources import Sources, values_of
from .start import start_of
from .verifiers import verifier_digest


@dataclass(frozen=True)
class Request:
    """What the command line asks for, before names and values are resolved."""

    method: str
    suite: str
    settings: tuple[str, ...] = ()
    suite_settings: tuple[str, ...] = ()
    stage_settings: tuple[str, ...] = ()
    budget: str = ""
    labeller_settings: tuple[str, ...] = ()
    judge_settings: tuple[str, ...] = ()
    engine_settings: tuple[str, ...] = ()
    # the other fields of RunSpec, and those of Execution
    fixed: Mapping[str, Any] = field(default_factory=dict)


def resolve(request: Request, registry: Registry) -> RunSpec:
    """Return the validated RunSpec; settings_sources.py says where its settings come from.

    A run in which `--quick` lowers nothing is not quick.
    """
    spec = _resolved(request, registry)
    if spec.quick:
        fixed = {**request.fixed, "quick": False}
        full = _resolved(dataclasses.replace(request, fixed=fixed), registry)
        spec = full if full == dataclasses.replace(spec, quick=False) else spec
    check_save(spec)
    built = participants(spec, registry)
    check_adapters(spec, built)
    check_reward_model(spec, built)
    return dataclasses.replace(spec, code=code_of(spec, built, registry))


def _resolved(request: Request, registry: Registry) -> RunSpec:
    """Return the RunSpec without the digests of code and data."""
    name = registry.name_of("methods", request.method)
    method_cls: type[Method] = registry.get("methods", name)
    file = read_suite_file(request.suite) if is_suite_file(request.suite) else SuiteFile()
    _check_settings(file, request.suite, registry)
    kind = file.suite if is_suite_file(request.suite) else ""
    suite_cls: type[Suite] = registry.get("suites", kind or request.suite)
    sources = sources_of(suite_cls, file, request.fixed)
    suite_options = {
        **file.options,
        **lowered(file.options, sources.quick.get("suite", {}), suite_cls),
        **parse_settings(request.suite_settings, "--suite-set"),
    }
    with put_back(f"The suite {suite_cls.name}"):
        suite = build(suite_cls, suite_options, f"suite {request.suite}")
    given = parse_settings(request.settings, "--set")
    chosen = values_of(sources.of_method(method_cls, name, given))
    with put_back(f"The method {name}"):
        method = build(method_cls, chosen, f"method {name}")
    budget = parse_budget(request.budget)
    fixed = {"processes": process_count(), **request.fixed}
    start = start_of(fixed.pop("start", None), fixed.get("model"))
    fixed["dtype"] = compute_dtype(fixed.get("dtype"), fixed.get("weights", WEIGHTS[0]))
    stage_settings = parse_settings(request.stage_settings, "--stage-set")
    labeller = method.labeller() or fixed.get("labeller") or suite.labeller_name
    return RunSpec(
        method=name,
        suite=request.suite,
        suite_name=getattr(suite, "title", None) or suite.name,
        suite_kind=kind,
        options=_values(method),
        suite_options=_values(suite),
        labeller_options=_labeller_options(labeller, request.labeller_settings, registry),
        judge_options=_judge_options(
            fixed.get("judge") or suite.judge_name, request.judge_settings, registry
        ),
        engine_options=_engine_options(
            fixed.get("engine", RunSpec.engine), request.engine_settings, registry
        ),
        stages=_resolve_stages(sources, stage_settings, budget, start),
        budget=budget,
        asked=tuple(sorted(given)),
        start=start,
        execution=Execution(**{k: v for k, v in fixed.items() if k in SETTINGS}),
        **{k: v for k, v in fixed.items() if k not in SETTINGS},
    )


def evaluated_anew(
    spec: RunSpec,
    judge: str | None,
    stage_settings: tuple[str, ...],
    registry: Registry,
    judge_settings: tuple[str, ...] = (),
) -> RunSpec:
    """Return the spec of a run with the same training and another evaluation.

    The options of the judge are kept where neither the judge nor an option of it is named.

    Raises:
        UsageError: A setting is not of the stage `evaluation`, or changes nothing.
    """
    options = dict(spec.stages["evaluation"])
    for name, value in parse_settings(stage_settings, "--stage-set").items():
        stage, _, option = name.partition(".")
        if stage != "evaluation":
            raise UsageError(
                f"--stage-set {name}: evaluate trains nothing, so only evaluation.NAME=VALUE can be"
                " set here. Use: harness run."
            )
        options[option] = value
    evaluation = _values(build(STAGES["evaluation"], options, "--stage-set evaluation"))
    changed = dataclasses.replace(
        spec, judge=judge or spec.judge, stages={**spec.stages, "evaluation": evaluation}
    )
    if judge or judge_settings:
        suite: type[Suite] = registry.get("suites", spec.suite_kind or spec.suite)
        options = _judge_options(changed.judge or suite.judge_name, judge_settings, registry)
        changed = dataclasses.replace(changed, judge_options=options)
    built = participants(changed, registry)
    return dataclasses.replace(changed, code=code_of(changed, built, registry))


def _labeller_options(
    name: str | None, settings: tuple[str, ...], registry: Registry
) -> dict[str, Any]:
    """Return every option of the labeller that the method learns from."""
    given = parse_settings(settings, "--labeller-set")
    if name is None:
        if given:
            raise UsageError(f"--labeller-set {next(iter(given))}: there is no labeller.")
        return {}
    cls = class_of("labellers", name, registry)
    return options_of_class(cls, given, f"labeller {name}", "--labeller-set")


def _judge_options(name: str, settings: tuple[str, ...], registry: Registry) -> dict[str, Any]:
    """Return every option of the judge."""
    given = parse_settings(settings, "--judge-set")
    cls = class_of("judges", name, registry)
    return options_of_class(cls, given, f"judge {name}", "--judge-set")


def _engine_options(name: str, settings: tuple[str, ...], registry: Registry) -> dict[str, Any]:
    """Return every option of the engine."""
    given = parse_settings(settings, "--engine-set")
    cls = getattr(registry.get("engines", name), "options_class", None) or object
    return options_of_class(cls, given, f"engine {name}", "--engine-set")


def code_of(spec: RunSpec, built: Participants, registry: Registry) -> dict[str, str]:
    """Return digests of all code and files that decide a run, whose participants were built."""
    suite, labeller = built.suite, built.learns_from
    verifier = suite.make_verifier()
    against = spec.stages["evaluation"].get("against", "")
    return {
        "harness": code_digest("policy"),
        "evaluation": code_digest("evaluation"),
        "method": source_digest(type(built.method)),
        **_method_data(built.method),
        **_reward_data(spec),
        "suite": package_digest(type(suite)),
        "engine": source_digest(registry.get("engines", spec.engine)),
        "judge": package_digest(written_as(built.judge)),
        "judge_data": combined_digest(built.judge.data_files()),
        "against": combined_digest(answer_files(against)) if against else "",
        **_tasks_digest(spec),
        "labelling_judge": package_digest(type(built.labelling_judge)),
        "labeller": _digest_of(built.labeller),
        "method_labeller": _digest_of(built.own_labeller),
        "verifier": verifier_digest(verifier) if verifier else "",
        "labeller_data": combined_digest(labeller.data_files()) if labeller else "",
        "base": _base_digest(spec.model or suite.base_model()),
        "reference": _base_digest(spec.reference) if spec.reference else "",
        "data": combined_digest(suite.data_files()),
    }


def _tasks_digest(spec: RunSpec) -> dict[str, str]:
    """Return the digest of the tasks that an evaluation runs; nothing where there are none."""
    options = spec.stages["evaluation"]
    if not options.get("tasks"):
        return {}
    check_tasks(options["tasks"], options["task_data"])
    files = tasks_digest(options["tasks"], options["task_data"])
    return {"tasks": digest_of([files, options["task_documents"], options["task_chat"]])}


def _method_data(method: Method) -> dict[str, str]:
    """Return the digest of the files that a method reads; nothing for one that reads none."""
    files = method.data_files()
    return {"method_data": combined_digest(files)} if files else {}


def _reward_data(spec: RunSpec) -> dict[str, str]:
    """Return the digest of the reward model that a run names; nothing for one that names none."""
    return {"reward_model": _base_digest(spec.reward_model)} if spec.reward_model else {}


def _digest_of(labeller: Labeller | None) -> str:
    return "" if labeller is None else package_digest(written_as(labeller))


def _base_digest(base: str | Path | None) -> str:
    """Return the digest of a model folder's files; a hub id stands for itself: the stages hash its
    weights.
    """
    if base is None or not Path(base).is_dir():
        return str(base)
    return model_digest(Path(base))


def _check_settings(file: SuiteFile, where: str, registry: Registry) -> None:
    """Refuse settings for a method, a stage or an option that does not exist: they would be
    ignored.
    """
    for name, options in file.settings.items():
        name = name.partition(":")[0]
        stage = name.removeprefix("stage.") if name.startswith("stage.") else None
        kind, known = ("stage", STAGES) if stage else ("method", registry.classes["methods"])
        table = f"{where}: [stages.{stage}]" if stage else f"{where}: [settings.{name}]"
        if name == "*":
            continue
        if (stage or name) not in known:
            raise UsageError(f"{table}: {unknown(kind, stage or name, known)}")
        there = options_of(known[stage or name])
        for option in options:
            if option not in there:
                raise UsageError(f"{table}: {unknown('option', option, there)}")


def suite_class(suite: str, registry: Registry) -> type[Suite]:
    """Return the class behind a suite's name or file."""
    cls: type[Suite] = registry.get(
        "suites", read_suite_file(suite).suite if is_suite_file(suite) else suite
    )
    return cls


def sources_of(suite_cls: type[Suite], file: SuiteFile, fixed: Mapping[str, Any]) -> Sources:
    """Return what settings are taken from; `fixed` is the rest of a request: model and `quick`."""
    quick = suite_cls.quick if fixed.get("quick") else {}
    return Sources(suite_cls.settings, file.settings, quick, bool(fixed.get("model")))


def _resolve_stages(
    sources: Sources, overrides: Mapping[str, str], budget: Budget, start: str
) -> dict[str, dict[str, Any]]:
    """Return the options of every stage that the run may have: no `sft` where it has no part."""
    for layer in (sources.suite, sources.file, sources.quick):
        for name in (n.removeprefix("stage.") for n in layer if n.startswith("stage.")):
            if name not in STAGES:
                raise UsageError(f"[stages.{name}]: {unknown('stage', name, STAGES)}")
    given: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for name, value in overrides.items():
        stage, _, option = name.partition(".")
        if stage not in STAGES:
            raise UsageError(
                f"--stage-set {name}: {unknown('stage', stage, STAGES)} Write STAGE.OPTION=VALUE."
            )
        if stage == "sft" and start == START_MODEL:
            raise UsageError(
                f"--stage-set {name}: methods start from the model itself, so there is no SFT"
                " stage. --start sft fine-tunes the model first."
            )
        given[stage][option] = value
    stages = {
        stage: _values(
            build(
                cls,
                values_of(sources.of_stage(cls, stage, given[stage])),
                f"--stage-set {stage}",
            )
        )
        for stage, cls in STAGES.items()
        if stage != "sft" or start != START_MODEL
    }
    if budget.labels:  # labels that a method trains on count for its budget, from any source
        labels = min(stages["preferences"]["labels"] or budget.labels, budget.labels)
        limited = build(
            PreferenceOptions, stages["preferences"] | {"labels": labels}, "--budget labels"
        )
        stages["preferences"] = _values(limited)
    return stages


def _values(instance: Any) -> dict[str, Any]:
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}
