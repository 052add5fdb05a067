"""Faulty machines: disks, memory, clocks, locales, homes, paths, terminals, networks."""

from __future__ import annotations

import os
import pty
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fault_trials import (
    FAILED,
    PASSED,
    WRONG,
    Disturbed,
    Trial,
    Trials,
    Verdict,
    ended,
    first_bad,
    kind,
    skipped,
)
from fault_world import World, bytes_of, expect, run_of

ROOT = Path(__file__).parent.parent
MIB = 1 << 20


# -- disks -----------------------------------------------------------------------------------------


@contextmanager
def disk(world: World, options: str) -> Iterator[Path]:
    """Mount a small file system in memory; only root can."""
    folder = world.fresh("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount() -> bool:
    """Return whether this process may mount a file system."""
    folder = Path("/tmp") / f"harness-mount-{os.getpid()}"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    good = shutil.which("mount") and not subprocess.run(command, capture_output=True).returncode
    if good:
        subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
    return bool(good)


@kind("a disk that is really full", "7")
def full_disks(world: World, rng: random.Random) -> Trials:
    """Small file systems of several sizes, one without inodes; then there is space again."""
    if not can_mount():
        yield skipped("mounting a small file system needs root")
        return
    for share in (0.05, 0.3, 0.5, 0.7, 0.9):
        yield Trial(f"{share:.0%} of what it writes is free", partial(_full_disk, world, share, 0))
    for inodes in (2, 8):
        yield Trial(f"{inodes} inodes free", partial(_full_disk, world, 0.0, inodes))


def _kib(folder: Path) -> int:
    """Return the size of a folder in KiB, in whole pages of 4 KiB."""
    sizes = [path.stat().st_size if path.is_file() else 1 for path in folder.rglob("*")]
    return sum(-(-size // 4096) * 4 for size in sizes)


def _full_disk(world: World, share: float, inodes: int) -> Verdict:
    prepared = world.prepared("dpo")
    there = sum(1 for _ in prepared.rglob("*")) + 1
    before = _kib(prepared)
    size = before + int(share * (_kib(world.whole("dpo")[0]) - before))
    limit = f"size={size}k" if share else f"size=64m,nr_inodes={there + inodes + 1}"
    with disk(world, limit) as folder:
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        case = Disturbed(world, "dpo", folder)
        done = world.train("dpo", folder)
        verdict = ended(done, (1, 3, 4), "a full disk")
        if "No space for" not in done.err or "Traceback" in done.text:
            verdict = first_bad(verdict, Verdict(FAILED, f"no file named: {done.text[-300:]}"))
        subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=9999", folder], check=True)
        verdict = first_bad(verdict, case.resumed())
    world.forget(prepared)
    return verdict


@kind("folders that cannot be written", "7, 28")
def read_only(world: World, rng: random.Random) -> Trials:
    """A read-only results folder and a read-only home."""
    if can_mount():
        yield Trial("results", partial(_read_only, world))
        yield Trial("home", partial(_home, world, "read-only"))
    else:
        yield skipped("a folder that root cannot write needs a mount")


def _read_only(world: World) -> Verdict:
    with disk(world, "size=1m,ro") as folder:
        done = world.train("dpo", folder / "results")
    good = done.code == 3 and "Cannot write" in done.err and "Traceback" not in done.text
    return Verdict(PASSED if good else FAILED, "" if good else f"{done.code} {done.text[-300:]}")


# -- memory ----------------------------------------------------------------------------------------


@kind("memory runs out", "9")
def memory(world: World, rng: random.Random) -> Trials:
    """A limit of the address space, and a control group that really kills."""
    yield Trial("RLIMIT_AS", partial(_address_space, world))
    group = control_group()
    if group is None:
        yield skipped("no writable memory control group: RLIMIT_AS stands for it")
    else:
        yield Trial("control group", partial(_killed_by_group, world, group))


def _address_space(world: World) -> Verdict:
    case = Disturbed(world, "grpo")
    limit = _used_address_space() + 24 * MIB

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = world.train("grpo", case.results, before=before)
    verdict = ended(done, (0, 1, 127, -6, -11), "RLIMIT_AS")  # 127: the loader of libraries
    verdict = first_bad(verdict, case.resumed())
    case.close()
    return verdict


def _used_address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def control_group() -> Path | None:
    """Return a new control group whose memory can be limited, or None."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = root / f"harness-faults-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if _limit_file(group) is not None:
            return group
        group.rmdir()
    return None


def _limit_file(group: Path) -> Path | None:
    names = ("memory.max", "memory.limit_in_bytes")
    return next((group / name for name in names if (group / name).exists()), None)


def _killed_by_group(world: World, group: Path) -> Verdict:
    case, limit = Disturbed(world, "grpo"), _limit_file(group)
    assert limit is not None, "the group can limit memory"
    limit.write_text(str(24 * MIB), encoding="ascii")

    def before() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        _block = bytearray(0)

    done = world.train("grpo", case.results, before=before)
    verdict = ended(done, (0, 1, -9), "the control group")
    verdict = first_bad(verdict, case.resumed())
    case.close()
    group.rmdir()
    return verdict


# -- hosts -----------------------------------------------------------------------------------------


def _home(world: World, how: str) -> Verdict:
    with disk(world, "size=1m,ro") if how == "read-only" else _missing() as folder:
        names = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR")
        return _same(world, environment={name: str(folder) for name in names})


@contextmanager
def _missing() -> Iterator[Path]:
    yield Path("/nonexistent/home")


def _same(world: World, results: Path | None = None, **how: object) -> Verdict:
    """Run DPO on an odd host: it ends in the same bytes."""
    case = Disturbed(world, "dpo", results)
    done = world.train("dpo", case.results, **how)
    verdict = first_bad(ended(done, (0,), "an odd host"), case.resumed())
    case.close()
    return verdict


ODD_NAMES = ("with spaces", "\u00fcn\u00ef\u4e2d\U0001f600", "x" * 200, "-dash", "a'b\"c$d;e")


@kind("odd hosts", "28")
def hosts(world: World, rng: random.Random) -> Trials:
    """Clock, time zone, mask, user, terminal, colour, locale, home and paths."""
    yield Trial("no home", partial(_home, world, "none"))
    yield Trial("clock set back", partial(_same, world, before=_set_back))
    yield Trial("umask 077", partial(_same, world, before=partial(os.umask, 0o077)))
    yield Trial("user without a name", partial(_nameless, world))
    yield Trial("time zone", partial(_same, world, environment={"TZ": "Pacific/Kiritimati"}))
    yield Trial("C locale", partial(_fresh_process, world, {"LC_ALL": "C", "PYTHONUTF8": "0"}))
    for name in ODD_NAMES:
        yield Trial(f"path {name[:20]!r}", partial(_odd_path, world, name))
    yield Trial("terminal of 40 columns", partial(_terminal, world))


def _set_back() -> None:
    """Let `time.time` jump back an hour each time that it is called."""
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() - 3600 * (calls[0] % 5)

    time.time = jumping


def _nameless(world: World) -> Verdict:
    if os.getuid():
        return Verdict("skipped", "another user needs root")
    prepared = world.prepared("dpo")
    subprocess.run(["chmod", "-R", "a+rwX", world.work], check=True)

    def before() -> None:
        os.umask(0)
        os.setgid(54321)
        os.setuid(54321)

    os.chmod(world.work, 0o777)
    return _same(world, prepared, before=before)


def _odd_path(world: World, name: str) -> Verdict:
    folder = world.fresh() / name
    shutil.copytree(world.prepared("dpo"), folder)
    return _same(world, folder)


def _terminal(world: World) -> Verdict:
    leader, follower = pty.openpty()
    pid = os.fork()
    if pid == 0:  # what is printed is read, so that the command does not wait
        while os.read(leader, 65536):
            pass
        os._exit(0)

    def before() -> None:
        os.dup2(follower, 1)
        os.dup2(follower, 2)

    try:
        return _same(world, before=before, environment={"COLUMNS": "40", "TERM": "xterm"})
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(leader), os.close(follower)


# -- repetition ------------------------------------------------------------------------------------


@kind("determinism, another batch, no network", "20, 21, 24")
def repetitions(world: World, rng: random.Random) -> Trials:
    """New processes with other hash seeds, other batches of scoring, blocked sockets."""
    yield Trial("other hash seed", partial(_fresh_process, world, {"PYTHONHASHSEED": "77"}))
    yield Trial("blocked sockets", partial(_same, world, before=_block_sockets))
    yield Trial("decoding in small batches", partial(_small_batches, world))


def _block_sockets() -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("a connection was tried")

    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = refuse  # type: ignore[assignment]


def _small_batches(world: World) -> Verdict:
    """Answers drawn few at a time have the same tokens."""
    results = world.prepared("grpo")
    done = world.train("grpo", results, "--decode-batch-tokens", 64)
    mine, right = run_of(results, "grpo"), run_of(world.whole("grpo")[0], "grpo")
    assert right is not None, "the undisturbed run has a folder"
    if done.code or mine is None:
        return Verdict(FAILED, done.text[-300:])
    same = bytes_of(mine)["rollouts.jsonl"] == bytes_of(right)["rollouts.jsonl"]
    world.forget(results)
    return Verdict(PASSED if same else WRONG, "other completions in smaller batches")


def _fresh_process(world: World, environment: dict[str, str]) -> Verdict:
    """Run DPO in a Python process of its own."""
    case = Disturbed(world, "dpo")
    command = [sys.executable, "-m", "harness", *map(str, world.arguments("dpo", case.results))]
    folders = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "suites")]
    more = {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, env={**os.environ, **more})
    if done.returncode:
        return Verdict(FAILED, done.stderr.decode("utf-8", "replace")[-300:])
    verdict = case.resumed()
    case.close()
    return verdict


Change = Callable[[World, Path], tuple[object, ...]]


@kind("what must not be reused", "22")
def caches(world: World, rng: random.Random) -> Trials:
    """Another seed, option or setting trains again; the same command trains nothing."""
    changes: dict[str, tuple[object, ...]] = {
        "the same": (),
        "seed": ("--seed", 1),
        "option": ("--set", "beta=0.3"),
        "shared seed": ("--shared-seed", 1),
        "suite option": ("--suite-set", "max_tokens=2"),
        "weights": ("--weights", "bfloat16"),
    }
    for name, more in changes.items():
        yield Trial(name, partial(_reused, world, more))


def _reused(world: World, more: tuple[object, ...]) -> Verdict:
    results = world.copy(world.whole("dpo")[0])
    done = expect(world.train("dpo", results, *more))
    trained = bool(done.counts.get("step.end"))
    world.forget(results)
    right = trained == bool(more)
    return Verdict(PASSED if right else WRONG, f"{'trained' if trained else 'reused'} with {more}")


@kind("many runs in one folder", "31, 32, 34")
def soak(world: World, rng: random.Random) -> Trials:
    """Six runs in one process: no file stays open, no temporary file is left."""
    yield Trial("6 runs", partial(_many, world))


def _many(world: World) -> Verdict:
    results = world.prepared("dpo")
    arguments = [str(a) for a in world.arguments("dpo", results)]
    before = len(os.listdir("/proc/self/fd"))
    done = world.run("list", before=partial(_many_runs, arguments))
    files = [file.name for file in results.rglob("*.tmp")]
    ended_runs = len(list(results.glob("runs/*/dpo/*/result.json")))
    counted = int((done.out.split("open files: ")[-1:] or ["-1"])[0].split()[0])
    good = done.code == 0 and not files and ended_runs == 6 and counted <= before + 12
    world.forget(results)
    why = f"{ended_runs} runs, {counted} files open, {files} {done.text[-300:]}"
    return Verdict(PASSED if good else FAILED, "" if good else why)


def _many_runs(arguments: list[str]) -> None:
    from click.testing import CliRunner

    from harness.cli.app import cli

    for seed in range(6):
        CliRunner().invoke(cli, [*arguments, "--seed", str(seed)], standalone_mode=False)
    print(f"open files: {len(os.listdir('/proc/self/fd'))}")
