"""Whole runs of `harness run` now and at an earlier commit, taking turns: CPU seconds of the process from its start.

    python benchmarks/runs.py --before edf8305 --output results/speed_runs.md

The first column is a run from nothing, with SFT, preferences and reward model; the others find those made.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
RUNS = (
    ("ppo, from nothing", "ppo", "summarization"), ("ppo", "ppo", "summarization"), ("dpo", "dpo", "summarization"),
    ("kto", "kto", "summarization"), ("best_of_n", "best_of_n", "summarization"), ("grpo", "grpo", "summarization"),
    ("rrhf", "rrhf", "summarization"), ("grpo on arithmetic", "grpo", "arithmetic"),
)  # fmt: skip


def run(root: Path, method: str, suite: str, results: Path, seed: int) -> float:
    """Carry out a run of the code in `root`; return its CPU seconds."""
    paths = os.pathsep.join(str(root / part) for part in (".", "plugins", "suites"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", "-m", method, "-s", suite, "--seed", str(seed), "--threads", "1",
         "--results", str(results)],
        cwd=results, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{method} of {root}: {done.stderr[-2000:]}{done.stdout[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the earlier commit")
    parser.add_argument("--only", nargs="+", choices=[run[0] for run in RUNS[1:]], help="only these runs")
    parser.add_argument("--turns", type=int, default=1, help="seeds; medians are shown")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "results" / "speed_runs.md")
    args = parser.parse_args()
    lines = [
        f"CPU seconds of whole runs on one thread at {args.before} and now, taking turns, {args.turns} seeds. Made by "
        f"`python benchmarks/runs.py {' '.join(sys.argv[1:])}`.",
        "",
        "| run | before | now | before / now |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        subprocess.run(["git", "worktree", "add", "--detach", tree, args.before], check=True, cwd=REPOSITORY)
        try:
            trees = {"before": tree, "now": REPOSITORY}
            folders = {side: Path(scratch, side) for side in trees}
            for folder in folders.values():
                folder.mkdir()
            for name, method, suite in [run for run in RUNS if not args.only or run[0] in args.only]:
                if suite != "summarization" or args.only:  # its stages first, outside the figure
                    for side, root in trees.items():
                        run(root, "sft", suite, folders[side], 0)
                seeds = [9] if "nothing" in name else list(range(args.turns))
                taken: dict[str, list[float]] = {side: [] for side in trees}
                for seed in seeds:
                    for side, root in trees.items():
                        taken[side].append(run(root, method, suite, folders[side], seed))
                before, now = (sorted(taken[side])[len(seeds) // 2] for side in trees)
                lines.append(f"| {name} | {before:.1f} | {now:.1f} | {before / now:.2f} |")
                print(lines[-1], flush=True)
                args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], check=True, cwd=REPOSITORY)


if __name__ == "__main__":
    main()
