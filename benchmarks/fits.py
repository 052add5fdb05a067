"""What fits on 24 and 80 GB, by size of model and method: `python benchmarks/fits.py`.

Every cell is the largest peak of a run's stages as `harness run --dry-run` computes it, from a
configuration without weights. Passes are laid out for models of 2 and 3 layers. The parts of a
peak are linear in the number of layers, so they are extended to that of the model. Checked with 6
layers of the 7B in nf4: SFT, DPO and the evaluation are exact, reward models are 2.5 % too high.
`--whole` lays out all layers, and takes minutes a cell.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from harness.api.registry import Registry, installed
from harness.api.resolve import Request, resolve
from harness.experiments.requirements.moments import Machine
from harness.experiments.requirements.stages import Configured, Lengths, Stage, stages_of

GB = 1e9
METHODS = ("dpo", "grpo", "ppo")
PARTS = ("gradients", "optimiser", "activations", "logits", "cache", "gathered")
DEVICES = (24, 80)  # GB of one device
LEFT = 0.9  # of a device: the rest is for its context and for fragments
LENGTHS = Lengths(512, 512)
# layers, width, feed-forward width, heads, key and value heads, vocabulary, tied: those of
# Qwen 2.5 up to 14B, and of Llama 3 70B
SIZES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "0.5B": (24, 896, 4864, 14, 2, 151936, True),
    "1.5B": (28, 1536, 8960, 12, 2, 151936, True),
    "3B": (36, 2048, 11008, 16, 2, 151936, True),
    "7B": (28, 3584, 18944, 28, 4, 152064, False),
    "14B": (48, 5120, 13824, 40, 8, 152064, False),
    "70B": (80, 8192, 28672, 64, 8, 128256, False),
}
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "least": {
        "weights": "bfloat16",
        "activation_checkpointing": True,
        "micro_batch_tokens": 2048,
        "decode_batch_tokens": 16384,
    },
}
WAYS["nf4"] = {**WAYS["least"], "weights": "nf4"}  # of adapters alone
for count in (8, 64):  # of each of so many devices
    WAYS[f"sharded {count}"] = {**WAYS["least"], "shard": "full", "processes": count}
RANK = 16
FEW = (2, 3)  # layers of the models that are laid out


def write_config(size: str, folder: Path, layers: int) -> Path:
    """Write the configuration of a size, without weights, with some number of layers."""
    _, width, inner, heads, groups, vocabulary, tied = SIZES[size]
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def stages(method: str, folder: Path, way: str, rank: int, registry: Registry) -> list[Stage]:
    """Return the stages of a run, with SFT; all trained models are adapters where there is a
    rank.
    """
    settings = (f"lora_rank={rank}",) if rank else ()
    stage = tuple(f"{name}.lora_rank={rank}" for name in ("sft", "reward_model") if rank)
    fixed = {"model": str(folder), "start": "sft", **WAYS[way]}
    request = Request(method, "summarization", settings, stage_settings=stage, fixed=fixed)
    run = Configured(resolve(request, registry), registry, Machine(int(80 * GB)))
    vars(run)["lengths"] = LENGTHS
    return stages_of(run)


def parts(stage: Stage) -> list[dict[str, int]]:
    """Return the parts of each moment of a stage in bytes; the weights by role."""
    return [
        {
            **{f"weights/{role}": size for role, size in moment.weights.items()},
            **{name: getattr(moment, name) for name in PARTS},
        }
        for moment in stage.moments
    ]


def extended(few: list[list[Stage]], layers: int) -> dict[str, float]:
    """Return the peak of each stage in GB, from those of models with FEW layers."""
    largest: dict[str, float] = {}
    for one, two in zip(*few, strict=True):
        totals = []
        for small, large in zip(parts(one), parts(two), strict=True):
            step = {name: (large[name] - small[name]) / (FEW[1] - FEW[0]) for name in small}
            totals.append(sum(small[n] + step[n] * (layers - FEW[0]) for n in small))
        largest[one.name] = max(totals) / GB
    return largest


def peaks(
    size: str, place: Path, way: str, rank: int, registry: Registry, whole: bool
) -> dict[str, float]:
    """Return the GB that each method needs; `sft` is the stage alone."""
    largest: dict[str, float] = {}
    layers = SIZES[size][0]
    folders = [place / str(n) for n in ((layers,) if whole else FEW)]
    for folder in folders:
        write_config(size, folder, int(folder.name))
    for method in METHODS:
        laid = [stages(method, folder, way, rank, registry) for folder in folders]
        exact = {stage.name: stage.peak.total / GB for stage in laid[0]}
        estimates = exact if whole else extended(laid, layers)
        largest.setdefault("sft", estimates.pop("sft"))
        largest[method] = max(estimates.values())
    return largest


def cell(gigabytes: float) -> str:
    """Return the GB, and on which devices they fit."""
    fits = [str(device) for device in DEVICES if gigabytes <= LEFT * device]
    return f"{gigabytes:.1f} ({fits[0] if fits else 'no'})"


def main() -> None:
    """Print a table for each way to run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--trained", nargs="+", default=["full", "LoRA"], choices=["full", "LoRA"])
    parser.add_argument("--whole", action="store_true", help="lay out all layers")
    args = parser.parse_args()
    registry = installed()
    with tempfile.TemporaryDirectory() as place:
        for way in args.ways:
            print(f"\n{way}: {json.dumps(WAYS[way])}\n")
            print("| model | trained | sft | dpo | grpo | ppo |\n|---|---|---|---|---|---|")
            for size in args.sizes:
                for trained in args.trained:
                    if way == "nf4" and trained == "full":
                        continue
                    there = Path(place, way, size, trained)
                    rank = RANK if trained == "LoRA" else 0
                    needed = peaks(size, there, way, rank, registry, args.whole)
                    row = " | ".join(map(cell, needed.values()))
                    print(f"| {size} | {trained} | {row} |", flush=True)


if __name__ == "__main__":
    main()
