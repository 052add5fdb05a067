"""Real sizes on a GPU: the harness against TRL, random weights of the shapes of 0.5B and 1.5B
models, bf16 autocast.

    pip install -e . -r benchmarks/requirements.txt
    python benchmarks/gpu.py                       # the table: results/speed_gpu.md
    python benchmarks/gpu.py --size 0.5B --steps 3 --output part.md

Both sides compute in bf16 over float32 weights, on the same prompts; the completions of random
weights run to the limit. Each side of a size runs in a process of its own; wall seconds with the
device synchronised; the first step is left out. FLOPs are those that are needed - every prompt once
per turn, every token once - as counted by the harness, for both sides; the rate they are compared
with is that of a large product of matrices in the same run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
from gpu_world import (
    BATCH,
    COMPLETION,
    GROUP,
    PAIRS,
    PROMPT,
    SIDES,
    SIZES,
    VOCABULARY,
    WORKS,
    pairs,
)

HERE = Path(__file__).parent


def gemm() -> float:
    """Return TFLOP/s of a large bf16 product of matrices."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - begun) / 1e12


def needed(size: str, work: str, costs: dict[str, Any]) -> float:
    """Return the FLOPs of a step: those the harness counted, or of a rollout what its lengths come
    to.
    """
    if "flops" in costs:
        return float(costs["flops"])
    shape = SIZES[size]
    hidden, layers, heads = (
        shape["hidden_size"],
        shape["num_hidden_layers"],
        shape["num_attention_heads"],
    )
    inner = 2 * hidden * hidden + 2 * hidden * hidden * shape["num_key_value_heads"] // heads
    linear = layers * (inner + 3 * hidden * shape["intermediate_size"])
    tokens, pairs = (
        BATCH // GROUP * PROMPT + BATCH * COMPLETION,
        BATCH * COMPLETION * (PROMPT + COMPLETION / 2),
    )
    return (
        2.0 * linear * tokens
        + 2.0 * hidden * VOCABULARY * BATCH * COMPLETION
        + 4.0 * layers * hidden * pairs
    )


def apart(side: str, size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a side in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        task = json.dumps([side, size, args.work or list(WORKS), args.steps, args.engine, out.name])
        done = subprocess.run(
            [sys.executable, __file__, "--one", task],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if done.returncode:
            print(f"{side} {size} failed: {done.stderr[-3000:]}", flush=True)
            return {}
        print(done.stderr[-300:] if "out of memory" in done.stderr else "", flush=True)
        costs: dict[str, Any] = json.loads(Path(out.name).read_text(encoding="utf-8"))
        return costs


def table(
    rows: dict[str, dict[str, dict[str, Any]]], device: str, rate: float, args: argparse.Namespace
) -> list[str]:
    """Return the lines of a Markdown table; a side that was not measured, or had no memory, is a
    dash.
    """
    lines = [
        (
            f"One {device}; a bf16 product of 8192 x 8192 matrices ran at {rate:.0f} TFLOP/s."
            f" {args.steps - 1} steps, medians of wall seconds, bf16 over float32 weights, prompts"
            f" of {PROMPT} and completions of {COMPLETION} tokens, {BATCH} completions in groups of"
            f" {GROUP}, {PAIRS} pairs; decoding with the engine `{args.engine}`. Of commit"
            f" {report.commit()}, {report.versions('torch', 'transformers', 'trl')}. Made by"
            f" `{report.command('gpu.py')}`."
        ),
        "",
        (
            "| model | work | peer s | ours s | peer / ours | completion tokens/s peer / ours | "
            "share of that rate peer / ours | peak GiB peer / ours |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, sides in rows.items():
        for work in args.work or WORKS:
            peer, own = sides.get("peers", {}).get(work), sides.get("ours", {}).get(work)
            both = [(cost or {}).get("seconds") for cost in (peer, own)]
            flops, drawn = needed(size, work, own) if own else None, BATCH * COMPLETION
            of_dpo = sum(1 + len(r[k].split()) for r in pairs(PAIRS) for k in SIDES)
            drawn = of_dpo if work == "dpo" else drawn

            def two(of: Callable[[float], str], both: list[Any] = both) -> str:
                return " / ".join("-" if s is None else of(s) for s in both)

            share = two(lambda s, f=flops: f"{f / s / rate / 1e12:.1%}" if f else "-")  # type: ignore[misc]
            rates = two(lambda s, d=drawn: f"{d / s:.0f}")  # type: ignore[misc]
            peaks = " / ".join(
                "-" if x is None else f"{x['peak'] / 2**30:.1f}" for x in (peer, own)
            )
            ratio = "-" if None in both else f"{both[0] / both[1]:.2f}"
            seconds = ["-" if s is None else f"{s:.3f}" for s in both]
            lines.append(
                f"| {size} | {work} | {seconds[0]} | {seconds[1]} | {ratio} | {rates} | {share} |"
                f" {peaks} |"
            )
    return lines


def arguments() -> argparse.Namespace:
    """Return the command line's arguments; a part of the table may not replace the whole one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", action="append", choices=list(SIZES), help="both if not given")
    parser.add_argument("--work", action="append", choices=WORKS, help="all if not given")
    parser.add_argument("--steps", type=int, default=5, help="the first is left out")
    parser.add_argument("--engine", default="cuda_graphs", choices=["hf", "cuda_graphs"])
    parser.add_argument(
        "--side", action="append", choices=["ours", "peers"], help="both if not given"
    )
    parser.add_argument(
        "--output", type=Path, help="results/speed_gpu.md if not given, and all is measured"
    )
    args = parser.parse_args()
    if not args.output and (args.size or args.work or args.side):
        parser.error("--size, --work and --side make a part of the table: say where to by --output")
    import torch

    if not torch.cuda.is_available():
        parser.error("there is no GPU here")
    return args


def main() -> None:
    """Compare, and write the table."""
    if sys.argv[1:2] == ["--one"]:
        import gpu_ours
        import gpu_peers

        side, size, works, steps, engine, out = json.loads(sys.argv[2])
        measure = {"ours": gpu_ours.ours, "peers": gpu_peers.peers}
        Path(out).write_text(
            json.dumps(measure[side](size, works, steps, engine)), encoding="utf-8"
        )
        return
    args = arguments()
    import torch

    rate, rows, failed = gemm(), {}, False
    for size in args.size or list(SIZES):
        rows[size] = {side: apart(side, size, args) for side in args.side or ("ours", "peers")}
        failed |= not all(rows[size].values())
        print(size, json.dumps(rows[size]), flush=True)
        lines = table(rows, torch.cuda.get_device_name(0), rate, args)
        if args.output:
            report.write(args.output, lines)
    if failed and not args.output:  # what is there says more than a table with holes
        print("\n".join(lines))
        raise SystemExit("a side failed: results/speed_gpu.md is left as it was")
    if not args.output:
        report.write(HERE.parent / "results" / "speed_gpu.md", lines)


if __name__ == "__main__":
    main()
