"""One run, top to bottom, in three acts: prepare, train, assess.

Suite and judge live in the first act and in the last. While a method trains, and while its policy
answers the evaluation prompts, neither exists in any object or frame that it could reach.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.culprits import blamed
from ..api.participants import participants
from ..api.registry import Registry
from ..api.start import start_warning
from ..core import progress, run_folder
from ..core.data import Prompt
from ..core.distributed import is_main
from ..core.errors import Diverged, HarnessError, PolicyNotSaved, Refused, UsageError
from ..core.execution import EVALUATION, differing, from_record
from ..core.fault_points import fault_point
from ..core.files import NoSpace, ended_holder, full_disk, is_full, lock, make_folder, write_text
from ..core.global_state import ANY, Reported, put_back
from ..core.interrupts import asked_for
from ..core.movement import unmoved
from ..core.progress import WallClock, activity, part, running
from ..core.records import storable
from ..core.spec import RunSpec, stage_options
from . import record, saved_policy
from .observers import Observers
from .plan import plan_of
from .prepare import RunOptions, check_apart, open_stage_runtime, open_stages, prepare
from .trained_policy import Training

if TYPE_CHECKING:
    from ..api.contracts import Policy
    from ..core.meter import Meter
    from ..core.settings import EvaluationOptions
    from ..evaluation.answers import PolicyAnswers
    from ..evaluation.lm_tasks import TaskOutcomes
    from ..training.lab import MethodInputs
    from ..training.loop import Loop
    from ..training.stages.runtime import StageRuntime
    from ..training.stages.stages import Stages


@dataclass
class Outcome:
    """A finished run."""

    folder: Path
    result: dict[str, Any]
    reused: bool  # it was finished before


def execute(spec: RunSpec, registry: Registry, settings: RunOptions) -> Outcome:
    """Carry out a run, or go on with it, or return its result when it is finished."""
    settings = replace(settings, results=settings.results.absolute())  # a plugin may change folders
    folder = make_folder(settings.results / spec.folder)
    ended = ended_holder(folder) if is_main() else ""
    with (
        lock(folder, f"The run {spec.suite_name}/{spec.method}", wait=False)
        if is_main()
        else nullcontext()
    ):
        done = run_folder.read_result(folder)
        if done is not None and settings.check_rollouts:
            raise UsageError(
                f"--check-rollouts: {folder} is finished, nothing is rolled out. Name other"
                " --results."
            )
        if done is not None and saved_policy.waits(done, spec):
            _save_later(spec, registry, settings, folder, done)
        if done is not None:
            for remark in _computed_otherwise(spec, done):
                settings.warn(remark)
            return Outcome(folder, done, reused=True)
        if is_main():
            if record.forget_failure(folder):
                settings.warn("This run failed before; it is tried again.")
            elif ended:
                settings.warn(f"This run {run_folder.ENDED} before ({ended}); it goes on.")
            run_folder.write_spec(folder, spec)
        observe = Observers(registry, spec, settings.warn)
        _announce(spec, registry, settings, folder, observe)
        Reported.begin(settings.warn)
        with running(WallClock(settings.started, observe.activity)), put_back(ANY, numbers=True):
            result = _carry_out(spec, registry, settings, folder, observe)
        observe("run_finished", folder=folder, result=result)
    return Outcome(folder, result, reused=False)


def check_saved(outcome: Outcome) -> None:
    """Raise PolicyNotSaved for a finished run whose policy could not be written."""
    policy = outcome.result.get("policy", {})
    if policy.get("saved") == saved_policy.FAILED:
        raise PolicyNotSaved(
            f"The run is finished and recorded, but its policy could not be saved:"
            f" {policy['reason']}. Run the same command again to save it, or add --save none."
        )


def _announce(
    spec: RunSpec, registry: Registry, settings: RunOptions, folder: Path, observe: Observers
) -> None:
    """Say what the run will do, and warn of a start checkpoint that is no good anchor."""
    built = participants(spec, registry)
    observe("run_started", folder=folder, plan=plan_of(spec, built, settings.results))
    if warning := start_warning(spec, built.suite):
        settings.warn(warning)


def _carry_out(
    spec: RunSpec, registry: Registry, settings: RunOptions, folder: Path, observe: Observers
) -> dict[str, Any]:
    try:
        with part(progress.LOADING):
            _check_tasks(spec)
            training = _prepared(spec, registry, settings, observe)
        if not settings.train:
            training.check_trained()
    except (UsageError, Refused):  # nothing was trained: this was no run
        _leave_nothing(folder)
        raise
    except BaseException as error:
        if asked_for(error):
            raise
        raise _failed(folder, spec, error, registry) from error
    try:
        return _train_and_evaluate(training, registry, settings, folder)
    except BaseException as error:
        if asked_for(error):
            raise
        raise _failed(folder, spec, error, registry) from error
    finally:
        training.close()


def _prepared(
    spec: RunSpec, registry: Registry, settings: RunOptions, observe: Observers
) -> Training:
    """Return the training of a run; suite, judge and labellers end with this function."""
    with activity(progress.LOADING, "loading libraries"):
        stage_runtime = open_stage_runtime(spec, registry, settings, observe)
    built = participants(spec, registry)
    try:
        method_inputs, shared = prepare(spec, built, registry.files, stage_runtime)
    except BaseException:
        stage_runtime.close()
        raise
    return Training(spec, stage_runtime, built.method, method_inputs, shared)


def _train_and_evaluate(
    training: Training, registry: Registry, settings: RunOptions, folder: Path
) -> dict[str, Any]:
    """Return the result of a run whose shared stages are made, and write its record."""
    spec, stage_runtime = training.spec, training.stage_runtime
    meter, evaluation = stage_runtime.meter(), stage_runtime.meter()
    with part(progress.METHOD):
        policy, loop = training.policy(meter, folder)
    for note in _notes_on_checkpoints(loop):
        settings.warn(note)
    kept = loop.snapshots.kept() if loop.snapshots else {}
    with part(progress.EVALUATION), stage_runtime.planned(EVALUATION):
        prompts = evaluation_prompts(spec, registry)
        settings_used = stage_runtime.execution_record()
        drawn = draw(spec, stage_runtime, policy, training.method_inputs, prompts, evaluation)
        outcomes = benchmark(training, policy, evaluation)
        assessed = assess(spec, registry, stage_runtime, drawn, evaluation, kept, outcomes)
    cost = record.CostReport(
        meter,
        evaluation,
        drawn.models,
        training.shared,
        loop.used(),
        loop.left(),
        training.stored,
    )
    result = _result_of(training, policy, loop, assessed, cost)
    result["execution"] = record.execution_of(loop, settings_used)
    for remark in _remarks(spec, loop, stage_runtime, result["runtime"], result["evaluation"]):
        settings.warn(remark)
    if stage_runtime.distributed.main:
        with activity(progress.CHECKPOINTS, "writing the record and the policy"):
            fault_point("record.begin")
            rows = loop.rows
            result["files"] = record.write(folder, spec, registry, result, rows, assessed)
            result["policy"] = _save(training, policy, folder, result)
        record.finish(folder, result)
    stage_runtime.distributed.barrier()
    return result


def _notes_on_checkpoints(loop: Loop) -> list[str]:
    """Return what a user should know of the checkpoints that training went on from."""
    notes = [
        f"The checkpoint {name} was damaged; the one before it was used."
        for name in loop.checkpoints.damaged
    ]
    if loop.checkpoints.outdated:
        notes.append(
            "The shared stages have other contents than when this run was interrupted: training"
            " began anew."
        )
    if loop.resumed:
        notes.append(
            f"Training went on from the checkpoint of an earlier attempt: {loop.resumed[-1]} of"
            f" {len(loop.rows)} turns were not repeated."
        )
    return notes


def _result_of(
    training: Training,
    policy: Policy,
    loop: Loop,
    assessed: record.EvaluationResult,
    cost: record.CostReport,
) -> dict[str, Any]:
    """Return the figures of a run, with what is recorded of its training beside them."""
    method_inputs, stage_runtime = training.method_inputs, training.stage_runtime
    result = record.result_of(training.spec, type(training.method).paper, assessed, cost)
    result["unmoved"] = unmoved(result["evaluation"].get("kl", {}).get("mean"), loop.rows)
    if policy.provenance:
        result["guest"] = dict(policy.provenance)
    result["pins"] = record.pins_of(cost, assessed, loop)
    result["runtime"] = record.runtime_of(method_inputs, stage_runtime, policy, loop.rows)
    result["runtime"]["resumed_after_turns"] = loop.resumed
    result["rendering"] = method_inputs.tokens.rendering()
    if stage_runtime.data is not None:
        result["data"] = dict(stage_runtime.data)
    return result


def _save(
    training: Training, policy: Policy, folder: Path, result: dict[str, Any]
) -> dict[str, Any]:
    """Write the result, and then the policy; return what became of the policy."""
    result["policy"] = {**result.get("policy", {}), "saved": saved_policy.PENDING}
    record.finish(folder, result)
    fault_point("record.result")
    saved = saved_policy.save_policy(folder, training, policy, result)
    fault_point("record.policy")
    if saved["saved"] != saved_policy.FAILED:
        record.clear(folder)
    return saved


def _save_later(
    spec: RunSpec, registry: Registry, settings: RunOptions, folder: Path, result: dict[str, Any]
) -> None:
    """Save the policy of a finished run from its artifact or its last checkpoint."""
    training = _prepared(spec, registry, settings, Observers(registry, spec, settings.warn))
    stage_runtime = training.stage_runtime
    try:
        saved_policy.check_there(training, folder)
        policy, _ = training.policy(stage_runtime.meter(), folder)
        if stage_runtime.distributed.main:
            run_folder.write_spec(folder, spec)
            result["policy"] = _save(training, policy, folder, result)
            record.finish(folder, result)
    finally:
        training.close()


def evaluation_prompts(spec: RunSpec, registry: Registry) -> list[Prompt]:
    """Return what a trained policy is asked."""
    options = stage_options(spec, "evaluation")
    suite = participants(spec, registry).suite
    with put_back(f"The suite {spec.suite_name}"):
        return list(suite.prompts(options.split)[: options.prompts])


def draw(
    spec: RunSpec,
    stage_runtime: StageRuntime,
    policy: Policy,
    method_inputs: MethodInputs,
    prompts: list[Prompt],
    meter: Meter,
) -> PolicyAnswers:
    """Have the policy answer the evaluation prompts, before there is a judge."""
    from ..evaluation.answers import draw_answers
    from ..training.completion_cache import CompletionPool

    pool = (
        CompletionPool(method_inputs.reference_cache, ("evaluation", spec.shared_seed, spec.seed))
        if method_inputs.reference_cache
        else None
    )
    options = stage_options(spec, "evaluation")
    return draw_answers(
        policy, method_inputs.tokens, prompts, stage_runtime, spec, meter, pool, options
    )


def assess(
    spec: RunSpec,
    registry: Registry,
    stage_runtime: StageRuntime,
    drawn: PolicyAnswers,
    meter: Meter,
    snapshots: Mapping[int, Path],
    outcomes: TaskOutcomes | None = None,
) -> record.EvaluationResult:
    """Score the answers; return figures, samples, the hashes that make runs comparable, and the
    stages behind them.
    """
    from ..evaluation.evaluate import evaluate, evaluate_snapshots

    built = participants(spec, registry)
    stages = open_stages(spec, built, stage_runtime)
    check_apart(stages)
    options = stage_options(spec, "evaluation")
    figures, samples = evaluate(drawn, stages, options, meter)
    model = (
        drawn.policy.model if drawn.policy.kl_estimator is None else None
    )  # else the policy is not this model
    with put_back(f"The suite {spec.suite_name}"):
        own = stages.suite.figures(built.method, model, stages)
    if own:
        figures["suite"] = storable(own, f"figures of the suite {spec.suite_name}")
    if snapshots:
        figures["curve"] = evaluate_snapshots(snapshots, built.method, stages, options, spec)
    rows: list[dict[str, Any]] = []
    if outcomes is not None:
        figures["tasks"], rows = _beside_start(outcomes, stages, options)
    return record.EvaluationResult(
        figures,
        samples,
        record.ground_of(spec, stages),
        dict(stages.used),
        stages.judge.usage(),
        rows,
    )


def benchmark(training: Training, policy: Policy, meter: Meter) -> TaskOutcomes | None:
    """Return a policy's outcomes in tasks of lm-evaluation-harness; None where none are named."""
    options = stage_options(training.spec, "evaluation")
    if not options.tasks:
        return None
    from ..evaluation.lm_tasks import policy_outcomes

    runtime = training.stage_runtime.runtime(meter, training.spec.seed)
    return policy_outcomes(policy, training.method_inputs.tokens, options, runtime)


def _beside_start(
    outcomes: TaskOutcomes, stages: Stages, options: EvaluationOptions
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the figures of tasks, and the rows of their file, beside the start checkpoint's."""
    from ..evaluation.lm_tasks import recorded_rows, start_outcomes, task_figures

    start = start_outcomes(stages, options)
    return task_figures(outcomes, start), recorded_rows(outcomes, start)


def _check_tasks(spec: RunSpec) -> None:
    """Raise UsageError where the tasks of an evaluation cannot be loaded, before any training."""
    options = stage_options(spec, "evaluation")
    if options.tasks:
        from ..evaluation.lm_tasks import check_loadable

        with activity(progress.LOADING, "loading tasks"):
            check_loadable(options)


# -- building blocks -------------------------------------------------------------------------------


def _remarks(
    spec: RunSpec,
    loop: Loop,
    stage_runtime: StageRuntime,
    runtime: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> list[str]:
    """Return remarks on a doubtful judge, on options without effect, and on figures that measure
    less than usual.
    """
    judge, remarks = evaluation["judge"], []
    if unknown := [n for n, value in evaluation.get("suite", {}).items() if value is None]:
        remarks.append(
            f"The suite {spec.suite_name} returned no finite number for {', '.join(unknown)}; the"
            " record has null there."
        )
    if reason := judge.get("no_win_rate"):
        remarks.append(
            f"{reason[0].upper()}{reason[1:]}. The record has the answers side by side, length and"
            " KL. Evaluate it with a better judge: harness evaluate RUN --judge NAME."
        )
    elif doubt := judge.get("held_out", {}).get("doubt"):
        remarks.append(
            f"The judge {judge['name']} is {doubt}: its accuracy is"
            f" {judge['held_out']['accuracy']:.3f} on {judge['held_out']['pairs']:.0f} held-out"
            " pairs. Do not rely on its win-rates."
        )
    if spec.snapshots and not loop.total:
        remarks.append(
            f"--snapshots: {spec.method} trains nothing, so there was nothing to keep along"
            " training."
        )
    if stage_runtime.check and not stage_runtime.check.tokens:
        remarks.append(
            f"--check-rollouts: {spec.method} rolled nothing out while it trained; nothing was"
            " compared."
        )
    if spec.save_dtype != "auto" and not loop.total:
        remarks.append(f"--save-dtype: {spec.method} trains nothing, so nothing was rounded.")
    if not runtime["cache_kept"]:
        remarks.append("This model decodes without a cache: each token reads all before it again.")
    if not runtime["peak_memory_by_phase"]:
        remarks.append(
            "Peak memory is that of the whole process, not of each phase: this system resets no"
            " peak."
        )
    return remarks


def _computed_otherwise(spec: RunSpec, done: Mapping[str, Any]) -> list[str]:
    """Return a remark where a finished run was computed with other settings than asked for now."""
    recorded = done.get("execution")
    if recorded is None:
        return []
    other = differing(spec.execution, from_record(recorded[EVALUATION]))
    changes = ", ".join(f"{name} {used}, not {planned}" for name, (planned, used) in other.items())
    return (
        [f"This run is finished. It was computed with {changes}: results differ by rounding only."]
        if changes
        else []
    )


def _leave_nothing(folder: Path) -> None:
    """Remove a folder in which nothing was begun; the checkpoint of an earlier attempt stays."""
    (folder / "spec.json").unlink(missing_ok=True)
    if all(file.name.startswith(".") for file in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _failed(folder: Path, spec: RunSpec, error: BaseException, registry: Registry) -> HarnessError:
    """Record a failure of any kind, its traceback beside it, and return it as one message."""
    folder = folder if is_main() else make_folder(folder / f"process{os.environ['RANK']}")
    kind, status = type(error).__name__, "failed"
    if isinstance(error, HarnessError):
        message, status = str(error), "diverged" if isinstance(error, Diverged) else status
    elif isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        message, status = (
            "Out of memory. Lower --micro-batch-tokens or the batch size.",
            "out of memory",
        )
    elif is_full(error):
        message = full_disk(error)
    else:
        write_text(folder / run_folder.TRACEBACK, "".join(traceback.format_exception(error)))
        message = (
            f"{blamed(error, registry, 'The run')}. The traceback is in {folder / 'traceback.txt'}."
        )
    with suppress(NoSpace):  # then the run is unfinished, and the same command goes on
        record.write_failure(folder, spec, status, message)
    return error if isinstance(error, HarnessError) else HarnessError(message)
