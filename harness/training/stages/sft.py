"""Supervised fine-tuning on completions only, with a mean over all tokens, end-of-sequence
included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...core.artifacts import EXECUTION
from ...core.data import Demonstration
from ...core.seeds import endless_order
from ...core.settings import SFTOptions
from ...models.capabilities import enable_sharing, find_head
from ...models.initial_checkpoint import lora_of
from ...models.loading import frozen, in_memory, learning, load_causal, save_causal
from ...models.logprobs import completion_logp
from ...models.lora import beside
from ...models.lora_weights import merge
from ..trainer import Role, Term

if TYPE_CHECKING:
    from .runtime import StageContext


def nll(logp: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return (B, K, T) negative log-likelihoods; the trainer averages them over all tokens of the
    batch.
    """
    return -logp


def make(
    stages: StageContext,
    demos: Sequence[Demonstration],
    options: SFTOptions,
    out: Path,
    scratch: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fine-tune the base model and write it in hub format; return (info, cost)."""
    meter = stages.stage_runtime.meter()
    base = _base(stages)
    lora = lora_of(options, stages.spec.shared_seed)
    shard = stages.stage_runtime.shards() or _as_it_is
    model = shard(learning(base)) if lora is None else beside(shard(frozen(base)), lora)
    role = Role("policy", model, lambda batch: completion_logp(model, batch))
    role.hold(meter)
    tokens = stages.tokens.counting_afresh()
    encoded = [(d.prompt, [tokens.completion_ids(d.prompt.text, d.completion)]) for d in demos]
    cut = {"cut_prompts": tokens.count_cut(d.prompt.text for d in demos)}
    cut["cut_completions"] = tokens.cut_completions
    size = options.batch_size
    steps = options.steps or max(1, round(options.epochs * len(demos) / size))
    with meter.phase("sft"):
        loop = stages.loop(options, meter, scratch, "sft")
        loop.trainer.add("policy", model)
        for turn in loop.turns(steps):
            rows = endless_order(len(demos), turn * size, size, stages.spec.shared_seed, "sft")
            batch = tokens.batch(
                [encoded[i][0] for i in rows],
                [encoded[i][1] for i in rows],
                stages.stage_runtime.device,
            )
            loop.log(loop.trainer.step([Term(nll, batch, role)], loop.progress))
    save_causal(merge(model), tokens.tokenizer, out, writes=stages.stage_runtime.distributed.main)
    tail = [row["loss"] for row in loop.rows[-max(1, steps // 10) :]]
    info = {
        "steps": steps,
        "demonstrations": len(demos),
        "loss": round(sum(tail) / len(tail), 4),
        EXECUTION: loop.executions,
    }
    return info | cut, meter.snapshot()


def _base(stages: StageContext) -> nn.Module:
    """Return the base model, packed like every policy where it can be.

    One that is to be sharded stays in the memory of its mapped file.
    """
    base = load_causal(stages.base, stages.arithmetic)
    if stages.stage_runtime.shards() is None:
        base = in_memory(base).to(stages.stage_runtime.device)
    if not (stages.spec.prompt_sharing and enable_sharing(base)):
        find_head(base)
    return base


def _as_it_is(model: nn.Module) -> nn.Module:
    return model
