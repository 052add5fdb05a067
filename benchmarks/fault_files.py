"""Damaged files: checkpoints, records, artifacts, the files of a study."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fault_trials import (
    FAILED,
    LOST,
    PASSED,
    WRONG,
    Disturbed,
    Trial,
    Trials,
    Verdict,
    ended,
    first_bad,
    kind,
    one_message,
)
from fault_world import World, run_of

Damage = Callable[[Path, random.Random], None]
ODD_JSON = ("null", "[]", "{}", '{"schema": "x"}', '{"schema": 1}', "[" * 100_000, "\x00" * 64)


def flip(file: Path, rng: random.Random) -> None:
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


def cut(file: Path, rng: random.Random) -> None:
    """Cut the file at a place that is drawn."""
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def empty(file: Path, rng: random.Random) -> None:
    """Leave nothing in the file."""
    file.write_bytes(b"")


def gone(file: Path, rng: random.Random) -> None:
    """Delete the file."""
    file.unlink()


def odd(file: Path, rng: random.Random) -> None:
    """Put another JSON value into the file."""
    file.write_text(rng.choice(ODD_JSON), encoding="utf-8")


DAMAGES: tuple[Damage, ...] = (flip, cut, empty, gone)


@kind("the newest checkpoint is damaged", "5")
def checkpoints(world: World, rng: random.Random) -> Trials:
    """Each damage of each file: the checkpoint before is used, and a message says so."""
    for name in ("tensors.safetensors", "state.json"):
        for damage in (*DAMAGES, *((odd, odd) if name == "state.json" else ())):
            seed = rng.randrange(1 << 30)
            trial = partial(_checkpoint, world, name, damage, seed)
            yield Trial(f"{name} {damage.__name__} {seed}", trial)


def _checkpoint(world: World, name: str, damage: Damage, seed: int) -> Verdict:
    case = Disturbed(world, "dpo")
    world.train("dpo", case.results, fault="step.end:3:kill")
    newest = max(case.results.glob("runs/*/dpo/*/checkpoint/turn-*"))
    damage(newest / name, random.Random(seed))
    verdict = case.resumed()
    case.close()
    return verdict


RECORDS = ("result.json", "spec.json", "provenance.json", "samples.jsonl", "metrics.jsonl")


@kind("a file of a finished run is damaged", "6")
def records(world: World, rng: random.Random) -> Trials:
    """The table names it and shows the other runs; no figure differs without a word."""
    for name in RECORDS:
        for damage in (*DAMAGES, *((odd, odd) if name.endswith(".json") else ())):
            seed = rng.randrange(1 << 30)
            yield Trial(
                f"{name} {damage.__name__} {seed}", partial(_record, world, name, damage, seed)
            )


def _record(world: World, name: str, damage: Damage, seed: int) -> Verdict:
    results = world.copy(world.whole("dpo")[0])
    folder = run_of(results, "dpo")
    assert folder is not None, "the undisturbed run has a folder"
    before = _table(world, results)
    damage(folder / name, random.Random(seed))
    verdict = first_bad(_readers(world, results, name, before), _again(world, results, folder))
    world.forget(results)
    return verdict


def _table(world: World, results: Path) -> str:
    return world.run("table", "--results", results, "--format", "csv").out


def _readers(world: World, results: Path, name: str, before: str) -> Verdict:
    """Decide what the table and the page make of a damaged file."""
    done = world.run("table", "--results", results, "--format", "csv")
    page = world.run("report", "--results", results, "-o", results / "page.html")
    for what, command in (("table", done), ("report", page)):
        if "Traceback" in command.text or command.code not in (0, 1):
            return Verdict(FAILED, f"{what}: {command.code} {command.text[-300:]}")
    rows = [line for line in done.out.splitlines() if line]
    if not any("start" in row for row in rows):
        return Verdict(LOST, f"the other run is not shown: {done.text[-300:]}")
    unmarked = [row for row in rows if row not in before.splitlines() and name not in done.err]
    return Verdict(WRONG if unmarked else PASSED, f"shown without a word: {unmarked}")


def _again(world: World, results: Path, folder: Path) -> Verdict:
    """Decide what `run`, `evaluate` and `plot` make of it: a message, and no traceback."""
    commands = (
        world.arguments("dpo", results),
        ["evaluate", folder, "--results", results],
        ["plot", "learning", "--results", results, "-o", results / "plot.png"],
    )
    for arguments in commands:
        done = world.run(*arguments)
        if "Traceback" in done.text or done.code < 0:
            return Verdict(FAILED, f"{arguments[0]}: {done.code} {done.text[-300:]}")
    return Verdict(PASSED)


@kind("a bundle is damaged", "6, 27")
def bundles(world: World, rng: random.Random) -> Trials:
    """Exit status 2 and one message that names it; or, where no content changed, the same page."""
    for damage in (*DAMAGES[:3], flip, cut, other_schema):
        seed = rng.randrange(1 << 30)
        yield Trial(f"{damage.__name__} {seed}", partial(_bundle, world, damage, seed))


def other_schema(file: Path, rng: random.Random) -> None:
    """Write the bundle as another version of the harness would, with a seal that fits."""
    from harness.core.digests import digest_of

    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(content["bundle.json"]) | {"schema": 2}
    manifest.pop("seal")
    content["bundle.json"] = json.dumps({**manifest, "seal": digest_of(manifest)}).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(content):
            archive.writestr(name, content[name])


def _bundle(world: World, damage: Damage, seed: int) -> Verdict:
    results = world.copy(world.whole("dpo")[0])
    _cells(results)
    bundle, page = results / "mine.zip", results / "page.html"
    world.run("report", "mine", "--results", results, "--bundle", bundle)
    world.run("report", bundle, "-o", page)
    before = page.read_bytes()
    page.unlink()
    damage(bundle, random.Random(seed))
    done = world.run("report", bundle, "-o", page)
    verdict = one_message(done, 2, bundle.name)
    if done.code == 0:  # a bit of the archive that decides no content
        same = page.read_bytes() == before
        verdict = Verdict(PASSED if same else WRONG, "another page without a word")
    elif verdict.outcome == PASSED and page.exists():
        verdict = Verdict(FAILED, "a page was written")
    world.forget(results)
    return verdict


def _cells(results: Path) -> None:
    """Write the list of runs of a study that holds all runs of a results folder."""
    from harness.core.records import write_sealed

    folders = sorted(f.parent for f in (results / "runs").glob("*/*/*/result.json"))
    cells = [
        {
            "label": folder.parent.name,
            "suite": folder.parents[1].name,
            "folder": folder.relative_to(results).as_posix(),
            "trial": False,
        }
        for folder in folders
    ]
    (results / "studies" / "mine").mkdir(parents=True)
    write_sealed(results / "studies" / "mine" / "cells.json", {"cells": cells})


@kind("an artifact is damaged", "6, 22")
def artifacts(world: World, rng: random.Random) -> Trials:
    """It is never used without a word: the command names the file and what to do."""
    for damage in (*DAMAGES, odd):
        for part in ("manifest.json", "data"):
            seed = rng.randrange(1 << 30)
            yield Trial(
                f"{part} {damage.__name__} {seed}", partial(_artifact, world, part, damage, seed)
            )


def _artifact(world: World, part: str, damage: Damage, seed: int) -> Verdict:
    case, rng = Disturbed(world, "dpo"), random.Random(seed)
    files = [
        file
        for kind in ("sft", "reference_logp")
        for file in sorted((case.results / "artifacts").glob(f"{kind}-*/**/*"))
        if file.is_file() and (file.name == "manifest.json") == (part == "manifest.json")
    ]
    file = rng.choice(files)
    damage(file, rng)
    done = world.train("dpo", case.results)
    verdict = ended(done, (0, 1), f"{damage.__name__} {file.name}")
    if done.code == 0:
        verdict = first_bad(verdict, case.resumed())
    elif verdict.outcome == PASSED and not ("Delete" in done.err and file.name in done.err):
        verdict = Verdict(FAILED, f"no file or remedy named: {done.err[-300:]}")
    case.close()
    return verdict


@kind("a torn last line", "6")
def torn_lines(world: World, rng: random.Random) -> Trials:
    """A crash of the machine leaves half a line of metrics or rollouts; training goes on."""
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        yield Trial(name, partial(_torn, world, name))


def _torn(world: World, name: str) -> Verdict:
    case = Disturbed(world, "grpo")
    world.train("grpo", case.results, fault="step.end:3:kill")
    file = next(case.results.glob(f"runs/*/grpo/*/{name}"))
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 9, "lo')
    verdict = case.resumed()
    case.close()
    return verdict


@kind("malicious files", "27")
def malicious(world: World, rng: random.Random) -> Trials:
    """A pickle beside a checkpoint, a link out of the folder, a header of 2^60 bytes."""
    yield Trial("pickle in a checkpoint", partial(_planted, world, "data.pkl", b"cos\nsystem\n"))
    header = (1 << 60).to_bytes(8, "little") + b"{}"
    yield Trial("huge header", partial(_planted, world, "tensors.safetensors", header))
    yield Trial("newer schema", partial(_newer_schema, world))


def _planted(world: World, name: str, content: bytes) -> Verdict:
    case = Disturbed(world, "dpo")
    world.train("dpo", case.results, fault="step.end:3:kill")
    newest = max(case.results.glob("runs/*/dpo/*/checkpoint/turn-*"))
    (newest / name).write_bytes(content)
    verdict = case.resumed()
    case.close()
    return verdict


def _newer_schema(world: World) -> Verdict:
    from harness.core.records import write_sealed

    results = world.copy(world.whole("dpo")[0])
    folder = run_of(results, "dpo")
    assert folder is not None, "the undisturbed run has a folder"
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    record.pop("seal", None)
    write_sealed(folder / "result.json", {**record, "schema": 99})
    done = world.run("table", "--results", results)
    good = done.code in (0, 1) and "newer" in done.text and "Traceback" not in done.text
    world.forget(results)
    return Verdict(PASSED if good else FAILED, "" if good else done.text[-300:])
