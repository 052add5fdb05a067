"""Trials: one fault each, and how its outcome is decided."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fault_world import Done, World, bytes_of, files_of, leftovers, run_of

PASSED, LOST, WRONG, FAILED, SKIPPED = "passed", "lost", "wrong", "failed", "skipped"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a trial.

    `lost`: a result or a finished stage is gone. `wrong`: a number is shown that differs from the
    undisturbed run and is not marked. `failed`: any other fault of the harness, such as a traceback
    or another exit status. `identical` is whether a resumed run ended in the same bytes, where the
    trial resumed one.
    """

    outcome: str
    reason: str = ""
    identical: bool | None = None

    def row(self) -> dict[str, object]:
        """Return the verdict as a JSON-able value."""
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """A fault: what it is called within its kind, and the function that makes it."""

    name: str
    make: Callable[[], Verdict]


Trials = Iterator[Trial]
Kind = Callable[[World, random.Random], Trials]


class Kinds:
    """The kinds of faults: {name: (numbers of the reliability list, function)}, in order."""

    all: dict[str, tuple[str, Kind]] = {}


def kind(name: str, numbers: str) -> Callable[[Kind], Kind]:
    """Register a function that yields the trials of a kind."""

    def keep(function: Kind) -> Kind:
        Kinds.all[name] = (numbers, function)
        return function

    return keep


def skipped(reason: str) -> Trial:
    """Return the trial of a kind that this machine cannot make."""
    return Trial("all", lambda: Verdict(SKIPPED, reason))


def one_message(done: Done, code: int = 2, *words: str) -> Verdict:
    """Pass a command that ended with one message, no traceback, an exit status and some words."""
    lines = [line for line in done.err.splitlines() if line.startswith("harness: ")]
    if "Traceback" in done.text or "HUNG" in done.err:
        return Verdict(FAILED, f"traceback or no end: {done.text[-300:]}")
    if done.code != code:
        return Verdict(FAILED, f"exit status {done.code}, not {code}: {done.text[-300:]}")
    if code and len(lines) != 1 and "Usage:" not in done.err:
        return Verdict(FAILED, f"{len(lines)} messages: {done.err[-300:]}")
    missing = [word for word in words if word.lower() not in done.text.lower()]
    return (
        Verdict(FAILED, f"not named: {missing} in {done.text[-300:]}" if missing else "")
        if (missing)
        else Verdict(PASSED)
    )


def first_bad(*verdicts: Verdict) -> Verdict:
    """Return the first verdict that is not passed, else the last one."""
    return next((v for v in verdicts if v.outcome != PASSED), verdicts[-1])


class Disturbed:
    """A results folder in which a run of a method is disturbed, and what was there before."""

    def __init__(self, world: World, method: str, results: Path | None = None) -> None:
        self.world, self.method = world, method
        self.whole, self.undisturbed = world.whole(method)
        self.results = results or world.prepared(method)
        self.before = files_of(self.results)

    def shown(self) -> Verdict:
        """Decide what a reader sees after the fault: what was there, and no wrong number."""
        after = files_of(self.results)
        gone = [name for name, digest in self.before.items() if after.get(name) != digest]
        if gone:
            return Verdict(LOST, f"gone or changed: {gone[:3]}")
        folder = run_of(self.results, self.method)
        if folder is None or not (folder / "result.json").exists():
            return Verdict(PASSED)
        shown, right = bytes_of(folder).get("samples.jsonl"), self._right().get("samples.jsonl")
        return Verdict(PASSED if shown == right else WRONG, "a result of other samples")

    def resumed(self, *more: object) -> Verdict:
        """Run the same command again, and compare what it leaves with the undisturbed run."""
        seen = self.shown()
        done = self.world.train(self.method, self.results, *more)
        folder = run_of(self.results, self.method)
        if done.code != 0 or folder is None:
            return Verdict(LOST, f"the same command again: {done.code} {done.text[-300:]}", False)
        mine, right = bytes_of(folder), self._right()
        differing = sorted(n for n in {*mine, *right} if mine.get(n) != right.get(n))
        if differing:
            differences = ", ".join(
                f"{n}: {mine.get(n)}, not {right.get(n)}" for n in differing[:4]
            )
            return Verdict(WRONG, f"after resuming {differences}", False)
        if rest := leftovers(folder):
            return Verdict(FAILED, f"left behind: {rest[:3]}", True)
        return Verdict(seen.outcome, seen.reason, True)

    def _right(self) -> dict[str, str]:
        folder = run_of(self.whole, self.method)
        assert folder is not None, "the undisturbed run has a folder"
        return bytes_of(folder)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.results, ignore_errors=True)


def disturbed(
    world: World, method: str, fault: str, codes: tuple[int, ...], *more: object
) -> Verdict:
    """Make a fault in a run of a method, resume it, and decide."""
    case = Disturbed(world, method)
    done = world.train(method, case.results, *more, fault=fault)
    verdict = ended(done, codes, fault)
    if verdict.outcome == PASSED:
        verdict = case.resumed()
    case.close()
    return verdict


def ended(done: Done, codes: tuple[int, ...], what: str) -> Verdict:
    """Decide how a disturbed command ended: with one of these exit statuses, leaving no process."""
    if done.strays:
        return Verdict(FAILED, f"{done.strays} processes are left after {what}")
    if "HUNG" in done.err:
        return Verdict(FAILED, f"no end after {what}")
    if done.code not in codes:
        return Verdict(FAILED, f"{what}: exit status {done.code}: {done.text[-300:]}")
    return Verdict(PASSED)


def failure_of(results: Path, method: str) -> dict[str, object]:
    """Return the record of a failed run; empty where there is none."""
    folder = run_of(results, method)
    file = folder / "failure.json" if folder else None
    record: dict[str, object] = {}
    if file is not None and file.exists():
        record = json.loads(file.read_text(encoding="utf-8"))
    return record
