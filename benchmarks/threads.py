"""Whole runs of `harness run` with one CPU thread and with two, taking turns: what the default of
`--threads` rests on.

    python benchmarks/threads.py --output results/speed_threads.md

Seconds on the clock and CPU seconds of the process, from its start; SFT, preferences and reward
model are made before. Two runs beside each other with a thread each are the third column: a study's
way to use two cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

REPOSITORY = Path(__file__).parent.parent
RUNS = (("ppo", "summarization"), ("dpo", "summarization"), ("grpo", "arithmetic"))


def start(method: str, suite: str, results: Path, threads: int, seed: int) -> subprocess.Popen[str]:
    """Begin a run."""
    return subprocess.Popen(
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
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def timed(runs: list[tuple[str, str, Path, int, int]]) -> tuple[float, float]:
    """Carry out runs beside each other; return seconds and CPU seconds, both per run."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for process in [start(*run) for run in runs]:
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"{process.args}: {errors[-2000:]}")
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds / len(runs), cpu / len(runs)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY / "results" / "speed_threads.md")
    args = parser.parse_args()
    lines = [
        (
            "Wall seconds (CPU seconds) of whole runs with imports and evaluation, by CPU threads."
            " The last column is the time per run of two runs at the same time. Of commit"
            f" {report.commit()}, {os.cpu_count()} cores,"
            f" {report.versions('torch', 'transformers')}. Made by"
            f" `{report.command('threads.py')}`."
        ),
        "",
        "| run | one thread | two threads | two runs, a thread each |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {threads: Path(scratch, str(threads)) for threads in (1, 2)}
        for suite in dict.fromkeys(suite for _, suite in RUNS):
            for threads, folder in folders.items():  # the stages, outside the figures
                timed([("best_of_n", suite, folder, threads, 9)])
        for method, suite in RUNS:
            one, two = (
                timed([(method, suite, folders[threads], threads, 0)]) for threads in (1, 2)
            )
            beside = timed([(method, suite, folders[1], 1, seed) for seed in (1, 2)])
            cells = " | ".join(f"{seconds:.0f} ({cpu:.0f})" for seconds, cpu in (one, two, beside))
            lines.append(f"| {method} on {suite} | {cells} |")
            print(lines[-1], flush=True)
        report.write(args.output, lines)  # all of it or nothing


if __name__ == "__main__":
    main()
