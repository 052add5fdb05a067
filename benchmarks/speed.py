"""Steps of the harness against TRL's trainers, taking turns in processes of their own, on one core.

    pip install -e . -r benchmarks/requirements.txt -c constraints.txt
    python benchmarks/speed.py --ppo-python OTHER/bin/python        # all of results/speed.*
    python benchmarks/speed.py grpo dpo --part main --size 1M --turns 1 --results /tmp/trial

The parts: `main`, the table aimed at; `unfavourable`, one completion per prompt, short prompts, long completions;
`curves`, cost against groups, lengths, batch and model size (curves.py). Measured rows go to speed.csv, where they
replace rows of the same work, size and shape; speed.md is made of what is there. `--missing` measures only what is
not there yet, so a run that was cut off goes on. OTHER is an environment with trl 1.12.0, the last that has PPO.

CPU seconds of the process are compared, not wall time: a neighbour on the machine changes them less. The first two
steps of a process are left out. Ratios are peer / ours: of seconds per token drawn, or of seconds per step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import curves
import tables
import world

HERE = Path(__file__).parent
WARM = 2  # steps of a process that are left out
MAIN = {"group": 8, "prompt": 64, "completion": 32}
ALONE = {"group": 1, "prompt": 8, "completion": 128}
IN_TWO = ALONE | {"group": 2}  # a group of one has no advantage
BATCH = {"rollout": {"1M": 128, "11M": 128}, "grpo": {"1M": 128, "11M": 32}, "rloo": {"1M": 128, "11M": 32}}
GOALS: dict[str, float | dict[str, float]] = {  # work -> peer / ours aimed at
    "rollout": {"1M": 3.5, "11M": 4.0},
    "grpo": 3.0,
    "rloo": 3.0,
    "ppo": 3.0,
    "ppo4": 3.0,
    "ppo_group": 3.0,
    "ppo4_group": 3.0,
    "dpo": 2.0,
    "dpo_precomputed": 2.0,
    "ipo": 2.0,
    "kto": 1.3,
    "sft": 1.3,
    "reward": 1.3,
}
MEMORY = {"grpo": 0.6, "dpo": 0.6}  # work -> ours / peer aimed at, of the peak of resident memory


def rows_of(part: str, works: list[str], sizes: list[str]) -> list[dict[str, Any]]:
    """Return what a part of the table consists of."""
    rows = []
    for work in works:
        if part == "unfavourable" and work.endswith("_group"):
            continue  # the same as without a group
        for size in sizes:
            goal = GOALS[work]
            row: dict[str, Any] = {"part": part, "work": work, "size": size}
            if part == "main":
                row |= {"batch": BATCH.get(work, {}).get(size, 32), **MAIN, "memory_goal": MEMORY.get(work, "")}
                row["goal"] = goal[size] if isinstance(goal, dict) else goal
            else:
                row |= {"batch": 32, **(IN_TWO if work in ("grpo", "rloo") else ALONE), "memory_goal": "", "goal": 1.0}
            rows.append(row)
    return rows


def apart(python: str, side: str, points: list[dict[str, Any]], models: Path) -> list[dict[str, Any]]:
    """Let one side take points in a process of its own; return what it found, in order."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        told = json.dumps({"side": side, "points": points, "models": str(models), "out": out.name})
        done = subprocess.run([python, str(HERE / "side.py"), told], capture_output=True, text=True, env=env)
        if done.returncode:
            raise SystemExit(f"{side} {points}: {done.stderr[-2000:]}")
        return [json.loads(line) for line in Path(out.name).read_text().splitlines()]


def summary(found: dict[str, Any], work: str, gflops: float) -> dict[str, float]:
    """Return the medians of a process after its warm-up: seconds per step (a rollout's: per token), share, length."""
    steps = list(zip(found["seconds"], found["tokens"], found["flops"], strict=True))[WARM:]
    return {
        "seconds": statistics.median(s / t if work == "rollout" else s for s, t, _ in steps),
        "share": statistics.median(f / (gflops * 1e9) / s for s, _, f in steps),
        "length": statistics.fmean(t for _, t, _ in steps) / found["samples"],
        "updates": found["updates"],
        "before": found["before"] / 2**20,
        "peak": found["peak"] / 2**20,
    }


def measured(row: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns at a row; return it with medians over turns."""
    point = {key: row[key] for key in ("work", "size", "batch")} | {"steps": args.steps + WARM}
    point["shape"] = {key: row[key] for key in MAIN}
    apart(sys.executable, "build", [{"size": row["size"], "limit": row["completion"]}], args.models)
    found: dict[str, list[dict[str, Any]]] = {"peer": [], "ours": []}
    for turn in range(args.turns):
        for side, turns in found.items():
            python = args.ppo_python if side == "peer" and row["work"].startswith("ppo") else sys.executable
            turns += apart(python, "peers" if side == "peer" else "ours", [point | {"seed": turn}], args.models)
    gflops = max(one["gflops"] for turns in found.values() for one in turns)
    sums = {side: [summary(one, row["work"], gflops) for one in turns] for side, turns in found.items()}
    each = [p["seconds"] / o["seconds"] for p, o in zip(sums["peer"], sums["ours"], strict=True)]
    done = row | {"turns": args.turns, "steps": args.steps, "gflops": gflops}
    done |= {"ratio": statistics.median(each), "ratio_min": min(each), "ratio_max": max(each)}
    for side, turns in sums.items():
        done |= {f"{side}_{key}": statistics.median(t[key] for t in turns) for key in turns[0]}
        done[f"{side}_peak"] = max(t["peak"] for t in turns)
    if done["peer_updates"] != done["ours_updates"]:
        raise SystemExit(f"{row}: {done['peer_updates']} updates per step of the peer, {done['ours_updates']} of ours")
    return done | {"commit": tables.commit(), "load": round(os.getloadavg()[0], 1)}


def arguments() -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", help=f"of {', '.join(GOALS)}; all that can run here if none is named")
    parser.add_argument("--part", action="append", choices=["main", "unfavourable", "curves"], help="all if not given")
    parser.add_argument("--size", action="append", choices=list(world.SIZES), help="1M and 11M if not given")
    parser.add_argument("--turns", type=int, default=3, help="processes of each side")
    parser.add_argument("--steps", type=int, default=5, help=f"measured steps of a process, after {WARM} of warm-up")
    parser.add_argument("--curve-steps", type=int, default=3, help="measured steps of a point of the curves")
    parser.add_argument("--missing", action="store_true", help="measure only what results have not")
    parser.add_argument("--ppo-python", help="a Python with trl 1.12.0, for PPO")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "harness-benchmark")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results", help="folder of speed.*")
    args = parser.parse_args()
    for name in args.work:
        if name not in GOALS:
            parser.error(f"there is no work {name!r}: expected {', '.join(GOALS)}")
        if name.startswith("ppo") and not args.ppo_python:
            parser.error(f"{name} needs --ppo-python: TRL has no PPO after 1.12.0")
    args.results.mkdir(parents=True, exist_ok=True)
    args.command = " ".join(["python benchmarks/speed.py", *sys.argv[1:]])
    return args


def main() -> None:
    """Measure, and write what results/speed.* are made of."""
    args = arguments()
    works = args.work or [w for w in GOALS if args.ppo_python or not w.startswith("ppo")]
    for part in args.part or ["main", "unfavourable", "curves"]:
        if part == "curves":
            curves.measure(args, apart)
            continue
        for row in rows_of(part, works, args.size or ["1M", "11M"]):
            if args.missing and tables.has(args.results, row):
                continue
            done = measured(row, args)
            print(f"{part} {row['work']} {row['size']}: peer / ours {done['ratio']:.2f}", flush=True)
            tables.keep(args.results, done | {"command": args.command})
    tables.write(args.results, list(GOALS))


if __name__ == "__main__":
    main()
