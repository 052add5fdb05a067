"""The verifier `choice`: the letter of a multiple-choice question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from harness import hookimpl

from .answer_verifier import AnswerVerifier

NUMBERINGS = ("letter", "0", "1")
CUE_TEXT, CUES = 4_000, 8  # characters in which a cue is searched, and cues that are tried
_OPTION = re.compile(
    r"\b(?:correct|right|best) (?:option|choice|one)\b[*_]* ?(?:is|:)", re.IGNORECASE
)
_LEADING = r"(?i:[\s*_\"'$#:]|\\\(|\\text(?:bf)?\{|\\mathbf\{|option |choice )*"


@dataclass
class Choice(AnswerVerifier):
    """Right if an answer chooses the letter of the gold answer.

    The letter is read from the last \\boxed{}, else after ####, else after "answer is", "answer:"
    or "correct option is", else from the beginning of the answer: `B`, `(B)`, `B. Paris`, or from a
    first or last line that is a letter. A letter inside a sentence, or two letters, are not a
    choice.
    """

    name = "choice"

    choices: str = "ABCD"  # the letters
    numbering: str = "letter"  # of gold answers: letter, or a number that counts from 0 or from 1

    def check(self):
        """Raise ValueError for options without at least two different letters."""
        if not self.choices.isalpha() or len(set(self.choices.upper())) < 2:
            raise ValueError(f"choices are at least two letters, such as ABCD: {self.choices!r}")
        if len(set(self.choices.upper())) < len(self.choices):
            raise ValueError(f"choices has a letter twice: {self.choices!r}")
        if self.numbering not in NUMBERINGS:
            raise ValueError(f"numbering is {', '.join(NUMBERINGS)}, not {self.numbering!r}")

    def read_gold(self, text):
        """Return the letter of a gold answer; raise ValueError if there is none."""
        letters, text = self.choices.upper(), text.strip()
        if self.numbering != "letter":
            place = int(text) - int(self.numbering) if re.fullmatch(r"\d{1,2}", text) else -1
            if not 0 <= place < len(letters):
                raise ValueError(
                    f"is no number from {self.numbering} to"
                    f" {len(letters) - 1 + int(self.numbering)}: {text[-40:]!r}"
                )
            return letters[place]
        letter = self.chosen(text)
        if letter is None:
            raise ValueError(f"chooses none of {', '.join(letters)}: {text[-40:]!r}")
        return letter

    def grade(self, text, gold):
        """Return 1.0 if the answer chooses the gold answer's letter."""
        return self.chosen(text) == gold

    def chosen(self, text: str) -> str | None:
        """Return the letter that an answer chooses, or None."""
        from .places import MARKER, behind_cues, end_of, last_box

        text = unicodedata.normalize("NFKC", end_of(text))  # full width too
        box = last_box(text)
        if box is not None:
            return self.letter(box, alone=True)
        if MARKER in text:
            return self.letter(text.partition(MARKER)[2])
        for region in (*behind_cues(text), *_behind_options(text)):
            letter = self.letter(region)
            if letter is not None:
                return letter
        lines = text.strip().splitlines()
        if len(lines) < 2:
            return self.letter(text)
        ends = {self.letter(line, alone=True) for line in (lines[0], lines[-1])} - {None}
        return ends.pop() if len(ends) == 1 else None

    def letter(self, text: str, alone: bool = False) -> str | None:
        """Return the letter that a text begins with, if it is a choice and the only one.

        With `alone` no other text may follow.
        """
        text = text[re.match(_LEADING, text).end() :][:300]
        bracket = text[:1] if text[:1] in ("(", "[") else ""
        match = re.match(rf"([{self.choices}])(?!\w|'\w)", text[len(bracket) :], re.IGNORECASE)
        if match is None:
            return None
        letter, rest = match[1], text[len(bracket) + match.end() :]
        end = {"(": ")", "[": "]"}.get(bracket, "")
        if end and not rest.startswith(end):
            return None
        if alone and not re.fullmatch(r"[\s.)\]}*_\"'$:,\\]*", rest):
            return None
        if not end and self._is_word(letter, rest):
            return None
        return None if self._goes_on(rest) else letter.upper()

    def _is_word(self, letter: str, rest: str) -> bool:
        """Return whether a letter is a word of a sentence: `A dog`, `b because`."""
        behind = re.match(r"[*_]*\s+(?=[A-Za-z])", rest)
        return bool(behind) and (letter.islower() or letter in "AI" and not _reason(rest))

    def _goes_on(self, rest: str) -> bool:
        """Return whether another choice is joined to the first one: `B or C`, `A, B`."""
        joined = rf"[)\].*_\s]*(?:,|/|&|\+|\bor\b|\band\b)[\s(\[*_]*[{self.choices}](?!\w|'\w)"
        return bool(re.match(joined, rest, re.IGNORECASE))

    def reading(self, completion, ended):
        """Return the letter that the answer chooses."""
        return self.chosen(completion) if self.counts(ended) else None

    def examples(self):
        letter = self.choices[1].upper()
        gold = letter if self.numbering == "letter" else str(1 + int(self.numbering))
        texts = [letter, f"({letter})", f"The answer is ({letter}).", f"\\boxed{{{letter}}}"]
        return [(gold, text) for text in [*texts, f"{letter}) Paris", f"Answer: **{letter}**"]]


def _behind_options(text: str) -> Iterator[str]:
    """Yield the text after each "correct option is" and the like, the last one first."""
    for cue in reversed(list(_OPTION.finditer(text[-CUE_TEXT:]))[-CUES:]):
        yield text[-CUE_TEXT:][cue.end() :]


def _reason(rest: str) -> bool:
    """Return whether a reason follows: then a letter was a choice."""
    return bool(re.match(r"[*_]*\s+(?:because|since|as|which|is|for|due)\b", rest))


@hookimpl
def register_verifiers(register):
    register(Choice)
