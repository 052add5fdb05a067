"""Make faults on purpose, and decide whether a result is lost or a wrong number is shown.

    python benchmarks/faults.py                  everything that this machine can make
    python benchmarks/faults.py --only kill      the kinds whose name holds a text
    python benchmarks/faults.py --seed 1         other points, moments and bits
    python benchmarks/faults.py --hours 1        stop after an hour; the same command goes on

Every fault happens in processes of their own, on small runs of an embedded suite. What was tried is
kept in a JSON-lines file, so that the same command goes on where it was stopped. A whole campaign
writes results/faults.md, about every seed in that file. What this machine cannot make is skipped
and named.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fault_data
import fault_files
import fault_hosts
import fault_plugins
import fault_runs
from fault_trials import FAILED, LOST, PASSED, SKIPPED, WRONG, Kind, Kinds, Trial, Verdict
from fault_world import World, load_libraries

ROOT = Path(__file__).parent.parent
MODULES = (fault_runs, fault_plugins, fault_files, fault_hosts, fault_data)
Row = dict[str, Any]
PARTIAL = (
    "The campaign was stopped before its end. It makes one fault of each kind first, so kinds"
    " have fewer faults here than in a whole campaign. The same command goes on."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry the campaign out; return 0 if nothing was lost, wrong or failed."""
    options = _parser().parse_args(arguments)
    outcomes = Path(options.outcomes)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and so would every run
    load_libraries()
    with tempfile.TemporaryDirectory(prefix="harness-faults-") as work:
        world = World(Path(work))
        finished = carry_out(world, outcomes, options.seed, options.only, options.hours)
    rows = read(outcomes, options.seed)
    print(table(rows))
    print(headline(rows))
    if not options.only and options.write:
        text = page(read(outcomes), finished)
        Path(options.write).write_text(text, encoding="utf-8")
    return int(any(row["outcome"] in (LOST, WRONG, FAILED) for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="draws points, moments and bits")
    parser.add_argument("--only", default="", metavar="KIND", help="part of a kind's name")
    parser.add_argument("--hours", type=float, default=2.0, help="the longest time")
    parser.add_argument("--outcomes", default="faults.jsonl", help="the file of outcomes")
    parser.add_argument("--write", default=str(ROOT / "results" / "faults.md"), help="the page")
    return parser


def carry_out(world: World, outcomes: Path, seed: int, only: str, hours: float) -> bool:
    """Make the faults that the file of outcomes lacks; return whether all were made."""
    known = {(row["kind"], row["trial"]) for row in read(outcomes, seed)}
    end = time.monotonic() + 3600 * hours
    for name, trial in trials(world, seed, only):
        if (name, trial.name) in known:
            continue
        if time.monotonic() > end:
            print("The time is over; the same command goes on.", file=sys.stderr)
            return False
        begun = time.monotonic()
        verdict = decided(trial)
        row = {"seed": seed, "commit": _commit(), "kind": name, "trial": trial.name}
        row |= verdict.row()
        row["reason"] = "" if verdict.outcome == PASSED else verdict.reason
        row["seconds"] = round(time.monotonic() - begun, 1)
        _add(outcomes, row)
        _show(row)
        world.forget()
    return True


@cache
def _commit() -> str:
    """Return the commit of this repository; empty without git."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, encoding="utf-8").stdout.strip()


def _add(outcomes: Path, row: Mapping[str, Any]) -> None:
    """Append an outcome; a last line that was cut is ended first."""
    with outcomes.open("a+b") as stream:
        stream.seek(max(0, stream.tell() - 1))
        end = b"" if stream.read(1) in (b"", b"\n") else b"\n"
        stream.write(end + json.dumps(row).encode() + b"\n")


def _show(row: Mapping[str, Any]) -> None:
    reason = f"  {row['reason'].splitlines()[0][:160]}" if row["reason"] else ""
    print(
        f"{row['outcome']:8}{row['seconds']:7.1f} s  {row['kind']}: {row['trial']}{reason}",
        file=sys.stderr,
        flush=True,
    )


def trials(world: World, seed: int, only: str) -> Iterator[tuple[str, Trial]]:
    """Yield (kind, trial) of the kinds whose name holds a text: first one of each kind."""
    kinds = {
        name: function(world, random.Random(f"{seed} {name}"))
        for name, (_, function) in sorted(Kinds.all.items(), key=_place)
        if only.lower() in name.lower()
    }
    while kinds:
        for name, left in list(kinds.items()):
            trial = next(left, None)
            if trial is None:
                del kinds[name]
            else:
                yield name, trial


def _place(item: tuple[str, tuple[str, Kind]]) -> int:
    """Return the place of a kind's module in MODULES."""
    return [module.__name__ for module in MODULES].index(item[1][1].__module__)


def decided(trial: Trial) -> Verdict:
    """Make a fault and return its verdict; an error of the campaign itself is a failure."""
    try:
        return trial.make()
    except Exception as error:
        return Verdict(FAILED, f"{type(error).__name__}: {error}")


def read(outcomes: Path, seed: int | None = None) -> list[Row]:
    """Return the outcomes of a seed, or of all seeds, that a file holds.

    A last line that was cut is left out.
    """
    rows: list[Row] = []
    lines = outcomes.read_text(encoding="utf-8").splitlines() if outcomes.exists() else []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if seed is None or row["seed"] == seed]


def table(rows: Sequence[Row]) -> str:
    """Return the outcomes by kind as a Markdown table."""
    lines = [
        "| Kind of fault | Tried | Passed | Lost | Wrong | Failed otherwise |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    injected = [row for row in rows if row["outcome"] != SKIPPED]
    for name in dict.fromkeys(row["kind"] for row in injected):
        lines.append(_line(name, [row for row in injected if row["kind"] == name]))
    return "\n".join([*lines, _line("**all**", injected)])


def _line(name: str, rows: Sequence[Row]) -> str:
    count = Counter(row["outcome"] for row in rows)
    parts = [len(rows), *(count[outcome] for outcome in (PASSED, LOST, WRONG, FAILED))]
    return f"| {name} | {' | '.join(map(str, parts))} |"


def headline(rows: Sequence[Row]) -> str:
    """Return the outcome of a campaign in one sentence."""
    injected = [row for row in rows if row["outcome"] != SKIPPED]
    count = Counter(row["outcome"] for row in injected)
    resumed = [row["identical"] for row in injected if row["identical"] is not None]
    return (
        f"{len(injected)} faults injected, {count[LOST]} results lost, {count[WRONG]} wrong results"
        f" shown, resume byte-identical in {sum(resumed)} of {len(resumed)}."
    )


def page(rows: Sequence[Row], finished: bool) -> str:
    """Return results/faults.md: the headline, the table, and what was not made or not passed."""
    skips = [f"- {r['kind']}: {r['reason']}" for r in rows if r["outcome"] == SKIPPED]
    bad = [
        f"- {row['kind']}, {row['trial']}: {row['outcome']}, {row['reason'].splitlines()[0]}"
        for row in rows
        if row["outcome"] in (LOST, WRONG, FAILED)
    ]
    parts = [
        "# Faults made on purpose",
        headline(rows),
        "" if finished else PARTIAL,
        "\n".join(_seed_line(rows, seed) for seed in sorted({row["seed"] for row in rows})),
        table(rows),
        "Lost: a result or a finished stage is gone. Wrong: a number is shown that differs from the"
        " undisturbed run and is not marked. Failed otherwise: a traceback, another exit status, a"
        " process or a file that is left behind.",
        "## Not passed\n\n" + ("\n".join(bad) or "Nothing."),
        "## Not made on this machine\n\n"
        + ("\n".join(dict.fromkeys(skips)) or "Every kind was made."),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _seed_line(rows: Sequence[Row], seed: int) -> str:
    """Return the command of a seed, its commit, and how many of its faults passed."""
    of_seed = [row for row in rows if row["seed"] == seed and row["outcome"] != SKIPPED]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in of_seed))
    passed = sum(row["outcome"] == PASSED for row in of_seed)
    hours = sum(row["seconds"] for row in of_seed) / 3600
    return (
        f"- `python benchmarks/faults.py --seed {seed}`, commit {commits}:"
        f" {passed} of {len(of_seed)} passed, {hours:.1f} hours."
    )


if __name__ == "__main__":
    sys.exit(main())
