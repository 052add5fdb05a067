"""Study files, a launcher that forks, and what two results folders have in common."""

from __future__ import annotations

import json
import time
from pathlib import Path

from .tools import outputs, small_suite

# Carries jobs out one after another in forks of the study's own process, which has everything
# imported.
FORKED = """
import os, sys
from dataclasses import dataclass

from harness import Launcher, hookimpl


@dataclass
class Forked(Launcher):
    name = "forked"

    kill: str = ""  # what the name of a job contains that is killed at once

    def run(self, jobs, started, ended):
        for job in jobs:
            started(job)
            pid = os.fork()
            if pid == 0:
                self.be(job)
            ended(job, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def be(self, job):
        from harness.cli.app import main
        from harness.api.registry import installed

        os.setpgid(0, 0)
        if self.kill and self.kill in job.name:
            os.kill(os.getpid(), 9)
        for number in (1, 2):
            os.dup2(os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        installed.cache_clear()
        sys.argv, code = ["harness", *job.arguments], 1
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


@hookimpl
def register_launchers(register):
    register(Forked)
"""

HEAD = 'suites = ["{suite}"]\nplugins = {plugins}\nquick = true\n'


def write(folder, text, name="study", suite="small", plugins=()):
    """Write a study file that loads the small suite."""
    file = folder / f"{name}.toml"
    loaded = json.dumps([str(small_suite()), *map(str, plugins)])
    file.write_text(HEAD.format(suite=suite, plugins=loaded) + text)
    return file


def method(name, more=""):
    return f'[[methods]]\nname = "{name}"\n{more}\n'


def results_of(where):
    """Every record of a results folder, without times, memory and what was shared with whom; and
    its outputs.
    """
    timed = {
        "seconds",
        "cpu_seconds",
        "peak_memory",
        "spent_seconds",
        "wall",
        "stages_made",
        "finished_at",
        "runtime",
        "reused_stages",
        "seal",  # of the times, too
    }

    def plain(value):
        if isinstance(value, dict) and value.get("kind") == "policy":  # its artifact holds times
            value = {k: v for k, v in value.items() if k != "content"}
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in timed}
        return value

    folders = sorted((where / "runs").glob("*/*/*"))
    told = [
        json.dumps(plain(json.loads((f / "result.json").read_text())), sort_keys=True)
        for f in folders
    ]
    return [f.name for f in folders], told, [outputs(f) for f in folders]


def wait_for(what, seconds=300):
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


def processes_of(path):
    """The processes whose command line names a folder or file."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if str(path).encode() in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found
