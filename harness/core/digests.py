"""Digests: of plain values, of files, and of the code that makes a result."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any


def source_digest(cls: type[Any]) -> str:
    """Return the SHA-256 of the file that defines a class, of its bases' files, and of the siblings
    they import.
    """
    # in an order that no folder's name decides
    return combined_digest(sorted(_sources(cls), key=file_digest))


def _sources(cls: type[Any]) -> list[Path]:
    """Return the file that defines a class, those of its bases, and the siblings they import."""
    modules: set[str] = set()
    queue = [base.__module__ for base in cls.__mro__ if base.__module__ not in ("builtins", "abc")]
    while queue:
        name = queue.pop()
        if name not in modules and getattr(sys.modules.get(name), "__file__", None):
            modules.add(name)
            queue += _imported(name)
    return [Path(sys.modules[name].__file__ or "") for name in modules]


def _imported(name: str) -> list[str]:
    """Return the loaded modules of its own package, or beside its file, that a module's source
    imports from.
    """
    file = Path(sys.modules[name].__file__ or "")
    top = name.partition(".")[0]
    if top == "harness":  # the core has a digest of its own
        return []
    names = _import_names(file.read_text(encoding="utf-8"), sys.modules[name].__package__ or "")
    files = {other: getattr(sys.modules.get(other), "__file__", None) for other in names}
    return [
        o
        for o, f in files.items()
        if f and (o.partition(".")[0] == top or Path(f).parent == file.parent)
    ]


@cache
def _import_names(source: str, package: str) -> tuple[str, ...]:
    """Return what a module's source imports, by whole names; the parse is most of a digest's
    cost.
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            names += [str(base), *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(names)


def package_digest(cls: type[Any]) -> str:
    """Return the SHA-256 of everything in the package that defines a class, or of its file alone
    for a class outside a package. A suite or a judge uses modules beside its own; for a method
    `source_digest` is enough.
    """
    file = Path(sys.modules[cls.__module__].__file__ or "")
    if (file.parent / "__init__.py").exists():
        own = sorted(file.parent.rglob("*.py"))
        beside = [o for o in _sources(cls) if o not in own and PACKAGE not in o.parents]
        return combined_digest([*own, *sorted(beside, key=file_digest)])
    return source_digest(cls)


def combined_digest(files: Iterable[Path]) -> str:
    """Return one SHA-256 over the contents of files, in the order given."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file_digest(file).encode())
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        whole = hashlib.sha256()
        while block := stream.read(1 << 20):
            whole.update(block)
        return whole.hexdigest()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Return canonical JSON: sorted keys, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


# What decides a result, as file patterns below the package: a positive list. A test holds that
# every module is listed either here or in NO_RESULT.
_LEARNING = (
    "core/data.py",
    "core/distributed.py",
    "core/meter.py",
    "core/model_folder.py",
    "core/seeds.py",
    "core/settings.py",
    "core/transcripts.py",
    "models/[!_]*.py",
    "training/checkpoints.py",
    "training/loop.py",
    "training/master_weights.py",
    "training/runtime.py",
    "training/sampler_correction.py",
    "training/trainer.py",
)
_SFT = (
    *_LEARNING,
    "api/participants.py",
    "training/stages/runtime.py",
    "training/stages/sft.py",
    "training/stages/stages.py",
)
_PREFERENCES = (
    *_SFT,
    "api/contracts.py",
    "api/verifier_contract.py",
    "api/verifiers.py",
    "api/adapters.py",
    "api/identified.py",
    "api/judge_contract.py",
    "training/labels.py",
    "training/stages/preferences.py",
)
_REWARD_MODEL = (
    *_PREFERENCES,
    "training/hub_reward.py",
    "training/reward_model.py",
    "training/stages/reward_modelling.py",
)
_CACHE = (*_SFT, "training/completion_cache.py", "training/reference_cache.py")
DECIDES = {
    "sft": _SFT,
    "preferences": _PREFERENCES,
    "reward_model": _REWARD_MODEL,
    "cache": _CACHE,
    "policy": (
        *_REWARD_MODEL,
        *_CACHE,
        "api/lab.py",
        "api/lab_models.py",
        "api/methods.py",
        "core/spec.py",
        "experiments/prepare.py",
        "experiments/trained_policy.py",
        "training/grades.py",
        "training/guests.py",
        "training/inputs.py",
        "training/lab.py",
        "training/label_server.py",
        "training/outside.py",
        "training/rewards.py",
        "training/roles.py",
        "training/ranked_lists.py",
        "training/step_rewards.py",
        "training/streams.py",
    ),
    "evaluation": (
        *_CACHE,
        "api/adapters.py",
        "api/identified.py",
        "api/judge_contract.py",
        "api/verifiers.py",
        "core/fixed_answers.py",
        "core/task_files.py",
        "evaluation/[!_]*.py",
        "experiments/record.py",
        "experiments/run.py",
        "statistics/judges.py",
        "statistics/over_prompts.py",
        "statistics/pass_at_k.py",
    ),
}
NO_RESULT = (  # how something is found, written, shown or checked
    "__init__.py",
    "__main__.py",
    "*/__init__.py",
    "training/stages/__init__.py",
    "training/stages/data_check.py",
    "api/culprits.py",
    "api/hookspecs.py",
    "api/hub_reward.py",
    "api/real_models.py",
    "api/quantised.py",
    "api/quick.py",
    "api/registry.py",
    "api/resolve.py",
    "api/study_contracts.py",
    "api/settings_sources.py",
    "api/start.py",
    "api/suite_stages.py",
    "check/*.py",
    "cli/**/*.py",
    "core/archives.py",
    "core/artifacts.py",
    "core/data_report.py",
    "core/digests.py",
    "core/errors.py",
    "core/execution.py",
    "core/fault_points.py",
    "core/files.py",
    "core/hub.py",
    "core/jobs.py",
    "core/lock_trial.py",
    "core/options.py",
    "core/plain_text.py",
    "core/progress.py",
    "core/global_state.py",
    "core/interrupts.py",
    "core/records.py",
    "core/live_rows.py",
    "core/movement.py",
    "core/run_folder.py",
    "core/save_schedule.py",
    "core/secrets.py",
    "core/suite_file.py",
    "core/table.py",
    "core/watchdog.py",
    "experiments/bundle.py",
    "experiments/carry_out.py",
    "experiments/clean.py",
    "experiments/model_card.py",
    "experiments/data.py",
    "experiments/model_report.py",
    "experiments/requirements/*.py",
    "experiments/observers.py",
    "experiments/plan.py",
    "experiments/recorded_execution.py",
    "experiments/reproduce.py",
    "experiments/reproduction_digests.py",
    "experiments/saved_policy.py",
    "experiments/trackers.py",
    "experiments/shared_stages.py",
    "experiments/study/*.py",
    "report/**/*.py",
    "statistics/aggregate.py",
    "statistics/compare.py",
    "statistics/intervals.py",
    "statistics/length.py",
    "statistics/overoptimization.py",
    "statistics/pooling.py",
    "statistics/power.py",
    "statistics/ranks.py",
    "statistics/rating.py",
    "statistics/style.py",
    "training/rollout_samples.py",
    "training/shared_models.py",
)
PACKAGE = Path(__file__).parent.parent


def files_matching(patterns: Iterable[str], root: Path = PACKAGE) -> list[Path]:
    """Return the files below a package that match any of the patterns, each once, in order."""
    return sorted({file for pattern in patterns for file in root.glob(pattern)})


@cache
def code_digest(part: str, root: Path = PACKAGE) -> str:
    """Return the digest of the harness's code that decides one kind of result, a key of DECIDES.

    A change of that code names another artifact or run. A change of other code does not.
    """
    return combined_digest(files_matching(DECIDES[part], root))
