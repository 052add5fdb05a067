"""The verifier `math_verify`: reads numbers exactly, and compares other answers by the package
math-verify.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec

from harness import HarnessError, hookimpl

from .answer_verifier import AnswerVerifier

LONGEST = 300  # characters of an expression
TAIL = 500  # characters at the end of an answer without a box
MOST_SIGNS = 60  # operators of an expression
MOST_NUMBERS = 60  # numbers of an expression
_NUMBER = r"-?\d+(?:/\d+)?%?"
_COSTLY = (
    r"\d{40}|\^\{?[^{}^]{0,20}\^|\^\{?\d{4}|!|\\(?:int|sum|prod|lim|binom|iint|oint)(?![A-Za-z])"
    r"|(?:[({\[][^)}\]]{0,20}){9}"
)
_SIGN = r"[-+*/^_=<>]|\\[A-Za-z]+"
_WORD = r"(?<![\\A-Za-z{])[A-Za-z]{3,}"


@dataclass
class MathVerify(AnswerVerifier):
    """Right if an answer equals the gold answer as mathematics: expressions, sets, intervals.

    Numbers are read exactly, as `final_number` reads them. Everything else is compared by the
    package math-verify (pip install 'alignment-harness[math]') in a warm child process. An answer
    that takes longer than `time_limit` there is wrong, and so is an expression that is expected to.
    """

    name = "math_verify"

    time_limit: float = 2.0  # seconds of processor time for one answer

    def check(self):
        """Raise ValueError if the package is missing."""
        if find_spec("math_verify") is None:
            raise ValueError("needs math-verify: pip install 'alignment-harness[math]'")
        if self.time_limit <= 0:
            raise ValueError("time_limit must be above 0")

    def read_gold(self, text):
        """Return the number or the expression of a gold answer; ValueError for neither."""
        from .number_answers import gold_number
        from .places import MARKER, last_box

        number = gold_number(text)
        if number is not None:
            return number.text
        box = last_box(text)
        gold = (text.rpartition(MARKER)[2] if box is None else box).strip()
        plain = 0 < len(gold) <= LONGEST and not re.search(_WORD, gold)
        if not plain or self._ask(gold, None) is not True:
            raise ValueError(
                f"holds no mathematics that can be read: {text[-40:]!r}. Expected an expression"
                " alone, in \\boxed{}, or behind ####"
            )
        return gold

    def grade(self, text, gold):
        """Return 1.0 if the answer equals the gold answer."""
        from .number_answers import answer_number, gives
        from .places import end_of, last_box

        box = last_box(end_of(text))
        if re.fullmatch(_NUMBER, gold):
            if box is None or answer_number(text) is not None or re.search(r"_\{?\d", box):
                return gives(text, gold)  # the package cannot read a number in another base
        answer = f"\\boxed{{{box}}}" if box is not None else end_of(text)[-TAIL:]
        if not answer.strip() or box == "" or _is_costly(answer, gold):
            return False
        return self._ask(gold, answer) is True

    def examples(self):
        return [
            ("\\frac{3}{4}", "The answer is 0.75."),
            ("2\\sqrt{3}", "so \\boxed{\\sqrt{12}}"),
            ("$[0, 5)$", "\\boxed{[0,5)}"),
            ("x^2 + 1", "The answer is $1 + x^2$."),
        ]

    def close(self):
        """End the child process."""
        self._worker().close()

    def _worker(self):
        from .timed_worker import worker_for  # imported late: `harness list` starts no child

        return worker_for("harness_plugins.verifiers.math_child:judge", self.time_limit)

    def _ask(self, gold: str, answer: str | None):
        """Return the child's answer, None if it ran out of time or memory or failed."""
        try:
            (reply,) = self._worker().ask([{"gold": gold, "answer": answer}])
        except HarnessError as error:
            raise HarnessError(f"verifier math_verify: {error}") from error
        return reply.get("value")


def _is_costly(answer: str, gold: str) -> bool:
    """Return whether an expression may take very long to compare.

    Parts that the gold answer has too are allowed.
    """
    numbers = len(re.findall(r"\d+", answer))
    if numbers > max(MOST_NUMBERS, 2 * len(re.findall(r"\d+", gold))):
        return True
    if len(answer) > TAIL + 20 or len(re.findall(_SIGN, answer)) > max(
        MOST_SIGNS, 2 * len(re.findall(_SIGN, gold))
    ):
        return True
    return bool(re.search(_COSTLY, answer)) and not re.search(_COSTLY, gold)


@hookimpl
def register_verifiers(register):
    register(MathVerify)
