"""Measure the peak of the resident set of what a run does, and print it beside its estimate.

Run as a script: MODEL CASE... A case is WHAT:ROWS:EACH:PROMPT:COMPLETION:MICRO_BATCH_TOKENS, then
:RANK:CHECKPOINTING where wanted. It prints JSON for each: how far the peak is over what was
resident before, and the estimate, in bytes. Without MALLOC_MMAP_THRESHOLD_ in the environment
freed blocks count as resident.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from harness.core.data import Sampling
from harness.core.execution import Execution
from harness.core.meter import Meter, start_peak_anew
from harness.core.settings import AdamWOptions, LoraOptions
from harness.core.spec import RunSpec
from harness.evaluation.kl import sampled_kl
from harness.experiments.requirements.moments import Machine, Models, Passes
from harness.experiments.requirements.passes import Shape, batch_of
from harness.models.capabilities import find_out
from harness.models.generation import CachedEngine
from harness.models.loading import in_memory, learning, load_causal
from harness.models.logprobs import completion_logp
from harness.models.lora import Lora, beside
from harness.training.runtime import Runtime, metered
from harness.training.trainer import Role, Term, Trainer

GIB = 2**30


def resident() -> int:
    """Return the bytes of the resident set now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096


@dataclass(frozen=True)
class Case:
    """What is measured."""

    what: str
    shape: Shape
    tokens: int
    rank: int = 0
    checkpointing: bool = False

    @classmethod
    def of(cls, text: str) -> Case:
        """Return the case that an argument names."""
        what, *numbers = text.split(":")
        rows, each, prompt, completion, tokens, *how = map(int, numbers)
        rank, checkpointing = (*how, 0, 0)[:2]
        return cls(what, Shape(rows, each, prompt, completion), tokens, rank, bool(checkpointing))


def measured(name: str, case: Case) -> int:
    """Return by how many bytes the peak is over what was resident before."""
    base = load_causal(name)
    find_out(base, sharing=True)
    base, shape = in_memory(base), case.shape
    model = beside(base, Lora(case.rank, 2.0 * case.rank, 0)) if case.rank else learning(base)
    batch = batch_of(shape, 1)
    generator = torch.Generator().manual_seed(0)
    for ids in (batch.prompts.ids, batch["completion_ids"]):
        ids.random_(3, base.config.vocab_size, generator=generator)
    engine, meter = CachedEngine({-1}), Meter()
    runtime = Runtime(engine, Sampling(1.0, shape.completion), {-1}, 0, meter, case.tokens)
    trainer = Trainer(
        AdamWOptions(),
        Accelerator(cpu=True, mixed_precision="no"),
        meter,
        case.tokens,
        activation_checkpointing=case.checkpointing,
    )
    role = Role("policy", model, lambda batch: completion_logp(model, batch))

    def update() -> None:
        for _ in range(2):
            trainer.step([Term(lambda logp, _: -logp, batch, role)], 0.5)

    def decode() -> None:
        noise = torch.rand(shape.rows * shape.each, shape.completion, generator=generator)
        engine.generate(model, batch.prompts, shape.each, runtime.sampling, noise)

    works = {
        "update": update,
        "score": lambda: metered(role, batch, runtime),
        "decode": decode,
        "kl": lambda: sampled_kl(model, base, batch, runtime),
    }
    if case.what == "update":
        trainer.add("policy", model)
    gc.collect()
    before = resident()
    start_peak_anew()
    with meter.phase("update"):
        works[case.what]()
    return meter.phases["update"].peak_memory - before


def estimated(name: str, case: Case) -> int:
    """Return the bytes beside the weights that a dry run says."""
    execution = Execution(
        micro_batch_tokens=case.tokens, activation_checkpointing=case.checkpointing
    )
    spec = RunSpec("dpo", "", {}, {}, {}, execution=execution)
    models = Models(spec, name, Machine(24 * GIB))
    passes, none = Passes(models), {}
    trained = models.causal(LoraOptions(case.rank))
    if case.what == "update":
        return passes.update("", none, case.shape, trained).total
    if case.what == "kl":
        return passes.kl("", none, case.shape).total
    make = passes.scoring if case.what == "score" else passes.decoding
    return make("", none, case.shape, trained.model).total


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[2:]:
        one = Case.of(argument)
        told = {"case": argument, "measured": measured(sys.argv[1], one)}
        print(json.dumps({**told, "estimated": estimated(sys.argv[1], one)}), flush=True)
