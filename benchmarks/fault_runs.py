"""Faults in runs: kills, signals, a full disk, NaN, memory, hangs, two processes, the study."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
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
    disturbed,
    ended,
    failure_of,
    first_bad,
    kind,
    one_message,
)
from fault_world import World, bytes_of, end_session, files_of, run_of

KILLED = (-signal.SIGKILL,)
THOROUGH = ("dpo", "grpo")  # methods that are killed at every point
UNTRAINED = ("start", "best_of_n")


def methods() -> list[str]:
    """Return the registered methods that run by their defaults; `checkpoint` and `gkd` need a
    model of the user's. Those of TRL do not resume.
    """
    from harness.api.registry import installed

    classes = installed().classes["methods"]
    return sorted(n for n in classes if not n.startswith("trl_") and _is_complete(classes[n]))


def _is_complete(cls: type) -> bool:
    from harness.core.errors import UsageError
    from harness.core.options import build

    try:
        build(cls, {}, cls.__name__)
    except UsageError:
        return False
    return True


def _counted(world: World) -> Iterator[tuple[str, Mapping[str, int], list[Trial]]]:
    """Yield each method, how often its run without a fault reaches each point, and a failed trial
    where that run itself fails.
    """
    for method in methods():
        try:
            yield method, world.whole(method)[1].counts, []
        except RuntimeError as error:
            failed = Verdict(FAILED, str(error).splitlines()[-1])
            yield method, {}, [Trial(f"{method} without a fault", partial(_same, failed))]


def _same(verdict: Verdict) -> Verdict:
    return verdict


@kind("kill -9 at a named point of each method", "1, 2, 4, 34")
def kills_at_points(world: World, rng: random.Random) -> Trials:
    """Every point for two methods, three points drawn for each other one."""
    for method, counts, failed in _counted(world):
        yield from failed
        if not counts:  # `start`: the folder has its run from the beginning
            continue
        points = sorted(counts) if method in THOROUGH else rng.sample(sorted(counts), 3)
        for point in points:
            n = rng.randint(1, counts[point])
            fault = f"{point}:{n}:kill"
            yield Trial(f"{method} {fault}", partial(disturbed, world, method, fault, KILLED))


@kind("kill -9 while shared stages are made", "1, 34")
def kills_in_stages(world: World, rng: random.Random) -> Trials:
    """In an empty folder: SFT, preferences and reward model are made, and the run goes on."""
    for point in ("artifact.made", "artifact.sealed", "artifact.published", "write.written"):
        fault = f"{point}:{rng.randint(1, 3)}:kill"
        yield Trial(f"dpo {fault}", partial(_from_nothing, world, fault))


def _from_nothing(world: World, fault: str) -> Verdict:
    case = Disturbed(world, "dpo", world.fresh())
    verdict = ended(world.train("dpo", case.results, fault=fault), KILLED, fault)
    verdict = first_bad(verdict, case.resumed())
    case.close()
    return verdict


@kind("kill -9 at a random moment", "1, 2")
def kills_at_random(world: World, rng: random.Random) -> Trials:
    """A moment drawn from the time that the undisturbed run takes, of each method."""
    for method in methods():
        yield Trial(f"{method}", partial(_at_a_moment, world, method, rng.random()))


def _at_a_moment(world: World, method: str, share: float) -> Verdict:
    case = Disturbed(world, method)
    command = world.command(*world.arguments(method, case.results))
    time.sleep(share * _usual_seconds(world, method))
    command.kill()
    command.finish()
    verdict = case.resumed()
    case.close()
    return verdict


def _usual_seconds(world: World, method: str) -> float:
    begun, results = time.monotonic(), world.prepared(method)
    world.train(method, results)
    world.forget(results)
    return time.monotonic() - begun


@kind("ten kills of one run", "4")
def repeated_kills(world: World, rng: random.Random) -> Trials:
    """The same run is killed ten times, each time later."""
    yield Trial("grpo", partial(_ten_kills, world))


def _ten_kills(world: World) -> Verdict:
    case = Disturbed(world, "grpo")
    for n in range(10):
        fault = f"write.written:{2 + n % 4}:kill"
        world.train("grpo", case.results, fault=fault)
    verdict = case.resumed()
    case.close()
    return verdict


@kind("SIGINT, SIGTERM, SIGHUP, two SIGINTs", "3")
def signals(world: World, rng: random.Random) -> Trials:
    """A signal during training; the run ends soon, and goes on with the same command."""
    cases = {"SIGINT": (130,), "SIGTERM": (143,), "SIGHUP": (-1, 129), "SIGINT twice": (130, -2)}
    for name, codes in cases.items():
        yield Trial(name, partial(_signal, world, name, codes))


def _signal(world: World, name: str, codes: tuple[int, ...]) -> Verdict:
    case = Disturbed(world, "grpo")
    command = world.command(*world.arguments("grpo", case.results))
    _until(lambda: any(case.results.glob("runs/*/grpo/*/checkpoint/turn-*")), 60)
    for number in range(2 if "twice" in name else 1):
        time.sleep(0.2 * number)
        if command.running():
            command.kill(getattr(signal, name.split()[0]))
    sent = time.monotonic()
    verdict = ended(command.finish(), codes, name)
    if time.monotonic() - sent > 10:
        verdict = Verdict(FAILED, f"{name}: {time.monotonic() - sent:.0f} s until the end")
    verdict = first_bad(verdict, case.resumed())
    case.close()
    return verdict


def _until(true: object, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@kind("ENOSPC at a write of each method", "7")
def full_at_points(world: World, rng: random.Random) -> Trials:
    """The system says that the disk is full, at a write that is drawn."""
    for method, counts, failed in _counted(world):
        yield from failed
        if not counts:
            continue
        point = rng.choice([p for p in ("write.begin", "write.written") if counts.get(p)])
        fault = f"{point}:{rng.randint(1, counts[point])}:full"
        yield Trial(f"{method} {fault}", partial(_full, world, method, fault))


def _full(world: World, method: str, fault: str) -> Verdict:
    case = Disturbed(world, method)
    done = world.train(method, case.results, fault=fault)
    verdict = first_bad(ended(done, (1, 3, 4), fault), _names_space(done.err))
    verdict = first_bad(verdict, case.resumed())
    case.close()
    return verdict


def _names_space(text: str) -> Verdict:
    good = "No space for" in text and "bytes" in text and "Traceback" not in text
    return Verdict(PASSED if good else FAILED, "" if good else f"no file named: {text[-300:]}")


@kind("NaN in the loss of each method", "8")
def nan_losses(world: World, rng: random.Random) -> Trials:
    """The loss is NaN at the first, a middle or the last step."""
    trained = (one for one in _counted(world) if one[0] not in UNTRAINED)
    for place, (method, counts, failed) in enumerate(trained):
        yield from failed
        steps = counts.get("step.loss", 0)
        if steps:
            n = (1, (steps + 1) // 2, steps)[place % 3]
            yield Trial(f"{method} step {n}", partial(_nan, world, method, f"step.loss:{n}:nan"))


@kind("NaN in rewards and KL", "8")
def nan_elsewhere(world: World, rng: random.Random) -> Trials:
    """Rewards at a turn that is drawn, and the KL that the evaluator measures."""
    for method, point in (("rlaif", "reward"), ("grpo", "reward"), ("dpo", "evaluation.kl")):
        count = world.whole(method)[1].counts.get(point, 0)
        if count:  # a suite whose rewards are not learned does not reach it
            fault = f"{point}:{rng.randint(1, count)}:nan"
            yield Trial(f"{method} {point}", partial(_nan, world, method, fault))


def _nan(world: World, method: str, fault: str) -> Verdict:
    case = Disturbed(world, method)
    done = world.train(method, case.results, fault=fault)
    failure = failure_of(case.results, method)
    verdict = ended(done, (1,), fault)
    if verdict.outcome == PASSED and failure.get("status") != "diverged":
        verdict = Verdict(FAILED, f"recorded as {failure.get('status')}, not diverged")
    verdict = first_bad(verdict, _marked(world, case.results), case.resumed())
    case.close()
    return verdict


def _marked(world: World, results: Path) -> Verdict:
    """Decide whether the table says that a run met a number that is none."""
    done = world.run("table", "--results", results)
    good = done.code == 0 and any(
        w in done.text.lower() for w in ("diverged", "is nan", "not finite")
    )
    return Verdict(PASSED if good else FAILED, "" if good else f"not marked: {done.text[-300:]}")


@kind("MemoryError, SystemExit and an exception inside a run", "9, 17")
def errors_inside(world: World, rng: random.Random) -> Trials:
    """Each is a recorded failure, and the same command goes on."""
    points = ("step.end", "rollout", "checkpoint.tensors", "evaluation.judged", "artifact.made")
    for action in ("memory", "exit", "raise"):
        for point in points:
            n = rng.randint(1, world.whole("grpo")[1].counts[point])
            fault = f"{point}:{n}:{action}"
            yield Trial(f"grpo {fault}", partial(_recorded, world, "grpo", fault))


def _recorded(world: World, method: str, fault: str) -> Verdict:
    case = Disturbed(world, method)
    done = world.train(method, case.results, fault=fault)
    verdict = ended(done, (1,), fault)
    failure = failure_of(case.results, method)
    if verdict.outcome == PASSED and not failure.get("failure"):
        verdict = Verdict(FAILED, f"no failure recorded after {fault}")
    verdict = first_bad(verdict, case.resumed())
    case.close()
    return verdict


@kind("a labeller or judge that hangs", "10")
def hangs(world: World, rng: random.Random) -> Trials:
    """The wait is ended at its limit, with the name of what is waited for."""
    yield Trial("judge", partial(_hang, world, "dpo", "judge:1:hang", "the judge"))


def _hang(world: World, method: str, fault: str, name: str) -> Verdict:
    case = Disturbed(world, method)
    done = world.train(method, case.results, "--answer-timeout", 1, fault=fault)
    verdict = ended(done, (1,), fault)
    if verdict.outcome == PASSED and name not in done.err:
        verdict = Verdict(FAILED, f"{name} is not named: {done.err[-300:]}")
    verdict = first_bad(verdict, case.resumed())
    case.close()
    return verdict


@kind("two processes in one results folder", "18")
def two_processes(world: World, rng: random.Random) -> Trials:
    """The same run, two runs that need the same stage, and a table while a run is under way."""
    yield Trial("the same run", partial(_same_run, world))
    yield Trial("two runs, no stage made", partial(_two_runs, world))
    yield Trial("a stage's maker killed", partial(_maker_killed, world))
    yield Trial("a table meanwhile", partial(_table_meanwhile, world))


def _same_run(world: World) -> Verdict:
    case = Disturbed(world, "grpo")
    first = world.command(*world.arguments("grpo", case.results))
    _until(lambda: any(case.results.glob("runs/*/grpo/*/spec.json")), 60)
    second = world.train("grpo", case.results)
    verdict = first_bad(
        one_message(second, 3, "in use by"),
        ended(first.finish(), (0,), "the first"),
        case.resumed(),
    )
    case.close()
    return verdict


def _two_runs(world: World) -> Verdict:
    results = world.fresh()
    commands = [world.command(*world.arguments(m, results)) for m in ("dpo", "ipo")]
    done = [command.finish() for command in commands]
    verdict = first_bad(*(ended(d, (0,), "a race") for d in done), _equal(world, results))
    world.forget(results)
    return verdict


def _equal(world: World, results: Path) -> Verdict:
    for method in ("dpo", "ipo"):
        mine, right = run_of(results, method), run_of(world.whole(method)[0], method)
        assert right is not None, "the undisturbed run has a folder"
        if mine is None or bytes_of(mine) != bytes_of(right):
            return Verdict(WRONG, f"{method} differs from the run alone", False)
    return Verdict(PASSED, identical=True)


def _maker_killed(world: World) -> Verdict:
    results = world.fresh()
    first = world.command(*world.arguments("dpo", results), fault="step.end:2:kill")
    second = world.command(*world.arguments("ipo", results))
    first.finish()
    verdict = ended(second.finish(), (0,), "the maker's end")
    verdict = first_bad(verdict, ended(world.train("dpo", results), (0,), "again"))
    verdict = first_bad(verdict, _equal(world, results))
    world.forget(results)
    return verdict


def _table_meanwhile(world: World) -> Verdict:
    case = Disturbed(world, "grpo")
    quiet = world.run("table", "--results", case.results, "--format", "csv").out
    command = world.command(*world.arguments("grpo", case.results))
    seen = []
    while command.running():
        seen.append(world.run("table", "--results", case.results, "--format", "csv").out)
    command.finish()
    final = world.run("table", "--results", case.results, "--format", "csv").out
    odd = [table for table in seen if table not in (quiet, final)]
    verdict = Verdict(WRONG, f"shown meanwhile: {odd[0][-300:]}") if odd else case.resumed()
    case.close()
    return verdict


STUDY = """
name = "faults"
suites = ["exact"]
seeds = [0]
quick = true
threads = 1

[[methods]]
name = "dpo"

[[methods]]
name = "ipo"
"""


@kind("the study and its launcher", "2, 18, 19, 33")
def studies(world: World, rng: random.Random) -> Trials:
    """Killed at its points and at random, and with its processes in parallel."""
    for fault in (
        "study.job:2:kill",
        "study.ended:1:kill",
        "study.ended:2:kill",
        "study.job:1:exit",
    ):
        yield Trial(fault, partial(_study, world, fault, 1))
    yield Trial("two jobs at once", partial(_study, world, "", 2))


def _study(world: World, fault: str, jobs: int) -> Verdict:
    results, file = _study_stages(world), world.fresh("study") / "faults.toml"
    file.write_text(STUDY, encoding="utf-8")
    command = ["study", file, "--results", results, "--launcher-set", f"jobs={jobs}"]
    before, how = files_of(results), {"fault": fault} if fault else {}
    first = world.run(*command, limit=900, **how)
    end_session(first.code)
    again = world.run(*command, limit=900)
    after = files_of(results)
    verdict = ended(again, (0,), f"the study after {fault or 'no fault'}")
    if any(after.get(name) != digest for name, digest in before.items()):
        verdict = Verdict("lost", "an earlier result changed")
    world.forget(results, file.parent)
    return verdict


def _study_stages(world: World) -> Path:
    return world.prepared("dpo")


def process_alive(process: int) -> bool:
    """Return whether a process is there."""
    return os.path.exists(f"/proc/{process}")
