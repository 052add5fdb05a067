"""Measure the memory of one process of a sharded run that takes DPO steps, beside its estimate.

Run by `torchrun` with the arguments MODEL CASE, a case as in `measured_memory.py`. Process 0 prints
JSON: the peak of the memory that it holds for itself over what it held before the model was read,
and the estimate, in bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import sharding as benchmark

from harness.core.distributed import leave_process_group
from harness.core.execution import Execution
from harness.core.settings import LoraOptions
from harness.core.spec import RunSpec
from harness.experiments.requirements.moments import Machine, Models, Passes
from harness.experiments.requirements.passes import batch_of
from tests.helpers.measured_memory import GIB, Case


def estimated(name: str, case: Case, processes: int) -> int:
    """Return the bytes that a dry run says of an update beside a frozen reference."""
    execution = Execution(micro_batch_tokens=case.tokens, processes=processes, shard="full")
    spec = RunSpec("dpo", "", {}, {}, {}, execution=execution)
    models = Models(spec, name, Machine(24 * GIB))
    weights = {"policy": models.bytes, "reference": models.bytes}
    return Passes(models).update("", weights, case.shape, models.causal(LoraOptions(0))).total


def measured(name: str, case: Case) -> int:
    """Return by how many bytes the peak of two steps is over what was held before."""

    def filled(vocabulary: int) -> object:
        batch = batch_of(case.shape, 1)
        generator = torch.Generator().manual_seed(0)
        for ids in (batch.prompts.ids, batch["completion_ids"]):
            ids.random_(3, vocabulary, generator=generator)
        return batch

    benchmark.batch_of, benchmark.MICRO_BATCH = filled, case.tokens
    found = benchmark.measured(name, 2, True)
    return int((found["peak"] - found["libraries"]) * 2**20)


if __name__ == "__main__":
    one = Case.of(sys.argv[2])
    peak = measured(sys.argv[1], one)
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    told = {"case": sys.argv[2], "measured": peak, "estimated": estimated(sys.argv[1], one, count)}
    if rank == 0:
        print(json.dumps(told), flush=True)
    leave_process_group()
