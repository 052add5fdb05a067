"""Which runs may stand in one table: same inputs, evaluation and code, on common grounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ...core.errors import UsageError
from .run_files import provenance_of

Record = Mapping[str, Any]
OWN_CODE = "the code of it"  # compared within a row only
# conditions that the shared seed decides: they may differ between the grounds of a study
OF_GROUND = (
    "start_checkpoint",
    "train_prompts",
    "evaluation_prompts",
    "judge_model",
    "baseline_answers",
    "preferences",
    "reward_model",
)
TRAINED = ("preferences", "reward_model")  # conditions of runs that share a trained reward model
CODE = {"the harness's code": "harness", OWN_CODE: "method"}  # digests in a run's provenance


def shared_seed_of(record: Record) -> int:
    """Return the shared seed of a run: runs with the same one are on one ground."""
    return int(record.get("shared_seed", 0))


def check_comparable(records: Sequence[Record]) -> None:
    """Raise UsageError if runs differ in inputs, evaluation or code, and name the difference."""
    for name, values in unlike(records).items():
        differences = "; ".join(
            f"{value}: {', '.join(sorted(set(names)))}" for value, names in values.items()
        )
        raise UsageError(
            f"These runs differ in {name}, so one table cannot compare them ({differences})."
            f" {_choice(records)} --mixed shows them in one table with a footnote."
        )


def _choice(records: Sequence[Record]) -> str:
    """Return how to choose the runs that one table can compare."""
    quick = sum(bool(r.get("quick")) for r in records)
    if 0 < quick < len(records):
        return (
            f"{quick} of these {len(records)} runs are --quick: choose with --where run.quick=true"
            " or --where run.quick=false."
        )
    return "Select runs with --methods, --where or --study, or run the older ones again."


def check_grounds(grounds: Mapping[str, Sequence[int]]) -> None:
    """Raise UsageError if two rows have no ground in common.

    Args:
        grounds: The shared seed of each finished run, by row.
    """
    for one, other in combinations([name for name, own in grounds.items() if own], 2):
        if not set(grounds[one]) & set(grounds[other]):
            listed = "; ".join(
                f"{name}: {', '.join(map(str, sorted(set(grounds[name]))))}"
                for name in (one, other)
            )
            raise UsageError(
                f"{one} and {other} have no ground in common, so one table cannot compare them"
                f" (shared seeds {listed}). Run both with the same shared seeds, or select one with"
                " --where run.shared_seed=0. --mixed shows them in one table without bold type."
            )


def unlike(records: Sequence[Record]) -> dict[str, dict[str, list[str]]]:
    """Return the conditions in which runs differ: {condition: {value: names of runs}}.

    What the shared seed decides is compared between runs of one shared seed.
    """
    grounds = grounds_of(records)
    names = dict.fromkeys(name for ground in grounds for name in ground if name != OWN_CODE)
    by_shared_seed: dict[int, list[int]] = {}
    rows: dict[str, list[int]] = {}
    for i, r in enumerate(records):
        by_shared_seed.setdefault(shared_seed_of(r), []).append(i)
        rows.setdefault(settings_of(r), []).append(i)
    by_name = {}
    for name in names:
        groups = by_shared_seed.values() if name in OF_GROUND else [range(len(records))]
        values = [
            _by_value([records[i] for i in group], [grounds[i].get(name) for i in group])
            for group in groups
        ]
        by_name[name] = max(values, key=len, default={})
    for recipe, indices in rows.items():  # all seeds of a row have the same code
        codes = [grounds[i].get(OWN_CODE) for i in indices]
        by_name[f"the code of {records[indices[0]]['method']} ({recipe})"] = _by_value(
            [records[i] for i in indices], codes
        )
    return {name: values for name, values in by_name.items() if len(values) > 1}


def grounds_of(records: Sequence[Record]) -> list[dict[str, str]]:
    """Return the conditions of runs.

    A run with a reward model of its own (`--reward-model`) shares neither preferences nor a trained
    reward model. In these it counts as equal to the runs that agree with it in all else.
    """
    grounds = [ground_of(r) for r in records]
    shared = [(r, g) for r, g in zip(records, grounds, strict=True) if not own_reward(r)]
    for i, record in enumerate(records):
        if not own_reward(record):
            continue
        common = {k: v for k, v in grounds[i].items() if k != OWN_CODE}
        here = [g for r, g in shared if shared_seed_of(r) == shared_seed_of(record)]
        alike = [g for g in here if common.items() <= g.items()] or here
        trained = {k: v for g in alike[:1] for k, v in g.items() if k in TRAINED}
        grounds[i] = trained | grounds[i]
    return grounds


def own_reward(record: Record) -> Mapping[str, Any]:
    """Return the reward model of the hub that a run names; empty for one that names none."""
    named: Mapping[str, Any] = record.get("reward_model") or {}
    return named


def ground_of(record: Record) -> dict[str, str]:
    """Return the conditions that comparable runs share; OWN_CODE is compared within a row only."""
    return {**record["ground"], **_made_with(record)}


def settings_of(record: Record) -> str:
    """Return a digest of the settings of a run, seeds left out: runs of one row share it."""
    return str(record.get("recipe_of_any_ground", record["recipe"]))


def _by_value(records: Sequence[Record], values: Sequence[Any]) -> dict[str, list[str]]:
    runs_by_value: dict[str, list[str]] = {}
    for r, value in zip(records, values, strict=True):
        key = "not recorded" if value is None else str(value)
        runs_by_value.setdefault(key, []).append(f"{r.get('label', r['method'])} seed {r['seed']}")
    return runs_by_value


def _made_with(record: Record) -> dict[str, str]:
    """Return the digests of the harness's and the method's code, and the versions of libraries."""
    provenance = provenance_of(record)
    if not provenance:
        return {"provenance": "none"}
    versions = {
        name: str(provenance.get("versions", {}).get(name)) for name in ("torch", "transformers")
    }
    code = {name: str(provenance.get("code", {}).get(key))[:12] for name, key in CODE.items()}
    return versions | code
