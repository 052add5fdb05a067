"""The verifier `boxed`: compares the last \\boxed{} with the gold answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness import hookimpl

from .answer_verifier import AnswerVerifier

LONGEST = 300  # characters of a box
_WRAPPED = r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}"
_SPACES = r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[,;:! ]|[\s$~]"


@dataclass
class Boxed(AnswerVerifier):
    """Right if the last \\boxed{} of an answer holds the gold answer.

    Numbers are compared by value. Everything else is compared as text, without spaces and without
    LaTeX commands that only change the typesetting: \\dfrac is \\frac, \\text{cm} is cm, \\left( is
    (, x^2 is x^{2}. A letter in brackets is that letter. An answer without a box is wrong.
    """

    name = "boxed"

    def read_gold(self, text):
        """Return the content of the last box of a gold answer, or the whole answer."""
        from .places import last_box

        box = last_box(text)
        answer = normal(text if box is None else box)
        if not answer or len(answer) > LONGEST:
            raise ValueError(
                f"holds no answer of 1 to {LONGEST} characters: {text[-40:]!r}. Expected the"
                " answer alone, or in \\boxed{}"
            )
        return answer

    def grade(self, text, gold):
        """Return 1.0 if the box holds the gold answer."""
        from .places import end_of, last_box

        box = last_box(end_of(text))
        return box is not None and len(box) <= LONGEST and is_same(box, gold)

    def reading(self, completion, ended):
        """Return the content of the last box in normal form."""
        from .places import end_of, last_box

        box = last_box(end_of(completion)) if self.counts(ended) else None
        return None if box is None or len(box) > LONGEST else normal(box)

    def examples(self):
        return [
            ("\\frac{3}{4}", "so it is $\\boxed{0.75}$."),
            ("x^2 + 1", "\\boxed{x^2+1}"),
            ("we get $\\boxed{\\left[0, 5\\right)}$", "\\boxed{[0,5)}"),
        ]


def is_same(box: str, gold: str) -> bool:
    """Return whether a box holds a gold answer in normal form; `50%` is 50 if gold has no sign."""
    from .number_answers import is_gold, only_number

    number = only_number(box) if re.fullmatch(r"-?\d+(/\d+)?%?", gold) else None
    return normal(box) == gold if number is None else is_gold(number, gold)


def normal(text: str) -> str:
    """Return an answer in normal form: a number by its value, other text without typesetting."""
    from .number_answers import only_number

    number = only_number(text)
    if number is not None:
        return number.text
    for _ in range(3):
        text, changed = re.subn(_WRAPPED, r"\1", text)
        if not changed:
            break
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"(\\frac|\\sqrt|[\^_]) +(?=\w)", r"\1", text)
    text = re.sub(r"\\frac(\d)(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(\\sqrt(?=\d)|[\^_])(\w)", r"\1{\2}", text)
    text = re.sub(_SPACES, "", text).rstrip(".")
    return text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text


@hookimpl
def register_verifiers(register):
    register(Boxed)
