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
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import record, store
from .contracts import Method
from .data import Prompt
from .errors import Diverged, HarnessError, Refused, UsageError
from .files import lock, make_folder
from .registry import Registry
from .shared_options import AdamWOptions
from .spec import RunSpec, make_judge, make_labeller, make_method, make_suite, stage_options
from .team import Team, is_main

if TYPE_CHECKING:
    from .artifacts import Artifact
    from .contracts import Policy
    from .evaluation.evaluate import Drawn
    from .lab import Supplies
    from .loop import Loop
    from .meter import Meter
    from .stages import Stages, Workshop
    from .start import Start

Warn = Callable[[str], None]
CHECK_ALLOWS = {"float32": 1e-3, "bfloat16": 0.5}  # nats, of rounding, between two orders of summation


@dataclass(frozen=True)
class Settings:
    """How a run is carried out; none of it changes a result."""

    results: Path
    checkpoint_every: float = 20.0  # seconds between checkpoints
    check_rollouts: bool = False  # compare what was drawn with a teacher-forced pass
    warn: Warn = print


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
        done = store.read_result(folder)
        if done is not None and settings.check_rollouts:
            raise UsageError(f"--check-rollouts: {folder} is finished, nothing is rolled out. Name other --results.")
        if done is not None:
            return Outcome(folder, done, reused=True)
        if is_main():
            if record.forget_failure(folder):
                settings.warn("This run failed before; it is tried again.")
            store.write_spec(folder, spec)
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


# -- the three acts ----------------------------------------------------------------------------------------------------


def prepare(spec: RunSpec, registry: Registry, shop: Workshop, method: Method) -> tuple[Supplies, dict[str, Artifact]]:
    """Make what the method needs; return it with each shared stage behind it."""
    from .desk import LabelDesk
    from .reuse import Reuse
    from .stages.preferences import read_pairs
    from .supplies import Supplies

    stages = open_stages(spec, registry, shop)
    needs = method.required()
    check_needs(needs, stages, spec)
    supplies = Supplies(start=stages.checkpoint, tokens=stages.tokens)
    used = [stages.start_artifact]
    if "prompts" in needs:
        supplies.prompts = stages.suite.prompts("train")
    if "demonstrations" in needs:
        supplies.demonstrations = stages.suite.demonstrations()
    if "verifier" in needs:
        supplies.verifier = stages.suite.verifier()
    if "pairs" in needs or "reward" in needs:
        used.append(stages.feedback)
        supplies.labels = int(stages.feedback.info["asked"])
    if "pairs" in needs:
        supplies.pairs = read_pairs(stages.feedback.folder)
    if "labels" in needs:
        _leave_labels(spec, supplies.labels)
        labeller = stages.own_labeller or stages.labeller
        supplies.desk = partial(LabelDesk, spec, tuple(registry.files), labeller is None or labeller.human)
        supplies.refresh = stage_options(spec, "reward_model")
    if "reward" in needs:
        members = [stages.feedback_reward(m) for m in range(getattr(method, "reward_members", 1))]
        used += members
        supplies.rewards = partial(_load_rewards, [m.folder for m in members], stages.checkpoint)
    content = stages.feedback.content if supplies.pairs else ""
    supplies.reuse = Reuse(shop, stages.start_inputs(), stages.checkpoint, stages.tokens, supplies.pairs, content)
    return supplies, {a.kind: a for a in used}


def train(
    spec: RunSpec, shop: Workshop, method: Method, supplies: Supplies, meter: Meter, folder: Path
) -> tuple[Policy, Loop]:
    """Call the method at its bench."""
    from .lab import Lab
    from .loop import Checkpoints, Loop, Snapshots

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
    from .evaluation.evaluate import draw_answers
    from .pools import Pool

    pool = Pool(supplies.reuse, ("evaluation", spec.shared_seed, spec.seed)) if supplies.reuse else None
    return draw_answers(policy, supplies.tokens, prompts, shop, spec, meter, pool)


def assess(
    spec: RunSpec, registry: Registry, shop: Workshop, drawn: Drawn, meter: Meter, snapshots: Mapping[int, Path]
) -> record.Assessed:
    """Score the answers; return figures, samples, the hashes that make runs comparable, and the stages behind them."""
    from .evaluation.evaluate import evaluate, evaluate_snapshots

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


def open_workshop(spec: RunSpec, registry: Registry, settings: Settings, observe: Observers) -> Workshop:
    """Import what is heavy, choose device and threads, and return what stages are made with."""
    import torch
    from accelerate import Accelerator

    from .artifacts import Artifacts
    from .stages import Workshop
    from .supplies import RolloutCheck

    device, engine = _device(spec.device), registry.get("engines", spec.engine)
    if getattr(engine, "needs_gpu", False) and device == "cpu":
        raise UsageError(f"--engine {spec.engine}: there is no GPU under this run. Use --engine hf, or --device cuda.")
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")  # autocast is the models' own: see models.py
    team = Team(accelerator.process_index, accelerator.num_processes)
    device = f"cuda:{accelerator.local_process_index}" if device == "cuda" and team.size > 1 else device
    if device == "cpu":
        torch.set_num_threads(spec.threads)
    _quiet_libraries()

    def progress(phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        observe("step_logged", phase=phase, step=step, total=total, metrics=metrics)

    return Workshop(
        Artifacts(settings.results / "artifacts", team), engine, accelerator,
        torch.device(device), progress, settings.checkpoint_every, spec.micro_batch_tokens, team,
        RolloutCheck(CHECK_ALLOWS[spec.dtype]) if settings.check_rollouts else None,
    )  # fmt: skip


def open_stages(spec: RunSpec, registry: Registry, shop: Workshop) -> Stages:
    """Return the stages of a spec, with a suite, judge and labeller of their own."""
    from .data import Sampling
    from .stages import People, Stages

    suite = make_suite(spec, registry)
    own = make_labeller(spec, suite, registry) if make_method(spec, registry).labeller() else None
    people = People(make_judge(spec, suite, registry), make_labeller(spec, suite, registry, own=False), own)
    stages = Stages(spec, suite, people, shop)
    shop.sampling = Sampling(suite.temperature, suite.max_new_tokens)
    shop.eos = stages.eos
    return stages


def check_needs(needs: frozenset[str], stages: Stages, spec: RunSpec) -> None:
    """Refuse a method whose needs the suite cannot meet, before anything is trained."""
    suite = stages.suite
    can_prefer = stages.own_labeller is not None or stages.can_prefer()
    can = {
        "prompts": bool(suite.prompts("train")), "demonstrations": bool(suite.demonstrations()), "pairs": can_prefer,
        "reward": can_prefer, "verifier": suite.verifier() is not None,
        "labels": (stages.own_labeller or stages.labeller) is not None,
    }  # fmt: skip
    missing = sorted(need for need in needs if not can.get(need, False))
    if missing:
        raise Refused(
            f"The method {spec.method} needs {' and '.join(missing)}, which the suite {spec.suite_name} cannot give. "
            f"It gives: {', '.join(sorted(need for need, given in can.items() if given))}. Nothing was trained."
        )
    split = spec.stages["evaluation"]["split"]
    if suite.size(split) < 2:
        raise UsageError(f"The {split} split of {spec.suite_name} has fewer than two prompts: nothing can be measured.")


def _leave_labels(spec: RunSpec, asked: int) -> None:
    """Refuse a method that asks for labels while it trains, where its preferences have taken all that it may use."""
    limit, prompt = spec.budget.labels, comb(spec.stages["preferences"]["completions"], 2)
    if limit is not None and limit - asked < prompt:
        less = f"--stage-set preferences.labels={limit // 2}, or " if limit // 2 >= 2 * prompt else ""
        raise UsageError(
            f"--budget labels={limit}: the preferences took {asked}, and {spec.method} asks for more while it trains. "
            f"Leave it some: {less}a larger budget. The shared stages are made; the method was not trained."
        )


class Observers:
    """Calls the life-cycle hooks of every plugin; what one of them raises is told once and stops nothing."""

    def __init__(self, registry: Registry, spec: RunSpec, warn: Warn) -> None:
        self._hooks, self._spec, self._warn = registry.manager.hook, spec, warn
        self._failed: set[str] = set()

    def __call__(self, name: str, **arguments: Any) -> None:
        if not is_main():
            return
        arguments["spec"] = self._spec
        for impl in reversed(getattr(self._hooks, name).get_hookimpls()):  # in pluggy's order: tryfirst is first
            try:
                impl.function(**{key: arguments[key] for key in impl.argnames})
            except Exception as error:  # a stranger's observer must not cost a run
                if impl.plugin_name not in self._failed:
                    self._warn(f"The observer {name} of {impl.plugin_name} failed: {type(error).__name__}: {error}")
                self._failed.add(impl.plugin_name)


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


def _load_rewards(folders: list[Path], start: Start) -> list[Any]:
    from .rewards import RewardModel

    return [RewardModel.load(folder, start) for folder in folders]


def _device(asked: str) -> str:
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in ("cpu", "cuda") and not asked.startswith("cuda:"):
        raise UsageError(f"--device {asked}: expected cpu, cuda, cuda:N or auto.")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {asked}: torch {torch.__version__} sees no GPU here. Use --device cpu.")
    return asked


def _quiet_libraries() -> None:
    """Keep progress bars and advice of the libraries out of the harness's own output."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
