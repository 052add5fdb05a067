"""One run, top to bottom: stages, training, evaluation, record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import store
from .contracts import Method
from .errors import Diverged, HarnessError, Refused, UsageError
from .files import lock, make_folder, write_json
from .meter import Meter, merge
from .registry import Registry, plugins_in_use
from .spec import RunSpec, digest_of, make_method, make_suite, stage_options

if TYPE_CHECKING:
    from .contracts import Judge, Labeller, Policy, Suite
    from .lab import Lab, Supplies
    from .stages import Stages, Workshop

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How a run is carried out; none of it changes a result."""

    results: Path
    checkpoint_every: float = 20.0  # seconds between checkpoints
    threads: int = 0  # 0: chosen by the size of the model
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
    with lock(folder, f"The run {spec.suite_name}/{spec.method}", wait=False):
        done = store.read_result(folder)
        if done is not None:
            return Outcome(folder, done, reused=True)
        _forget_failure(folder, settings.warn)
        store.write_spec(folder, spec)
        observe = Observers(registry, spec, settings.warn)
        observe("run_started", folder=folder)
        try:
            result = _carry_out(spec, registry, settings, folder, observe)
        except (Diverged, MemoryError) as error:
            _record_failure(folder, spec, error)
            raise
        observe("run_finished", folder=folder, result=result)
    return Outcome(folder, result, reused=False)


def _carry_out(
    spec: RunSpec, registry: Registry, settings: Settings, folder: Path, observe: Observers
) -> dict[str, Any]:
    started = time.perf_counter()
    shop = open_workshop(spec, registry, settings, observe)
    method = make_method(spec, registry)
    meter = _new_meter(shop)
    supplies, shared = prepare(spec, registry, shop, method)
    policy, lab, loop = train(spec, registry, shop, method, supplies, meter, folder)
    for name in loop.checkpoints.damaged:
        settings.warn(f"The checkpoint {name} was damaged; the one before it was used.")
    if loop.rows and loop.checkpoints.folder.exists():
        loop.save()  # training is over: a kill during evaluation need not repeat it
    kept = loop.snapshots.kept() if loop.snapshots else {}
    evaluation = _new_meter(shop)
    figures, samples, ground, artifacts = assess(spec, registry, shop, policy, evaluation, kept)
    result = {
        "schema": store.SCHEMA, "status": "finished", "method": spec.method, "suite": spec.suite_name,
        "seed": spec.seed, "recipe": spec.recipe(), "paper": type(method).paper, "options": dict(spec.options),
        "evaluation": figures, "ground": ground, "artifacts": artifacts,
        "cost": _costs(meter, evaluation, shared, loop, started),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    _write(folder, spec, registry, result, loop.rows, samples, policy, supplies, _runtime(supplies, shop))
    return result


# -- the three acts ----------------------------------------------------------------------------------------------------
# Suite and judge live in the first and the last only. While a method trains, neither exists in any frame or object
# that it could reach.


def prepare(spec: RunSpec, registry: Registry, shop: Workshop, method: Method) -> tuple[Supplies, dict[str, Any]]:
    """Make what the method needs; return it with the cost of each shared stage behind it."""
    from .lab import Supplies
    from .rewards import RewardModel
    from .stages.preferences import read_pairs

    stages = open_stages(spec, registry, shop)
    needs = method.required()
    check_needs(needs, stages, spec)
    supplies = Supplies(start=stages.start, tokens=stages.tokens)
    used = [stages.start_artifact]
    if "prompts" in needs:
        supplies.prompts = stages.suite.prompts("train")
    if "demonstrations" in needs:
        supplies.demonstrations = stages.suite.demonstrations()
    if "verifier" in needs:
        supplies.verifier = stages.suite.verifier()
    if "pairs" in needs or "reward" in needs:
        used.append(stages.preferences)
        supplies.labels = stages.preferences.info["labels"]
    if "pairs" in needs:
        supplies.pairs = read_pairs(stages.preferences.folder)
    if "reward" in needs:
        members = [stages.reward_artifact(m) for m in range(getattr(method, "reward_members", 1))]
        used += members
        supplies.rewards = partial(_load_rewards, [m.folder for m in members], stages.start, RewardModel.load)
    return supplies, {a.kind: {"cost": a.cost, "reused": a.reused} for a in used}


def train(
    spec: RunSpec, registry: Registry, shop: Workshop, method: Method, supplies: Supplies, meter: Meter, folder: Path
) -> tuple[Policy, Lab, Any]:
    """Call the method at its bench."""
    from .contracts import AdamWOptions
    from .lab import Bench, Lab
    from .loop import Checkpoints, Loop, Snapshots
    from .training import Trainer

    sampling, eos = shop.sampling, shop.eos
    bench = Bench(shop.engine_cls(eos), sampling, eos, spec.seed, meter, shop.micro_batch_tokens, shop.device)
    options = method if isinstance(method, AdamWOptions) else AdamWOptions()
    trainer = Trainer(options, shop.accelerator, meter, shop.micro_batch_tokens)
    progress = shop.progress
    loop = Loop(
        trainer, Checkpoints(folder / "checkpoint", shop.checkpoint_every), meter,
        lambda step, total, row: progress(spec.method, step, total, row), spec.budget,
        Snapshots(folder / "snapshots", spec.snapshots) if spec.snapshots else None,
    )  # fmt: skip
    lab = Lab(method, supplies, bench, loop)
    try:
        policy = method.train(lab)
    except ValueError as error:
        raise HarnessError(f"The method {spec.method} failed: {error}.") from error
    if not hasattr(policy, "answer"):
        raise HarnessError(f"The method {spec.method} returned {type(policy).__name__}, not a Policy: end `train` with "
                           f"`return lab.policy`.")  # fmt: skip
    return policy, lab, loop


def assess(
    spec: RunSpec, registry: Registry, shop: Workshop, policy: Policy, meter: Meter, snapshots: Mapping[int, Path]
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, str], dict[str, Any]]:
    """Evaluate; return figures, samples, the hashes that make runs comparable, and what the stages report."""
    from .evaluation import evaluate, evaluate_snapshots

    stages = open_stages(spec, registry, shop)
    options = stage_options(spec, "evaluation")
    figures, samples = evaluate(policy, stages, options, spec.seed, meter)
    if snapshots:
        figures["curve"] = evaluate_snapshots(snapshots, stages, options, spec.seed)
    if not all(_finite(sample["kl"]) and _finite(sample["gold"]) for sample in samples):
        raise Diverged("The evaluation found a KL or score that is not finite.")
    return figures, samples, _ground(spec, stages), {name: dict(a.info) for name, a in stages.used.items()}


# -- building blocks -----------------------------------------------------------------------------------------------


def open_workshop(spec: RunSpec, registry: Registry, settings: Settings, observe: Observers) -> Workshop:
    """Import what is heavy, choose device and threads, and return what stages are made with."""
    import torch
    from accelerate import Accelerator

    from .artifacts import Artifacts
    from .stages import Workshop

    device = _device(spec.device)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if spec.dtype == "bfloat16" else "no")
    if accelerator.num_processes > 1:
        raise Refused("This version trains in one process. Start it without `accelerate launch`.")
    if device == "cpu":
        torch.set_num_threads(settings.threads or 1)
    _quiet_libraries()

    def progress(phase: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        observe("step_logged", phase=phase, step=step, total=total, metrics=metrics)

    shop = Workshop(
        Artifacts(settings.results / "artifacts"), registry.get("engines", spec.engine), accelerator,
        torch.device(device), progress, settings.checkpoint_every, spec.micro_batch_tokens,
    )  # fmt: skip
    return shop


def open_stages(spec: RunSpec, registry: Registry, shop: Workshop) -> Stages:
    """Return the stages of a spec, with a suite, judge and labeller of their own."""
    from .data import Sampling
    from .stages import Stages

    suite = make_suite(spec, registry)
    judge: Judge = registry.get("judges", spec.judge or suite.judge_name)()
    labeller: Labeller | None = None
    labeller_name = spec.labeller or suite.labeller_name
    if labeller_name:
        labeller = registry.get("labellers", labeller_name)()
        judge.prepare(suite, None)
        labeller.prepare(suite, judge)
    stages = Stages(spec, suite, judge, labeller, shop)
    shop.sampling = Sampling(suite.temperature, suite.max_new_tokens)
    shop.eos = stages.eos
    return stages


def check_needs(needs: frozenset[str], stages: Stages, spec: RunSpec) -> None:
    """Refuse a method whose needs the suite cannot meet, before anything is trained."""
    suite: Suite = stages.suite
    can_prefer = stages.labeller is not None or suite.preferences() is not None
    can = {
        "prompts": bool(suite.prompts("train")), "demonstrations": bool(suite.demonstrations()), "pairs": can_prefer,
        "reward": can_prefer, "verifier": suite.verifier() is not None,
    }  # fmt: skip
    missing = sorted(need for need in needs if not can.get(need, False))
    if missing:
        raise Refused(
            f"The method {spec.method} needs {' and '.join(missing)}, which the suite {spec.suite_name} cannot give. "
            f"It gives: {', '.join(sorted(need for need, given in can.items() if given))}. Nothing was trained."
        )


class Observers:
    """Calls the life-cycle hooks of every plugin; what one of them raises is told once and stops nothing."""

    def __init__(self, registry: Registry, spec: RunSpec, warn: Warn) -> None:
        self._hooks, self._spec, self._warn = registry.manager.hook, spec, warn
        self._failed: set[str] = set()

    def __call__(self, name: str, **arguments: Any) -> None:
        arguments["spec"] = self._spec
        for impl in getattr(self._hooks, name).get_hookimpls():
            try:
                impl.function(**{key: arguments[key] for key in impl.argnames})
            except Exception as error:  # a stranger's observer must not cost a run
                if impl.plugin_name not in self._failed:
                    self._warn(f"The observer {name} of {impl.plugin_name} failed: {type(error).__name__}: {error}")
                self._failed.add(impl.plugin_name)


def _new_meter(shop: Workshop) -> Meter:
    import torch

    if shop.device.type != "cuda":
        return Meter()

    def peak(reset: bool) -> int:
        value = int(torch.cuda.max_memory_allocated())
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return value

    return Meter(peak)


def _load_rewards(folders: list[Path], start: Any, load: Callable[[Path, Any], Any]) -> list[Any]:
    device = next(start.parameters()).device
    models = [load(folder, start) for folder in folders]
    for model in models:
        model.model.to(device)
    return models


def _ground(spec: RunSpec, stages: Stages) -> dict[str, str]:
    """Return the hashes of what compared runs must share, by content."""
    suite, options = stages.suite, stage_options(spec, "evaluation")
    prompts = suite.prompts(options.split)[: options.prompts]
    return {
        "start_checkpoint": stages.start_artifact.content[:16],
        "preferences": stages.preferences.content[:16],
        "reward_model": stages.reward_artifact(0).content[:16],
        "train_prompts": digest_of([asdict(p) for p in suite.prompts("train")])[:16],
        "evaluation_prompts": digest_of([asdict(p) for p in prompts])[:16],
        "judge": f"{stages.judge.name}/{stages.judge.version}",
        "sampling": f"T={suite.temperature} max={suite.max_new_tokens}",
    }


def _costs(meter: Meter, evaluation: Meter, shared: dict[str, Any], loop: Any, started: float) -> dict[str, Any]:
    """Return the method's own cost, each shared stage's as if made for it alone, and what this process really spent."""
    from .loop import OWN_PHASES, SHARED_PHASES

    snapshot = meter.snapshot()
    stages = {name: entry["cost"] for name, entry in shared.items()}
    spent = time.perf_counter() - started
    return {
        "method": asdict(meter.total(OWN_PHASES)), "models": snapshot["models"],
        "phases": snapshot["phases"] | evaluation.snapshot()["phases"], "evaluation": asdict(evaluation.total()),
        "shared": {name: _sum(cost, SHARED_PHASES) for name, cost in stages.items()},
        "labels": sum(_sum(cost, SHARED_PHASES)["labels"] for cost in stages.values()),
        "budget_used": loop.used(), "reused_stages": sorted(name for name, entry in shared.items() if entry["reused"]),
        "spent_seconds": spent, "shared_total": _sum(merge(stages), SHARED_PHASES),
    }  # fmt: skip


def _sum(snapshot: Mapping[str, Any], phases: tuple[str, ...]) -> dict[str, Any]:
    meter = Meter()
    meter.restore(snapshot)
    return asdict(meter.total(phases))


def _write(
    folder: Path,
    spec: RunSpec,
    registry: Registry,
    result: dict[str, Any],
    rows: list[dict[str, float]],
    samples: list[dict[str, Any]],
    policy: Policy,
    supplies: Supplies,
    runtime: dict[str, Any],
) -> None:  # fmt: skip
    """Write the record; the result last, which is what makes the run finished."""
    from .models import save_causal

    made = store.provenance(plugins_in_use(registry)) | {
        "code": dict(spec.code),
        "seeds": _seeds(spec),
        "runtime": runtime,
    }
    write_json(folder / "provenance.json", made)
    store.write_rows(folder / "metrics.jsonl", list(rows))
    store.write_rows(folder / "samples.jsonl", samples)
    if policy.model is not None and policy.kl_estimator is None:
        save_causal(policy.model, supplies.tokens.tokenizer, folder / "policy")
    write_json(folder / store.RESULT, result)
    for spent in ("checkpoint", "snapshots"):
        shutil.rmtree(folder / spent, ignore_errors=True)


def _seeds(spec: RunSpec) -> dict[str, Any]:
    """Return the seeds, and what each of them varies."""
    return {
        "seed": spec.seed,
        "seed_varies": "order of prompts and pairs, rollouts, minibatches, a critic's head, the evaluated answers",
        "shared_seed": spec.shared_seed,
        "shared_seed_varies": "suite data and splits, SFT, sampled preferences and labels, reward models, SFT's answers",
    }


def _runtime(supplies: Supplies, shop: Workshop) -> dict[str, Any]:
    """Return how the machine was used."""
    import torch

    from .models import trunk_of

    sharing = bool(getattr(trunk_of(supplies.start), "share_prompt", False))
    return {"device": str(shop.device), "threads": torch.get_num_threads(), "prompt_computed_once": sharing}


def _record_failure(folder: Path, spec: RunSpec, error: BaseException) -> None:
    status = "diverged" if isinstance(error, Diverged) else "out of memory"
    write_json(folder / store.FAILURE, {
        "schema": store.SCHEMA, "status": status, "failure": str(error) or status, "method": spec.method,
        "suite": spec.suite_name, "seed": spec.seed, "recipe": spec.recipe(), "options": dict(spec.options),
    })  # fmt: skip


def _forget_failure(folder: Path, warn: Warn) -> None:
    """Start a failed run anew: its checkpoint led to the failure."""
    if (folder / store.FAILURE).exists():
        warn("This run failed before; it starts anew.")
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        (folder / store.FAILURE).unlink()


def _device(asked: str) -> str:
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
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


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
