"""A launcher for a Ray cluster: every run of a study is a Ray task with its resources.

Ray places each task. This module restarts the tasks of a lost machine. Tasks end with the study: to
detach a study, submit it with `ray job submit`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import HarnessError, Job, Launcher, hookimpl
from harness.core.jobs import BEGUN, INTERRUPTED, LOST

PAUSE = 1.0  # seconds between two checks
REFUSED = 3  # exit status of a run whose lock is held, at first by the process of a lost machine


@dataclass
class Ray(Launcher):
    """Tasks on a Ray cluster that is running; its machines see the results folder."""

    name = "ray"
    stages_first = True

    address: str = "auto"  # of the cluster, as in ray.init
    retries: int = 3  # restarts of a run whose machine was lost
    python: str = ""  # interpreter on the machines; empty: this one

    def check(self):
        """Refuse a negative number."""
        if self.retries < 0:
            raise ValueError("retries may not be negative")

    def run(self, jobs, started, ended):
        """Submit each job as soon as those before it are done; Ray queues them."""
        ray = connect(self.address)
        tasks = Tasks(ray, self.python or sys.executable, self.retries)
        open_jobs, done, failed = list(jobs), set(), set()
        try:
            while open_jobs or tasks.busy():
                for job in [j for j in open_jobs if failed.intersection(j.after)]:
                    open_jobs.remove(job)
                    ended(job, LOST)
                for job in [j for j in open_jobs if done.issuperset(j.after)]:
                    open_jobs.remove(job)
                    tasks.submit(job)
                for job in tasks.begun():
                    started(job)
                for job, status in tasks.over():
                    (failed if status else done).add(job)
                    ended(job, status)
        finally:
            tasks.cancel()
            ray.shutdown()

    def elsewhere(self, arguments):
        """Run Python on another node of the cluster, if there is one."""
        ray = connect(self.address)
        here = ray.get_runtime_context().get_node_id()
        others = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here]
        if not others:
            return None
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(others[0], soft=False)
        task = ray.remote(carry_out).options(num_cpus=0, scheduling_strategy=place)
        command = [self.python or sys.executable, *arguments]
        passed = {k: v for k, v in os.environ.items() if k == "PYTHONPATH"}
        return ray.get(task.remote(command, os.devnull, passed, 0))["status"]


@dataclass
class Attempt:
    """A running job: one task for each of its nodes."""

    job: Job
    number: int  # number of attempts so far
    refs: list[Any]
    group: Any = None  # placement group of several nodes
    log_size: int = 0  # when it was submitted
    reported: bool = False  # whether it was reported as begun
    statuses: list[int | None] = field(default_factory=list)  # of ended tasks; None: lost


class Tasks:
    """The tasks of a study on a Ray cluster."""

    def __init__(self, ray: Any, python: str, retries: int) -> None:
        self.ray, self.python, self.retries = ray, python, retries
        self.attempts: list[Attempt] = []
        self.later: list[tuple[float, Job, int]] = []  # (time, job, attempts): to submit again

    def busy(self) -> bool:
        """Return whether there are jobs that have not ended."""
        return bool(self.attempts or self.later)

    def submit(self, job: Job, number: int = 1, reported: bool = False) -> None:
        """Submit a job: a task, or one task on each node that it requests."""
        size = job.log.stat().st_size if job.log.exists() else 0
        options = self._options(job)
        if job.resources.nodes == 1:
            refs, group = [self._task(job, options)], None
        else:
            group = self._group(job, options)
            refs = self._tasks(job, options, group)
        self.attempts.append(Attempt(job, number, refs, group, size, reported))

    def _options(self, job: Job) -> dict[str, Any]:
        """Return the resources to request from Ray, per node."""
        memory = {"memory": int(job.resources.memory * 2**30)} if job.resources.memory else {}
        return {"num_cpus": job.cpus, "num_gpus": job.resources.gpus or 0, **memory}

    def _task(self, job: Job, options: dict[str, Any], *place: str | Any) -> Any:
        """Submit the part of one node; `place` is its number and the address of node 0."""
        task = self.ray.remote(carry_out).options(name=job.name, max_retries=0, **options)
        command = job.command(self.python, NODE, ADDRESS, PORT)
        minutes = job.resources.minutes
        return task.remote(command, str(job.log), job.variables(), minutes, *place)

    def _group(self, job: Job, options: dict[str, Any]) -> Any:
        """Return a placement group with one bundle for each node; Ray reserves all or none."""
        from ray.util import placement_group

        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        bundle = {names[name]: amount for name, amount in options.items() if amount}
        return placement_group([bundle] * job.resources.nodes, strategy="STRICT_SPREAD")

    def _tasks(self, job: Job, options: dict[str, Any], group: Any) -> list[Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        def at(index: int) -> Any:
            return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)

        address = self.ray.remote(free_address).options(num_cpus=0, scheduling_strategy=at(0))
        endpoint = address.remote()
        return [
            self._task(job, {**options, "scheduling_strategy": at(node)}, str(node), endpoint)
            for node in range(job.resources.nodes)
        ]

    def begun(self) -> list[Job]:
        """Return the jobs that have begun since the last call: their logs have grown."""
        jobs = []
        for one in self.attempts:
            log = one.job.log
            if not one.reported and log.exists() and log.stat().st_size > one.log_size:
                one.reported = True
                jobs.append(one.job)
        return jobs

    def over(self) -> list[tuple[Job, int]]:
        """Return (job, exit status) of ended jobs, and submit lost ones again."""
        now = time.monotonic()
        for when, job, number in [entry for entry in self.later if entry[0] <= now]:
            self.later.remove((when, job, number))
            self.submit(job, number, reported=True)
        refs = [ref for one in self.attempts for ref in one.refs]
        with SigtermLater():
            done = set(self.ray.wait(refs, num_returns=1, timeout=PAUSE)[0]) if refs else set()
        if not refs:
            time.sleep(PAUSE)
        ended = []
        for one in [one for one in self.attempts if done.intersection(one.refs)]:
            for ref in done.intersection(one.refs):
                one.refs.remove(ref)
                one.statuses.append(self._status(ref, one.job))
            if one.refs and not any(status != 0 for status in one.statuses):
                continue  # the other nodes of the job are still at work
            self._drop(one)
            ended += self._settle(one)
        return ended

    def _status(self, ref: Any, job: Job) -> int | None:
        """Return the exit status of a task, or None where its machine or process was lost."""
        try:
            ended = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            with job.log.open("a", encoding="utf-8") as log:
                first = (str(error).strip().splitlines() or [""])[0]
                log.write(f"harness: {type(error).__name__}: {first}\n")
            return None
        return None if ended["status"] in INTERRUPTED and not ended["overdue"] else ended["status"]

    def _settle(self, one: Attempt) -> list[tuple[Job, int]]:
        """Return how a job ended, or nothing if it will be restarted."""
        bad = [status for status in one.statuses if status != 0]
        status = 0 if not bad else None if None in bad else bad[0]
        again = status is None or (status == REFUSED and one.number > 1)
        if again and one.number <= self.retries:
            self.later.append((time.monotonic() + PAUSE * 2**one.number, one.job, one.number + 1))
            return []
        return [(one.job, LOST if status is None else status)]

    def _drop(self, one: Attempt) -> None:
        """Forget an attempt, and cancel its remaining tasks."""
        self.attempts.remove(one)
        for ref in one.refs:
            self.ray.cancel(ref, force=True)
        if one.group is not None:
            from ray.util import remove_placement_group

            remove_placement_group(one.group)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for one in list(self.attempts):
            self._drop(one)


class SigtermLater:
    """Delay SIGTERM inside the context: Ray turns an exception of its handler into a
    SystemError.
    """

    def __enter__(self) -> None:
        self.came, self.usual = False, signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.came = True

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.usual)
        if self.came:
            signal.raise_signal(signal.SIGTERM)


NODE, ADDRESS, PORT = "{node}", "{address}", "{port}"  # filled in on the node
# ends with its Ray worker (Linux), then becomes the command itself
WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)


def connect(address: str) -> Any:
    """Return Ray, connected to a cluster; raise an error that names what is missing."""
    try:
        import ray
    except ImportError as error:
        raise HarnessError(
            "The launcher ray needs Ray: pip install 'alignment-harness[ray]', here and on the"
            " machines of the cluster."
        ) from error
    if ray.is_initialized():
        return ray
    usual = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise HarnessError(
            f"No Ray cluster answers at {address!r} ({str(error).splitlines()[0]}). Start one with"
            " `ray start --head`, or set [launcher] address."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, usual)  # Ray's handler would end silently
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need no import of it
    return ray


def free_address() -> tuple[str, str]:
    """Return (IP address, free port) of the node that this runs on."""
    import socket

    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), str(probe.getsockname()[1])


def carry_out(
    command: Sequence[str],
    log: str,
    variables: dict[str, str],
    minutes: int,
    node: str = "",
    endpoint: tuple[str, str] = ("", ""),
) -> dict[str, Any]:
    """Run one node's part of a job on its machine, in a process that ends with this one.

    Returns:
        The exit status, and whether the job was ended at its time limit.
    """
    import socket
    import subprocess

    filled = {NODE: node, ADDRESS: endpoint[0], PORT: endpoint[1]}
    with open(log, "a", encoding="utf-8") as out:
        out.write(f"{BEGUN}on {socket.gethostname()}\n")
        out.flush()
        child = subprocess.Popen(
            [command[0], "-c", WITH_PARENT, *(filled.get(word, word) for word in command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **variables},
        )
        try:
            return {"status": child.wait(60 * minutes or None), "overdue": False}
        except subprocess.TimeoutExpired:
            child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
        status = child.wait()
        out.write(f"harness: ended after {minutes} min, as [resources] asks for.\n")
    return {"status": status, "overdue": True}


@hookimpl
def register_launchers(register):
    """Register the launcher."""
    register(Ray)
