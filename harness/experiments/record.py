"""The record of a run: figures, costs and the hashes that make runs comparable, or the failure."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.registry import Registry, plugins_in_use
from ..core import run_folder
from ..core.digests import digest_of, file_digest
from ..core.execution import EVALUATION, TRAINING
from ..core.fixed_answers import fixed_answers
from ..core.global_state import Reported
from ..core.meter import OWN_PHASES, SHARED_PHASES, Meter, merge, start_peak_anew
from ..core.model_folder import adapter_in, model_record
from ..core.progress import current
from ..core.records import write_sealed
from ..core.settings import EvaluationOptions
from ..core.spec import RunSpec, stage_options

if TYPE_CHECKING:
    from ..api.contracts import Policy, Suite
    from ..core.artifacts import Artifact
    from ..training.lab import MethodInputs
    from ..training.loop import Loop
    from ..training.stages.runtime import StageRuntime
    from ..training.stages.stages import Stages


REWARD_FIGURES = ("weights", "mean", "scale")  # of a reward model of the hub


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation: figures, samples, comparability hashes and the stages used."""

    figures: Mapping[str, Any]
    samples: list[dict[str, Any]]
    ground: Mapping[str, str]
    stages: Mapping[str, Artifact]
    judging: Mapping[str, float] = field(default_factory=dict)  # counts of the judge
    tasks: Sequence[dict[str, Any]] = ()  # outcomes in tasks of lm-evaluation-harness


@dataclass(frozen=True)
class CostReport:
    """What a run cost: by meters, by shared stages, and in this process."""

    method: Meter
    evaluation: Meter
    answering: Mapping[str, Mapping[str, int]]  # models held while the policy answered
    shared: Mapping[str, Artifact]
    budget_used: Mapping[str, float]
    # of the limited quantities; below 0 if the last turn exceeded the budget
    budget_left: Mapping[str, float]
    policy: Artifact | None = None  # the trained policy, if something was trained


def result_of(
    spec: RunSpec, paper: str, assessed: EvaluationResult, report: CostReport
) -> dict[str, Any]:
    """Return the result of a finished run."""
    stages = {**report.shared, **assessed.stages}
    artifacts = {name: {**a.info, "content": a.content} for name, a in stages.items()}
    return run_folder.heading(spec, "finished") | {
        "paper": paper,
        "model": model_of(spec),
        **_reward_model_of(spec, stages),
        "evaluation": assessed.figures,
        "ground": assessed.ground,
        "artifacts": artifacts,
        "cost": costs(report) | ({"judge": dict(assessed.judging)} if assessed.judging else {}),
    }


def _reward_model_of(spec: RunSpec, stages: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return the reward model that a run named, with its normalisation; nothing without one."""
    if spec.reward_model is None:
        return {}
    info = stages["hub_reward"].info
    return {"reward_model": {"name": spec.reward_model, **{k: info[k] for k in REWARD_FIGURES}}}


def model_of(spec: RunSpec) -> dict[str, Any]:
    """Return the model that the run started from: its digest, and the base of an adapter."""
    if spec.model is not None and adapter_in(spec.model) is not None:
        return model_record(spec.model)
    return {"name": spec.model or "embedded", "digest": spec.code.get("base", "")}


def execution_of(loop: Loop, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the execution settings of training and evaluation; `pins` hold those of artifacts.
    Training has several settings if it was resumed with others.
    """
    return {TRAINING: list(loop.executions), EVALUATION: dict(evaluation)}


def pins_of(report: CostReport, assessed: EvaluationResult, loop: Loop) -> dict[str, Any]:
    """Return {folder name: pin} of every artifact that a run depends on, its policy included."""
    used = {**report.shared, **assessed.stages, "policy": report.policy}
    pins = {a.folder.name: a.pin() for a in used.values() if a is not None}
    return dict(sorted({**loop.pins, **pins}.items()))


def ground_of(spec: RunSpec, stages: Stages) -> dict[str, str]:
    """Return the hashes of all that comparable runs must share, by content."""
    suite, options = stages.suite, stage_options(spec, "evaluation")
    prompts = suite.prompts(options.split)[: options.prompts]
    ground = {
        "start_checkpoint": stages.start_artifact.content[:16],
        "train_prompts": digest_of([asdict(p) for p in suite.prompts("train")])[:16],
        "evaluation_prompts": digest_of([asdict(p) for p in prompts])[:16],
        "judge": _judge_of(spec, stages),
        "suite_options": digest_of({k: v for k, v in spec.suite_options.items() if k != "folder"})[
            :16
        ],
        "sampling": _sampling_of(spec, suite, options),
        "baseline_answers": _baseline_of(spec, stages),
    }
    if spec.reference:
        ground["reference"] = stages.reference_content[:16]
    if "judge_model" in stages.used:
        ground["judge_model"] = stages.used["judge_model"].content[:16]
    if stages.has_proxy() and spec.reward_model is None:
        ground["preferences"] = stages.preferences.content[:16]
        ground["reward_model"] = stages.reward_artifact(0).content[:16]
    return ground


def _judge_of(spec: RunSpec, stages: Stages) -> str:
    """Return the identity of the judge: name, version, code, and options with the models behind
    them.
    """
    judge, data = stages.judge, spec.code.get("judge_data", "")
    named = f"{judge.name}/{judge.version}/{spec.code['judge'][:8]}"
    return f"{named}/{digest_of([judge.identity(), data])[:8]}" if judge.identity() else named


def _sampling_of(spec: RunSpec, suite: Suite, options: EvaluationOptions) -> str:
    changed = {
        name: value
        for name in ("greedy", "temperature", "top_p", "max_new_tokens", "stop")
        if (value := getattr(options, name)) != getattr(EvaluationOptions(), name)
    }
    more = "".join(f" {name}={value}" for name, value in changed.items())
    return (
        f"T={suite.temperature} max={suite.max_new_tokens} engine={_engine_of(spec)}"
        f" dtype={spec.dtype} weights={spec.weights}{more}"
    )


def _engine_of(spec: RunSpec) -> str:
    """Return the name of the engine with the options that decide its draws."""
    options = ",".join(f"{name}={value}" for name, value in sorted(spec.engine_options.items()))
    return f"{spec.engine}({options})" if options else spec.engine


def _baseline_of(spec: RunSpec, stages: Stages) -> str:
    """Return the digest of the baseline's answers: drawn ones, or fixed ones."""
    options = stage_options(spec, "evaluation")
    if not options.against:
        return stages.used["baseline_answers"].content[:16]
    prompts = stages.suite.prompts(options.split)[: options.prompts]
    return digest_of(fixed_answers(options.against, stages.suite, prompts, options.split))[:16]


def costs(report: CostReport) -> dict[str, Any]:
    """Return the cost of the method itself, that of each shared stage as if made for this run
    alone, and the actual cost of this process.
    """
    snapshot, own, answering = (
        report.method.snapshot(),
        report.method.total(OWN_PHASES),
        report.evaluation,
    )
    by_stage = {name: _total(a.cost) for name, a in report.shared.items()}
    return {
        "method": asdict(own),
        "models": {**report.answering, **snapshot["models"]},
        "phases": snapshot["phases"] | answering.snapshot()["phases"],
        "evaluation": asdict(answering.total()),
        "shared": by_stage,
        "shared_total": _total(merge({name: a.cost for name, a in report.shared.items()})),
        "labels": own.labels + sum(cost["labels"] for cost in by_stage.values()),
        "ai_labels": own.ai_labels + sum(cost["ai_labels"] for cost in by_stage.values()),
        "budget_used": dict(report.budget_used),
        "budget_left": dict(report.budget_left),
        "reused_stages": sorted(
            name for name, a in {**report.shared, "policy": report.policy}.items() if a and a.reused
        ),
    }


def write(
    folder: Path,
    spec: RunSpec,
    registry: Registry,
    result: Mapping[str, Any],
    rows: list[dict[str, float]],
    assessed: EvaluationResult,
) -> dict[str, str]:
    """Write metrics, samples and provenance; return the digests of the rows for later readers."""
    artifacts = {name: artifact["content"] for name, artifact in result["artifacts"].items()}
    provenance = run_folder.provenance(plugins_in_use(registry)) | {
        "code": dict(spec.code),
        "seeds": seeds_of(spec),
    }
    write_sealed(
        folder / run_folder.PROVENANCE,
        provenance | {"ground": result["ground"], "artifacts": artifacts},
    )
    written: dict[str, list[dict[str, Any]]] = {
        run_folder.METRICS: list(rows),
        run_folder.SAMPLES: assessed.samples,
    }
    if assessed.tasks:
        written[run_folder.TASKS] = list(assessed.tasks)
    digests = {name: run_folder.write_rows(folder / name, lines) for name, lines in written.items()}
    rollouts = folder / run_folder.ROLLOUTS
    return digests | ({rollouts.name: file_digest(rollouts)} if rollouts.exists() else {})


def finish(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the result; with this file the run counts as finished. The wall time is the last
    figure, so it includes the writing of all other files.
    """
    result["cost"].update(wall_time())
    write_sealed(folder / run_folder.RESULT, result)


def clear(folder: Path) -> None:
    """Remove the files that only an unfinished run needs, or a run whose policy is not
    saved yet.
    """
    for spent in ("checkpoint", "snapshots"):
        shutil.rmtree(folder / spent, ignore_errors=True)
    (folder / run_folder.TRACEBACK).unlink(missing_ok=True)


def wall_time() -> dict[str, Any]:
    """Return the wall seconds of this process by part, of each stage it made, and their sum."""
    clock = current()
    if clock is None:
        return {}
    seconds = clock.seconds()
    return {
        "wall": seconds,
        "stages_made": dict(clock.artifact_seconds),
        "spent_seconds": sum(seconds.values()),
    }


def write_failure(folder: Path, spec: RunSpec, status: str, message: str) -> None:
    """Write the record of a failed run."""
    write_sealed(
        folder / run_folder.FAILURE, run_folder.heading(spec, status) | {"failure": message}
    )


def forget_failure(folder: Path) -> bool:
    """Remove the record of a failure; return whether there was one.

    A run that diverged starts anew.
    """
    failed = run_folder.read_failure(folder)
    if failed is None:
        return False
    if failed.get("status") == "diverged":
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    (folder / run_folder.FAILURE).unlink()
    return True


def seeds_of(spec: RunSpec) -> dict[str, Any]:
    """Return the seeds, and what each of them varies."""
    return {
        "seed": spec.seed,
        "seed_varies": "order of prompts and pairs, rollouts, minibatches, the evaluated answers",
        "shared_seed": spec.shared_seed,
        "shared_seed_varies": (
            "suite data and splits, SFT, preferences and labels, reward models, the baseline's"
            " answers"
        ),
    }


def gap_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Return how far the engine's log-probabilities were from the policy's at the same weights, in
    nats per token: the mean and the largest mean of a turn; None where the policy drew nothing.
    """
    gaps = [row["sampler_gap"] for row in rows if "sampler_gap" in row]
    return {"mean": sum(gaps) / len(gaps), "largest": max(gaps)} if gaps else None


def runtime_of(
    method_inputs: MethodInputs,
    stage_runtime: StageRuntime,
    policy: Policy,
    rows: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Return how the machine was used, and what an adapter of the policy changes."""
    import torch

    from ..models.loading import trunk_of
    from ..models.lora_weights import adaptation

    trunk = trunk_of(method_inputs.start.outline)
    how = adaptation(policy.model) if policy.model is not None else None
    return {
        "device": str(stage_runtime.device),
        "processes": stage_runtime.distributed.size,
        "threads": torch.get_num_threads(),
        "peak_memory_by_phase": stage_runtime.device.type == "cuda" or start_peak_anew(),
        "prompt_computed_once": bool(getattr(trunk, "share_prompt", False)),
        "prompt_cached_once": bool(getattr(trunk, "share_cache", False)),
        "cache_kept": bool(getattr(trunk, "keeps_cache", True)),
        "head_in_parts": bool(getattr(trunk, "plain_head", False)),
        "last_layer_where_read": getattr(trunk, "last_parts", None) is not None,
        "reuse": method_inputs.reference_cache.report() if method_inputs.reference_cache else {},
        "bfloat16_nats_per_token": getattr(trunk, "rounding", 0.0),
        "checkpoints": vars(stage_runtime.save_costs),
        "rollouts_checked": vars(stage_runtime.check) if stage_runtime.check else None,
        "adapter": asdict(how) if how else None,
        "engine": stage_runtime.engine_record(),
        "sampler_gap": gap_of(rows),
        "put_back": {plugin: list(names) for plugin, names in Reported.settings.items()},
    }


def _total(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    meter = Meter()
    meter.restore(snapshot)
    return asdict(meter.total(SHARED_PHASES))
