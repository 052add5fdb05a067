"""Steps of the harness against TRL's trainers, taking turns in processes of their own, on one core.

    pip install -e . -r benchmarks/requirements.txt -c constraints.txt
    python benchmarks/speed.py --ppo-python OTHER/bin/python        # all of results/speed.*
    python benchmarks/speed.py grpo dpo --part main --size 1M --turns 1 --results trial

The parts: `main`, the table aimed at; `unfavourable`, one completion per prompt, short prompts,
long completions; `curves`, cost against groups, lengths, batch and model size (curves.py). Measured
rows go to speed.csv, where they replace rows of the same work, size and shape; speed.md is made of
what is there (`--tables`: of nothing else). `--missing` measures only what is not there yet, of
whatever commit, so a run that was cut off goes on. OTHER is an environment of
benchmarks/requirements-ppo.txt: TRL 1.12.0, the last that has PPO.

CPU seconds of the process are compared, not wall time: a neighbour on the machine changes them
less. The first two steps of a process are left out. Ratios are peer / ours: of a rollout measured
per token drawn, else per step.
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
import report
import tables

HERE = Path(__file__).parent
NEEDS, PPO_NEEDS = "requirements.txt", "requirements-ppo.txt"
PARTS, SIZES = ("main", "unfavourable", "curves"), ("1M", "11M")
OF_PARTS = {
    "size": PARTS[:2],
    "turns": PARTS[:2],
    "steps": PARTS[:2],
    "curve_steps": PARTS[2:],
}  # option -> parts
WARM = 2  # steps of a process that are left out
MAIN = {"group": 8, "prompt": 64, "completion": 32}
ALONE = {"group": 1, "prompt": 8, "completion": 128}
IN_TWO = ALONE | {"group": 2}  # a group of one has no advantage
BATCH = {
    "rollout": {"1M": 128, "11M": 128},
    "grpo": {"1M": 128, "11M": 32},
    "rloo": {"1M": 128, "11M": 32},
}
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
    for work in in_part(part, works):
        for size in sizes:
            goal = GOALS[work]
            row: dict[str, Any] = {"part": part, "work": work, "size": size}
            if part == "main":
                row |= {
                    "batch": BATCH.get(work, {}).get(size, 32),
                    **MAIN,
                    "memory_goal": MEMORY.get(work, ""),
                }
                row["goal"] = goal[size] if isinstance(goal, dict) else goal
            else:
                row |= {
                    "batch": 32,
                    **(IN_TWO if work in ("grpo", "rloo") else ALONE),
                    "memory_goal": "",
                    "goal": 1.0,
                }
            rows.append(row)
    return rows


def apart(
    python: str, side: str, points: list[dict[str, Any]], models: Path
) -> list[dict[str, Any]]:
    """Let one side take points in a process of its own; return what it found, in order."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        task = json.dumps({"side": side, "points": points, "models": str(models), "out": out.name})
        done = subprocess.run(
            [python, str(HERE / "side.py"), task],
            capture_output=True,
            text=True,
            env=env,
            encoding="utf-8",
        )
        if done.returncode:
            raise SystemExit(f"{side} {points}: {done.stderr[-2000:]}")
        return [
            json.loads(line) for line in Path(out.name).read_text(encoding="utf-8").splitlines()
        ]


def summary(run: dict[str, Any], work: str, gflops: float) -> dict[str, float]:
    """Return the medians of a process after its warm-up: seconds per step (a rollout's: per token),
    share, length.
    """
    steps = list(zip(run["seconds"], run["tokens"], run["flops"], strict=True))[WARM:]
    return {
        "seconds": statistics.median(s / t if work == "rollout" else s for s, t, _ in steps),
        "share": statistics.median(f / (gflops * 1e9) / s for s, _, f in steps),
        "length": statistics.fmean(t for _, t, _ in steps) / run["samples"],
        "updates": run["updates"],
        "before": run["before"] / 2**20,
        "peak": run["peak"] / 2**20,
    }


def measured(row: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns at a row; return it with medians over turns."""
    point = {key: row[key] for key in ("work", "size", "batch")} | {"steps": args.steps + WARM}
    point["shape"] = {key: row[key] for key in MAIN}
    apart(sys.executable, "build", [{"size": row["size"], "limit": row["completion"]}], args.models)
    runs: dict[str, list[dict[str, Any]]] = {"peer": [], "ours": []}
    for turn in range(args.turns):
        for side, turns in runs.items():
            python = (
                args.ppo_python
                if side == "peer" and row["work"].startswith("ppo")
                else sys.executable
            )
            turns += apart(
                python, "peers" if side == "peer" else "ours", [point | {"seed": turn}], args.models
            )
    gflops = max(one["gflops"] for turns in runs.values() for one in turns)
    sums = {
        side: [summary(one, row["work"], gflops) for one in turns] for side, turns in runs.items()
    }
    each = [p["seconds"] / o["seconds"] for p, o in zip(sums["peer"], sums["ours"], strict=True)]
    done = row | {"turns": args.turns, "steps": args.steps, "gflops": gflops}
    done |= {"ratio": statistics.median(each), "ratio_min": min(each), "ratio_max": max(each)}
    for side, turns in sums.items():
        done |= {f"{side}_{key}": statistics.median(t[key] for t in turns) for key in turns[0]}
        done[f"{side}_peak"] = max(t["peak"] for t in turns)
    if done["peer_updates"] != done["ours_updates"]:
        raise SystemExit(
            f"{row}: {done['peer_updates']} updates per step of the peer, {done['ours_updates']} of"
            " ours"
        )
    done |= {f"software_{side}": turns[0]["software"] for side, turns in runs.items()}
    done |= {"processor": runs["ours"][0]["processor"], "commit": report.commit()}
    return done | {"load": round(os.getloadavg()[0], 1)}


def arguments() -> argparse.Namespace:
    """Return the command line's arguments, checked."""
    parser = command_line()
    args = parser.parse_args()
    args.command = report.command("speed.py")
    args.parts = args.part or list(PARTS)
    if not args.tables:
        refuse(parser, args)
        args.works = args.work or [w for w in GOALS if args.ppo_python or not w.startswith("ppo")]
        say_what_is_left_out(args)
    args.turns, args.steps = args.turns or 3, args.steps or 5
    args.curve_steps = args.curve_steps or 3
    args.results.mkdir(parents=True, exist_ok=True)
    return args


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "work", nargs="*", help=f"of {', '.join(GOALS)}; all that can run here if none is named"
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="all if not given")
    parser.add_argument(
        "--size",
        action="append",
        choices=SIZES,
        help="both if not given; the curves have their own",
    )
    parser.add_argument("--turns", type=int, help="processes of each side, 3 if not given")
    parser.add_argument(
        "--steps", type=int, help=f"measured steps of a process, after {WARM} of warm-up; 5"
    )
    parser.add_argument(
        "--curve-steps", type=int, help="measured steps of a point of the curves; 3"
    )
    parser.add_argument(
        "--missing", action="store_true", help="measure only what results have not, of any commit"
    )
    parser.add_argument(
        "--tables", action="store_true", help="measure nothing: make speed.md of what is there"
    )
    parser.add_argument(
        "--ppo-python", help=f"a Python with trl {report.pinned(PPO_NEEDS)}, for PPO"
    )
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "harness-benchmark"
    )
    parser.add_argument(
        "--results", type=Path, default=HERE.parent / "results", help="folder of speed.*"
    )
    return parser


def refuse(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one message where something asked for cannot be done, or would change nothing."""
    for name in args.work:
        if name not in GOALS:
            parser.error(f"there is no work {name!r}: expected {', '.join(GOALS)}")
        if name.startswith("ppo") and not args.ppo_python:
            parser.error(
                f"{name} needs --ppo-python: TRL has no PPO after {report.pinned(PPO_NEEDS)}"
            )
    for name in ("turns", "steps", "curve_steps"):
        given = getattr(args, name)
        if given is not None and given < 1:
            parser.error(f"--{name.replace('_', '-')} {given}: expected 1 or more")
    for name, parts in OF_PARTS.items():
        if getattr(args, name) is not None and not set(parts) & set(args.parts):
            option, names = name.replace("_", "-"), ", ".join(args.parts)
            parser.error(f"--{option} is of {' and '.join(parts)}, and changes nothing in {names}")
    for part in args.parts:
        if args.work and args.part and not in_part(part, args.work):
            parser.error(
                f"--part {part} has no {', '.join(args.work)}: expected"
                f" {', '.join(in_part(part, list(GOALS)))}"
            )
    if not (args.ppo_python and args.work and all(w.startswith("ppo") for w in args.work)):
        refuse_other_trl(parser, sys.executable, NEEDS)
    if args.ppo_python:
        refuse_other_trl(parser, args.ppo_python, PPO_NEEDS)


def refuse_other_trl(parser: argparse.ArgumentParser, python: str, needs: str) -> None:
    """End with one message where an environment has another TRL than the comparison is with."""
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import report;"
        " print(report.installed('trl'))"
    )
    try:
        done = subprocess.run(
            [python, "-c", script], capture_output=True, text=True, encoding="utf-8"
        )
    except OSError as error:
        parser.error(f"{python} cannot be run: {error.strerror}")
    installed, wanted = done.stdout.strip(), report.pinned(needs)
    if installed != wanted:
        parser.error(
            f"{python} has trl {installed or done.stderr.strip()[-200:]}, but {wanted} is needed: "
            f"pip install -r benchmarks/{needs}"
        )


def in_part(part: str, works: list[str]) -> list[str]:
    """Return those of the works that a part measures."""
    if part == "curves":
        return [w for w in works if w in curves.WORKS]
    return [
        w for w in works if part == "main" or not w.endswith("_group")
    ]  # without groups the same as ungrouped


def say_what_is_left_out(args: argparse.Namespace) -> None:
    """Say which works, and which options, some of the parts do not look at."""
    absent = [w for w in GOALS if w.startswith("ppo") and w not in args.works]
    if not args.work and absent and args.parts != ["curves"]:
        print(f"without --ppo-python left out: {', '.join(absent)}", flush=True)
    for part in args.parts:
        others = [w for w in args.work if w not in in_part(part, args.work)]
        if others:
            print(f"{part} has no {', '.join(others)}", flush=True)
        for name, parts in OF_PARTS.items():
            if part not in parts and getattr(args, name) is not None and name != "curve_steps":
                print(
                    f"{part}: --{name} is of {' and '.join(parts)}, and changes nothing here",
                    flush=True,
                )


def main() -> None:
    """Measure, and write what results/speed.* are made of."""
    args = arguments()
    for part in [] if args.tables else args.parts:
        if part == "curves":
            curves.measure(args, apart)
            continue
        for row in rows_of(part, args.works, args.size or list(SIZES)):
            had = tables.row_about(args.results, row) if args.missing else None
            about = f"{part} {row['work']} {row['size']}"
            if had:
                print(
                    f"{about}: kept, {had['turns']} x {had['steps']} of commit {had['commit']},"
                    f" load {had['load']}"
                )
                continue
            done = measured(row, args)
            print(f"{about}: peer / ours {done['ratio']:.2f}", flush=True)
            tables.keep(args.results, done | {"command": args.command})
    tables.write(args.results, list(GOALS))


if __name__ == "__main__":
    main()
