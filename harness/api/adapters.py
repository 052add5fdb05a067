"""A labeller as the judge of an evaluation, and a judge as a labeller: `labeller:NAME` and
`judge:NAME`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from ..core.data import Comparison, Prompt
from ..core.digests import package_digest
from ..core.errors import UsageError
from ..core.options import build
from ..core.seeds import derive
from .contracts import Answer, Judge, Labeller, PairVerdict, Suite
from .judge_contract import NO_VERDICT
from .registry import Registry

AS_JUDGE, AS_LABELLER = "labeller:", "judge:"  # prefixes of names


class LabellerJudge(Judge):
    """A labeller that judges an evaluation. It compares, and scores nothing."""

    name = "labeller"
    costly = True

    def __init__(self, labeller: Labeller) -> None:
        self.labeller = labeller
        self.name = f"{AS_JUDGE}{labeller.name}"  # type: ignore[misc]  # over the class's

    def prepare(self, suite: Suite, stages: Any) -> None:
        """Prepare the labeller, with the suite's own judge where it asks one."""
        own = getattr(stages, "labelling_judge", None)
        if own is None:
            raise UsageError(f"The judge {self.name} cannot serve a labeller.")
        own.prepare(suite, None)
        self.labeller.prepare(suite, own)

    def verdicts(
        self, prompts: Sequence[Prompt], a: Sequence[Answer], b: Sequence[Answer]
    ) -> list[PairVerdict]:
        """Return the labeller's comparison of each pair; equal texts are ties."""
        return [self._verdict(*pair) for pair in zip(prompts, a, b, strict=True)]

    def _verdict(self, prompt: Prompt, one: Answer, two: Answer) -> PairVerdict:
        if one.text == two.text:
            return PairVerdict(0.5, {"equal": True})
        rng = Random(derive("judge", self.name, prompt.id))
        comparisons = self.labeller.compare_sampled(
            prompt,
            [one.text, two.text],
            [one.length, two.length],
            [one.ended, two.ended],
            rng,
        )
        if not comparisons:
            return PairVerdict(NO_VERDICT, {"problems": ["unanswered"]})
        comparison = comparisons[0]
        p = comparison.p if comparison.first == 0 else 1 - comparison.p
        return PairVerdict(p, comparison.note)

    def identity(self) -> dict[str, Any]:
        """Return the labeller's identity and code."""
        return {**self.labeller.identity(), "code": package_digest(type(self.labeller))[:16]}

    def data_files(self) -> list[Path]:
        """Return the labeller's files."""
        return self.labeller.data_files()

    def usage(self) -> dict[str, float]:
        """Return the labeller's counts."""
        return self.labeller.usage()


class JudgeLabeller(Labeller):
    """A judge that labels preferences. Its labels count as AI labels."""

    name, human = "judge", False

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.name = f"{AS_LABELLER}{judge.name}"  # type: ignore[misc]  # over the class's
        self.pairs = 0

    def prepare(self, suite: Suite, judge: Judge) -> None:
        """Prepare the judge.

        Raises:
            UsageError: The judge learns from preferences, so it cannot make them.
        """
        if self.judge.learns:
            raise UsageError(
                f"--labeller {self.name}: this judge learns from preferences, so it cannot label"
                " them."
            )
        self.judge.prepare(suite, None)

    def compare(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int], rng: Random
    ) -> list[Comparison]:
        """Compare every pair of different completions."""
        return self.compare_sampled(prompt, completions, lengths, [True] * len(completions), rng)

    def compare_sampled(
        self,
        prompt: Prompt,
        completions: Sequence[str],
        lengths: Sequence[int],
        ended: Sequence[bool],
        rng: Random,
    ) -> list[Comparison]:
        """Compare every pair of different completions; a pair without a verdict is left out."""
        pairs = [
            (i, j)
            for i, j in combinations(range(len(completions)), 2)
            if completions[i] != completions[j]
        ]
        answers = [Answer(*row) for row in zip(completions, lengths, ended, strict=True)]
        sides = ([answers[pair[side]] for pair in pairs] for side in (0, 1))
        verdicts = self.judge.verdicts([prompt] * len(pairs), *sides) if pairs else []
        self.pairs += len(pairs)
        return [
            Comparison(*pair, verdict.p, dict(verdict.note))
            for pair, verdict in zip(pairs, verdicts, strict=True)
            if not math.isnan(verdict.p)
        ]

    def identity(self) -> dict[str, object]:
        """Return the judge's identity and code."""
        return {**self.judge.identity(), "code": package_digest(type(self.judge))[:16]}

    def data_files(self) -> list[Path]:
        """Return the judge's files."""
        return self.judge.data_files()

    def usage(self) -> dict[str, float]:
        """Return the judge's counts, and the pairs it was asked about."""
        return {**self.judge.usage(), "asked": float(self.pairs)}


def same_mind(labeller: Labeller | None, judge: Judge) -> bool:
    """Return whether a labeller and a judge are one participant, as far as their options tell.

    They are where one is the other under another name: of one class, with the same options and
    weights.
    """
    first = labeller.judge if isinstance(labeller, JudgeLabeller) else labeller
    other = judge.labeller if isinstance(judge, LabellerJudge) else judge
    return type(first) is type(other) and first.identity() == other.identity()


def class_of(kind: str, name: str, registry: Registry) -> type[Any]:
    """Return the class behind a judge or labeller: its fields are the options.

    Args:
        kind: "judges" or "labellers".
        name: A registered name, `labeller:NAME` as a judge, or `judge:NAME` as a labeller.
        registry: The plugins.
    """
    prefix, other = (AS_JUDGE, "labellers") if kind == "judges" else (AS_LABELLER, "judges")
    if name.startswith(prefix):
        return registry.get(other, name.removeprefix(prefix))
    return registry.get(kind, name)


def options_of_class(
    cls: type[Any], settings: Mapping[str, Any], where: str, flag: str
) -> dict[str, Any]:
    """Return every option of a judge or labeller; refuse one that it does not have."""
    if not dataclasses.is_dataclass(cls):
        if settings:
            raise UsageError(f"{flag} {next(iter(settings))}: the {where} has no options.")
        return {}
    instance = build(cls, settings, where)
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(cls) if f.init}


def make(kind: str, name: str, options: Mapping[str, Any], registry: Registry) -> Any:
    """Return a judge or a labeller with its options; it is not prepared yet."""
    cls = class_of(kind, name, registry)
    where = f"{kind[:-1]} {name}"
    instance: Any = build(cls, options, where) if dataclasses.is_dataclass(cls) else cls()
    if kind == "judges" and name.startswith(AS_JUDGE):
        return LabellerJudge(instance)
    if kind == "labellers" and name.startswith(AS_LABELLER):
        return JudgeLabeller(instance)
    return instance


def written_as(participant: Judge | Labeller) -> type[Any]:
    """Return the class whose code decides what a judge or labeller says."""
    if isinstance(participant, LabellerJudge):
        return type(participant.labeller)
    if isinstance(participant, JudgeLabeller):
        return type(participant.judge)
    return type(participant)
