"""Faulty plugins: methods, judges, labellers, verifiers, and the servers behind them."""

from __future__ import annotations

import http.server
import json
import random
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from fault_trials import (
    FAILED,
    PASSED,
    WRONG,
    Trial,
    Trials,
    Verdict,
    ended,
    failure_of,
    first_bad,
    kind,
)
from fault_world import World, bytes_of, run_of

METHOD = '''
"""DPO that goes wrong in one way."""

import os, random, sys
from dataclasses import dataclass

from harness import hookimpl, torch
from harness_plugins.dpo import DPO


class Odd(BaseException):
    pass


@dataclass
class Faulty(DPO):
    name = "faulty"

    def train(self, lab):
        {before}
        policy = super().train(lab)
        {after}
        return policy


@hookimpl
def register_methods(register):
    register(Faulty)
'''
HALVE = "[p.data.mul_(0.5) for p in lab.{}.model.parameters()]"
# what the method does before and after its training, and whether it fails for that
METHODS: dict[str, tuple[str, str, bool]] = {
    "raises": ("", "raise ValueError('bad')", True),
    "BaseException": ("", "raise Odd", True),
    "sys.exit(0)": ("", "sys.exit(0)", True),
    "KeyboardInterrupt": ("", "raise KeyboardInterrupt", True),
    "recursion": ("f = lambda: f(); f()", "", True),
    "MemoryError": ("raise MemoryError", "", True),
    "returns None": ("", "return None", True),
    "grad off": ("torch.set_grad_enabled(False)", "", False),
    "changes folder": ("os.chdir('/')", "", False),
    "seeds": ("torch.manual_seed(1); random.seed(1)", "random.seed(2)", False),
    "threads, dtype": ("torch.set_num_threads(2)", "torch.set_default_dtype(torch.float64)", False),
    "prints": ("print('noise'); print('harness: fake', file=sys.stderr)", "", False),
    "changes the reference": ("", HALVE.format("reference"), True),
    "changes the start": (HALVE.format("start"), "", True),
}


@kind("methods of plugins that go wrong", "17")
def faulty_methods(world: World, rng: random.Random) -> Trials:
    """Only that run fails, under the plugin's name; what others made and make stays right."""
    for name, (before, after, fails) in METHODS.items():
        yield Trial(name, partial(_faulty, world, before, after, fails))


def _faulty(world: World, before: str, after: str, fails: bool) -> Verdict:
    results = world.prepared("dpo")
    file = _plugin(world, METHOD.format(before=before or "pass", after=after or "pass"))
    done = world.train("faulty", results, "-p", file)
    verdict = ended(done, (1,) if fails else (0,), "the plugin")
    if verdict.outcome == PASSED and fails and not failure_of(results, "faulty").get("failure"):
        verdict = Verdict(FAILED, "no failure is recorded")
    if "Traceback" in done.text:
        verdict = Verdict(FAILED, f"traceback: {done.text[-300:]}")
    verdict = first_bad(verdict, _others(world, results))
    world.forget(results)
    return verdict


def _others(world: World, results: Path) -> Verdict:
    """Run DPO beside it: its bytes are those of a clean folder."""
    done = world.train("dpo", results)
    mine, right = run_of(results, "dpo"), run_of(world.whole("dpo")[0], "dpo")
    assert right is not None, "the undisturbed run has a folder"
    if done.code or mine is None:
        return Verdict(FAILED, f"another run beside it: {done.text[-300:]}")
    same = bytes_of(mine) == bytes_of(right)
    return Verdict(PASSED if same else WRONG, "another run ended in other bytes", same)


def _plugin(world: World, source: str) -> Path:
    file = world.fresh("plugin") / "faulty_plugin.py"
    file.write_text(source, encoding="utf-8")
    return file


IMPORTS = {
    "raises": "raise ValueError('at import')",
    "BaseException": "class Odd(BaseException): pass\nraise Odd",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "syntax": "def (:",
    "nothing registered": "x = 1",
    "UTF-16": "\x00",
}


@kind("plugins that do not load", "17")
def imports(world: World, rng: random.Random) -> Trials:
    """One message with the file, exit status 2."""
    for name, source in IMPORTS.items():
        yield Trial(name, partial(_import, world, source))


def _import(world: World, source: str) -> Verdict:
    file = _plugin(world, source)
    done = world.run("run", "-m", "dpo", "-s", "exact", "-p", file, "--results", world.fresh())
    named = "faulty_plugin" in done.err and "Traceback" not in done.text
    return Verdict(
        PASSED if done.code == 2 and named else FAILED, f"{done.code} {done.text[-300:]}"
    )


JUDGE = """
from harness import hookimpl
from harness.api.contracts import Judge


class FaultyJudge(Judge):
    name = "faulty_judge"
    version = "1"

    def score(self, prompts, completions):
        {body}


@hookimpl
def register_judges(register):
    register(FaultyJudge)
"""
JUDGES = {
    "NaN": "return [float('nan')] * len(prompts)",
    "infinite": "return [float('inf')] * len(prompts)",
    "too few": "return [1.0]",
    "text": "return ['good'] * len(prompts)",
    "None": "return None",
    "raises": "raise ValueError('bad')",
    "exits": "import sys; sys.exit(0)",
    "huge": "return [10 ** 400] * len(prompts)",
}


@kind("judges that go wrong", "17, 25")
def judges(world: World, rng: random.Random) -> Trials:
    """The run fails under the judge's name, its trained policy is kept, no figure is shown."""
    for name, body in JUDGES.items():
        yield Trial(name, partial(_judge, world, body))


def _judge(world: World, body: str) -> Verdict:
    results, file = world.prepared("dpo"), _plugin(world, JUDGE.format(body=body))
    done = world.train("dpo", results, "-p", file, "--judge", "faulty_judge")
    verdict = ended(done, (1,), "the judge")
    named = "faulty_judge" in done.err or "judge" in done.err
    if verdict.outcome == PASSED and (not named or "Traceback" in done.text):
        verdict = Verdict(FAILED, f"the judge is not named: {done.err[-300:]}")
    if verdict.outcome == PASSED and not list((results / "artifacts").glob("policy-*")):
        verdict = Verdict("lost", "the trained policy is gone")
    world.forget(results)
    return verdict


# -- servers ---------------------------------------------------------------------------------------


class Server:
    """An OpenAI-compatible endpoint on this machine that answers wrongly, and then rightly."""

    def __init__(self, status: int, body: bytes, wrong: int, slow: float = 0.0) -> None:
        self.requests, server = 0, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                server.requests += 1
                bad = server.requests <= wrong
                self.send_response(status if bad else 200)
                self.end_headers()
                self.wfile.write(body if bad else RIGHT)
                if bad and slow:
                    _drip(self.wfile, slow)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def _drip(stream: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            stream.write(b" ")
        except OSError:
            return
        time.sleep(0.2)


RIGHT = json.dumps({"choices": [{"message": {"content": "m"}}], "usage": {}}).encode()
ALWAYS = 10**9
SERVERS: dict[str, tuple[int, bytes, int, float]] = {
    "429 three times": (429, b"", 3, 0),
    "500 three times": (500, b"", 3, 0),
    "cut JSON twice": (200, RIGHT[:20], 2, 0),
    "deep JSON twice": (200, b"[" * 100_000, 2, 0),
    "empty twice": (200, b"", 2, 0),
    "another schema twice": (200, b'{"error": {}}', 2, 0),
    "always 401": (401, b"no", ALWAYS, 0),
    "always 500": (500, b"", ALWAYS, 0),
    "1 GB page": (500, b"x" * (8 << 20), ALWAYS, 0),
    "a slow drip": (200, b" ", ALWAYS, 30),
}
KEY = "sk-CANARY-7f3a91b2"
KEYS = {"sound": KEY, "line feed": f"{KEY}\n", "return": f"{KEY}\r\n", "within": f"{KEY}\nX: 1"}


@kind("endpoints that go wrong", "25")
def servers(world: World, rng: random.Random) -> Trials:
    """Bounded retries, then either the right end or one message; the key is nowhere."""
    for name in SERVERS:
        yield Trial(name, partial(_server, world, name, KEY))


@kind("keys of endpoints", "26")
def keys(world: World, rng: random.Random) -> Trials:
    """A key is in no file, no message, no table and no page, whatever its form."""
    for name, key in KEYS.items():
        yield Trial(name, partial(_server, world, "429 three times", key))
    for name, source in LEAKS.items():
        yield Trial(name, partial(_leak, world, source))
    yield Trial("a model of the hub", partial(_hub, world))


LEAKS = {
    "a tracker's exception": """
import os
from harness import hookimpl

@hookimpl
def step_logged(phase, step):
    raise ConnectionError("401: " + os.environ["HF_TOKEN"])
""",
    "a method's exception": METHOD.format(
        before="pass", after="raise ConnectionError('401: ' + os.environ['HF_TOKEN'])"
    ),
}


def _leak(world: World, source: str) -> Verdict:
    """Have a plugin put a key into an exception."""
    results, file = world.prepared("dpo"), _plugin(world, source)
    method = "faulty" if "Faulty" in source else "dpo"
    done = world.train(method, results, "-p", file, environment={"HF_TOKEN": KEY})
    verdict = first_bad(ended(done, (0, 1), "the plugin"), _no_key(world, results, done.text))
    world.forget(results)
    return verdict


def _hub(world: World) -> Verdict:
    results = world.fresh()
    arguments = ("run", "-m", "dpo", "-s", "summarization", "--model", "nobody/nothing")
    environment = {"HF_TOKEN": KEY, "HF_HUB_OFFLINE": "1"}
    done = world.run(*arguments, "--results", results, environment=environment)
    return first_bad(ended(done, (1, 2, 3), "the hub"), _no_key(world, results, done.text))


def _server(world: World, name: str, key: str) -> Verdict:
    """Have a judge ask the server, which is a process of its own, like the run."""
    import os

    status, body, wrong, slow = SERVERS[name]
    server = Server(status, body, wrong, slow)
    pid = os.fork()
    if pid == 0:
        threading.Thread(target=server.http.serve_forever, daemon=True).start()
        time.sleep(600)
        os._exit(0)
    try:
        return _verdict_of(world, server, wrong, key)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        server.http.server_close()


def _verdict_of(world: World, server: Server, wrong: int, key: str) -> Verdict:
    results = world.prepared("dpo")
    settings = {
        "url": server.url,
        "model": "fake",
        "top_logprobs": 0,
        "retries": 4,
        "backoff": 0.01,
        "answer_timeout": 2,
        "cache": world.fresh("cache"),
    }
    more = [f"{name}={value}" for name, value in settings.items()]
    flags = [part for setting in more for part in ("--judge-set", setting)]
    done = world.train(
        *("dpo", results, "--judge", "llm_judge", *flags),
        environment={"HARNESS_API_KEY": key},
    )
    right = (0,) if wrong < ALWAYS and "\nX" not in key else (1, 2)
    verdict = first_bad(ended(done, right, "the endpoint"), _no_key(world, results, done.text))
    world.forget(results)
    return verdict


def _no_key(world: World, results: Path, text: str) -> Verdict:
    shown = text + world.run("table", "--results", results).text
    files = [f for f in world.work.rglob("*") if f.is_file() and b"CANARY" in f.read_bytes()]
    if "CANARY" in shown or files:
        return Verdict(FAILED, f"the key is in {[f.name for f in files] or 'a message'}")
    return Verdict(PASSED)


# -- completions -----------------------------------------------------------------------------------

PROGRAMS = {
    "endless loop": "while True:\n    pass",
    "catches all": "while True:\n    try:\n        raise ValueError\n    except BaseException:\n"
    "        pass",
    "exits": "import os\nos._exit(0)",
    "forks": "import os\nwhile True:\n    os.fork()",
    "memory": "x = bytearray(64 << 30)",
    "output": "while True:\n    print('x' * 65536)",
    "fake verdict": "print('{\"passed\": true}')\nraise SystemExit(0)",
    "frames": "import sys\nf = sys._getframe()\nwhile f.f_back:\n    f = f.f_back\n"
    "f.f_globals.update(passed=True)\nraise SystemExit",
    "big power": "x = 9 ** 9 ** 9",
    "reads secrets": "open('/etc/shadow').read()",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
    "deletes": "import shutil\nshutil.rmtree('CANARY')",
}


@kind("hostile programs under the verifier `code`", "15, 16, 34")
def programs(world: World, rng: random.Random) -> Trials:
    """Never accepted, ended in time, and no process or file is touched."""
    for name, program in PROGRAMS.items():
        yield Trial(name, partial(_program, world, program))


def _program(world: World, program: str) -> Verdict:
    import subprocess
    import sys

    canary = world.fresh("canary")
    source = (
        "from harness_plugins.isolation.confine import Limits\n"
        "from harness_plugins.isolation.pool import Pool\n"
        f"tests = ['def check(candidate):\\n    assert candidate(1) == 2\\n']\n"
        f"job = dict(kind='functions', program={program.replace('CANARY', str(canary))!r},"
        " head='def f(x):\\n', entry='f', tests=tests)\n"
        "print(bool(Pool(Limits(), 1).run([job])[0]['passed']))\n"
    )
    begun = time.monotonic()
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, encoding="utf-8")
    verdict = Verdict(PASSED)
    if done.stdout.strip() != "False":
        verdict = Verdict(WRONG, f"the verdict is {done.stdout.strip()} {done.stderr[-300:]}")
    elif not canary.exists() or time.monotonic() - begun > 60:
        verdict = Verdict(FAILED, "a file outside was deleted, or the end took over a minute")
    return verdict
