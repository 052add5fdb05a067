"""The contract of a judge. Importing this module does not import torch."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..core.data import Prompt
from ..core.errors import HarnessError
from .identified import CountsUsage

NO_VERDICT = math.nan


@dataclass(frozen=True)
class Answer:
    """A completion as a judge reads it."""

    text: str  # without the end-of-sequence token
    length: int = 0  # in tokens
    ended: bool = True  # whether it ended by itself; false for one cut at the length limit


@dataclass(frozen=True)
class PairVerdict:
    """A judge's verdict on two answers to one prompt.

    `p` in [0, 1] is the probability that the first answer is better: 0.5 is a tie, and NaN is no
    verdict. `note` is JSON-able and kept with the run.
    """

    p: float
    note: Mapping[str, Any] = field(default_factory=dict)


class Judge(CountsUsage, ABC):
    """The judge of an evaluation. No judge is reachable from a method.

    A judge scores single completions (`score`), compares two (`compare`), or does both. It defines
    at least one of them. `compare` follows from `score`. Scores do not follow from comparisons, so
    the evaluation of a judge that only compares has a win-rate and no gold score.

    If the class is a dataclass, its fields are its options (`--judge-set`).

    Example:
        ```python
        class Brevity(Judge):
            name = "brevity"

            def score(self, prompts, completions):
                return [-float(len(text.split())) for text in completions]


        @dataclass
        class Taste(Judge):
            name = "taste"

            word: str = "good"  # the answer with the word is better

            def compare(self, prompts, a, b):
                return [0.5 + 0.5 * ((self.word in x) - (self.word in y)) for x, y in zip(a, b)]
        ```
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    # whether length itself may move its scores. False for a judge that measures content: a longer
    # answer that scores higher is better, and tables give no win-rate at equal length
    length_bias: ClassVar[bool] = True
    learns: ClassVar[bool] = False  # from the suite's `judge_preferences`: they must be there
    # whether its verdicts are kept in the results folder, so that no pair is judged twice
    costly: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        """Refuse a judge that defines neither `score` nor `compare`, nor a form of them."""
        super().__init_subclass__(**more)
        if not scores(cls) and cls.compare is Judge.compare and cls.verdicts is Judge.verdicts:
            raise TypeError(f"{cls.__name__} must define score or compare")

    def check_models(self) -> None:  # noqa: B027  # optional
        """Check that the models behind the judge can be read, before anything is trained.

        Nothing is kept in memory: `prepare` reads them again.

        Raises:
            UsageError: A model cannot be read, or is not of the kind that the judge needs.
        """

    def prepare(self, suite: Any, stages: Any) -> None:  # noqa: B027  # optional
        """Prepare the judge before the first verdict.

        Args:
            suite: The suite of the run, a `harness.Suite`.
            stages: The shared stages (`SuiteStages`), or None where the judge serves a labeller.
                A judge may train its own reward model with `stages.judge_model()`.

        Raises:
            UsageError: The judge cannot judge completions of this suite.
        """

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return one score per completion.

        Args:
            prompts: n prompts.
            completions: n completions as text, without the end-of-sequence token.

        Returns:
            n scores in units of the judge's own; higher is better. NaN is a missing score.
        """
        raise NotImplementedError(f"the judge {self.name} compares answers and scores none")

    def score_sampled(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool]
    ) -> list[float]:
        """Return one score per sampled completion.

        A judge that distinguishes completions that were cut overrides this. By default it returns
        `score`.

        Args:
            prompts: n prompts.
            completions: n completions as text, without the end-of-sequence token.
            ended: n flags: whether the completion ended by itself. It is false for a completion
                that was cut at the length limit.

        Returns:
            n scores in units of the judge's own; higher is better. NaN is a missing score.
        """
        return self.score(prompts, completions)

    def compare(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """Return for each prompt the probability that the first completion is better.

        By default it follows from `score`: 1, 0, or 0.5 for equal scores.

        Args:
            prompts: n prompts.
            a: n completions as text.
            b: n other completions of the same prompts.

        Returns:
            n probabilities in [0, 1]; 0.5 is a tie. NaN is no verdict.
        """
        return preferences(self.score(prompts, a), self.score(prompts, b))

    def verdicts(
        self, prompts: Sequence[Prompt], a: Sequence[Answer], b: Sequence[Answer]
    ) -> list[PairVerdict]:
        """Return for each prompt the verdict on two answers, with a note for the record.

        A judge that reads more of an answer than its text, or that has something to note, overrides
        this. By default it follows from the scores, or from `compare` where there are none.
        """
        if scores(type(self)) and type(self).compare is Judge.compare:
            ours, theirs = (self.scores_of(prompts, side) for side in (a, b))
            return [PairVerdict(p) for p in preferences(ours, theirs)]
        probabilities = self.compare(prompts, [x.text for x in a], [x.text for x in b])
        return [PairVerdict(p) for p in probabilities]

    def scores_of(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
        """Return the scores of sampled answers."""
        return self.score_sampled(prompts, [x.text for x in answers], [x.ended for x in answers])

    def agreement(self) -> dict[str, float]:
        """Return what is known of the judge's quality: its accuracy on held-out preferences.

        Returns:
            Empty where nothing is known. Else `accuracy` in [0, 1] and `pairs`, the number of
            held-out pairs.
        """
        return {}


def scores(judge: type[Judge]) -> bool:
    """Return whether a judge scores single completions."""
    return judge.score is not Judge.score or judge.score_sampled is not Judge.score_sampled


def preferences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return 1 where ours is higher, 0.5 where equal, 0 where lower, NaN where one is missing."""
    return [_preference(a, b) for a, b in zip(ours, theirs, strict=True)]


def _preference(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return NO_VERDICT
    return 1.0 if a > b else 0.5 if a == b else 0.0


def check_verdicts(judge: Judge, verdicts: Sequence[PairVerdict], pairs: int) -> None:
    """Raise HarnessError for verdicts of a judge that are no probabilities, or not one a pair."""
    if len(verdicts) != pairs:
        raise HarnessError(f"The judge {judge.name} gave {len(verdicts)} verdicts on {pairs} pairs")
    wrong = [v.p for v in verdicts if not math.isnan(v.p) and not 0 <= v.p <= 1]
    if wrong:
        raise HarnessError(
            f"The judge {judge.name} gave the verdict {wrong[0]!r}: expected a probability in"
            " [0, 1] that the first answer is better, or NaN for no verdict."
        )
