"""The verifier `exact`: the answer equals the gold answer, letter by letter."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from harness import hookimpl

from .answer_verifier import AnswerVerifier

LONGEST = 10_000  # characters of an answer
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff"))  # without width


@dataclass
class Exact(AnswerVerifier):
    """Right if an answer equals the gold answer.

    Spaces at the ends and repeated spaces are ignored. With `after`, the answer is the text after
    the last such marker, and an answer without it is wrong.
    """

    name = "exact"

    after: str = ""  # the marker that the answer follows, in answers and gold answers
    ignore_case: bool = True  # compare without regard to case
    ignore_punctuation: bool = True  # leave out quotes, and full stops and the like at the end

    def read_gold(self, text):
        """Return the gold answer in normal form; ValueError for an empty one."""
        answer = self.normal(self.part(text) if self.after in text else text)
        if not answer or len(answer) > LONGEST:
            raise ValueError(f"holds no answer of 1 to {LONGEST} characters: {text[-40:]!r}")
        return answer

    def grade(self, text, gold):
        """Return 1.0 if the answer equals the gold answer."""
        answer = self.part(text)
        return answer is not None and self.normal(answer[: LONGEST + 100]) == gold

    def part(self, text: str) -> str | None:
        """Return the part of a text that is the answer; None if the marker is missing."""
        if not self.after:
            return text
        before, marker, answer = text.rpartition(self.after)
        return answer if marker else None

    def normal(self, text: str) -> str:
        """Return an answer in normal form; characters may be composed or decomposed."""
        text = unicodedata.normalize("NFC", text).translate(_UNSEEN)
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = re.sub("[\"'`\u201c\u201d\u2018\u2019]", "", text).strip().strip(".,;:!?*")
        return " ".join(text.split())

    def reading(self, completion, ended):
        """Return the answer in normal form."""
        answer = self.part(completion) if self.counts(ended) else None
        return None if answer is None else self.normal(answer[: LONGEST + 100])

    def examples(self):
        marker = f"so {self.after} " if self.after else ""
        return [(f"{marker}New York", f"{marker}New  York"), (f"{marker}7", f"{marker}7")]


@hookimpl
def register_verifiers(register):
    register(Exact)
