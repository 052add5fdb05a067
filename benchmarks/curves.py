"""Cost against the size of a group, the lengths, the batch and the model: rollout, GRPO and DPO,
both sides.

    python benchmarks/speed.py --part curves        # results/speed_curves.csv, speed_curves*.png

A process takes all points of a work for one side, so imports are paid once; the peer's comes first,
then ours, and they do not take turns. Peak memory is not asked for. Completions are about half as
long as they may be at every limit, so long limits do give long completions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import report
import tables

WORKS = ("rollout", "grpo", "dpo")
BASE = {"size": "1M", "batch": 64, "group": 8, "prompt": 64, "completion": 32}
BATCHES = {"dpo": 32}  # pairs: as many completions as the others'
AXES: dict[str, tuple[Any, ...]] = {
    "group": (1, 2, 4, 8, 16),
    "prompt": (8, 32, 64, 128, 256),
    "completion": (8, 32, 64, 128),
    "batch": (16, 32, 64, 128, 256),
    "size": ("1M", "3M", "11M"),
}
WARM = 1  # steps of a point that are left out
KEY = ("work", "axis", "x", "side")
Apart = Callable[..., list[dict[str, Any]]]


def points(work: str) -> list[dict[str, Any]]:
    """Return the points of a work's curves; a point on several axes appears once for each."""
    grid = []
    for axis, values in AXES.items():
        for x in values:
            if axis == "group" and (work == "dpo" or (work == "grpo" and x == 1)):
                continue  # pairs have two completions; a group of one has no advantage
            grid.append(
                BASE
                | {"batch": BATCHES.get(work, BASE["batch"])}
                | {axis: x}
                | {"axis": axis, "x": x}
            )
    return grid


def measure(args: argparse.Namespace, apart: Apart) -> None:
    """Measure the curves of all works, or of those named, and keep the points."""
    file = args.results / "speed_curves.csv"
    for work in [w for w in WORKS if not args.work or w in args.work]:
        wanted = points(work)
        have = tables.read(file)
        if args.missing:
            wanted = _missing(have, work, wanted)
        if not wanted:
            continue
        unique = list({_place(p): p for p in wanted}.values())
        apart(
            sys.executable,
            "build",
            [{"size": p["size"], "limit": p["completion"]} for p in unique],
            args.models,
        )
        for side in ("peers", "ours"):
            runs = apart(
                sys.executable,
                side,
                [_point(work, p, args.curve_steps) for p in unique],
                args.models,
            )
            best = max(f["gflops"] for f in runs)
            at = {_place(p): cost(f, best) for p, f in zip(unique, runs, strict=True)}
            used = {"software": runs[0]["software"], "processor": runs[0]["processor"]}
            new = [_row(work, side, p, args) | at[_place(p)] | used for p in wanted]
            have = [h for h in have if not any(tables.same(h, n, KEY) for n in new)] + new
            tables.save(file, have)
            print(f"curves {work} {side}: {len(unique)} points", flush=True)


def cost(run: dict[str, Any], gflops: float) -> dict[str, float]:
    """Return the cost of a point after its warm-up, and the least it could be."""
    steps = list(zip(run["seconds"], run["tokens"], run["flops"], strict=True))[WARM:]
    return {
        "ms": statistics.median(s for s, _, _ in steps) * 1e3,
        "us": statistics.median(s / t for s, t, _ in steps) * 1e6,
        "roof_ms": statistics.fmean(f for _, _, f in steps) / gflops / 1e6,
        "roof_us": statistics.median(f / t for _, t, f in steps) / gflops / 1e3,
        "share": statistics.median(f / (gflops * 1e9) / s for s, _, f in steps),
        "length": statistics.fmean(t for _, t, _ in steps) / run["samples"],
        "gflops": gflops,
    }


def _place(point: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(point[key] for key in BASE)


def _point(work: str, point: dict[str, Any], steps: int) -> dict[str, Any]:
    shape = {key: point[key] for key in ("group", "prompt", "completion")}
    return {
        "work": work,
        "size": point["size"],
        "batch": point["batch"],
        "steps": WARM + steps,
        "shape": shape,
    }


def _row(work: str, side: str, point: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    about = {"work": work, "axis": point["axis"], "x": point["x"], "side": side}
    about |= {key: point[key] for key in BASE}
    return about | {
        "commit": report.commit(),
        "load": round(os.getloadavg()[0], 1),
        "command": args.command,
    }


def _missing(
    have: list[dict[str, str]], work: str, wanted: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the points that are not there for both sides; say of the others which commit they are
    of.
    """
    left, commits = [], []
    for point in wanted:
        about = {"work": work, "axis": point["axis"], "x": point["x"]}
        there = [h for h in have if tables.same(about, h, KEY[:3])]
        if {h["side"] for h in there} < {"peers", "ours"}:
            left.append(point)
        else:
            commits += [h["commit"] for h in there]
    if commits:
        print(
            f"curves {work}: {len(wanted) - len(left)} points kept, of commit"
            f" {', '.join(sorted(set(commits)))}"
        )
    return left
