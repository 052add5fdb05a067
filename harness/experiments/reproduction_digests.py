"""Compare two records of one run by digests, lines and figures; each item is the same or is shown
with both values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..core.digests import file_digest
from ..core.plain_text import visible
from ..core.records import Damaged
from ..core.run_folder import ROLLOUTS, read_rows

SAME, CLOSE, DIFFERENT = "same", "within", "different"
CLOCK = {
    "seconds",
    "cpu_seconds",
    "peak_memory",
    "spent_seconds",
    "wall",
    "stages_made",
    "reused_stages",
}  # of the machine, not of the run
EXACT = (
    "train_prompts",
    "evaluation_prompts",
    "suite_options",
    "sampling",
)  # ground without a computed number in it
SHOWN, CUT = 4, 60  # most differences shown of one item; most characters of a value


@dataclass(frozen=True)
class Item:
    """One item of two records of a run, and how they compare."""

    name: str
    status: str  # same, within (with --loose) or different
    detail: str


def compare_runs(
    then_folder: Path,
    then: Mapping[str, Any],
    now_folder: Path,
    now: Mapping[str, Any],
    weights: Mapping[str, str] | None = None,
) -> Iterator[Item]:
    """Yield every item of two finished runs, in the order in which a run makes them.

    `weights` are digests of files that the first folder should hold, where it holds none of them.
    """
    for name in _both(then["artifacts"], now["artifacts"]):
        yield _artifact(f"stage {name}", then["artifacts"].get(name), now["artifacts"].get(name))
    for name in _both(then["ground"], now["ground"]):
        yield _value(f"ground {name}", then["ground"].get(name), now["ground"].get(name))
    weights = weights or weights_of(then_folder)
    now_weights = weights_of(now_folder)
    for name in _both(weights, now_weights):
        yield _value(name, weights.get(name), now_weights.get(name))
    stages = {*then["artifacts"], *now["artifacts"]}  # each is an item of its own, above
    looked_up = [_looked_up(record, stages) for record in (then, now)]
    if any(looked_up):
        yield _figures("caches", *looked_up)
    yield _rows("metrics.jsonl", then_folder, now_folder, "step")
    if any((folder / ROLLOUTS).exists() for folder in (then_folder, now_folder)):
        yield _rows(ROLLOUTS, then_folder, now_folder, "step")
    yield _rows("samples.jsonl", then_folder, now_folder, "prompt_id")
    yield _figures("evaluation", then["evaluation"], now["evaluation"])
    yield _figures("cost (what is counted)", _counted(then["cost"]), _counted(now["cost"]))


def compare_failures(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Item]:
    """Yield how two runs ended of which at least one failed."""
    for name in then:
        yield _value(f"failure {name}" if name != "status" else name, then[name], now[name])


def within(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Item]:
    """Yield whether figures agree: each mean must lie in the other's 95 % interval, and what is
    asked be the same.

    Digests of weights, metrics and answers are not looked at: on another machine they differ by
    rounding, which sampling makes large. Figures without an interval are not looked at either.
    """
    for name in EXACT:
        yield _value(f"ground {name}", then["ground"].get(name), now["ground"].get(name))
    for name in _both(then["evaluation"], now["evaluation"]):
        a, b = (record["evaluation"].get(name) for record in (then, now))
        if _interval(a) or _interval(b):
            yield _close(f"evaluation {name}", a, b)


def _interval(figure: Any) -> bool:
    return isinstance(figure, Mapping) and {"mean", "low", "high"} <= set(figure)


def _close(name: str, then: Any, now: Any) -> Item:
    if not (_interval(then) and _interval(now)):
        return _value(name, then, now)
    both = f"{_estimate(then)} then, {_estimate(now)} now"
    if then == now:
        return Item(name, SAME, _estimate(then))
    near = then["low"] <= now["mean"] <= then["high"] and now["low"] <= then["mean"] <= now["high"]
    return Item(name, CLOSE if near else DIFFERENT, both)


def _estimate(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"


def _both(a: Iterable[str], b: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


def _value(name: str, then: Any, now: Any) -> Item:
    if then == now:
        return Item(name, SAME, _short(now))
    return Item(name, DIFFERENT, f"{_short(then)} then, {_short(now)} now")


def _artifact(name: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Item:
    """Compare a shared stage by its content; its own report is shown if it differs too."""
    if then is None or now is None or then == now:
        return _value(name, (then or {}).get("content"), (now or {}).get("content"))
    return _figures(name, then, now)


def _looked_up(record: Mapping[str, Any], stages: set[str]) -> dict[str, str]:
    """Return {name: content} of the artifacts that a run looked something up in, beside stages."""
    own = {*stages, "policy"}  # the artifact of a policy holds times
    pins = record.get("pins", {})
    return {name: pin["content"] for name, pin in pins.items() if pin["kind"] not in own}


def weights_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights that a run has saved, by name in its folder."""
    kept = ("policy/*.safetensors", "adapter/*.safetensors")
    files = sorted(file for part in kept for file in folder.glob(part))
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}


def _file(name: str, then: Path, now: Path) -> Item:
    return _value(name, *(file_digest(file) if file.is_file() else None for file in (then, now)))


def _rows(name: str, then_folder: Path, now_folder: Path, key: str) -> Item:
    """Compare JSON lines by their bytes; show the first line that differs."""
    then, now = then_folder / name, now_folder / name
    same = _file(name, then, now)
    if same.status == SAME or not (then.is_file() and now.is_file()):
        return same
    try:
        pairs = zip_longest(read_rows(then), read_rows(now))
        number, (a, b) = next(
            (i, pair) for i, pair in enumerate(pairs, 1) if _text(pair[0]) != _text(pair[1])
        )
    except Damaged as error:
        return Item(name, DIFFERENT, str(error))
    except StopIteration:
        return Item(name, DIFFERENT, f"the same values, written otherwise: {same.detail}")
    if a is None or b is None:
        return Item(
            name, DIFFERENT, f"line {number}: {'missing then' if a is None else 'missing now'}"
        )
    differences = "; ".join(_differences(a, b))
    return Item(
        name, DIFFERENT, f"first at line {number} ({key} {_short(b.get(key))}): {differences}"
    )


def _figures(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Item:
    differences = _differences(then, now)
    return Item(
        name,
        DIFFERENT if differences else SAME,
        "; ".join(differences) or f"{len(list(_leaves(now)))} values",
    )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the leaves in which two nested records differ, with both values; the first few, and
    the number of the others.
    """
    a, b = dict(_leaves(then)), dict(_leaves(now))
    odd = [n for n in _both(a, b) if n not in a or n not in b or _text(a[n]) != _text(b[n])]
    differences = [f"{n} {_short(a.get(n))} then, {_short(b.get(n))} now" for n in odd[:SHOWN]]
    return differences + ([f"and {len(odd) - SHOWN} more"] if len(odd) > SHOWN else [])


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested mappings and lists."""
    if isinstance(value, (Mapping, list)):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _counted(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a cost that follows from the spec: FLOPs, tokens, samples, steps, queries,
    labels, models.
    """
    return {
        k: _counted(v) if isinstance(v, Mapping) else v for k, v in cost.items() if k not in CLOCK
    }


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    """Return a shortened value that is safe to print."""
    text = "none" if value is None else value if isinstance(value, str) else _text(value)
    text = visible(text)
    digest = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text[:12] if digest else text if len(text) <= CUT else f"{text[:CUT]}..."
