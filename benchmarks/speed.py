"""Steps of the harness against TRL's trainers, taking turns in processes of their own, on one core.

    pip install -e . -r benchmarks/requirements.txt -c constraints.txt
    python benchmarks/speed.py                              # the table: results/speed.md
    python benchmarks/speed.py grpo dpo --size 1M --turns 1

CPU seconds of the process are compared, not wall time: a neighbour on the machine changes them little. The first two
steps of a process are left out. Ratios are peer / ours: of seconds per token drawn, or of seconds per step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHAPE = {"group": 8, "prompt": 64, "completion": 32}
WORK = {  # work -> batch by size, the ratio aimed at
    "rollout": ({"1M": 128, "11M": 128}, {"1M": 3.5, "11M": 4.0}),
    "grpo": ({"1M": 128, "11M": 32}, 3.0),
    "rloo": ({"1M": 128, "11M": 32}, 3.0),
    "ppo": ({"1M": 32, "11M": 32}, 3.0),
    "ppo4": ({"1M": 32, "11M": 32}, 3.0),
    "dpo": ({"1M": 32, "11M": 32}, 2.0),
    "ipo": ({"1M": 32, "11M": 32}, 2.0),
    "kto": ({"1M": 32, "11M": 32}, 1.3),
    "sft": ({"1M": 32, "11M": 32}, 1.3),
    "reward": ({"1M": 32, "11M": 32}, 1.3),
}
UNFAVOURABLE = {"group": 1, "prompt": 8, "completion": 128}


def one(side: str, work: str, size: str, batch: int, steps: int, shape: dict[str, int], folder: Path) -> dict[str, Any]:
    """Run one side here; return seconds, tokens and the peak of resident memory."""
    import torch
    import world

    torch.set_num_threads(1)
    model = world.build(size, folder)
    if side == "peers":
        import peers as told
    else:
        import ours as told  # type: ignore[no-redef]
    found = told.run(work, model, batch, steps, **shape)
    status = Path("/proc/self/status").read_text()
    found["peak"] = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    return found


def apart(python: str, *told: Any) -> dict[str, Any]:
    """Run one side in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [python, __file__, "--one", json.dumps([*told, out.name])], capture_output=True, text=True, env=env
        )
        if done.returncode:
            raise SystemExit(f"{told}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(Path(out.name).read_text())
        return found


def roofline() -> float:
    """Return GFLOP/s of one core on a large product of matrices."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(20):
        begun = time.process_time()
        a @ b
        best = max(best, 2 * 1024**3 / (time.process_time() - begun) / 1e9)
    return best


def rate(found: dict[str, Any]) -> float:
    """Return the median of seconds per step, or per token where tokens were counted, after two steps of warm-up."""
    seconds = found["seconds"][2:]
    if "tokens" in found:
        return statistics.median(s / t for s, t in zip(seconds, found["tokens"][2:], strict=True))
    return statistics.median(seconds)


def compared(work: str, size: str, batch: int, shape: dict[str, int], args: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns; return medians over turns."""
    rates: dict[str, list[float]] = {"peers": [], "ours": []}
    peaks: dict[str, list[int]] = {"peers": [], "ours": []}
    for _ in range(args.turns):
        for side in rates:
            python = args.ppo_python if side == "peers" and work.startswith("ppo") else sys.executable
            found = apart(python, side, work, size, batch, args.steps, shape, str(args.models))
            rates[side].append(rate(found))
            peaks[side].append(found["peak"])
    each = [p / o for p, o in zip(rates["peers"], rates["ours"], strict=True)]
    row = {"work": work, "size": size, "batch": batch, "ratio": statistics.median(each), "ratios": each}
    row |= {side: statistics.median(rates[side]) for side in rates}
    return row | {f"{side}_peak": max(peaks[side]) for side in peaks}


def table(rows: list[dict[str, Any]], gflops: float, args: argparse.Namespace) -> str:
    """Return the rows as Markdown."""
    lines = [
        f"One core of {platform.processor() or platform.machine()}, on which a product of 1024 x 1024 matrices runs at "
        f"{gflops:.0f} GFLOP/s. {args.turns} turns of {args.steps - 2} steps each side, medians; CPU seconds. Made by "
        f"`{args.command}`.",
        "",
        "| work | model | batch | peer | ours | peer / ours [turns] | aimed at | peak MiB peer / ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        unit, scale = ("us per token", 1e6) if r["work"].startswith("rollout") else ("ms per step", 1e3)
        spread = f"{min(r['ratios']):.2f} to {max(r['ratios']):.2f}"
        lines.append(
            f"| {r['work']} | {r['size']} | {r['batch']} | {r['peers'] * scale:.0f} {unit} | {r['ours'] * scale:.0f} | "
            f"{r['ratio']:.2f} [{spread}] | {r['goal']} | "
            f"{r['peers_peak'] / 2**20:.0f} / {r['ours_peak'] / 2**20:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare, and write the table."""
    if sys.argv[1:2] == ["--one"]:
        *told, folder, out = json.loads(sys.argv[2])
        sys.path.insert(0, str(HERE))
        Path(out).write_text(json.dumps(one(*told, folder=Path(folder))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", help=f"of {', '.join(WORK)}; all that can run here if none is named")
    parser.add_argument("--size", action="append", choices=["1M", "11M"], help="model; both if not given")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7, help="of a process, two of them warm-up")
    parser.add_argument("--unfavourable", action="store_true", help=f"one completion per prompt: {UNFAVOURABLE}")
    parser.add_argument("--ppo-python", help="a Python with trl 1.12, for PPO")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "harness-benchmark")
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "speed.md")
    args = parser.parse_args()
    args.command = " ".join(["python benchmarks/speed.py", *sys.argv[1:]])
    for name in args.work:
        if name not in WORK:
            parser.error(f"there is no work {name!r}: expected {', '.join(WORK)}")
    works = args.work or [w for w in WORK if args.ppo_python or not w.startswith("ppo")]
    rows, gflops = [], roofline()
    shape = UNFAVOURABLE if args.unfavourable else SHAPE
    for work in works:
        batches, goal = WORK[work]
        for size in args.size or ["1M", "11M"]:
            row = compared(work, size, batches[size], shape, args)
            row["goal"] = 1.0 if args.unfavourable else goal[size] if isinstance(goal, dict) else goal
            rows.append(row)
            print(f"{work} {size}: peer / ours {row['ratio']:.2f} {[round(x, 2) for x in row['ratios']]}", flush=True)
            args.output.write_text(table(rows, gflops, args), encoding="utf-8")


if __name__ == "__main__":
    main()
