"""A warm worker that runs foreign programs in isolation, one job after another.

It is started as `python -I -S worker.py LIMITS` and speaks JSON lines on stdin and stdout. Three
processes share the work, so that a program can neither read its tests nor write its verdict:

- the broker (this process) reads jobs, and hands each half to one of two fork servers;
- the candidates' server forks a process for each candidate program, which only answers calls;
- the tests' server forks a process for each test program, which calls the candidate by value over
  a socket and decides the verdict.

Both forks are confined before foreign code runs (see confine.py). A job is one of

    {"kind": "functions", "program": str, "head": str, "entry": str, "tests": [str, ...]}
    {"kind": "program", "program": str, "cases": [{"input": str, "output": str}, ...]}
    {"kind": "command", "arguments": [str, ...], "files": {name: text}, "input": str}

and its reply {"passed": int, "total": int, "detail": str}, for a command
{"status": int | None, "output": str, "detail": str}.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

# Modules that most programs import are loaded once, before the forks.
import bisect  # noqa: E402, F401
import collections  # noqa: E402, F401
import copy  # noqa: E402, F401
import datetime  # noqa: E402, F401
import functools  # noqa: E402, F401
import heapq  # noqa: E402, F401
import itertools  # noqa: E402, F401
import math  # noqa: E402, F401
import operator  # noqa: E402, F401
import random  # noqa: E402, F401
import re  # noqa: E402, F401
import string  # noqa: E402, F401
import typing  # noqa: E402, F401

import children  # noqa: E402
import confine  # noqa: E402
from servers import COMMAND_USER, Body, ForkServer, Serve  # noqa: E402


class Broker:
    """Reads jobs, hands each half to its server, and returns the replies."""

    def __init__(self, limits: confine.Limits, scratch: str, readable: list[str]) -> None:
        python = confine.python_folders()
        if limits.processes:
            folders = [*children.COMMAND_FOLDERS, *readable]
            bodies: dict[str, Body] = {"command": children.run_command}
            self.commands = ForkServer(Serve(limits, scratch, bodies, folders, commands=True))
            return
        bodies = {"functions": children.answer_calls, "program": children.run_program}
        self.candidates = ForkServer(Serve(limits, scratch, bodies, python))
        self.tests = ForkServer(Serve(limits, "", {"functions": children.run_tests}, python))

    def close(self) -> None:
        """End the fork servers and wait for them."""
        for server in vars(self).values():
            server.socket.close()
            os.waitpid(server.process, 0)

    def carry_out(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a job."""
        kinds = {"functions": self._functions, "program": self._program, "command": self._command}
        return kinds[job["kind"]](job)

    def _functions(self, job: dict[str, Any]) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.candidates.start({"kind": "functions", "program": job["program"]}, ours.fileno())
            rest = {name: job[name] for name in ("kind", "head", "entry", "tests")}
            self.tests.start(rest, theirs.fileno())
        verdict = self.tests.report()
        self.candidates.stop()
        ended = self.candidates.report()["ended"]
        lines = verdict["report"].splitlines()
        failed = [line[7:] for line in lines if line.startswith("failed ")]
        passed, total = lines.count("passed"), len(job["tests"])
        detail = ended or verdict["ended"] or (failed[0] if failed else "")
        return {"passed": passed, "total": total, "detail": "" if passed == total else detail}

    def _program(self, job: dict[str, Any]) -> dict[str, Any]:
        passed, detail = 0, ""
        for case in job["cases"]:
            reply = self._alone(self.candidates, {**job, "cases": [], "input": case["input"]})
            if not reply["ended"] and _same_output(reply["report"], case["output"]):
                passed += 1
            else:
                detail = detail or reply["ended"] or "the output differs"
        return {"passed": passed, "total": len(job["cases"]), "detail": detail}

    def _command(self, job: dict[str, Any]) -> dict[str, Any]:
        reply = self._alone(self.commands, job)
        return {"status": reply["status"], "output": reply["report"], "detail": reply["ended"]}

    @staticmethod
    def _alone(server: ForkServer, job: dict[str, Any]) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            server.start(job, ours.fileno())
        return server.report()


def _same_output(output: str, expected: str) -> bool:
    def lines(text: str) -> list[str]:
        return [line.rstrip() for line in text.rstrip().splitlines()]

    return lines(output) == lines(expected)


def main() -> None:
    """Carry out the jobs on stdin until it ends."""
    settings = json.loads(sys.argv[1])
    scratch = tempfile.mkdtemp(prefix="harness-scratch-")
    try:
        if settings["limits"]["processes"] and os.getuid() == 0:
            os.chown(scratch, COMMAND_USER, COMMAND_USER)
        problem = confine.missing()
        limits = confine.Limits(**settings["limits"])
        broker = None if problem else Broker(limits, scratch, settings["readable"])
        print(json.dumps({"problem": problem}), flush=True)
        for line in sys.stdin if broker else []:
            print(json.dumps(broker.carry_out(json.loads(line))), flush=True)
        if broker:
            broker.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
