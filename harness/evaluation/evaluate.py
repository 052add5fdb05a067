"""Evaluation, in two parts: the policy answers while there is no judge; the answers are scored when
it is gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..api.contracts import Judge, Method, Policy
from ..core.data import Prompt, prompt_text
from ..core.digests import digest_of
from ..core.errors import Diverged, HarnessError, Refused
from ..core.global_state import put_back
from ..core.meter import Cost, Meter
from ..core.progress import EVALUATION, STAGES, activity
from ..core.settings import EvaluationOptions
from ..core.spec import RunSpec
from ..core.watchdog import waiting_for
from ..models.generation import Sampler
from ..models.initial_checkpoint import learner
from ..models.loading import load_tensors, save_tensors
from ..models.lora import load_own
from ..models.tokens import Batch, Tokens
from ..statistics.over_prompts import PromptEstimate, mean_interval, win_rate, win_scores
from ..statistics.pass_at_k import pass_estimates
from ..training.checkpoints import read_snapshot
from ..training.completion_cache import CompletionPool
from ..training.lab import LanguageModel, Runtime
from ..training.reward_model import RewardModel
from ..training.rewards import batch_verdicts
from ..training.stages.runtime import StageRuntime
from ..training.stages.stages import Stages
from .kl import sampled_kl

RAO_BLACKWELL = "rao-blackwell"


@dataclass
class PolicyAnswers:
    """A policy's answers to the evaluation prompts, not yet scored."""

    prompts: list[Prompt]
    batch: Batch  # (B, 1, T)
    policy: Policy
    cost: Cost  # of answering
    models: dict[str, dict[str, int]]  # held while answering
    more: list[Batch] = field(default_factory=list)  # further answers, for pass@k alone


@dataclass
class Answers:
    """Answers of one policy to the evaluation prompts, with what they are worth."""

    batch: Batch  # (B, 1, T)
    texts: list[str]
    gold: list[float]
    proxy: list[float] | None  # None where nothing can be learned: no preferences
    verdicts: list[float] | None  # None where answers cannot be checked
    parts: dict[str, list[float]]  # verdicts of each of several verifiers, by label


def draw_answers(
    policy: Policy,
    tokens: Tokens,
    prompts: list[Prompt],
    stage_runtime: StageRuntime,
    spec: RunSpec,
    meter: Meter,
    pool: CompletionPool | None = None,
    more: int = 0,
) -> PolicyAnswers:
    """Have a policy answer, and count what that costs apart from the rest of the evaluation.

    `more` is the number of further answers to each prompt, which only the verifier sees.
    """
    apart = stage_runtime.meter()
    sampler = _sampler(
        stage_runtime.runtime(apart, spec.seed), spec.shared_seed, "policy", spec.seed
    )
    sampler.pool = pool
    bare = [
        replace(prompt, answer=None) for prompt in prompts
    ]  # what a verifier compares with is not shown
    posed = tokens.prompt_batch(bare, stage_runtime.device)
    with apart.phase("evaluate"), activity(EVALUATION, "evaluation: answers"):
        batch = _answered(policy, posed, sampler, prompts)
    cost = apart.total()
    meter.phases.setdefault("evaluate", Cost()).add(cost)
    further = []
    for number in range(1, more + 1):
        sampler = _sampler(
            *(stage_runtime.runtime(meter, spec.seed), spec.shared_seed, "policy", spec.seed),
            number,
        )
        with meter.phase("evaluate"), activity(EVALUATION, f"evaluation: answers {number + 1}"):
            further.append(_answered(policy, posed, sampler, prompts))
    return PolicyAnswers(prompts, batch, policy, cost, dict(apart.models), further)


def _answered(policy: Policy, posed: Any, sampler: Sampler, prompts: list[Prompt]) -> Batch:
    """Return a policy's answers (B, 1, T), with the prompts as the verifier reads them."""
    with put_back("The policy of the method"):
        batch = policy.answer(posed, sampler)
    if batch.shape[1] != 1 or batch.shape[0] != len(prompts):
        raise HarnessError(
            f"a policy's answers have shape ({len(prompts)}, 1, T), not {batch.shape}"
        )
    return Batch(replace(batch.prompts, prompts=prompts), batch.columns, batch.temperature)


def evaluate(
    drawn: PolicyAnswers, stages: Stages, options: EvaluationOptions, meter: Meter
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (figures, samples) of a policy's answers."""
    prompts, cost = drawn.prompts, drawn.cost
    judge = f"The judge {stages.judge.name}"
    with activity(EVALUATION, "evaluation: preparing the judge"), put_back(judge):
        stages.judge.prepare(stages.suite, stages)
    runtime = stages.stage_runtime.runtime(meter, stages.spec.seed)
    with meter.phase("evaluate"):
        batches = [baseline_answers(stages, prompts), drawn.batch]
    reference, answers = _scored(batches, stages, runtime)
    passes = _passes(answers, drawn.more, stages, meter)
    kl = _kl(drawn.policy, answers.batch, stages, runtime)
    with meter.phase("evaluate"):
        _check_finite(answers, kl)
        figures = _figures(answers, reference, kl, drawn.policy, stages, options)
    figures["inference"] = {
        "flops_per_answer": cost.flops / len(prompts),
        "tokens_per_answer": cost.tokens_generated / len(prompts),
        "reward_queries_per_answer": cost.reward_queries / len(prompts),
    }
    samples = _samples(prompts, reference, answers, kl)
    if passes:
        figures["pass_at_k"] = {
            str(k): asdict(estimate) for k, estimate in pass_estimates(passes).items()
        }
        samples = [{**s, "passes": row} for s, row in zip(samples, passes, strict=True)]
    return figures, samples


def _passes(
    answers: Answers, more: list[Batch], stages: Stages, meter: Meter
) -> list[list[float | None]]:
    """Return the verdicts of all answers to each prompt; empty where only one was drawn."""
    verifier = stages.suite.make_verifier()
    if not more or verifier is None or answers.verdicts is None:
        return []
    columns = [answers.verdicts]
    with meter.phase("evaluate"):
        for batch in more:
            values, _ = batch_verdicts(verifier, batch, batch["ended"], stages.tokens, meter)
            columns.append(values[:, 0].tolist())
    return [[_or_none(value) for value in row] for row in zip(*columns, strict=True)]


def evaluate_snapshots(
    snapshots: Mapping[int, Path],
    method: Method,
    stages: Stages,
    options: EvaluationOptions,
    spec: RunSpec,
) -> list[dict[str, float]]:
    """Return the main figures of each policy kept along training: how gold and proxy moved as KL
    grew.
    """
    model, meter = learner(stages.checkpoint, method, spec.seed), stages.stage_runtime.meter()
    policy = LanguageModel(
        model, "policy", "evaluate", stages.stage_runtime.runtime(meter, spec.seed)
    )
    prompts = stages.suite.prompts(options.split)[: options.prompts]
    curve = []
    for step, file in snapshots.items():
        tensors, used = read_snapshot(file)
        load_own(model, tensors)
        drawn = draw_answers(policy, stages.tokens, prompts, stages.stage_runtime, spec, meter)
        figures, _ = evaluate(drawn, stages, options, meter)
        names = ("win_rate", "gold", "proxy", "kl", "length")
        means = {name: figures[name]["mean"] for name in names if name in figures}
        curve.append(
            {"step": float(step)}
            | means
            | {name: used[name] for name in ("samples", "tokens", "flops")}
        )
    return curve


def baseline_answers(stages: Stages, prompts: Sequence[Prompt]) -> Batch:
    """Return the start checkpoint's answers: drawn once, an artifact, the same for every method and
    seed.
    """

    def make(out: Path, _: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        meter = stages.stage_runtime.meter()
        sampler = _sampler(
            stages.stage_runtime.runtime(meter, 0), stages.spec.shared_seed, "reference"
        )
        start = stages.start
        with activity(STAGES, "evaluation: baseline answers"):
            batch = sampler.draw(start, _batch(stages, prompts))
        save_tensors(
            {name: batch[name] for name in ("completion_ids", "mask", "logp", "ended")},
            out / "a.safetensors",
        )
        return {"answers": len(prompts)}, meter.snapshot()

    artifact = stages.baseline_answers(digest_of([asdict(p) for p in prompts]), make)
    columns = load_tensors(artifact.folder / "a.safetensors", stages.stage_runtime.device)
    return Batch(_batch(stages, prompts), columns, stages.suite.temperature)


def _sampler(runtime: Runtime, *purpose: object) -> Sampler:
    sampler = Sampler(
        runtime.engine,
        runtime.sampling,
        runtime.meter,
        runtime.eos,
        ("evaluation", *purpose),
        runtime.distributed,
    )
    sampler.phase = "evaluate"
    return sampler


def _check_finite(answers: Answers, kl: Mapping[str, Any]) -> None:
    for name, values in (
        ("KL", kl["kl"]),
        ("gold score", answers.gold),
        ("proxy score", answers.proxy or []),
    ):
        if not all(math.isfinite(value) for value in values):
            raise Diverged(f"The evaluation found a {name} that is not finite.")


def _batch(stages: Stages, prompts: Sequence[Prompt]) -> Any:
    return stages.tokens.prompt_batch(prompts, stages.stage_runtime.device)


def _scored(batches: Sequence[Batch], stages: Stages, runtime: Runtime) -> list[Answers]:
    """Return what answers are worth; the proxy is in memory for as long as this takes."""
    proxy = stages.load_reward(stages.reward_artifact(0)) if stages.has_proxy() else None
    with runtime.meter.phase("evaluate"):
        return [_score(batch, stages, stages.judge, proxy, runtime) for batch in batches]


def _score(
    batch: Batch, stages: Stages, judge: Judge, proxy: RewardModel | None, runtime: Runtime
) -> Answers:
    texts = [row[0] for row in stages.tokens.texts(batch)]
    ended = batch["ended"]
    with (
        waiting_for(f"the judge {judge.name}"),
        activity(EVALUATION, "evaluation: judge"),
        put_back(f"The judge {judge.name}"),
    ):
        gold = judge.score_sampled(batch.prompts.prompts, texts, ended[:, 0].tolist())
    with activity(EVALUATION, "evaluation: proxy reward"):
        scores = proxy.score(batch, runtime)[:, 0].tolist() if proxy else None
    verifier = stages.suite.make_verifier()
    if verifier is None:
        return Answers(batch, texts, gold, scores, None, {})
    with activity(EVALUATION, "evaluation: verifier"):
        checked, parts = batch_verdicts(verifier, batch, ended, stages.tokens, runtime.meter)
    columns = {label: part[:, 0].tolist() for label, part in parts.items()}
    return Answers(batch, texts, gold, scores, checked[:, 0].tolist(), columns)


def _kl(
    policy: Policy, batch: Batch, stages: Stages, runtime: Runtime
) -> dict[str, list[float] | str]:
    """Return KL estimates per prompt: the evaluator's own, or the policy's where it has no
    log-probabilities.
    """
    if policy.kl_estimator is not None and stages.spec.reference:
        raise Refused(
            f"--reference {stages.spec.reference}: {stages.spec.method} estimates its KL to the"
            " start checkpoint, and it has no log-probabilities to compare with another model."
            " Leave --reference out."
        )
    if policy.kl_estimator is not None:
        return {"estimator": policy.kl_estimator, "kl": batch["kl"].tolist()}
    assert policy.model is not None, "a policy has a model, or an estimator of its KL"
    reference = stages.reference  # in memory for as long as this takes
    with runtime.meter.phase("evaluate"), activity(EVALUATION, "evaluation: KL"):
        exact, plain = sampled_kl(policy.model, reference, batch, runtime)
    return {"estimator": RAO_BLACKWELL, "kl": exact.tolist(), "plain": plain.tolist()}


def _figures(
    answers: Answers,
    reference: Answers,
    kl: dict[str, Any],
    policy: Policy,
    stages: Stages,
    options: EvaluationOptions,
) -> dict[str, Any]:
    lengths = answers.batch.lengths[:, 0].tolist()
    figures: dict[str, Any] = {
        "prompts": len(answers.texts),
        "split": options.split,
        "temperature": stages.suite.temperature,
        "win_rate": asdict(win_rate(answers.gold, reference.gold)),
        "gold": asdict(mean_interval(answers.gold)),
        "kl": asdict(_non_negative(mean_interval(kl["kl"]))),
        "kl_estimator": kl["estimator"],
        "length": asdict(mean_interval(lengths)),
        "eos_rate": fmean(answers.batch["ended"][:, 0].float().tolist()),
        "distinct": len(set(answers.texts)) / len(answers.texts),
        "baseline_gold": fmean(reference.gold),
        "baseline_length": fmean(reference.batch.lengths[:, 0].tolist()),
    }
    for name in ("proxy", "verdicts"):
        ours, theirs = getattr(answers, name), getattr(reference, name)
        if ours is not None:
            label = {"verdicts": "accuracy"}.get(name, name)
            figures[label] = asdict(mean_interval(_known(ours)))
            figures[f"baseline_{label}"] = fmean(_known(theirs))
    if answers.parts:
        figures["verdicts"] = {
            label: asdict(mean_interval(_known(part)))
            | {"baseline": fmean(_known(reference.parts[label]))}
            for label, part in answers.parts.items()
            if _known(part) and _known(reference.parts[label])
        }
    if "plain" in kl:
        figures["kl_plain"] = asdict(mean_interval(kl["plain"]))
    bound = getattr(policy, "kl_bound", None)
    if bound is not None:
        figures["kl_bound"] = bound
    return figures | _rouge(answers, stages, options)


def _known(verdicts: Sequence[float]) -> list[float]:
    """Return the verdicts on completions that could be graded."""
    return [v for v in verdicts if not math.isnan(v)]


def _rouge(answers: Answers, stages: Stages, options: EvaluationOptions) -> dict[str, Any]:
    """Return ROUGE against the suite's references, where it has any."""
    references = stages.suite.references(options.split)
    if not references:
        return {}
    from .metrics import load

    told = [references[prompt.id] for prompt in answers.batch.prompts.prompts]
    return {"rouge": load("rouge").compute(predictions=answers.texts, references=told)}


def _samples(
    prompts: Sequence[Prompt], reference: Answers, answers: Answers, kl: dict[str, Any]
) -> list[dict[str, Any]]:
    wins = win_scores(answers.gold, reference.gold)
    lengths = answers.batch.lengths[:, 0].tolist()
    checked = answers.verdicts is not None
    verdicts = [_or_none(v) for v in answers.verdicts or []]
    return [
        {
            "prompt_id": prompt.id,
            "prompt": prompt_text(prompt.text),
            "baseline": reference.texts[i],
            "answer": answers.texts[i],
            "gold": answers.gold[i],
            "baseline_gold": reference.gold[i],
            "kl": kl["kl"][i],
            "win": wins[i],
            "length": lengths[i],
            "ended": bool(answers.batch["ended"][i, 0]),
            "proxy": answers.proxy and answers.proxy[i],
            "baseline_proxy": reference.proxy and reference.proxy[i],
            **({"accuracy": verdicts[i]} if checked else {}),
            **(
                {"verdicts": {label: _or_none(part[i]) for label, part in answers.parts.items()}}
                if answers.parts
                else {}
            ),
        }
        for i, prompt in enumerate(prompts)
    ]


def _or_none(verdict: float) -> float | None:
    """Return a verdict as JSON has it: null where the answer could not be graded."""
    return None if math.isnan(verdict) else verdict


def _non_negative(estimate: PromptEstimate) -> PromptEstimate:
    """Return a KL estimate whose interval does not claim negative values."""
    return PromptEstimate(estimate.mean, max(0.0, estimate.low), estimate.high, estimate.n)
