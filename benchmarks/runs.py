"""Whole runs of `harness run` now and at an earlier commit, taking turns: CPU and wall seconds from
a process's start.

    python benchmarks/runs.py --before edf8305 --output results/speed_runs.md

The first row is a run from nothing, with SFT, preferences and reward model; the others find those
made, and nothing else: each has a results folder of its own, so that what it shares with others -
the reference's log-probabilities, pools of candidates - it makes itself. A row per number of
threads: one, and the default of `--threads`.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

REPOSITORY = Path(__file__).parent.parent
RUNS = (
    ("ppo, from nothing", "ppo", "summarization"),
    ("ppo", "ppo", "summarization"),
    ("dpo", "dpo", "summarization"),
    ("kto", "kto", "summarization"),
    ("best_of_n", "best_of_n", "summarization"),
    ("grpo", "grpo", "summarization"),
    ("rrhf", "rrhf", "summarization"),
    ("grpo on arithmetic", "grpo", "arithmetic"),
)
STAGES, ITS_SEED = (
    "best_of_n",
    9,
)  # this run needs every stage, and shares with no seed what else it makes
Taken = tuple[float, float]  # CPU seconds, wall seconds


def run(root: Path, method: str, suite: str, results: Path, seed: int, threads: int) -> Taken:
    """Carry out a run of the code in `root`; return what it took."""
    paths = os.pathsep.join(str(root / part) for part in (".", "plugins", "suites"))
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "harness",
            "run",
            "-m",
            method,
            "-s",
            suite,
            "--seed",
            str(seed),
            "--threads",
            str(threads),
            "--results",
            str(results),
        ],
        cwd=results,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"{method} of {root}: {done.stderr[-2000:]}{done.stdout[-2000:]}")
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def alone(
    root: Path, name: str, method: str, suite: str, stages: Path, seed: int, threads: int
) -> Taken:
    """Carry out a run in a folder of its own, which holds the stages - or nothing - and is gone
    after it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        own = Path(scratch, "results")
        if "nothing" in name:
            own.mkdir()
            return run(root, method, suite, own, seed, threads)
        if not stages.exists():  # the stages, outside the figures
            stages.mkdir(parents=True)
            run(root, STAGES, suite, stages, ITS_SEED, 1)
        shutil.copytree(stages, own)
        return run(root, method, suite, own, seed, threads)


def row(name: str, threads: int, taken: dict[str, list[Taken]]) -> str:
    """Return a row of the table: medians over turns, of CPU and of wall seconds."""
    cells = []
    for kind in (0, 1):
        before, now = (
            sorted(one[kind] for one in taken[side])[len(taken[side]) // 2]
            for side in ("before", "now")
        )
        cells.append(f"{before:.1f} | {now:.1f} | {before / now:.2f}")
    return f"| {name} | {threads} | {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, help="the earlier commit")
    parser.add_argument(
        "--only", nargs="+", choices=[run[0] for run in RUNS], help="only these runs"
    )
    parser.add_argument("--turns", type=int, default=1, help="seeds; medians are shown")
    default = sorted({1, min(2, os.cpu_count() or 1)})
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=default,
        help="1, and the default of `harness run`",
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY / "results" / "speed_runs.md")
    args = parser.parse_args()
    if args.only and args.output == parser.get_default("output"):
        parser.error(
            "--only is a part of the table: say --output, so that it does not replace the whole one"
        )
    return args


def main() -> None:
    """Compare, and write the table once all of it is there."""
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        subprocess.run(
            ["git", "worktree", "add", "--detach", tree, args.before], check=True, cwd=REPOSITORY
        )
        try:
            trees = {"before": tree, "now": REPOSITORY}
            lines = head(report.commit(tree), report.commit(), args.turns)
            for name, method, suite in [
                one for one in RUNS if not args.only or one[0] in args.only
            ]:
                for threads in args.threads:
                    taken: dict[str, list[Taken]] = {side: [] for side in trees}
                    for seed in range(args.turns):
                        for side, root in trees.items():
                            stages = Path(scratch, side, suite)
                            taken[side].append(
                                alone(root, name, method, suite, stages, seed, threads)
                            )
                    lines.append(row(name, threads, taken))
                    print(lines[-1], flush=True)
            report.write(args.output, lines)
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", tree], check=True, cwd=REPOSITORY
            )


def head(before: str, now: str, turns: int) -> list[str]:
    """Return what stands above the rows."""
    return [
        (
            f"CPU and wall seconds of whole runs at {before} (before) and {now} (now), taking"
            f" turns, {turns} seed(s), with imports, evaluation and the computation of caches. Each"
            " run has its own results folder, which holds SFT, preferences and reward model."
            f" {report.versions('torch', 'transformers')}. Made by"
            f" `{report.command('runs.py')}`."
        ),
        "",
        (
            "| run | threads | CPU s, before | now | before / now | wall s, before | now | before /"
            " now |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    main()
