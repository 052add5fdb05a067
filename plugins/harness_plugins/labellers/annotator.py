"""The common part of AI annotators: a principle per pair, answers in both orders and their mean,
and counts of disagreement.

Constitutional AI (Bai et al. 2022, 2212.08073), sect. 4.1, draws one principle per comparison;
RLAIF (Lee et al. 2023, 2309.00267), sect. 2.1, asks both orders against position bias. Third-party
annotators subclass `Annotator` too.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from harness import Comparison, Labeller, Principle, UsageError, prompt_text


@dataclass(frozen=True)
class Question:
    """Two completions in the order shown, and the principle to compare them by."""

    first: str
    second: str
    principle: Principle


@dataclass
class Annotator(Labeller):
    """An annotator that compares pairs under principles; its labels count as AI labels."""

    human = False

    drop_disagreements: bool = False  # drop pairs with opposite answers in the two orders

    def prepare(self, suite, judge):
        """Take the constitution; refuse to be the evaluation's judge as well, because a judge
        favours policies trained on its labels.
        """
        if judge.name == self.name or self.is_judge(judge):
            raise UsageError(
                f"The labeller {self.name} is the evaluation's judge as well: choose another for"
                " either."
            )
        self.principles = self.constitution(suite)
        if not self.principles:
            raise UsageError(
                f"The suite {suite.name} has no principles(): the labeller {self.name} has none to"
                " go by."
            )
        self.counts, self.judge_digest = Counter(), digest(self.identity())

    def is_judge(self, judge) -> bool:
        """Return whether the evaluation's judge is this annotator under another name."""
        return False

    @abstractmethod
    def answer(self, prompt, questions, rng) -> list[float | None]:
        """Return for each question the probability that the first completion is better; None for an
        unusable answer.
        """

    def compare(self, prompt, completions, lengths, rng):
        """Compare every pair of different completions, each in both orders."""
        pairs = [
            (i, j)
            for i, j in combinations(range(len(completions)), 2)
            if completions[i] != completions[j]
        ]
        questions = []
        for i, j in pairs:
            principle = rng.choice(self.principles)
            questions += [
                Question(completions[a], completions[b], principle) for a, b in ((i, j), (j, i))
            ]
        answers = iter(self.answer(prompt, questions, rng)) if pairs else iter(())
        comparisons = [
            self.opinion(pair, q.principle, next(answers), next(answers))
            for pair, q in zip(pairs, questions[::2], strict=True)
        ]
        return [comparison for comparison in comparisons if comparison is not None]

    def opinion(self, pair, principle, one, two) -> Comparison | None:
        """p = (p_1 + 1 - p_2) / 2, where p_1 and p_2 say how sure the annotator was of the one
        shown first.
        """
        self.counts["asked"] += 1
        if one is None or two is None:  # a single order has the position bias
            self.counts["unanswered"] += 1
            return None
        disagree = (one - 0.5) * (0.5 - two) < 0
        self.counts["disagreements"] += disagree
        if disagree and self.drop_disagreements:
            self.counts["dropped"] += 1
            return None
        note = {
            "principle": principle.id,
            "answers": [one, two],
            "disagree": disagree,
            "judge": self.judge_digest,
        }
        return Comparison(*pair, (one + 1 - two) / 2, note)

    def usage(self):
        """Return counts of compared, unanswered and dropped pairs, and the share of pairs on which
        both orders agree.
        """
        counts = {
            name: float(self.counts[name])
            for name in ("asked", "unanswered", "disagreements", "dropped")
        }
        answered = counts["asked"] - counts["unanswered"]
        share = (
            {"position_consistency": round(1 - counts["disagreements"] / answered, 4)}
            if answered
            else {}
        )
        return {**{name: float(n) for name, n in self.counts.items()}, **counts, **share}


@dataclass
class WritingAnnotator(Annotator):
    """An annotator that reads and writes text: a language model, here or behind an endpoint."""

    constitution_file: str | None = None  # principles, one a line, instead of the suite's
    verdicts: tuple[str, ...] = ("1", "2")  # the names of the completions shown first and second

    def check(self):
        if len(self.verdicts) != 2 or len(set(self.verdicts)) != 2 or not all(self.verdicts):
            raise ValueError("verdicts are two different words, such as 1,2 or A,B")
        if self.constitution_file and not Path(self.constitution_file).is_file():
            raise ValueError(f"constitution_file={self.constitution_file}: there is no such file")

    def constitution(self, suite):
        """Return the principles of the file, or the suite's."""
        if not self.constitution_file:
            return suite.principles()
        lines = Path(self.constitution_file).read_text(encoding="utf-8").splitlines()
        texts = [line.strip() for line in lines if line.strip()]
        return [
            Principle(f"line {i + 1}", text, lambda prompt, text: 0.0)
            for i, text in enumerate(texts)
        ]

    def identity(self):
        """Return the options, with the file's contents instead of its name, and the words of the
        questions.
        """
        written = (
            Path(self.constitution_file).read_text(encoding="utf-8")
            if self.constitution_file
            else None
        )
        return super().identity() | {
            "constitution_file": written,
            "words": [COMPARE, CRITICISE, REWRITE],
        }

    def question_text(self, prompt, question) -> str:
        """Return a question as the model reads it."""
        one, two = self.verdicts
        return COMPARE.format(
            prompt=prompt_text(prompt.text),
            first=question.first,
            second=question.second,
            one=one,
            two=two,
            principle=question.principle.text,
        )

    @abstractmethod
    def write(self, text) -> str | None:
        """Return the model's text after a prompt; None for an unusable answer."""

    def revise(self, prompt, completion, principle, rng):
        """Ask for a critique of the completion, then for a revision by the critique (CAI, sect.
        3.1).
        """
        facts = {
            "prompt": prompt_text(prompt.text),
            "completion": completion,
            "principle": principle.text,
        }
        critique = self.write(CRITICISE.format(**facts))
        revised = self.write(REWRITE.format(**facts, critique=critique)) if critique else None
        return revised or completion


COMPARE = """Consider an assistant's task and two responses to it.

Task:
{prompt}

Response {one}:
{first}

Response {two}:
{second}

{principle}
Which response is better in this respect? Answer with {one} or {two} alone.
Answer:"""

CRITICISE = """Task:
{prompt}

Response:
{completion}

{principle}
Say briefly what is wrong with the response in this respect.
Critique:"""

REWRITE = """Task:
{prompt}

Response:
{completion}

Critique:
{critique}

{principle}
Write the response anew so that the critique no longer applies. Write the response alone.
Response:"""


def digest(value) -> str:
    """Return 16 hex digits of the digest of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
