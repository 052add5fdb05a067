"""The base class of verifiers that read one answer at a time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from harness import Verifier


@dataclass
class AnswerVerifier(Verifier):
    """A verifier that reads one answer at a time and nothing of the prompt."""

    reads_prompt = False

    must_end: bool = True  # whether an answer cut at the length limit is wrong

    @abstractmethod
    def grade(self, text: str, gold: str) -> float:
        """Return the verdict on one finished answer."""

    def verify(self, prompts, completions, golds, ended):
        """Return a verdict per completion; None where there is no gold answer."""
        return [
            None if gold is None else float(self.grade(text, gold)) if self.counts(end) else 0.0
            for text, gold, end in zip(completions, golds, ended, strict=True)
        ]

    def counts(self, end: bool) -> bool:
        """Return whether a completion counts as finished."""
        return end or not self.must_end
