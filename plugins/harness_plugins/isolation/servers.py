"""Fork servers: a confined child for each job, watched until it ends or breaks a limit."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import confine
import values
from processes import NO_COMMAND, kill_descendants, processes_of

WATCH_SECONDS = 0.05  # seconds between two checks of the scratch folder
COMMAND_PATH = "/usr/local/bin:/usr/bin:/bin"
COMMAND_USER = 65534  # of an external command, where the harness runs as root
Body = Callable[[dict[str, Any], int, int], None]


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
        """Kill the child if it still runs."""
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
    """The main loop of a fork server; it never returns."""

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
        if self.commands and not shutil.which(job["arguments"][0], path=COMMAND_PATH):
            os.close(channel)
            return {"report": "", "ended": NO_COMMAND, "status": None}
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
                kill_descendants()
            _empty(self.scratch)

    def _child(self, job: dict[str, Any], channel: int, writer: int) -> None:
        status = NOT_CONFINED
        try:
            self._confine(job.get("input", ""))
            status = 1
            self.bodies[job["kind"]]({**job, "path": COMMAND_PATH}, channel, writer)
            status = 0
        except MemoryError:
            status = OUT_OF_MEMORY
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
                limits, processes=limits.processes + processes_of(COMMAND_USER)
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


NOT_CONFINED, OUT_OF_MEMORY = 121, 122


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
    known = {0: "", OUT_OF_MEMORY: "used too much memory"}
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
