"""A simulated annotator: it applies the constitution's checks, with a set error rate."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness import hookimpl

from .annotator import Annotator

CLAUSE = re.compile(r"\s*(?:[;\n]|(?<=[.!?])\s)\s*")  # separators of clauses


@dataclass
class ConstitutionAnnotator(Annotator):
    """A simulated annotator: the drawn principle's check decides, with a stated error rate.

    No model is asked.
    """

    name = "constitution"

    error_rate: float = 0.1  # share of wrong answers, drawn for each order of a pair
    position_bias: float = 0.0  # share of answers that name the first completion shown

    def check(self):
        if not 0 <= self.error_rate <= 1 or not 0 <= self.position_bias <= 1:
            raise ValueError("error_rate and position_bias lie in [0, 1]")

    def answer(self, prompt, questions, rng):
        """Return 1 or 0 by the check of each question's principle; 0.5 for no difference."""
        return [self._answer(prompt, question, rng) for question in questions]

    def _answer(self, prompt, question, rng):
        wrong, biased = rng.random() < self.error_rate, rng.random() < self.position_bias
        first, second = (
            question.principle.check(prompt, text) for text in (question.first, question.second)
        )
        if biased:
            return 1.0
        return 0.5 if first == second else float((first > second) != wrong)

    def revise(self, prompt, completion, principle, rng):
        """Remove the clause whose removal improves the principle's check most, if any.

        It simulates a critique and a revision, and fails at the error rate, as an answer does.
        """
        if rng.random() < self.error_rate:
            return completion
        return max(
            [completion, *without_a_clause(completion)],
            key=lambda text: principle.check(prompt, text),
        )


def without_a_clause(text) -> list[str]:
    """Return the texts without one clause each; a separator goes with the clause before it."""
    marks = [(m.start(), m.end()) for m in CLAUSE.finditer(text)]
    starts, ends = [0, *(end for _, end in marks)], [*(end for _, end in marks), len(text)]
    if len(starts) < 2:
        return []
    cut = [text[:a] + text[b:] for a, b in zip(starts[:-1], ends[:-1], strict=True)]
    tail = re.search(r"\s*[.!?]?\s*$", text)  # the last clause is removed and its full stop stays
    return [*cut, text[: marks[-1][0]] + tail.group()]


@hookimpl
def register_labellers(register):
    register(ConstitutionAnnotator)
