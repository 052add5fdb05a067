"""A suite from a file: questions with worked answers, such as GSM8K.

A verifier reads the final number of an answer.

    # gsm8k.toml
    suite = "question_file"
    data = "train.jsonl"               # JSON lines, Parquet, a folder or the hub
    question_columns = ["question"]    # several are joined by a space
    answer_column = "answer"           # a worked answer with `####` before its number, or a number
    prompt_template = "Question: {question}\\nAnswer:"

Rows are split by the hash of their question: one half of those that are not evaluated is imitated
by the start checkpoint, the other half is what methods train on. Gold is the verifier's verdict.
There is no labeller, so methods that need preferences or a learned reward are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from harness import (
    Demonstration,
    Judge,
    Prompt,
    UsageError,
    Verifier,
    completion_text,
    derive,
    hookimpl,
)
from harness.core.data import Text

from .conversations import as_messages, read_text
from .rows import RowSuite

MARKER = "####"  # what stands before the final answer of GSM8K and its kin
CALCULATION = re.compile(r"<<[^<>]{0,200}>>")  # GSM8K's calculator marks
WORD = re.compile(r"[\w.,/%$*^+\u2212\u2013-]+")  # numbers and all that may be glued to one
NUMBER = re.compile(
    r"([+-]?)\$?([+-]?)((?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)?(?:\.[0-9]+)?)(?:/([0-9]+))?%?[A-Za-z]*"
)
LONGEST = 64  # characters of a word that can be an answer


def final_number(text: str) -> str | None:
    """Return the last number after the last `####`, or of the whole text, in normal form; None if
    it is not readable.

    A number is a word of its own: `12` in `112`, `9**12`, `1e12` or `x12` is not one, and neither
    is a word with digits of another script. If the last word with digits is not a number, there is
    none: nothing further back is the answer. One pass over the text; digits are compared as text,
    so no length of them costs more.
    """
    last = None
    for match in WORD.finditer(text, text.rfind(MARKER) + 1):
        if any(map(str.isnumeric, match.group())):
            last = match.group()
    return None if last is None or len(last) > LONGEST else _normal(last)


def _normal(word: str) -> str | None:
    """Return a number without `+`, commas, idle zeros, currency, per cent and unit: `$1,080.50.` is
    1080.5.
    """
    match = NUMBER.fullmatch(word.strip("*_").rstrip(".,$*_").replace("\u2212", "-"))
    if match is None or not match[3] or (match[1] and match[2]):
        return None
    whole, _, decimals = match[3].replace(",", "").partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    value = f"{whole}.{decimals}" if decimals else whole
    if match[4] and match[4].lstrip("0") != "1":
        value += f"/{match[4].lstrip('0')}"
    return f"-{value}" if "-" in (match[1], match[2]) and value != "0" else value


class FinalNumber(Verifier):
    """A check that the final number of an answer is the right one, in any notation."""

    name = "final_number"

    def verify(self, prompt: Prompt, completion: str) -> float | None:
        """Return 1.0 or 0.0; None for a prompt without an answer."""
        return None if prompt.answer is None else float(final_number(completion) == prompt.answer)


@dataclass
class QuestionFile(RowSuite):
    """Questions with a checkable answer from a file, a folder or the hub."""

    name, version = "question_file", "1"
    judge_name = "verdict"

    question_columns: tuple[str, ...] = ("question",)  # joined by a space
    answer_column: str = "answer"  # a worked answer that ends in its number, or the number alone
    prompt_template: str = "Question: {question}\nAnswer:"  # how a question is posed
    calculator_marks: bool = False  # leave <<48/2=24>> in the worked answers
    demonstration_share: float = 0.5  # of the training rows: for the start checkpoint

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if not self.question_columns:
            raise ValueError("question_columns names no column")
        if "{question}" not in self.prompt_template:
            raise ValueError("prompt_template must say where the {question} stands")
        if not 0 < self.demonstration_share < 1:
            raise ValueError("demonstration_share must lie between 0 and 1: both parts need rows")

    def prompts(self, split: str) -> list[Prompt]:
        """Return the distinct questions of a split with their answers."""
        part = "train" if split == "preferences" else split  # no labels here
        return list({row.prompt.id: row.prompt for row in self._parts[part]}.values())

    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return the worked answers."""
        return self._parts[split]

    def references(self, split: str) -> dict[str, str]:
        """Return the worked answers, for ROUGE."""
        return {row.prompt.id: completion_text(row.completion) for row in self._parts[split]}

    def verifier(self) -> Verifier:
        """Return the check of a final number."""
        return FinalNumber()

    @cached_property
    def _parts(self) -> dict[str, list[Demonstration]]:
        return self._by_part(self._worked, ("demonstrations", "train", "validation", "test"))

    def _other_part(self, place: float) -> str:
        return "demonstrations" if place < self.demonstration_share else "train"

    def _worked(self, row: object) -> list[Demonstration]:
        """Return a row as a prompt with its answer and the worked answer to it."""
        answer = _cell(row, self.answer_column)
        final = final_number(answer)
        if final is None:
            raise ValueError(f"{self.answer_column!r} ends in no readable number: {answer[-40:]!r}")
        worked = answer if self.calculator_marks else CALCULATION.sub("", answer)
        prompt = self._posed(row)
        plain = isinstance(prompt, str)
        gap = " " if plain and not prompt[-1:].isspace() else ""
        completion = gap + worked if plain else as_messages(worked, "assistant")
        return [
            Demonstration(Prompt(f"{derive('prompt', prompt):016x}", prompt, final), completion)
        ]

    def _posed(self, row: object) -> Text:
        """Return a row's question: posed by the prompt template, or the conversation that it is."""
        first = row.get(self.question_columns[0]) if isinstance(row, dict) else None
        if isinstance(first, list) and len(self.question_columns) == 1:
            return read_text(first)
        question = " ".join(_cell(row, column) for column in self.question_columns)
        return self.prompt_template.replace("{question}", question)


def _cell(row: object, column: str) -> str:
    """Return a cell as text; a number that is whole is written so."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with {column!r}")
    if column not in row:
        raise ValueError(f"no column {column!r}; there are {', '.join(sorted(row)) or 'none'}")
    value = row[column]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value).removesuffix(".0")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column!r}: expected text or a number, not {str(value)[:40]!r}")
    value.encode()  # ValueError for a lone surrogate, which has no tokens
    return value.strip()


class Verdict(Judge):
    """One point for an answer that the suite's verifier accepts."""

    name = "verdict"

    def prepare(self, suite, stages):
        """Take the suite's verifier."""
        self.verifier = suite.verifier()
        if self.verifier is None:
            raise UsageError(
                f"The judge verdict asks the suite's verifier, and {suite.name} has none."
            )

    def score(self, prompts, completions):
        """Return the verdict per completion, 0 where there is none."""
        return [
            self.verifier.verify(p, text) or 0.0
            for p, text in zip(prompts, completions, strict=True)
        ]


@hookimpl
def register_suites(register):
    register(QuestionFile)


@hookimpl
def register_judges(register):
    register(Verdict)
