"""The verifier `sense`: an answer looks like language."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from harness import hookimpl

from .answer_verifier import AnswerVerifier

LONGEST = 20_000  # characters of an answer
WINDOW = 20  # words in which repetition is searched
_RUN = re.compile(r"(?i)([^\W_])\1{3}|([^\w\s.=*#-])\2{3}|[.=*#-]{30}")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_CAMEL = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]{2}")
SINGLE = frozenset("aioAIO")  # words of one letter


@dataclass
class Sense(AnswerVerifier):
    """Right if an answer looks like language: enough words, little repetition, few non-words.

    It is a lower bar, for use beside another verifier as a gate: see docs/verifiers.md. Nothing is
    known of what an answer means, so real words in a senseless order pass.
    """

    name, lower_bar = "sense", True

    least_words: int = 3  # words of letters
    most_repeated: float = 0.5  # share of words that stood before, among any twenty in a row
    most_strange: float = 0.2  # share of words whose letters do not follow each other in English
    least_letters: float = 0.4  # share of letters and digits among characters that are no space
    english: bool = True  # count words in other scripts, or unlike English, as strange

    def check(self):
        """Raise ValueError for limits out of range."""
        if self.least_words < 1:
            raise ValueError("least_words is at least 1")
        for name in ("most_repeated", "most_strange", "least_letters"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies in [0, 1]")

    def read_gold(self, text):
        """Return nothing: whether an answer makes sense depends on it alone."""
        return ""

    def verify(self, prompts, completions, golds, ended):
        """Return 1.0 or 0.0 per completion; a gold answer is not needed."""
        rows = zip(completions, ended, strict=True)
        return [float(self.counts(end) and self.grade(text, "")) for text, end in rows]

    def grade(self, text, gold):
        """Return 1.0 if a text looks like language."""
        return float(len(text) <= LONGEST and self.fault(text) is None)

    def fault(self, text: str) -> str | None:
        """Return what is wrong with a text, or None."""
        words = _WORD.findall(text)
        solid = "".join(text.split())
        if len(words) < self.least_words:
            return "too few words"
        if sum(map(str.isalnum, solid)) < self.least_letters * len(solid):
            return "too few letters"
        if _RUN.search(text):
            return "a character repeated"
        if _repeated([word.casefold() for word in words], self.most_repeated):
            return "words repeated"
        strange = sum(map(_is_strange, words)) if self.english else 0
        if strange > max(len(words) >= 4, self.most_strange * len(words)):
            return "words that are none"
        return None

    def examples(self):
        return [
            ("", "The river is old, and its water is cold."),
            ("", '{"name": "Ann Smith", "hobby": "she paints old boats"}'),
            ("", "- fresh bread\n- a glass of milk\n- two eggs"),
        ]


def _repeated(words: list[str], most: float) -> bool:
    """Return whether words repeat too often: one three times in a row, or few different words in a
    window.
    """
    if any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False)):
        return True
    for start in range(0, max(1, len(words) - WINDOW + 1), WINDOW // 4):
        window = words[start : start + WINDOW]
        if len(window) - len(set(window)) > most * len(window):
            return True
    return False


def _is_strange(word: str) -> bool:
    """Return whether a word's letters rarely follow each other in English."""
    if _CAMEL.search(word):
        return True
    return any(_is_strange_part(part) for part in re.split("['\u2019]", word)[:1])


def _is_strange_part(word: str) -> bool:
    from .english_letters import FOLLOWING  # imported late: `harness list` does not need it

    if len(word) == 1:
        return word not in SINGLE
    plain = "".join(c for c in unicodedata.normalize("NFKD", word) if c.isalpha())
    if len(word) > 20 or not plain.isascii():
        return True
    if plain.isupper() and len(plain) <= 4:  # an abbreviation
        return False
    letters = f"^{plain.lower()}$"
    triples = [letters[i : i + 3] for i in range(len(letters) - 2)]
    unknown = sum(triple[2] not in FOLLOWING.get(triple[:2], ()) for triple in triples)
    return 3 * unknown >= len(triples)


@hookimpl
def register_verifiers(register):
    register(Sense)
