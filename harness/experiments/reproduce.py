"""`harness reproduce RUN`: carry a recorded run out again, from nothing, and compare it digest by
digest.

Three levels, as AMLB names its own (loose, balanced, strict): identical, every digest and figure
equal, is what the CPU promises; with --loose the figures need only agree within their intervals, as
on another machine or GPU; all else is different. This module makes the run again; `digests.py`
compares the two.

It says nothing of whether a record is true where the code is another: that is refused before
anything is trained.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..api.participants import participants
from ..api.registry import Registry
from ..api.resolve import code_of as code_digests
from ..core import run_folder
from ..core.data import Budget
from ..core.errors import HarnessError, Refused, UsageError
from ..core.execution import TRAINING, Execution
from ..core.files import make_folder, write_json
from ..core.records import CHANGED, Damaged, read_object, read_unchecked, rerun
from ..core.settings import STAGES
from ..core.spec import START_MODEL, RunSpec, spec_from, stage_options
from .carry_out import carry_out
from .recorded_execution import ExecutionPlan, execution_plan_of
from .reproduction_digests import DIFFERENT, SAME, Item, compare_failures, compare_runs, within

MARK = (  # in a folder named with --into: the run it reproduces, so that it can be resumed
    "reproduces.json"
)
FILE_PLUGINS = "file"  # the name in provenance for the distribution of a plain file
TRACEBACK = re.compile(r" The traceback is in .*traceback\.txt\.")
HINTS = {  # parts of `code` that are files of data, and what to do where they are not found
    "data": " (--data-folder DIR says where they lie now)",
    "labeller_data": "",
    "reward_model": " (--reward-model {reward_model}, named from where the run was started)",
    "base": " (--model {model}, named from where the run was started)",
    "reference": " (--reference {reference}, named from where the run was started)",
}
IDENTICAL, WITHIN = "identical", "the same within tolerance"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recorded:
    """A run folder: the request, the result and the environment."""

    folder: Path
    spec: RunSpec
    result: Mapping[str, Any]  # of a failed run: its failure
    provenance: Mapping[str, Any]  # a failed run has none
    # SHA-256 of weights that are not in the folder, by name in it: a bundle holds no weights
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether the run failed."""
        return "failure" in self.result


@dataclass(frozen=True)
class ReproduceOptions:
    """How a run is to be reproduced."""

    into: Path | None = None  # destination; None: a temporary folder
    loose: bool = False  # whether figures that agree within their intervals are enough
    # whether to carry out a run that cannot be the same: changed code or an edited record
    anyway: bool = False


@dataclass(frozen=True)
class Verdict:
    """How a reproduction ended."""

    digests: list[Item]
    figures: list[Item]  # with --loose, where digests differ
    folder: Path  # of the reproduction

    @property
    def level(self) -> str:
        """The level reached: identical, the same within tolerance, or different."""
        if all(item.status == SAME for item in self.digests):
            return IDENTICAL
        near = self.figures and all(item.status != DIFFERENT for item in self.figures)
        return WITHIN if near else DIFFERENT

    @property
    def reproduced(self) -> bool:
        """Whether the run counts as reproduced."""
        return self.level != DIFFERENT


# -- reading a record ------------------------------------------------------------------------------


def read_run(folder: Path, data_folder: Path | None = None) -> Recorded:
    """Return the run in a folder; `data_folder` holds its suite's files. Raise UsageError without a
    finished run.
    """
    if not (folder / "spec.json").is_file():
        raise UsageError(f"{folder} is not a run folder: {_expected(folder)}")
    result = run_folder.read_result(folder) or run_folder.read_failure(folder)
    if result is None:
        raise UsageError(
            f"The run {folder} is not finished: there is neither result.json nor failure.json"
            " in it."
        )
    provenance = _read(folder / "provenance.json") if (folder / "provenance.json").is_file() else {}
    spec = read_spec(folder, edited=True)
    if data_folder is not None:
        if "folder" not in spec.suite_options:
            raise UsageError(
                f"--data-folder {data_folder}: the suite {spec.suite_name} reads no files."
            )
        spec = replace(
            spec, suite_options={**spec.suite_options, "folder": str(data_folder.resolve())}
        )
    return Recorded(folder, spec, result, provenance)


def _expected(folder: Path) -> str:
    """Return the problem with a path, and the run folders nearest to it."""
    missing = "there is no spec.json in it." if folder.is_dir() else "there is no such folder."
    depths = (
        range(1, 5) if folder.is_dir() else range(1, 3)
    )  # a results folder, or a misspelt run folder
    there = next((p for p in (folder, *folder.parents[:2]) if p.is_dir()), folder)
    runs = sorted(str(f.parent) for depth in depths for f in there.glob("*/" * depth + "spec.json"))
    near = get_close_matches(str(folder), runs, n=3, cutoff=0.0)
    return (
        f"{missing} Expected is RESULTS/runs/SUITE/METHOD/seedN-FINGERPRINT; nearest:"
        f" {', '.join(near) or 'none'}."
    )


def read_spec(folder: Path, edited: bool = False) -> RunSpec:
    """Return the RunSpec that was written down.

    Args:
        folder: The run folder.
        edited: Whether a spec that was changed after it was written is returned too.

    Raises:
        UsageError: The spec is of another version of the harness.
        Damaged: The file is not what was written.
    """
    file = folder / run_folder.SPEC
    values = _read(file) if edited else read_object(file, rerun(folder))
    known = {f.name for f in dataclasses.fields(RunSpec)}
    odd = ", ".join(sorted(set(values) ^ known) or _odd_stages(values))
    if odd:
        raise UsageError(
            f"{file} is of another version of the harness, or was edited: it differs in its fields"
            f" {odd}."
        )
    wrong = [
        name for name, hint in get_type_hints(RunSpec).items() if not _fits(values[name], hint)
    ]
    if wrong:
        raise Damaged(file, f"{wrong[0]} is {values[wrong[0]]!r:.60}", rerun(folder))
    try:
        return spec_from(values)
    except TypeError as error:
        raise Damaged(file, error, rerun(folder)) from error


def _odd_stages(values: Mapping[str, Any]) -> list[str]:
    """Return the missing and the unknown stages of a spec."""
    if not isinstance(values["stages"], dict):
        return ["stages"]
    stages = set(STAGES) - ({"sft"} if values["start"] == START_MODEL else set())
    return sorted(set(values["stages"]) ^ stages)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value from JSON has the type of a field."""
    if get_origin(hint) is UnionType:
        return any(_fits(value, part) for part in get_args(hint))
    plain = get_origin(hint) or hint
    kind = {Mapping: dict, tuple: list, Budget: dict, Execution: dict}.get(plain, plain)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _read(file: Path) -> dict[str, Any]:
    """Return the values of a file, edited or not: `contradictions` finds what was edited."""
    return read_unchecked(file, rerun(file.parent))[0]


# -- what would make it differ ---------------------------------------------------------------------


def code_now(run: Recorded, registry: Registry) -> dict[str, str]:
    """Return the digests of the code and files that would carry out the run now."""
    try:
        for stage in run.spec.stages:
            stage_options(run.spec, stage)
        return code_digests(run.spec, participants(run.spec, registry), registry)
    except UsageError as error:
        raise UsageError(
            f"{run.folder / 'spec.json'}: {error}{_plugin_hint(run, registry)}"
        ) from error


def _plugin_hint(run: Recorded, registry: Registry) -> str:
    """Return which files to give with -p. A file is loaded only where the user names it, never
    because a record does.
    """
    if registry.files:
        return ""
    if not run.provenance:
        return " Where the run was made with plugin files, give them with -p FILE."
    words = [str(word) for word in run.provenance.get("command", ())]
    files = [b for a, b in zip(words, words[1:], strict=False) if a in ("-p", "--plugin")]
    if not files and FILE_PLUGINS not in run.provenance.get("plugins", {}):
        return ""
    again = " ".join(f"-p {name}" for name in files) or "-p FILE"
    return f" The run was made with plugin files: harness reproduce {run.folder} {again}"


def contradictions(run: Recorded) -> list[str]:
    """Return where the files of a record contradict each other: one of them was edited."""
    spec, result, provenance = run.spec, run.result, run.provenance
    expected = {"options": spec.options, "suite_options": spec.suite_options}
    pairs = [
        (f"{name}.{key}", values.get(key), result.get(name, {}).get(key))
        for name, values in expected.items()
        for key in sorted(
            {*values, *result.get(name, {})} - {"folder"}
        )  # the place of files decides nothing
    ]
    pairs += [
        (name, getattr(spec, name), result.get(name))
        for name in ("method", "seed", "shared_seed", "quick")
    ]
    pairs += [("suite", spec.suite_name, result.get("suite"))]
    faults = [
        f"{name} is {a!r} in spec.json and {b!r} in the record"
        for name, a, b in pairs
        if _json(a) != _json(b)
    ]
    if not faults and spec.recipe() != result.get("recipe"):
        faults.append(
            f"spec.json was edited: its recipe is {spec.recipe()}, the record's"
            f" {result.get('recipe')}"
        )
    for name, theirs in (("ground", result.get("ground")), ("code", spec.code)):
        if name in provenance and provenance[name] != theirs:
            faults.append(f"{name} differs between provenance.json and the rest")
    if not faults:
        names = (run_folder.SPEC, run_folder.PROVENANCE)
        files = [run.folder / name for name in names if (run.folder / name).is_file()]
        broken = [f for f in files if read_unchecked(f, rerun(run.folder))[1] is False]
        faults += [f"{file.name} is damaged: {CHANGED}" for file in broken]
    named = re.fullmatch(r"seed\d+-([0-9a-f]{12})", run.folder.resolve().name)
    if not faults and named and named[1] != spec.fingerprint():
        faults.append(
            f"spec.json was edited: its fingerprint is {spec.fingerprint()}, the folder's"
            f" {named[1]}"
        )
    return faults


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def changed_code(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return {part: (digest then, digest now)} of changed code or data."""
    return {
        part: (then.get(part, ""), now.get(part, ""))
        for part in {**now, **then}
        if then.get(part, "") != now.get(part, "")
    }


def surroundings(run: Recorded) -> list[str]:
    """Return how this machine differs from that of the run; the digests show if it matters."""
    provenance = run.provenance
    if not provenance:
        return ["a failed run leaves no provenance: versions and machine are not compared"]
    here = run_folder.provenance({})
    changes = [
        f"{package} was {was}, is {here['versions'].get(package)}"
        for package, was in provenance.get("versions", {}).items()
        if was != here["versions"].get(package)
    ]
    return changes + [
        f"{part} was {was}, is {here['machine'].get(part)}"
        for part, was in provenance.get("machine", {}).items()
        if was != here["machine"].get(part)
    ]


# -- making it again -------------------------------------------------------------------------------


def reproduce(run: Recorded, registry: Registry, request: ReproduceOptions, say: Say) -> Verdict:
    """Carry out a run again in a folder of its own and compare; items are printed as they are
    compared.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("harness reproduce is carried out by one process, not by several.")
    spec, plan = checked(run, registry, request.anyway, say), planned(run)
    spec = replace(spec, execution=plan.of(TRAINING, spec.execution))
    for line in plan.notes:
        say(f"{'note':<10} {line}")
    with folder_for(run, request.into) as results:
        say(f"{'again':<10} {spec.method} on {spec.suite_name}, seed {spec.seed} in {results}")
        folder, again = _again(spec, registry, results, plan, say)
        if run.failed or "failure" in again:
            return Verdict(
                _reported(compare_failures(how_it_ended(run.result), how_it_ended(again)), say),
                [],
                folder,
            )
        digests = _reported(compare_runs(run.folder, run.result, folder, again, run.weights), say)
        figures = []
        if request.loose and any(item.status == DIFFERENT for item in digests):
            say(f"{'loose':<10} does every figure lie in the other's 95 % interval?")
            figures = _reported(within(run.result, again), say)
    return Verdict(digests, figures, folder)


def _reported(items: Iterator[Item], say: Say) -> list[Item]:
    compared = []
    for item in items:
        compared.append(item)
        say(f"{item.status:<10} {item.name:<32} {item.detail}".rstrip())
    return compared


def checked(run: Recorded, registry: Registry, anyway: bool, say: Say) -> RunSpec:
    """Return the spec to carry out; raise Refused if its code has changed or its record contradicts
    itself.
    """
    now = code_now(run, registry)
    changed = changed_code(run.spec.code, now)
    problems = [
        f"the {'files' if part in HINTS else 'code'} of {part}: {was[:12] or 'none'} then,"
        f" {is_[:12] or 'none'} now" + HINTS.get(part, "").format_map(vars(run.spec))
        for part, (was, is_) in changed.items()
    ]
    wrong = [*contradictions(run), *problems]
    if wrong and not anyway:
        commit = (run.provenance.get("git") or {}).get("commit")
        where = (
            f" It was made at commit {commit} of the harness."
            if commit and "harness" in changed
            else ""
        )
        raise Refused(
            f"{run.folder} cannot be reproduced as it was: {'; '.join(wrong)}.{where} "
            "Nothing was run. --anyway carries it out as spec.json says, with the code there is."
        )
    for line in wrong:
        say(f"{DIFFERENT:<10} {line}")
    if not changed:
        say(f"{SAME:<10} {'code':<32} {', '.join(part for part, digest in now.items() if digest)}")
    for line in surroundings(run):
        say(f"{'note':<10} {line}")
    return replace(run.spec, code=now)


@contextmanager
def folder_for(run: Recorded, into: Path | None) -> Iterator[Path]:
    """Yield an empty results folder, or that of this reproduction's earlier attempt; nothing is
    reused from other runs.
    """
    import tempfile

    if into is None:
        with tempfile.TemporaryDirectory(prefix="harness-reproduce-") as name:
            yield Path(name)
        return
    whose = {"run": run.spec.fingerprint(), "machine": platform.node()}
    mark = into / MARK
    if into.exists() and not into.is_dir():
        raise UsageError(f"--into {into}: not a folder.")
    if into.exists() and any(into.iterdir()) and not (mark.is_file() and _read(mark) == whose):
        raise UsageError(
            f"--into {into}: it is not empty. Everything is made again there; name a new folder."
        )
    write_json(make_folder(into) / MARK, whose)
    yield into


def planned(run: Recorded) -> ExecutionPlan:
    """Return the execution settings of each part of a run, with a note on a missing GPU."""
    import torch

    there = torch.cuda.is_available()
    devices = {s["device"] for s in run.result.get("execution", {}).get(TRAINING, ())}
    plan = execution_plan_of(
        run.result,
        torch.cuda.get_device_name() if there and devices == {"cuda"} else run_folder.processor(),
    )
    if there or "cuda" not in devices:
        return plan
    parts = {part: replace(one, device="auto") for part, one in plan.parts.items()}
    note = "it was computed on a GPU, and there is none here: digests will differ"
    return ExecutionPlan(parts, (*plan.notes, note))


def _again(
    spec: RunSpec, registry: Registry, results: Path, plan: ExecutionPlan, say: Say
) -> tuple[Path, dict[str, Any]]:
    """Carry out a run; return its folder and its record, a result or a failure."""
    from .prepare import RunOptions
    from .run import execute

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = results / spec.folder
    tell = lambda line: say(f"{'note':<10} {line}")  # noqa: E731
    try:
        if plan.processes > 1:
            say(f"{'again':<10} in {plan.processes} processes, as recorded")
            carry_out(spec, registry, results, plan.parts, plan.processes)
        outcome = execute(spec, registry, RunOptions(results, warn=tell, say=tell, plan=plan.parts))
    except (UsageError, Refused):
        raise
    except HarnessError:
        failed = run_folder.read_failure(folder)
        if failed is None:
            raise
        return folder, failed
    return outcome.folder, outcome.result


def how_it_ended(record: Mapping[str, Any]) -> dict[str, str]:
    """Return how a run ended, without the place of its traceback."""
    return {
        "status": str(record["status"]),
        "message": TRACEBACK.sub("", str(record.get("failure", ""))),
    }


def summary(verdict: Verdict, into: Path | None) -> str:
    """Return the last line."""
    wrong = [item.name for item in verdict.digests if item.status == DIFFERENT]
    names = ", ".join(wrong[:6]) + (", ..." if len(wrong) > 6 else "")
    where = f" The run made again lies in {verdict.folder}." if into else ""
    if verdict.level == IDENTICAL:
        return f"identical: all {len(verdict.digests)} items.{where}"
    count = f"{len(wrong)} of {len(verdict.digests)} items differ ({names})"
    if verdict.level == WITHIN:
        return (
            f"{WITHIN} (--loose): every figure lies in the other's 95 % interval; {count}.{where}"
        )
    far = [item.name for item in verdict.figures if item.status == DIFFERENT]
    beyond = f"; beyond the intervals: {', '.join(far)}" if far else ""
    return f"different: {count}{beyond}.{where or ' --into DIR keeps the run made again.'}"
