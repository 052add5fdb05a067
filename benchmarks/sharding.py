"""Memory, time and results of DPO steps on whole and on sharded weights, for each process.

    python benchmarks/sharding.py                              # a random model of 0.3M weights
    python benchmarks/sharding.py --model FOLDER --steps 2     # your model

Each way runs in processes of its own, on the CPU with one thread each: one process, two that hold
everything, and two with `--shard full`. A step is that of the harness's trainer, on pairs of random
tokens, with a frozen reference. Memory is what a process holds for itself (RssAnon of Linux),
without the mapped files of weights, which processes share; its peak is looked up every 5 ms.
MALLOC_MMAP_THRESHOLD_=262144 has freed blocks given back at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

WAYS = {"one process": (1, False), "two, whole": (2, False), "two, sharded": (2, True)}
MIB = 1024  # KiB
ROWS, PROMPT, COMPLETION, MICRO_BATCH = 8, 96, 160, 600


class Watch:
    """The memory of this process, and its peak since the last call of `peak`."""

    def __init__(self) -> None:
        self._peak = 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def now(self) -> float:
        """Return the MiB that this process holds for itself."""
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(text.split("RssAnon:")[1].split()[0]) / MIB

    def peak(self) -> float:
        """Return the largest value since the last call."""
        value, self._peak = max(self._peak, self.now()), 0.0
        return value

    def _look(self) -> None:
        while True:
            self._peak = max(self._peak, self.now())
            time.sleep(0.005)


def batch_of(vocabulary: int) -> Any:
    """Return pairs of random tokens of unequal lengths."""
    import torch

    from harness.core.data import Prompt
    from harness.models.batches import Batch, PromptBatch

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (ROWS, PROMPT), generator=draw)
    begins = torch.randint(0, PROMPT // 2, (ROWS, 1), generator=draw)
    mask = (torch.arange(PROMPT) >= begins).long()
    written = torch.randint(5, vocabulary, (ROWS, 2, COMPLETION), generator=draw)
    ends = torch.randint(COMPLETION // 2, COMPLETION + 1, (ROWS, 2, 1), generator=draw)
    there = (torch.arange(COMPLETION) < ends).float()
    prompts = PromptBatch([Prompt(str(i), "") for i in range(ROWS)], ids * mask, mask)
    return Batch(prompts, {"completion_ids": written * there.long(), "mask": there})


def dpo_loss(logp: Any, part: Any) -> Any:
    """Return the loss of DPO with beta .1: (rows,), from (rows, 2, tokens)."""
    import torch

    better, worse = (logp - part["reference"]).sum(-1).unbind(1)
    return torch.nn.functional.softplus(-0.1 * (better - worse))


def held_by(policy: Any) -> dict[str, Any]:
    """Return the numbers that this process holds, and the sum and digest of all weights."""
    from harness.models.loading import weights_digest
    from harness.models.sharded_tensors import gathered, own_part

    return {
        "held": sum(own_part(p).numel() for p in policy.parameters()),
        "sum": sum(float(gathered(p).double().sum()) for p in policy.parameters()),
        "digest": weights_digest(policy),
    }


def measured(model: str, steps: int, sharded: bool) -> dict[str, Any]:
    """Take DPO steps in this process; return what it held, spent and found."""
    import torch
    from accelerate import Accelerator

    from harness.core.distributed import DistributedContext
    from harness.core.meter import Meter
    from harness.core.settings import AdamWOptions
    from harness.models.initial_checkpoint import learner, start_in
    from harness.models.loading import FLOAT32
    from harness.models.logprobs import completion_logp
    from harness.models.micro_batches import in_micro_batches
    from harness.models.sharding import shard
    from harness.training.trainer import Role, Term, Trainer

    torch.set_num_threads(1)
    accelerator, cpu, watch = Accelerator(cpu=True), torch.device("cpu"), Watch()
    team = DistributedContext(accelerator.process_index, accelerator.num_processes)
    libraries = watch.now()
    how = (lambda whole: shard(whole, cpu)) if sharded else None
    start = start_in(model, FLOAT32, cpu, True, shards=lambda: how)
    reference = start.model()
    policy = learner(start, None, 0)
    options, meter = AdamWOptions(learning_rate=1e-4, warmup_ratio=0.0), Meter(peak=lambda reset: 0)
    trainer = Trainer(options, accelerator, meter, MICRO_BATCH, team)
    trainer.add("policy", policy)
    role = Role("policy", policy, lambda part: completion_logp(policy, part))
    batch = batch_of(policy.config.vocab_size)

    found: dict[str, Any] = {"libraries": libraries, "loading": watch.peak(), "loaded": watch.now()}
    rows, peaks, seconds = [], [], []
    for _ in range(steps):
        begun = time.process_time()
        logp = in_micro_batches(
            lambda part: completion_logp(reference, part), batch, MICRO_BATCH, distributed=team
        )
        with trainer.meter.phase("update"):
            term = Term(dpo_loss, batch.with_columns(reference=logp), role)
            rows.append(trainer.step([term], 0.5))
        seconds.append(time.process_time() - begun)
        peaks.append(watch.peak())
    return found | {
        "after": watch.now(),
        "peak": max(peaks),
        "cpu_seconds": sum(seconds) / steps,
        "rows": [{name: row[name] for name in ("loss", "grad_norm")} for row in rows],
        **held_by(policy),
    }


def ran(way: str, model: str, steps: int) -> list[dict[str, Any]]:
    """Return what each process of a way measured."""
    count, sharded = WAYS[way]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        asked = json.dumps([model, steps, sharded, folder])
        subprocess.run([sys.executable, *launcher, __file__, asked], check=True, env=environment)
        files = sorted(Path(folder).glob("*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a row for each way: the most of its processes, and how it differs from one process."""
    names = ("loading", "loaded", "peak", "after")
    lines = ["| way | weights of the policy | " + " | ".join(names) + " | CPU s/step | loss |", ""]
    lines[0] = (
        "| way | policy weights held | peak of loading | loaded | peak of a step | after |"
        " CPU s per step and process | last loss | last gradient norm |"
    )
    lines[1] = "|" + " --- |" * 9
    for way, processes in results.items():
        most = {name: max(p[name] for p in processes) for name in (*names, "cpu_seconds")}
        last = processes[0]["rows"][-1]
        sizes = " | ".join(f"{most[name]:.0f}" for name in names)
        lines.append(
            f"| {way} | {processes[0]['held']:,} | {sizes} | {most['cpu_seconds']:.2f} |"
            f" {last['loss']:.7f} | {last['grad_norm']:.5f} |"
        )
    return "\n".join(lines)


def random_model(folder: Path) -> str:
    """Write a llama of 0.3M random weights; return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, num_attention_heads=4, vocab_size=512, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Run all ways and print the table, or be one of the processes."""
    if len(sys.argv) == 2 and sys.argv[1].startswith("["):
        model, steps, sharded, folder = json.loads(sys.argv[1])
        found = measured(model, steps, sharded)
        file = Path(folder) / f"{os.environ['RANK']}.json"
        file.write_text(json.dumps(found), encoding="utf-8")
        from harness.core.distributed import leave_process_group

        leave_process_group()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or hub id; without it a random model")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder) / "model")
        print(table({way: ran(way, model, options.steps) for way in WAYS}))


if __name__ == "__main__":
    main()
