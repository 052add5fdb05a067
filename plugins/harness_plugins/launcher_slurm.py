"""A launcher for a Slurm cluster: runs of a study are elements of job arrays.

It calls only sbatch, squeue and scancel, and needs no accounting. Each job writes its exit status
to a file. A job that is preempted, or whose node fails, writes no status: Slurm queues it again,
and its run continues. Submissions are recorded in advance, so that the same study finds its jobs.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from harness import HarnessError, Job, Launcher, hookimpl
from harness.core.files import make_folder, write_json, write_text
from harness.core.jobs import BEGUN, LOST

LONGEST_ARRAY = 500  # elements; Slurm's default limit is 1001
SECONDS_TO_START = 20  # seconds that a trial on another machine waits for a free node
# states of squeue of a job that has not ended for good
LIVE = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
    "RESIZING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
}
# statuses of a job that Slurm ended without an exit status of its own
ENDED_BY_SLURM = {"TIMEOUT": 143, "DEADLINE": 143, "PREEMPTED": 143, "OUT_OF_MEMORY": -9}


@dataclass
class Slurm(Launcher):
    """Job arrays on a Slurm cluster, from a machine that can submit; all see the results folder."""

    name = "slurm"
    stages_first = True

    partition: str = ""
    account: str = ""
    qos: str = ""
    options: list[str] = field(default_factory=list)  # options of sbatch, such as --constraint=h100
    at_once: int = 0  # jobs of an array that run at the same time; 0: no limit
    setup: str = ""  # shell commands before each job, such as `module load cuda`
    python: str = ""  # interpreter on the machines; empty: this one
    poll: float = 5.0  # seconds between two checks of the queue
    patience: float = 60.0  # seconds that a job may be in no queue and have no exit status

    def check(self):
        """Refuse numbers out of range."""
        if self.at_once < 0 or self.poll <= 0 or self.patience < 0:
            raise ValueError("at_once and patience may not be negative, and poll must be above 0")

    def run(self, jobs, started, ended):
        """Find the jobs that are in the queue, submit the others, and wait for all.

        Ctrl-C cancels them. SIGTERM and a hang-up leave them in the queue.
        """
        if not jobs:
            return
        batches = make_folder(jobs[0].log.parent.parent / "slurm")
        queue = Queue(batches)
        places = queue.find(jobs)
        try:
            self.submit(jobs, places, batches)
            self.watch(queue, places, started, ended)
        except KeyboardInterrupt:
            queue.cancel(places.values())
            raise
        except BaseException:
            tell(f"{len(places)} jobs stay in the Slurm queue. The same command finds them again.")
            raise

    def submit(self, jobs, places, batches):
        """Submit the jobs that are not in the queue, in the order of their dependencies.

        Similar jobs form one array. Shared stages are left out if all jobs that wait for them are
        in the queue.
        """
        awaited = {other for job in jobs for other in job.after}
        left = [job for job in jobs if job not in places]
        needed = {other for job in left for other in job.after}
        left = [job for job in left if job not in awaited or job in needed]
        while left:
            ready = [job for job in left if not set(left).intersection(job.after)]
            for group in alike(ready):
                places.update(self.submit_array(group, places, batches))
            left = [job for job in left if job not in ready]

    def submit_array(self, jobs, places, batches):
        """Submit an array, after its record is written; return {job: its place}."""
        name = f"harness-{uuid4().hex[:12]}"
        folder = make_folder(batches / name)
        write_json(folder / "jobs.json", [job.key for job in jobs])
        for index, job in enumerate(jobs):
            self.write_scripts(folder, index, job)
        write_text(folder / "batch.sh", self.batch(name, folder, jobs, places))
        number = call("sbatch", "--parsable", str(folder / "batch.sh")).split(";")[0].strip()
        return {job: Place(folder, index, number) for index, job in enumerate(jobs)}

    def batch(self, name, folder, jobs, places):
        """Return the script for sbatch: the requested resources, and one script per element."""
        resources, limit = jobs[0].resources, f"%{self.at_once}" if self.at_once else ""
        before = [places[other].element for other in jobs[0].after if other in places]
        options = {
            "job-name": name,
            "array": f"0-{len(jobs) - 1}{limit}",
            "output": folder / "%a.out",
            "open-mode": "append",
            "export": "ALL",
            "nodes": resources.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": jobs[0].cpus,
            "gpus-per-node": resources.gpus,
            "mem": f"{round(resources.memory * 1024)}M" if resources.memory else "",
            "time": resources.minutes,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "dependency": f"afterok:{':'.join(before)}" if before else "",
            "kill-on-invalid-dep": "yes",
        }
        lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value]
        lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in self.options)]
        run = f'exec sh {shlex.quote(str(folder))}/"$SLURM_ARRAY_TASK_ID".sh'
        return "\n".join(["#!/bin/sh", *lines, run, ""])

    def write_scripts(self, folder, index, job):
        """Write the script of a job, and for several nodes the part of each."""
        python = self.python or sys.executable
        if job.resources.nodes == 1:
            command = shlex.join(job.command(python))
        else:
            node, address, port = "@NODE@", "@ADDRESS@", "@PORT@"
            part = shlex.join(job.command(python, node, address, port))
            for word, value in (
                (node, '"$SLURM_NODEID"'),
                (address, '"$HARNESS_ADDRESS"'),
                (port, '"$HARNESS_PORT"'),
            ):
                part = part.replace(word, value)
            write_text(folder / f"{index}.node.sh", f"exec {part}\n")
            command = f"{STEP} sh {shlex.quote(str(folder / f'{index}.node.sh'))}"
        variables = {k: v for k, v in job.variables().items() if (k, v) not in job.environment}
        text = SCRIPT.format(
            log=shlex.quote(str(job.log)),
            status=shlex.quote(str(folder / f"{index}.status")),
            mark=BEGUN,
            variables=" ".join(f"{k}={shlex.quote(v)}" for k, v in variables.items()),
            setup=self.setup,
            command=command,
        )
        write_text(folder / f"{index}.sh", text)

    def watch(self, queue, places, started, ended):
        """Call `started` and `ended` until all jobs have ended."""
        begun, missing = set(), {}
        while places:
            states = queue.states()
            for job, place in list(places.items()):
                status, state = place.status(), states and states.get(place.key, "")
                if job not in begun and (status is not None or state == "RUNNING"):
                    begun.add(job)
                    started(job)
                if status is None and (states is None or state in LIVE):
                    missing.pop(job, None)
                    continue
                since = missing.setdefault(job, time.monotonic())
                if status is None and time.monotonic() - since < self.patience:
                    continue  # a shared file system may show the status late
                del places[job]
                ended(job, ENDED_BY_SLURM.get(state, LOST) if status is None else status)
            if places:
                time.sleep(self.poll)

    def elsewhere(self, arguments):
        """Run Python on a node of the cluster if one is free within seconds."""
        options = [f"--{k}={v}" for k, v in vars(self).items() if k in WHERE and v]
        command = ["srun", f"--immediate={SECONDS_TO_START}", "--ntasks=1", "--quiet", *options]
        python = self.python or sys.executable
        script = f"{self.setup}\n{shlex.join([python, *arguments])}; echo status=$?"
        try:
            done = subprocess.run(
                [*command, *self.options, "sh", "-c", script],
                capture_output=True,
                text=True,
                env=outside(),
                timeout=4 * SECONDS_TO_START,
                encoding="utf-8",
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        statuses = [line for line in done.stdout.splitlines() if line.startswith("status=")]
        return int(statuses[-1].removeprefix("status=")) if statuses else None


WHERE = ("partition", "account", "qos")
STEP = 'srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1'
# A job of one element of an array. A signal ends it without an exit status, so Slurm or its study
# restarts it.
SCRIPT = """\
trap 'ended=yes' TERM INT
rm -f {status}
printf '{mark}on %s, Slurm job %s\\n' "$(hostname)" "$SLURM_JOB_ID" >>{log}
{setup}
export {variables}
export HARNESS_ADDRESS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null | head -n 1)"
export HARNESS_PORT=$((20000 + SLURM_JOB_ID % 30000))
{command} >>{log} 2>&1 </dev/null &
child=$!
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
if [ -n "$ended" ] || [ $code = 143 ] || [ $code = 130 ]; then exit 143; fi
echo $code >{status}.new && mv {status}.new {status}
exit $code
"""


@dataclass(frozen=True)
class Place:
    """Where a job is: an element of an array, whose scripts are in a folder."""

    folder: Path
    index: int
    number: str  # of the array in Slurm

    @property
    def key(self) -> tuple[str, int]:
        """Return its name in the queue."""
        return self.folder.name, self.index

    @property
    def element(self) -> str:
        """Return its number for scancel and for the dependencies of others."""
        return f"{self.number}_{self.index}"

    def status(self) -> int | None:
        """Return the exit status of the job, if it has ended."""
        try:
            code = int((self.folder / f"{self.index}.status").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return 128 - code if code > 128 else code


class Queue:
    """The jobs of a study's arrays in Slurm's queue."""

    def __init__(self, batches: Path) -> None:
        self.batches = batches
        self.failures = 0

    def states(self) -> dict[tuple[str, int], str] | None:
        """Return {(name of the array, index): state}; None if Slurm does not answer."""
        entries = self._entries()
        return None if entries is None else {(name, i): state for name, i, state, _ in entries}

    def find(self, jobs: Sequence[Job]) -> dict[Job, Place]:
        """Return the jobs that are already in the queue, with their places."""
        entries = self._entries()
        if entries is None:
            raise HarnessError(
                "squeue does not answer: is this a machine that can submit to Slurm?"
            )
        live = {(name, i): number for name, i, state, number in entries if state in LIVE}
        by_key = {job.key: job for job in jobs}
        places = {}
        for (name, index), number in live.items():
            key = self._keys(name)[index : index + 1]
            if key and key[0] in by_key:
                places[by_key[key[0]]] = Place(self.batches / name, index, number)
        if places:
            tell(f"{len(places)} jobs of this study are in the Slurm queue already.")
        return places

    def _keys(self, name: str) -> list[str]:
        try:
            keys: list[str] = json.loads(
                (self.batches / name / "jobs.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError):
            return []  # another study's
        return keys

    def _entries(self) -> list[tuple[str, int, str, str]] | None:
        """Return (name, index, state, number of the array) of the user's arrays."""
        try:
            text = call(
                "squeue", "--me", "--noheader", "--array", "--states=all", "--format", FORMAT
            )
        except HarnessError as error:
            self.failures += 1
            if self.failures % 60 == 1:
                tell(f"{error} It is tried again.")
            return None
        rows = [line.split("|") for line in text.splitlines() if line.startswith("harness-")]
        return [(name, int(i), state, number) for name, i, state, number in rows if i.isdigit()]

    def cancel(self, places: Iterable[Place]) -> None:
        """Cancel jobs, and wait until Slurm has ended them."""
        places = list(places)
        for some in chunks([p.element for p in places], LONGEST_ARRAY):
            subprocess.run(["scancel", *some], env=outside(), capture_output=True)
        keys, deadline = {p.key for p in places}, time.monotonic() + 60
        while time.monotonic() < deadline:
            states = self.states() or {}
            if not any(states.get(key) in LIVE for key in keys):
                return
            time.sleep(1.0)


FORMAT = "%j|%K|%T|%F"  # name, index in the array, state, number of the array


def alike(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Yield groups of jobs for one array: equal resources and dependencies."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.resources, job.cpus, job.after), []).append(job)
    for group in groups.values():
        yield from chunks(group, LONGEST_ARRAY)


def chunks(values, size):
    """Yield lists of at most so many values."""
    for first in range(0, len(values), size):
        yield values[first : first + size]


def call(*command: str) -> str:
    """Return the output of a Slurm command; raise an error with its message."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=outside(), timeout=120, encoding="utf-8"
        )
    except FileNotFoundError as error:
        raise HarnessError(
            f"There is no {command[0]} here. Start the study on a machine that can submit to Slurm,"
            " or with another --launcher."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise HarnessError(f"{command[0]} gave no answer within 120 s.") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise HarnessError(f"{command[0]} failed: {reason}")
    return done.stdout


def outside() -> dict[str, str]:
    """Return the environment without the variables of the Slurm job that this process runs in."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in kept}


def tell(text: str) -> None:
    """Print a line for the user."""
    print(text, file=sys.stderr, flush=True)


@hookimpl
def register_launchers(register):
    """Register the launcher."""
    register(Slurm)
