"""The verifier `final_number`: the number that an answer gives, compared by value."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl

from .answer_verifier import AnswerVerifier


@dataclass
class FinalNumber(AnswerVerifier):
    """Right if the number that an answer gives equals the gold answer, in whatever notation.

    It is read from the last \\boxed{}, or else behind the first ####, or else behind "answer is" or
    "answer:", or else it is the last number of the text. Part of a date, a time, a tuple, an
    interval, an exponent, a list marker or a further question is no number.
    """

    name = "final_number"

    def read_gold(self, text):
        """Return the number of a worked answer; raise ValueError if there is not exactly one."""
        from .number_answers import gold_number  # imported late: `harness list` does not need it

        number = gold_number(text)
        if number is None:
            raise ValueError(
                f"holds no readable number: {text[-40:]!r}. Expected one number alone, in"
                " \\boxed{}, or behind ####"
            )
        return number.text

    def grade(self, text, gold):
        """Return 1.0 if the answer gives the gold number."""
        from .number_answers import gives

        return gives(text, gold)

    def reading(self, completion, ended):
        """Return the number that the answer gives."""
        from .number_answers import answer_number

        number = answer_number(completion) if self.counts(ended) else None
        return None if number is None else str(number.value)

    def examples(self):
        return [
            ("48+24 = 72 clips.\n#### 72", "She sold 48 + 24 = 72 clips"),
            ("1080", "#### $1,080.00"),
            ("\\frac{3}{4}", "The answer is \\boxed{0.75}."),
        ]


@hookimpl
def register_verifiers(register):
    register(FinalNumber)
