"""The answers that an evaluation scores: a policy's, and the baseline's, drawn or fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..api.contracts import Answer, Policy
from ..core.data import Prompt, Sampling
from ..core.digests import digest_of
from ..core.errors import HarnessError, UsageError
from ..core.fault_points import fault_point
from ..core.fixed_answers import fixed_answers
from ..core.global_state import put_back
from ..core.meter import Cost, Meter
from ..core.progress import EVALUATION, STAGES, activity
from ..core.settings import EvaluationOptions
from ..core.spec import RunSpec
from ..models.batches import Batch
from ..models.generation import Sampler
from ..models.loading import load_tensors, save_tensors
from ..models.tokens import Tokens
from ..training.completion_cache import CompletionPool
from ..training.lab import Runtime
from ..training.stages.runtime import StageRuntime
from ..training.stages.stages import Stages

KEPT_COLUMNS = ("completion_ids", "mask", "logp", "ended")


@dataclass
class PolicyAnswers:
    """A policy's answers to the evaluation prompts, not yet scored."""

    prompts: list[Prompt]
    batch: Batch  # (B, 1, T)
    policy: Policy
    cost: Cost  # of answering
    models: dict[str, dict[str, int]]  # held while answering
    texts: list[str] = field(default_factory=list)
    more: list[Batch] = field(default_factory=list)  # further answers, for pass@k and maj@k
    # answers (B, 1, T) at the temperature of training, which KL is measured on
    for_kl: Batch | None = None


def sampling_of(own: Sampling, options: EvaluationOptions) -> Sampling:
    """Return the sampling of an evaluation: the suite's, with what the options change of it."""
    return replace(
        own,
        temperature=options.temperature or own.temperature,
        max_new_tokens=options.max_new_tokens or own.max_new_tokens,
        top_p=options.top_p,
        greedy=options.greedy,
    )


def draw_answers(
    policy: Policy,
    tokens: Tokens,
    prompts: list[Prompt],
    stage_runtime: StageRuntime,
    spec: RunSpec,
    meter: Meter,
    pool: CompletionPool | None = None,
    options: EvaluationOptions | None = None,
) -> PolicyAnswers:
    """Have a policy answer, and count what that costs apart from the rest of the evaluation.

    Where the evaluation samples otherwise than training does, further answers are drawn as
    training samples: KL is an expectation over the policy's own distribution.
    """
    options = options or EvaluationOptions()
    own = stage_runtime.sampling
    sampling = sampling_of(own, options)
    _check_policy(policy, sampling)
    apart, purpose = stage_runtime.meter(), (spec.shared_seed, "policy", spec.seed)
    sampler = evaluation_sampler(stage_runtime.runtime(apart, spec.seed), sampling, *purpose)
    sampler.pool = pool if sampling == own else None
    # what a verifier compares with is not shown
    bare = [replace(prompt, answer=None) for prompt in prompts]
    posed = tokens.prompt_batch(bare, stage_runtime.device)
    with apart.phase("evaluate"), activity(EVALUATION, "evaluation: answers"):
        batch = _answered(policy, posed, sampler, prompts)
    fault_point("evaluation.answers")
    cost = apart.total()
    meter.phases.setdefault("evaluate", Cost()).add(cost)
    runtime = stage_runtime.runtime(meter, spec.seed)
    further = []
    for number in range(1, options.answers):
        sampler = evaluation_sampler(runtime, sampling, *purpose, number)
        with meter.phase("evaluate"), activity(EVALUATION, f"evaluation: answers {number + 1}"):
            further.append(_answered(policy, posed, sampler, prompts))
    for_kl = None
    measured = policy.kl_estimator is None and policy.model is not None
    if measured and (sampling != own or options.stop):
        sampler = evaluation_sampler(runtime, own, *purpose)
        with meter.phase("evaluate"), activity(EVALUATION, "evaluation: answers for KL"):
            for_kl = _answered(policy, posed, sampler, prompts)
    batch, texts = stopped(batch, tokens, options.stop)
    further = [stopped(more, tokens, options.stop)[0] for more in further]
    return PolicyAnswers(prompts, batch, policy, cost, dict(apart.models), texts, further, for_kl)


def _check_policy(policy: Policy, sampling: Sampling) -> None:
    if sampling.greedy and policy.kl_estimator is not None:
        raise UsageError(
            "evaluation.greedy: this method chooses among several samples of a prompt, and greedy"
            " answers to one prompt are all the same. Leave greedy out."
        )


def _answered(policy: Policy, posed: Any, sampler: Sampler, prompts: list[Prompt]) -> Batch:
    """Return a policy's answers (B, 1, T), with the prompts as the verifier reads them."""
    with put_back("The policy of the method"):
        batch = policy.answer(posed, sampler)
    if batch.shape[1] != 1 or batch.shape[0] != len(prompts):
        raise HarnessError(
            f"a policy's answers have shape ({len(prompts)}, 1, T), not {batch.shape}"
        )
    part = replace(batch.prompts, prompts=prompts)
    return Batch(part, batch.columns, batch.temperature, batch.written)


def evaluation_sampler(runtime: Runtime, sampling: Sampling, *purpose: object) -> Sampler:
    """Return a sampler of the evaluation: its noise is that of its purpose."""
    sampler = Sampler(
        runtime.engine,
        sampling,
        runtime.meter,
        runtime.eos,
        ("evaluation", *purpose),
        runtime.distributed,
        shaped=True,
    )
    sampler.phase = "evaluate"
    return sampler


# -- stop strings ----------------------------------------------------------------------------------


def stopped(batch: Batch, tokens: Tokens, stop: Sequence[str]) -> tuple[Batch, list[str]]:
    """Return answers cut before their first stop string, and their texts.

    An answer with a stop string counts as ended. Its tokens are those up to the string's first
    character.
    """
    texts = [row[0] for row in tokens.texts(batch)]
    if not stop:
        return batch, texts
    mask, ended = batch["mask"].clone(), batch["ended"].clone()
    for i, text in enumerate(texts):
        places = [place for place in (text.find(mark) for mark in stop) if place >= 0]
        if not places:
            continue
        ids = batch["completion_ids"][i, 0].tolist()
        kept = _tokens_of(tokens, ids, int(mask[i, 0].sum()), min(places))
        mask[i, 0, kept:], ended[i, 0] = 0.0, True
        texts[i] = text[: min(places)]
    cut = batch.with_columns(mask=mask, ended=ended)
    if batch.written is not None:
        cut.written = [[text] for text in texts]
    return cut, texts


def _tokens_of(tokens: Tokens, ids: list[int], length: int, characters: int) -> int:
    """Return how many tokens begin a text of so many characters; at least one."""
    low, high = 1, length
    while low < high:
        middle = (low + high) // 2
        text = tokens.tokenizer.decode(ids[:middle], skip_special_tokens=True)
        low, high = (low, middle) if len(text) >= characters else (middle + 1, high)
    return low


# -- the baseline ----------------------------------------------------------------------------------


@dataclass
class Baseline:
    """The answers that a policy is compared with."""

    batch: Batch  # (B, 1, T)
    texts: list[str]


def baseline_of(stages: Stages, prompts: Sequence[Prompt], options: EvaluationOptions) -> Baseline:
    """Return the baseline's answers: fixed ones, or those of the start checkpoint."""
    if options.against:
        texts = fixed_answers(options.against, stages.suite, prompts, options.split)
        ids = [
            [stages.tokens.answer_ids(prompt.text, text)]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        batch = stages.tokens.batch(list(prompts), ids, stages.device, stages.suite.temperature)
        ended = torch.ones(batch.shape[:2], dtype=torch.bool, device=stages.device)
        return Baseline(batch.with_columns(ended=ended), texts)
    return Baseline(
        *stopped(baseline_answers(stages, prompts, options), stages.tokens, options.stop)
    )


def baseline_answers(
    stages: Stages, prompts: Sequence[Prompt], options: EvaluationOptions
) -> Batch:
    """Return the start checkpoint's answers: drawn once, an artifact, the same for every method and
    seed.
    """
    sampling = sampling_of(stages.stage_runtime.sampling, options)

    def make(out: Path, _: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        meter = stages.stage_runtime.meter()
        sampler = evaluation_sampler(
            stages.stage_runtime.runtime(meter, 0), sampling, stages.spec.shared_seed, "reference"
        )
        start = stages.start
        with activity(STAGES, "evaluation: baseline answers"):
            batch = sampler.draw(start, _batch(stages, prompts))
        save_tensors({name: batch[name] for name in KEPT_COLUMNS}, out / "a.safetensors")
        return {"answers": len(prompts)}, meter.snapshot()

    artifact = stages.baseline_answers(digest_of([asdict(p) for p in prompts]), sampling, make)
    columns = load_tensors(artifact.folder / "a.safetensors", stages.stage_runtime.device)
    return Batch(_batch(stages, prompts), columns, stages.suite.temperature)


def _batch(stages: Stages, prompts: Sequence[Prompt]) -> Any:
    return stages.tokens.prompt_batch(prompts, stages.stage_runtime.device)


def read_by_judge(batch: Batch, texts: Sequence[str]) -> list[Answer]:
    """Return answers as a judge reads them."""
    lengths, ended = batch.lengths[:, 0].tolist(), batch["ended"][:, 0].tolist()
    return [
        Answer(text, int(length), bool(end))
        for text, length, end in zip(texts, lengths, ended, strict=True)
    ]
