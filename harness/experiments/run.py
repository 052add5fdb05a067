"""One run, top to bottom, in three acts: prepare, train, assess.

Suite and judge live in the first act and in the last. While a method trains, and while its policy answers the
evaluation prompts, neither exists in any object or frame that it could reach.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.contracts import Method
from ..api.registry import Registry
from ..api.resolve import make_method, make_suite
from ..core import run_folder
from ..core.data import Prompt
from ..core.distributed import is_main
from ..core.errors import Diverged, HarnessError, Refused, UsageError
from ..core.files import lock, make_folder
from ..core.settings import AdamWOptions
from ..core.spec import RunSpec, stage_options
from . import record
from .observers import Observers
from .prepare import Settings, open_stages, open_workshop, prepare

if TYPE_CHECKING:
    from ..api.contracts import Policy
    from ..core.meter import Meter
    from ..evaluation.evaluate import Drawn
    from ..training.lab import Supplies
    from ..training.loop import Loop
    from ..training.stages.runtime import Workshop


@dataclass
class Outcome:
    """A finished run."""

    folder: Path
    result: dict[str, Any]
    reused: bool  # it was finished before


def execute(spec: RunSpec, registry: Registry, settings: Settings) -> Outcome:
    """Carry out a run, or go on with it, or return its result when it is finished."""
    folder = make_folder(settings.results / spec.folder)
    with lock(folder, f"The run {spec.suite_name}/{spec.method}", wait=False) if is_main() else nullcontext():
        done = run_folder.read_result(folder)
        if done is not None and settings.check_rollouts:
            raise UsageError(f"--check-rollouts: {folder} is finished, nothing is rolled out. Name other --results.")
        if done is not None:
            return Outcome(folder, done, reused=True)
        if is_main():
            if record.forget_failure(folder):
                settings.warn("This run failed before; it is tried again.")
            run_folder.write_spec(folder, spec)
        observe = Observers(registry, spec, settings.warn)
        observe("run_started", folder=folder)
        result = _carry_out(spec, registry, settings, folder, observe)
        observe("run_finished", folder=folder, result=result)
    return Outcome(folder, result, reused=False)


def _carry_out(
    spec: RunSpec, registry: Registry, settings: Settings, folder: Path, observe: Observers
) -> dict[str, Any]:
    started = time.perf_counter()
    method = make_method(spec, registry)
    try:
        shop = open_workshop(spec, registry, settings, observe)
        supplies, shared = prepare(spec, registry, shop, method)
    except (UsageError, Refused):  # nothing was trained: this was no run
        _leave_nothing(folder)
        raise
    except Exception as error:
        raise _failed(folder, spec, error) from error
    try:
        meter, evaluation = shop.meter(), shop.meter()
        policy, loop = train(spec, shop, method, supplies, meter, folder)
        for name in loop.checkpoints.damaged:
            settings.warn(f"The checkpoint {name} was damaged; the one before it was used.")
        drawn = draw(spec, shop, policy, supplies, evaluation_prompts(spec, registry), evaluation)
        kept = loop.snapshots.kept() if loop.snapshots else {}
        assessed = assess(spec, registry, shop, drawn, evaluation, kept)
        bill = record.Bill(
            meter, evaluation, drawn.models, shared, loop.used(), loop.left(), time.perf_counter() - started
        )  # fmt: skip
        result = record.result_of(spec, type(method).paper, assessed, bill)
        result["runtime"] = record.runtime_of(supplies, shop)
        for remark in _remarks(spec, loop, shop, result["runtime"]):
            settings.warn(remark)
        if shop.team.main:
            result["files"] = record.write(folder, spec, registry, result, loop.rows, assessed.samples)
            record.write_policy(folder, policy, supplies)
            record.finish(folder, result)
        shop.team.wait()
    except Exception as error:
        raise _failed(folder, spec, error) from error
    finally:
        supplies.close()
    return result


def train(
    spec: RunSpec, shop: Workshop, method: Method, supplies: Supplies, meter: Meter, folder: Path
) -> tuple[Policy, Loop]:
    """Call the method at its bench."""
    from ..training.checkpoints import Checkpoints, Snapshots
    from ..training.lab import Lab
    from ..training.loop import Loop

    options = method if isinstance(method, AdamWOptions) else AdamWOptions()
    progress, writes = shop.progress, shop.team.main
    loop = Loop(
        shop.trainer(options, meter), Checkpoints(folder / "checkpoint", shop.checkpoint_every, writes), meter,
        lambda step, total, row: progress(spec.method, step, total, row), spec.budget,
        Snapshots(folder / "snapshots", spec.snapshots, writes) if spec.snapshots else None, supplies.labels,
    )  # fmt: skip
    policy = method.train(Lab(method, supplies, shop.bench(meter, spec.seed), loop))
    if not hasattr(policy, "answer"):
        raise HarnessError(f"`train` returned {type(policy).__name__}, not a Policy: end it with `return lab.policy`")
    loop.finish()
    loop.trainer.let_go()
    gc.collect()  # the lab is a knot: while its policy answers, nobody holds a critic or a reference for it
    shop.team.wait()
    return policy, loop


def evaluation_prompts(spec: RunSpec, registry: Registry) -> list[Prompt]:
    """Return what a trained policy is asked."""
    options = stage_options(spec, "evaluation")
    prompts: list[Prompt] = make_suite(spec, registry).prompts(options.split)[: options.prompts]
    return prompts


def draw(
    spec: RunSpec, shop: Workshop, policy: Policy, supplies: Supplies, prompts: list[Prompt], meter: Meter
) -> Drawn:
    """Have the policy answer the evaluation prompts, before there is a judge."""
    from ..evaluation.evaluate import draw_answers
    from ..training.completion_cache import Pool

    pool = Pool(supplies.reuse, ("evaluation", spec.shared_seed, spec.seed)) if supplies.reuse else None
    return draw_answers(policy, supplies.tokens, prompts, shop, spec, meter, pool)


def assess(
    spec: RunSpec, registry: Registry, shop: Workshop, drawn: Drawn, meter: Meter, snapshots: Mapping[int, Path]
) -> record.Assessed:
    """Score the answers; return figures, samples, the hashes that make runs comparable, and the stages behind them."""
    from ..evaluation.evaluate import evaluate, evaluate_snapshots

    stages = open_stages(spec, registry, shop)
    options = stage_options(spec, "evaluation")
    figures, samples = evaluate(drawn, stages, options, meter)
    model = drawn.policy.model if drawn.policy.kl_estimator is None else None  # else the policy is not this model
    method = make_method(spec, registry)
    own = stages.suite.figures(method, model, stages)
    if own:
        figures["suite"] = own
    if snapshots:
        figures["curve"] = evaluate_snapshots(snapshots, method, stages, options, spec)
    return record.Assessed(figures, samples, record.ground_of(spec, stages), dict(stages.used))


# -- building blocks ---------------------------------------------------------------------------------------------------


def _remarks(spec: RunSpec, loop: Loop, shop: Workshop, runtime: Mapping[str, Any]) -> list[str]:
    """Return what was asked for and found nothing to do, and which figure says less than its name."""
    told = []
    if spec.snapshots and not loop.total:
        told.append(f"--snapshots: {spec.method} trains nothing, so there was nothing to keep along training.")
    if shop.check and not shop.check.tokens:
        told.append(f"--check-rollouts: {spec.method} rolled nothing out while it trained; nothing was compared.")
    if not runtime["peak_memory_by_phase"]:
        told.append("Peak memory is that of the whole process, not of each phase: this system resets no peak.")
    return told


def _leave_nothing(folder: Path) -> None:
    """Remove a folder in which nothing was begun; the checkpoint of an earlier attempt stays."""
    (folder / "spec.json").unlink(missing_ok=True)
    if all(file.name.startswith(".") for file in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _failed(folder: Path, spec: RunSpec, error: Exception) -> HarnessError:
    """Record a failure of any kind, its traceback beside it, and return it as one message."""
    folder = folder if is_main() else make_folder(folder / f"process{os.environ['RANK']}")
    kind, status = type(error).__name__, "failed"
    if isinstance(error, HarnessError):
        message, status = str(error), "diverged" if isinstance(error, Diverged) else status
    elif isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        message, status = "Out of memory. Lower --micro-batch-tokens or the batch size.", "out of memory"
    else:
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        message = f"The method {spec.method} failed: {kind}: {error}. The traceback is in {folder / 'traceback.txt'}."
    record.write_failure(folder, spec, status, message)
    return error if isinstance(error, HarnessError) else HarnessError(message)
