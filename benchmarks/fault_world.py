"""Commands of the harness in forked processes, and what an undisturbed run leaves.

All libraries are imported once. Each command is a process of its own, which can be killed, without
paying for the imports. This process computes nothing itself, so that forking it is safe.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness.core.fault_points import Count, Faults, fault_of

SUITE = "exact"
# the methods that this suite cannot serve, and a suite that can
ELSEWHERE = {"rlaif": "summarization", "maxrl": "arithmetic"}
SMALL = (
    *("--quick", "--threads", "1", "--checkpoint-every", "1steps", "--device", "cpu"),
    *("--stage-set", "evaluation.prompts=16", "--stage-set", "sft.steps=4"),
)
STEPS = {"best_of_n": (), "start": (), "raft": ("--set", "batch_size=32")}
CLOCKS = {  # what two undisturbed runs differ in
    "finished_at",
    "seal",
    "seconds",
    "cpu_seconds",
    "wall",
    "stages_made",
    "spent_seconds",
    "runtime",
    "reused_stages",
    "peak_memory",
    "peak_memory_by_phase",
}
FILES = ("metrics.jsonl", "rollouts.jsonl", "samples.jsonl", "policy/model.safetensors")
LEFTOVERS = ("*.tmp", ".partial*", ".owner", "checkpoint", "scratch")
LIMIT = 300.0  # seconds of a command, after which it counts as hanging


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit status (negative: a signal), and what it printed."""

    code: int
    out: str
    err: str
    counts: Mapping[str, int]  # how often each fault point was reached
    strays: int  # processes that it left behind

    @property
    def text(self) -> str:
        """Both streams."""
        return self.out + self.err


class Command:
    """A command under way."""

    def __init__(self, where: Path, arguments: Sequence[object], **how: Any) -> None:
        where.mkdir(parents=True, exist_ok=True)
        self.where, self.begun = where, time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(where, [str(a) for a in arguments], **how)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def running(self) -> bool:
        """Return whether the process has not ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def finish(self, limit: float = LIMIT) -> Done:
        """Wait for the end; a process that takes longer than `limit` seconds is killed."""
        while self.running() and time.monotonic() < self.begun + limit:
            time.sleep(0.01)
        hung = self.running()
        if hung:
            self.kill()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err = (self._read(name) for name in ("out", "err"))
        counts = json.loads(self._read("counts") or "{}")
        return Done(code, out, err + ("\nHUNG" if hung else ""), counts, end_session(self.pid))

    def _read(self, name: str) -> str:
        file = self.where / name
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def end_session(session: int) -> int:
    """Kill the processes of a session whose leader has ended; return how many there were."""
    processes = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            processes.append(int(file.parent.name))
    for process in processes:
        os.kill(process, signal.SIGKILL)
    return len(processes)


def _child(
    where: Path,
    arguments: list[str],
    environment: Mapping[str, str] | None = None,
    fault: str = "",
    folder: Path | None = None,
    before: Callable[[], None] | None = None,
) -> NoReturn:
    """Be the command, and end without returning."""
    code = 1
    try:
        _take_streams(where)
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment or {})
        os.chdir(folder or where)
        plan = Faults.plan = fault_of(fault) if fault else Count()
        if before is not None:
            before()
        code = _call(arguments)
        if isinstance(plan, Count):
            (where / "counts").write_text(json.dumps(plan.reached), encoding="utf-8")
        sys.stdout.flush(), sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _take_streams(where: Path) -> None:
    for number, name in enumerate((os.devnull, str(where / "out"), str(where / "err"))):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)


def _call(arguments: list[str]) -> int:
    from harness.cli.app import main

    sys.argv = ["harness", *arguments]
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def load_libraries() -> None:
    """Import what commands import, so that a forked one does not have to."""
    import accelerate  # noqa: F401
    import pandas  # noqa: F401
    import torch
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401

    import harness.cli.display
    import harness.evaluation.metrics
    import harness.experiments.run
    import harness.experiments.study.work
    import harness.report.tables.tables
    import harness.training.stages.stages  # noqa: F401
    from harness.api.registry import installed
    from harness.core.digests import code_digest

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    installed(), code_digest("policy"), code_digest("evaluation")
    gc.collect()
    gc.freeze()  # what every command shares is not looked at by its collector


class World:
    """A folder with the shared stages of small runs, and the undisturbed runs beside them."""

    def __init__(self, work: Path) -> None:
        self.work, self._number = work, 0
        self._whole: dict[str, tuple[Path, Done]] = {}
        self.stages: dict[str, Path] = {}

    def command(self, *arguments: object, **how: Any) -> Command:
        """Start a command; `how` is the environment, the fault, the folder, and what is done in
        the process before.
        """
        self._number += 1
        return Command(self.work / f"command{self._number}", arguments, **how)

    def run(self, *arguments: object, limit: float = LIMIT, **how: Any) -> Done:
        """Carry a command out."""
        return self.command(*arguments, **how).finish(limit)

    def train(self, method: str, results: Path, *more: object, **how: Any) -> Done:
        """Carry a small run of a method out."""
        return self.run(*self.arguments(method, results, *more), **how)

    def arguments(self, method: str, results: Path, *more: object) -> list[object]:
        """Return the arguments of a small run of a method."""
        suite = ELSEWHERE.get(method, SUITE)
        own = STEPS.get(method, ("--set", "steps=3", "--set", "batch_size=8"))
        if method == "ppo":
            own = (*own, "--set", "minibatch_size=8")
        return ["run", "-m", method, "-s", suite, *SMALL, *own, "--results", results, *more]

    def prepared(self, method: str) -> Path:
        """Return a new results folder with the shared stages, and a finished run of `start`."""
        suite = ELSEWHERE.get(method, SUITE)
        if suite not in self.stages:
            results = self.fresh(f"stages-{suite}")
            first = "start" if suite == SUITE else method
            if suite == SUITE:
                expect(self.train("start", results))
            expect(self.train("dpo" if suite == SUITE else first, results, "--only-stages"))
            self.stages[suite] = results
        return self.copy(self.stages[suite])

    def fresh(self, name: str = "results") -> Path:
        """Return a new empty folder."""
        self._number += 1
        new = self.work / f"{name}-{self._number}"
        new.mkdir(parents=True)
        return new

    def copy(self, folder: Path) -> Path:
        """Return a copy of a results folder; no file is shared with it."""
        target = self.fresh()
        shutil.copytree(folder, target, dirs_exist_ok=True, symlinks=True)
        return target

    def whole(self, method: str) -> tuple[Path, Done]:
        """Return (results folder, command) of the undisturbed run of a method."""
        if method not in self._whole:
            results = self.prepared(method)
            self._whole[method] = results, expect(self.train(method, results))
        return self._whole[method]

    def forget(self, *folders: Path) -> None:
        """Remove the folders of a trial."""
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for spent in self.work.glob("command*"):
            shutil.rmtree(spent, ignore_errors=True)


def expect(done: Done, code: int = 0) -> Done:
    """Raise where a command that belongs to no fault ended otherwise."""
    if done.code != code:
        raise RuntimeError(
            f"a command without a fault ended with {done.code}:\n{done.text[-3000:]}"
        )
    return done


def run_of(results: Path, method: str) -> Path | None:
    """Return the only run folder of a method, or None."""
    folders = [folder for folder in results.glob(f"runs/*/{method}/*") if folder.is_dir()]
    return folders[0] if len(folders) == 1 else None


def bytes_of(folder: Path) -> dict[str, str]:
    """Return what must be equal in every repetition of a run, each as a digest.

    That is the metrics, rollouts, samples and weights, and the record without its clocks.
    """
    digests = {
        name: _digest((folder / name).read_bytes()) for name in FILES if _there(folder, name)
    }
    if _there(folder, "result.json"):
        digests |= _figures(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    return digests


def _figures(value: Any, name: str = "result.json") -> dict[str, str]:
    """Return {dotted name: value} of a record without the keys that hold times and memory."""
    if not isinstance(value, dict):
        return {name: json.dumps(value, sort_keys=True)}
    digests: dict[str, str] = {}
    for key, item in value.items():
        clocks = key in CLOCKS or key.startswith("policy-")  # that artifact holds a meter's seconds
        digests |= {} if clocks else _figures(item, f"{name}.{key}")
    return digests


def _there(folder: Path, name: str) -> bool:
    return (folder / name).exists()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files_of(*folders: Path) -> dict[str, str]:
    """Return {path: digest} of the finished files below folders: no hidden ones."""
    return {
        str(file): _digest(file.read_bytes())
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    }


def leftovers(folder: Path) -> list[str]:
    """Return what a finished run should not leave in its folder."""
    return sorted(str(f.relative_to(folder)) for name in LEFTOVERS for f in folder.rglob(name))
