"""Evaluation, in two parts: the policy answers while there is no judge; the answers are scored when
it is gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..api.contracts import Method, Policy
from ..core.data import Prompt, prompt_text
from ..core.errors import Diverged, Refused
from ..core.fault_points import fault_point, fault_value
from ..core.global_state import put_back
from ..core.meter import Meter
from ..core.progress import EVALUATION, activity
from ..core.settings import EvaluationOptions
from ..core.spec import RunSpec
from ..models.batches import Batch
from ..models.initial_checkpoint import learner
from ..models.lora import load_own
from ..statistics.over_prompts import (
    PromptEstimate,
    known,
    known_interval,
    mean_interval,
    rate_interval,
)
from ..training.checkpoints import read_snapshot
from ..training.hub_reward import HubReward
from ..training.lab import LanguageModel, Runtime
from ..training.reward_model import RewardModel
from ..training.rewards import batch_verdicts
from ..training.stages.stages import Stages
from .answers import PolicyAnswers, baseline_of, draw_answers, read_by_judge, sampling_of
from .judging import Judged, judge_answers
from .kl import sampled_kl
from .several_answers import several_answers

VERDICTS = "verdicts"  # the folder of verdict logs below a results folder
RAO_BLACKWELL = "rao-blackwell"


@dataclass
class Answers:
    """Answers of one policy to the evaluation prompts, with what they are worth."""

    batch: Batch  # (B, 1, T)
    texts: list[str]
    proxy: list[float] | None  # None where nothing can be learned: no preferences
    verdicts: list[float] | None  # None where answers cannot be checked
    parts: dict[str, list[float]]  # verdicts of each of several verifiers, by label


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
        baseline = baseline_of(stages, prompts, options)
    sides = [(baseline.batch, baseline.texts), (drawn.batch, drawn.texts)]
    judged = _judged(stages, meter, prompts, sides)
    reference, answers = _scored(sides, stages, runtime)
    several = several_answers(answers.verdicts, [answers.batch, *drawn.more], stages, meter)
    kl = _kl(drawn.policy, drawn.for_kl or answers.batch, stages, runtime)
    with meter.phase("evaluate"):
        _check_finite(answers, judged, kl, stages.judge.name)
        figures = _figures(answers, reference, judged, kl, drawn.policy, stages, options)
    figures["inference"] = {
        "flops_per_answer": cost.flops / len(prompts),
        "tokens_per_answer": cost.tokens_generated / len(prompts),
        "reward_queries_per_answer": cost.reward_queries / len(prompts),
    }
    samples = _samples(prompts, reference, answers, judged, kl)
    fault_point("evaluation.judged")
    if several is not None:
        figures |= several.figures()
        samples = several.beside(samples)
    return figures, samples


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
        one = replace(options, answers=1)
        drawn = draw_answers(
            policy, stages.tokens, prompts, stages.stage_runtime, spec, meter, options=one
        )
        figures, _ = evaluate(drawn, stages, options, meter)
        names = ("win_rate", "gold", "proxy", "kl", "length")
        means = {name: figures[name]["mean"] for name in names if name in figures}
        curve.append(
            {"step": float(step)}
            | means
            | {name: used[name] for name in ("samples", "tokens", "flops")}
        )
    return curve


def _judged(
    stages: Stages,
    meter: Meter,
    prompts: Sequence[Prompt],
    sides: Sequence[tuple[Batch, list[str]]],
) -> Judged:
    """Judge the policy's answers against the baseline's; its cost is a phase of its own."""
    theirs, ours = (read_by_judge(*side) for side in sides)
    runtime = stages.stage_runtime
    with meter.phase("judge"):
        folder = runtime.artifacts.root.parent / VERDICTS
        judged = judge_answers(stages.judge, prompts, ours, theirs, folder, runtime.distributed)
        meter.add(flops=float(stages.judge.usage().get("flops", 0.0)))
    return judged


def _check_finite(answers: Answers, judged: Judged, kl: Mapping[str, Any], judge: str) -> None:
    for name, source, values in (
        ("KL", "", kl.get("kl", [])),
        ("gold score", f" of the judge {judge}", known(judged.gold or [])),
        ("proxy score", " of the reward model", answers.proxy or []),
    ):
        if not all(math.isfinite(value) for value in values):
            raise Diverged(f"The evaluation found a {name}{source} that is not finite.")


def _scored(
    sides: Sequence[tuple[Batch, list[str]]], stages: Stages, runtime: Runtime
) -> list[Answers]:
    """Return what answers are worth; the proxy is in memory for as long as this takes."""
    proxy = stages.load_proxy() if stages.has_proxy() else None
    with runtime.meter.phase("evaluate"):
        return [_score(*side, stages, proxy, runtime) for side in sides]


def _score(
    batch: Batch,
    texts: list[str],
    stages: Stages,
    proxy: RewardModel | HubReward | None,
    runtime: Runtime,
) -> Answers:
    ended = batch["ended"]
    with activity(EVALUATION, "evaluation: proxy reward"):
        scores = proxy.score(batch, runtime)[:, 0].tolist() if proxy else None
    verifier = stages.suite.make_verifier()
    if verifier is None:
        return Answers(batch, texts, scores, None, {})
    with activity(EVALUATION, "evaluation: verifier"):
        checked, parts = batch_verdicts(verifier, batch, ended, stages.tokens, runtime.meter)
    columns = {label: part[:, 0].tolist() for label, part in parts.items()}
    return Answers(batch, texts, scores, checked[:, 0].tolist(), columns)


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
    if policy.no_kl:
        return {"missing": policy.no_kl}
    assert policy.model is not None, "a policy has a model, or an estimator of its KL"
    reference = stages.reference  # in memory for as long as this takes
    with runtime.meter.phase("evaluate"), activity(EVALUATION, "evaluation: KL"):
        exact, plain = sampled_kl(policy.model, reference, batch, runtime)
    exact = fault_value("evaluation.kl", exact)
    return {"estimator": RAO_BLACKWELL, "kl": exact.tolist(), "plain": plain.tolist()}


def _figures(
    answers: Answers,
    reference: Answers,
    judged: Judged,
    kl: dict[str, Any],
    policy: Policy,
    stages: Stages,
    options: EvaluationOptions,
) -> dict[str, Any]:
    lengths = answers.batch.lengths[:, 0].tolist()
    figures: dict[str, Any] = {
        "prompts": len(answers.texts),
        "split": options.split,
        **sampling_figures(stages, options),
        **_win_rate(judged),
        **_kl_figures(kl),
        "length": asdict(mean_interval(lengths)),
        "eos_rate": fmean(answers.batch["ended"][:, 0].float().tolist()),
        "distinct": len(set(answers.texts)) / len(answers.texts),
        "baseline_length": fmean(reference.batch.lengths[:, 0].tolist()),
        "judge": judged.figures,
    }
    for label, ours, theirs in _columns(answers, reference, judged):
        figures |= _both(label, ours, theirs)
    missing = _missing(answers, reference, judged)
    if missing:
        figures["missing"] = missing
    if answers.parts:
        figures["verdicts"] = {
            label: asdict(estimate) | _baseline_mean(reference.parts[label])
            for label, part in answers.parts.items()
            if (estimate := known_interval(part)) is not None
        }
    if "plain" in kl:
        figures["kl_plain"] = asdict(mean_interval(kl["plain"]))
    bound = getattr(policy, "kl_bound", None)
    if bound is not None:
        figures["kl_bound"] = bound
    return figures | _rouge(answers, stages, options)


def _win_rate(judged: Judged) -> dict[str, Any]:
    """Return the win-rate; nothing where the judge is not shown to be better than a coin."""
    return {"win_rate": asdict(rate_interval(judged.wins))} if known(judged.wins) else {}


def sampling_figures(stages: Stages, options: EvaluationOptions) -> dict[str, Any]:
    """Return how answers were drawn; the temperature of KL where it is another one."""
    own = stages.stage_runtime.sampling
    sampling = sampling_of(own, options)
    figures: dict[str, Any] = {"temperature": 0.0 if sampling.greedy else sampling.temperature}
    if sampling.top_p < 1:
        figures["top_p"] = sampling.top_p
    if options.stop:
        figures["stop"] = list(options.stop)
    if sampling != own or options.stop:
        figures |= {"max_new_tokens": sampling.max_new_tokens, "kl_temperature": own.temperature}
    return figures | ({"against": Path(options.against).name} if options.against else {})


def _kl_figures(kl: Mapping[str, Any]) -> dict[str, Any]:
    """Return the KL and its estimator, or why it is missing."""
    if "missing" in kl:
        return {"kl_missing": kl["missing"]}
    return {
        "kl": asdict(_non_negative(mean_interval(kl["kl"]))),
        "kl_estimator": kl["estimator"],
    }


def _columns(
    answers: Answers, reference: Answers, judged: Judged
) -> list[tuple[str, Sequence[float], Sequence[float]]]:
    """Return the scores that both sides have: (name, ours, the baseline's)."""
    columns = (
        ("gold", judged.gold, judged.baseline_gold),
        ("proxy", answers.proxy, reference.proxy),
        ("accuracy", answers.verdicts, reference.verdicts),
    )
    return [(n, ours, theirs) for n, ours, theirs in columns if None not in (ours, theirs)]  # type: ignore[misc]


def _both(label: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return the means of a score on both sides; nothing of a side where no score is known."""
    estimate = known_interval(ours)
    figures: dict[str, Any] = {} if estimate is None else {label: asdict(estimate)}
    there = known(theirs)
    return figures | ({f"baseline_{label}": fmean(there)} if there else {})


def _baseline_mean(part: Sequence[float]) -> dict[str, float]:
    return {"baseline": fmean(known(part))} if known(part) else {}


def _missing(answers: Answers, reference: Answers, judged: Judged) -> dict[str, int]:
    """Return how many scores are missing, by name, where any are."""
    counts = {"win": judged.figures["missing"]}
    for label, ours, theirs in _columns(answers, reference, judged):
        counts[label] = len(ours) - len(known(ours))
        counts[f"baseline_{label}"] = len(theirs) - len(known(theirs))
    return {name: n for name, n in counts.items() if n}


def _rouge(answers: Answers, stages: Stages, options: EvaluationOptions) -> dict[str, Any]:
    """Return ROUGE against the suite's references, where it has any."""
    references = stages.suite.references(options.split)
    if not references:
        return {}
    from .metrics import load

    there = [
        (text, references[prompt.id])
        for prompt, text in zip(answers.batch.prompts.prompts, answers.texts, strict=True)
        if prompt.id in references
    ]
    if not there:
        return {}
    texts, expected = (list(column) for column in zip(*there, strict=True))
    return {"rouge": load("rouge").compute(predictions=texts, references=expected)}


def _samples(
    prompts: Sequence[Prompt],
    reference: Answers,
    answers: Answers,
    judged: Judged,
    kl: dict[str, Any],
) -> list[dict[str, Any]]:
    lengths = answers.batch.lengths[:, 0].tolist()
    rows = []
    for i, prompt in enumerate(prompts):
        row: dict[str, Any] = {
            "prompt_id": prompt.id,
            "prompt": prompt_text(prompt.text),
            "baseline": reference.texts[i],
            "answer": answers.texts[i],
            "gold": judged.gold and _or_none(judged.gold[i]),
            "baseline_gold": judged.baseline_gold and _or_none(judged.baseline_gold[i]),
            "kl": kl["kl"][i] if "kl" in kl else None,
            "win": _or_none(judged.wins[i]),
            "length": lengths[i],
            "ended": bool(answers.batch["ended"][i, 0]),
            "proxy": answers.proxy and answers.proxy[i],
            "baseline_proxy": reference.proxy and reference.proxy[i],
        }
        if answers.verdicts is not None:
            row["accuracy"] = _or_none(answers.verdicts[i])
        if answers.parts:
            row["verdicts"] = {label: _or_none(part[i]) for label, part in answers.parts.items()}
        if judged.notes[i]:
            row["judge"] = dict(judged.notes[i])
        rows.append(row)
    return rows


def _or_none(verdict: float) -> float | None:
    """Return a verdict as JSON has it: null where the answer could not be graded."""
    return None if math.isnan(verdict) else verdict


def _non_negative(estimate: PromptEstimate) -> PromptEstimate:
    """Return a KL estimate whose interval does not claim negative values."""
    return PromptEstimate(estimate.mean, max(0.0, estimate.low), estimate.high, estimate.n)
