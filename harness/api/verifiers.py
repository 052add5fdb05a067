"""Verifiers by name: make them, combine them, call them with a cache, and name them in a run."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..core.data import Prompt
from ..core.digests import canonical, combined_digest, digest_of, package_digest
from ..core.errors import HarnessError, UsageError
from ..core.global_state import put_back
from ..core.options import build
from .contracts import Verifier
from .registry import NAME, installed

FUNCTION = "function"  # the verifier that calls `module:function`
CACHED_VERDICTS = 100_000  # the largest number of verdicts that are kept
LONGEST_CACHED = 50_000  # characters: longer completions are checked again, not looked up
RESERVED = ("name", "weight", "label", "gate")  # keys of an entry that are no options

_cache: OrderedDict[bytes, float | None] = OrderedDict()


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on n completions.

    Attributes:
        values: n verdicts; None where a completion cannot be graded.
        parts: n verdicts for each of several verifiers, by label; empty for a single verifier.
    """

    values: list[float | None]
    parts: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One of several verifiers: its label, and its weight among them.

    A gate has no weight: its verdict multiplies the mean of the others.
    """

    label: str
    weight: float
    verifier: Verifier
    gate: bool = False


class WeightedVerifiers(Verifier):
    """Several verifiers at once: the weighted mean of their verdicts, times those of gates."""

    name = "weighted"

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)

    def read_gold(self, text: str) -> str:
        """Return what each part reads, as a JSON list."""
        return json.dumps([part.verifier.read_gold(text) for part in self.parts])

    def verify(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        golds: Sequence[str | None],
        ended: Sequence[bool],
    ) -> list[float | None]:
        """Return the weighted means; None where a part cannot grade a completion."""
        return self.verdicts(prompts, completions, golds, ended).values

    def verdicts(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        golds: Sequence[str | None],
        ended: Sequence[bool],
    ) -> Verdicts:
        """Return the weighted means, and the verdicts of each part by its label."""
        columns = self._columns(golds)
        parts = {
            part.label: _cached(part.verifier, prompts, completions, column, ended)
            for part, column in zip(self.parts, columns, strict=True)
        }
        rows = zip(*parts.values(), strict=True)
        return Verdicts([self._mean(row) for row in rows], parts)

    def _columns(self, golds: Sequence[str | None]) -> list[list[str | None]]:
        """Return the gold answers of each part."""
        nothing: list[str | None] = [None] * len(self.parts)
        rows = [nothing if gold is None else json.loads(gold) for gold in golds]
        return [[row[i] for row in rows] for i in range(len(self.parts))]

    def _mean(self, row: Sequence[float | None]) -> float | None:
        known = [value for value in row if value is not None]
        if len(known) < len(row):
            return None
        rows = list(zip(self.parts, known, strict=True))
        passed = math.prod(value for part, value in rows if part.gate)
        weighted = [(part.weight, value) for part, value in rows if not part.gate]
        return passed * math.fsum(w * v for w, v in weighted) / math.fsum(w for w, _ in weighted)

    def identity(self) -> dict[str, object]:
        """Return labels, weights and identities of the parts."""
        rows = [[p.label, p.weight, p.gate, key_of(p.verifier)] for p in self.parts]
        return {"parts": rows}

    def data_files(self) -> list[Path]:
        """Return the files of all parts."""
        return [file for part in self.parts for file in part.verifier.data_files()]

    def close(self) -> None:
        """Close all parts."""
        for part in self.parts:
            part.verifier.close()


def make_verifier(
    name: str,
    options: Mapping[str, Any] | None = None,
    several: Sequence[Mapping[str, Any]] = (),
    folder: str | Path = ".",
) -> Verifier:
    """Return a registered verifier with its options, or several with their weights.

    Args:
        name: The name of a verifier, or `module:function`. It is not used where `several` is given.
        options: The options of the verifier.
        several: One table for each of several verifiers: `name`, `weight` (1 by default), `label`
            (the name by default), `gate` (false by default), and the options of that verifier.
        folder: The folder that relative paths in options start from.

    Returns:
        The verifier. Several become one: their weighted mean, times the verdicts of gates.

    Raises:
        UsageError: A name, an option or a weight is invalid.
    """
    if not several:
        return _make(name, options or {}, Path(folder))
    if options:
        raise UsageError(
            "verifier_options belong to a single verifier. Among several, write the options"
            " into the entry of each: verifiers = [{name = ..., weight = ..., OPTION = ...}]."
        )
    parts = [_part(entry, Path(folder)) for entry in several]
    labels = [part.label for part in parts]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(
            f"verifiers: {twice[0]!r} is there twice. Give each entry a label of its own:"
            f' {{name = "{twice[0]}", label = ...}}.'
        )
    if all(part.gate for part in parts):
        raise UsageError("verifiers: all of them are gates. At least one must give the verdict.")
    return WeightedVerifiers(parts)


def _make(name: str, options: Mapping[str, Any], folder: Path) -> Verifier:
    if ":" in name:
        name, options = FUNCTION, {"function": name, **options}
    cls: type[Verifier] = installed().get("verifiers", name)
    if is_dataclass(cls):
        verifier: Verifier = build(cls, options, f"verifier {name}")
    elif options:
        raise UsageError(f"verifier {name}: it has no option {next(iter(options))!r}.")
    else:
        verifier = cls()
    verifier.folder = folder  # type: ignore[misc]  # an instance attribute over the class's default
    return verifier


def _part(entry: Mapping[str, Any], folder: Path) -> Part:
    """Return one of several verifiers from its table in a suite file."""
    name, weight = entry.get("name"), entry.get("weight", 1.0)
    if not isinstance(name, str):
        raise UsageError(
            f"verifiers: {dict(entry)!r}: expected a table with the name of a verifier:"
            ' {name = "final_number", weight = 1.0}.'
        )
    label = entry.get("label", name.replace(":", "_").replace(".", "_"))
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UsageError(f"verifiers: {name}: weight = {weight!r}: expected a number above 0.")
    if not isinstance(label, str) or not NAME.fullmatch(label):
        raise UsageError(
            f"verifiers: {name}: label = {label!r}: expected lower-case letters, digits and _."
        )
    gate = entry.get("gate", False)
    if not isinstance(gate, bool) or (gate and "weight" in entry):
        raise UsageError(
            f"verifiers: {name}: gate = {gate!r}: expected true or false, and no weight beside"
            " true."
        )
    options = {key: value for key, value in entry.items() if key not in RESERVED}
    return Part(label, float(weight), _make(name, options, folder), gate)


def key_of(verifier: Verifier) -> list[Any]:
    """Return all that decides verdicts: name, version, code, options and files of a verifier."""
    return [
        verifier.name,
        verifier.version,
        package_digest(type(verifier)),
        verifier.identity(),
        combined_digest(verifier.data_files()),
    ]


def verifier_digest(verifier: Verifier) -> str:
    """Return one digest of all that decides the verdicts of a verifier."""
    return digest_of(key_of(verifier))


def verdicts(
    verifier: Verifier,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    ended: Sequence[bool],
) -> Verdicts:
    """Return the verdicts on completions of prompts, those of several verifiers also apart.

    A verdict is computed once per verifier, gold answer and completion.

    Args:
        verifier: The verifier.
        prompts: n prompts; each `answer` is the gold answer.
        completions: n completions as text.
        ended: n flags: whether the completion ended by itself.

    Raises:
        HarnessError: The verifier returned no verdict, or one that is not finite.
    """
    golds = [prompt.answer for prompt in prompts]
    if isinstance(verifier, WeightedVerifiers):
        return verifier.verdicts(prompts, completions, golds, ended)
    return Verdicts(_cached(verifier, prompts, completions, golds, ended))


def _cached(
    verifier: Verifier,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    golds: Sequence[str | None],
    ended: Sequence[bool],
) -> list[float | None]:
    """Return verdicts; those of a dataclass are looked up first and kept afterwards."""
    if not is_dataclass(verifier):
        return _checked(verifier, prompts, completions, golds, ended)
    keys = list(_keys(verifier, prompts, completions, golds, ended))
    known = {key: _cache[key] for key in keys if key in _cache}
    rows = list({key: i for i, key in enumerate(keys) if key not in known}.values())
    if rows:
        computed = _checked(
            verifier,
            [prompts[i] for i in rows],
            [completions[i] for i in rows],
            [golds[i] for i in rows],
            [ended[i] for i in rows],
        )
        known |= {keys[i]: value for i, value in zip(rows, computed, strict=True)}
    for key, text in zip(keys, completions, strict=True):
        if len(text) <= LONGEST_CACHED:
            _cache[key] = known[key]
            _cache.move_to_end(key)
    while len(_cache) > CACHED_VERDICTS:
        _cache.popitem(last=False)
    return [known[key] for key in keys]


def _keys(
    verifier: Verifier,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    golds: Sequence[str | None],
    ended: Sequence[bool],
) -> Iterator[bytes]:
    """Yield what determines each verdict, as 20 bytes; the place for a text that is too long."""
    cls = type(verifier)
    head = canonical([cls.__module__, cls.__qualname__, str(verifier.folder), verifier.identity()])
    rows = zip(prompts, completions, golds, ended, strict=True)
    for place, (prompt, text, gold, end) in enumerate(rows):
        if len(text) > LONGEST_CACHED:
            yield str(place).encode()
            continue
        seen = prompt.text if verifier.reads_prompt else None
        values = json.dumps([head, seen, gold, bool(end), text])
        yield blake2b(values.encode(), digest_size=20).digest()


def _checked(
    verifier: Verifier,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    golds: Sequence[str | None],
    ended: Sequence[bool],
) -> list[float | None]:
    """Return what a verifier says, as floats; raise HarnessError for what is no verdict."""
    with put_back(f"The verifier {verifier.name}"):
        values = verifier.verify(prompts, completions, golds, ended)
    if len(values) != len(completions):
        raise HarnessError(
            f"The verifier {verifier.name} returned {len(values)} verdicts on"
            f" {len(completions)} completions."
        )
    result = [None if value is None else float(value) for value in values]
    for value in result:
        if value is not None and not math.isfinite(value):
            raise HarnessError(f"The verifier {verifier.name} returned {value}: expected a number.")
    return result
