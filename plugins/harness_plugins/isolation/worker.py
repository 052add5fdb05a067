"""A warm worker that runs foreign programs in isolation, one job after another.

It is started as `python -I -S worker.py LIMITS` and speaks JSON lines on stdin and stdout. Three
processes share the work, so that a program can neither see its tests nor write its own verdict:

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

import ast
import builtins
import dataclasses
import io
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

# What programs import most is loaded once, before the forks.
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

import confine  # noqa: E402
import values  # noqa: E402

WATCH_SECONDS = 0.05  # between two looks at the scratch folder
COMMAND_USER = 65534  # of an external command, where the harness runs as root
Body = Callable[[dict[str, Any], int, int], None]

# -- the candidate's process -----------------------------------------------------------------------


def answer_calls(job: dict[str, Any], channel_fd: int, report: int) -> None:
    """Run a candidate program, then answer calls of its functions until the channel ends."""
    os.close(report)
    channel = socket.socket(fileno=channel_fd)
    space: dict[str, Any] = {"__name__": "candidate", "__builtins__": builtins}
    failure = None
    try:
        exec(compile(job["program"], "<candidate>", "exec"), space)
    except BaseException as error:  # a program may raise SystemExit, too
        failure = _described(error)
    while (call := values.receive(channel)) is not None:
        values.send(channel, {"error": failure} if failure else _called(space, call))


def _called(space: dict[str, Any], call: list[Any]) -> dict[str, Any]:
    name, arguments, keywords = call
    try:
        given = values.unpack(arguments)
        result = _found(space, name)(*given, **values.unpack(keywords))
        return {"value": values.pack(result)}
    except BaseException as error:
        return {"error": _described(error)}


def _found(space: dict[str, Any], name: str) -> Any:
    first, *rest = name.split(".")
    if first not in space:
        raise NameError(f"the program defines no {first}")
    target = space[first]
    if rest and isinstance(target, type):
        target = target()
    for part in rest:
        target = getattr(target, part)
    return target


def _described(error: BaseException) -> list[str]:
    try:
        return [type(error).__name__, str(error)[:500]]
    except BaseException:
        return ["Exception", ""]


def run_program(job: dict[str, Any], channel_fd: int, report: int) -> None:
    """Run a whole program with an input on stdin; its output goes to the report."""
    os.close(channel_fd)
    os.dup2(report, 1)
    os.close(report)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=False)
    space = {"__name__": "__main__", "__builtins__": builtins}
    try:
        exec(compile(job["program"], "<candidate>", "exec"), space)
    finally:
        sys.stdout.flush()


# -- the tests' process ----------------------------------------------------------------------------


class CandidateError(Exception):
    """The candidate raised an error of its own type, or ended."""


class Candidate:
    """A function of the candidate program, called by value."""

    def __init__(self, channel: socket.socket, name: str) -> None:
        self.channel, self.name = channel, name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        values.send(self.channel, [self.name, values.pack(list(arguments)), values.pack(keywords)])
        reply = values.receive(self.channel)
        if type(reply) is dict and "value" in reply:
            return values.unpack(reply["value"])
        raise _error_of(reply)


def _error_of(reply: Any) -> Exception:
    try:
        kind, text = reply["error"]
        known = getattr(builtins, kind, None)
        if isinstance(known, type) and issubclass(known, Exception):
            return known(text)
        return CandidateError(f"{kind}: {text}")
    except Exception:
        return CandidateError("the program ended")


def run_tests(job: dict[str, Any], channel_fd: int, report: int) -> None:
    """Run the tests against the candidate; report a line for each."""
    channel = socket.socket(fileno=channel_fd)
    space: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    entry = job["entry"]
    exec(compile(head_alone(job["head"]), "<head>", "exec"), space)
    for test in job["tests"]:
        try:
            _one_test(test, entry, space, channel)
            line = "passed"
        except BaseException as error:
            line = ": ".join(_described(error)).replace("\n", " ")[:300] or "failed"
            line = "failed " + line
        os.write(report, (line + "\n").encode("utf-8", "replace"))


def _one_test(test: str, entry: str, space: dict[str, Any], channel: socket.socket) -> None:
    tree = ast.parse(test)
    names = dict(space)
    names[entry.split(".")[0]] = proxy = Candidate(channel, entry)
    for name in _free_names(tree) - names.keys() - vars(builtins).keys():
        names[name] = Candidate(channel, name)
    names["candidate"] = proxy
    before = names.get("check")
    exec(compile(tree, "<tests>", "exec"), names)
    check = names.get("check")
    if callable(check) and check is not before:
        check(proxy)


def _free_names(tree: ast.AST) -> set[str]:
    used, bound = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update((n.asname or n.name).split(".")[0] for n in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return used - bound


def head_alone(head: str) -> str:
    """Return a function's head as code that compiles: with a body where it has none."""
    for end in ("", "\n    pass\n"):
        try:
            compile(head + end, "<head>", "exec")
            return head + end
        except SyntaxError:
            continue
    return ""


# -- an external command ---------------------------------------------------------------------------

COMMAND_FOLDERS = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"]


def run_command(job: dict[str, Any], channel_fd: int, report: int) -> None:
    """Become an external command; its output and errors go to the report."""
    os.close(channel_fd)
    os.dup2(report, 1)
    os.dup2(report, 2)
    os.close(report)
    home = os.getcwd()
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    os.execvpe(job["arguments"][0], job["arguments"], {**environment, "HOME": home, "TMPDIR": home})


# -- a fork server ---------------------------------------------------------------------------------


class ForkServer:
    """A process that forks a confined child for each job that a socket brings."""

    def __init__(self, serve: Serve) -> None:
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.process = os.fork()
        if self.process == 0:
            ours.close()
            serve(theirs)
        theirs.close()

    def start(self, job: dict[str, Any], channel: int) -> None:
        """Fork a child for a job; it gets a copy of the channel."""
        data = json.dumps(job).encode()
        socket.send_fds(self.socket, [struct.pack("=Q", len(data))], [channel])
        self.socket.sendall(data)

    def stop(self) -> None:
        """Kill the child, if it still runs."""
        self.socket.sendall(STOP)

    def report(self) -> dict[str, Any]:
        """Return how the child ended, as {"report": str, "ended": str, "status": int | None}."""
        reply = values.receive(self.socket)
        if reply is None:
            raise EOFError("a fork server ended")
        return dict(reply)


STOP = struct.pack("=Q", 0)


@dataclasses.dataclass(frozen=True)
class Serve:
    """What a fork server does: it never returns."""

    limits: confine.Limits
    scratch: str  # empty: none
    bodies: dict[str, Body]
    readable: list[str]
    commands: bool = False  # children run external programs, which may start processes

    def __call__(self, control: socket.socket) -> None:
        """Answer jobs until the broker closes the socket."""
        try:
            self._prepare(control)
            while True:
                head, fds, _, _ = socket.recv_fds(control, 8, 1)
                if not head:
                    break
                (size,) = struct.unpack("=Q", head)
                if size:
                    job = json.loads(_all_of(control, size))
                    values.send(control, self._run(control, job, fds[0]))
        finally:
            os._exit(0)

    def _prepare(self, control: socket.socket) -> None:
        confine.LIBC.prctl(1, 9, 0, 0, 0)  # end with the broker
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        keep = control.fileno()
        os.closerange(3, keep)
        os.closerange(keep + 1, 4096)
        os.chdir(self.scratch or "/")
        if self.commands:
            confine.LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come here
        else:
            confine.restrict_files(self.readable, self.scratch)

    def _run(self, control: socket.socket, job: dict[str, Any], channel: int) -> dict[str, Any]:
        reader, writer = os.pipe()
        _write_files(job.get("files", {}))
        child = os.fork()
        if child == 0:
            control.close()
            os.close(reader)
            self._child(job, channel, writer)
        os.close(channel)
        os.close(writer)
        try:
            return self._watched(control, child, reader)
        finally:
            os.close(reader)
            if self.commands:
                _kill_descendants()
            _empty(self.scratch)

    def _child(self, job: dict[str, Any], channel: int, writer: int) -> None:
        status = NOT_CONFINED
        try:
            self._confine(job.get("input", ""))
            status = 1
            self.bodies[job["kind"]](job, channel, writer)
            status = 0
        except MemoryError:
            status = OUT_OF_MEMORY
        except FileNotFoundError:
            status = NO_COMMAND
        except Exception as error:
            if status == NOT_CONFINED:
                os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)

    def _confine(self, text: str) -> None:
        """Confine a child; raise where any part of it fails."""
        limits = self.limits
        _stdin(text)
        if self.commands:
            limits = dataclasses.replace(
                limits, processes=limits.processes + _processes_of(COMMAND_USER)
            )
            confine.restrict_files(self.readable, self.scratch, folders=True)
            confine.become(COMMAND_USER)
        confine.confine(limits)

    def _watched(self, control: socket.socket, child: int, reader: int) -> dict[str, Any]:
        """Read a child's report until it ends, is stopped, or breaks a limit."""
        process, report, reason = os.pidfd_open(child), bytearray(), ""
        started = watched = time.monotonic()
        waiting = select.poll()
        for fd in (process, reader, control.fileno()):
            waiting.register(fd, select.POLLIN | select.POLLHUP)
        while not reason:
            ready = {fd for fd, _ in waiting.poll(1000 * WATCH_SECONDS)}
            now = time.monotonic()
            if reader in ready:
                part = os.read(reader, 1 << 16)
                report += part
                if not part:
                    waiting.unregister(reader)
            if process in ready and reader not in ready:
                break
            if control.fileno() in ready:
                control.recv(len(STOP))
                break
            if len(report) > self.limits.file_mb << 20:
                reason = "printed too much"
            elif now - started > self.limits.seconds:
                reason = f"ran longer than {self.limits.seconds:g} s"
            elif now - watched > WATCH_SECONDS and self.scratch:
                watched = now
                if _size(self.scratch) > self.limits.scratch_mb << 20:
                    reason = f"wrote more than {self.limits.scratch_mb} MB"
        os.close(process)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) and not reason else None
        text = report.decode("utf-8", "replace")
        if code == NOT_CONFINED:
            reason = f"could not be confined ({text[:300]})"
        return {"report": text, "ended": reason or _end_of(status), "status": code}


NOT_CONFINED, OUT_OF_MEMORY, NO_COMMAND = 121, 122, 127


def _all_of(control: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = control.recv(min(1 << 20, size - len(data)))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _stdin(text: str) -> None:
    if text:
        file = os.memfd_create("input")
        os.write(file, text.encode("utf-8", "replace"))
        os.lseek(file, 0, os.SEEK_SET)
        os.dup2(file, 0)
        os.close(file)


def _write_files(files: dict[str, str]) -> None:
    for name, text in files.items():
        with open(os.path.basename(name), "w", encoding="utf-8", errors="replace") as file:
            file.write(text)


def _end_of(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return "used too much CPU time"
        return "" if number == signal.SIGKILL else f"ended by signal {number}"
    code = os.WEXITSTATUS(status)
    known = {0: "", OUT_OF_MEMORY: "used too much memory", NO_COMMAND: "there is no such command"}
    return known.get(code, f"ended with status {code}")


def _size(folder: str) -> int:
    total = 0
    for place, folders, files in os.walk(folder):
        total += 4096 * len(folders)
        for name in files:
            try:
                total += 4096 + os.lstat(os.path.join(place, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total


def _empty(folder: str) -> None:
    if not folder:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _kill_descendants() -> None:
    """Kill all that a command left. No new process can appear: each loses the right to fork."""
    while left := _descendants(os.getpid()):
        for process in left:
            try:
                resource.prlimit(process, resource.RLIMIT_NPROC, (0, 0))
                os.kill(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def _descendants(root: int) -> list[int]:
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(name)] = int(fields[1])
    found: set[int] = set()
    while more := {p for p, parent in parents.items() if parent in found | {root}} - found:
        found |= more
    return sorted(found)


def _processes_of(user: int) -> int:
    """Return how many processes already count against the user's limit."""
    uid = user if os.getuid() == 0 else os.getuid()
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


# -- the broker ------------------------------------------------------------------------------------


class Broker:
    """Reads jobs, hands each half to its server, and returns the replies."""

    def __init__(self, limits: confine.Limits, scratch: str, readable: list[str]) -> None:
        python = confine.python_folders()
        if limits.processes:
            folders = [*COMMAND_FOLDERS, *readable]
            bodies: dict[str, Body] = {"command": run_command}
            self.commands = ForkServer(Serve(limits, scratch, bodies, folders, commands=True))
            return
        bodies = {"functions": answer_calls, "program": run_program}
        self.candidates = ForkServer(Serve(limits, scratch, bodies, python))
        self.tests = ForkServer(Serve(limits, "", {"functions": run_tests}, python))

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
