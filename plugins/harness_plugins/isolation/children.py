"""The work of a confined process: answer calls, run tests, run a program, or run a command."""

from __future__ import annotations

import ast
import builtins
import io
import os
import socket
import sys
from typing import Any

import values
from heads import head_alone

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
        result = _function(space, name)(*given, **values.unpack(keywords))
        return {"value": values.pack(result)}
    except BaseException as error:
        return {"error": _described(error)}


def _function(space: dict[str, Any], name: str) -> Any:
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


# -- an external command ---------------------------------------------------------------------------

COMMAND_FOLDERS = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"]


def run_command(job: dict[str, Any], channel_fd: int, report: int) -> None:
    """Become an external command; its output and errors go to the report."""
    os.close(channel_fd)
    os.dup2(report, 1)
    os.dup2(report, 2)
    os.close(report)
    home = os.getcwd()
    environment = {"PATH": job["path"], "LANG": "C.UTF-8", "HOME": home, "TMPDIR": home}
    os.execvpe(job["arguments"][0], job["arguments"], environment)
