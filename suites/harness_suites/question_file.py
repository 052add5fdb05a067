"""A suite from a file: questions with worked answers, such as GSM8K.

A verifier checks the answers: by default `final_number`, which reads the number of an answer.

    # gsm8k.toml
    suite = "question_file"
    data = "train.jsonl"               # JSON lines, Parquet, a folder or the hub
    question_columns = ["question"]    # several are joined by a space
    answer_column = "answer"           # a worked answer that the verifier can read
    verifier = "final_number"          # or another: `harness list`
    prompt_template = "Question: {question}\\nAnswer:"

Rows are split by the hash of their question: of those that are not evaluated, one half trains the
start checkpoint and the other half the methods. Gold is the verifier's verdict. The labeller
`verdict` makes preferences from verdicts, so methods that need preferences or a reward model run
too. No reward model is trained for the evaluation.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
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
    make_verifier,
    verdicts,
)
from harness.core.data import Text

from .conversations import as_messages, from_json, read_text
from .limits import number
from .rows import RowSuite

CALCULATION = re.compile(r"<<[^<>]{0,200}>>")  # GSM8K's calculator marks


@dataclass
class QuestionFile(RowSuite):
    """Questions with a checkable answer from a file, a folder or the hub."""

    name, version = "question_file", "1"
    judge_name, labeller_name = "verdict", "verdict"
    proxy = False  # gold is the verifier itself, so no reward model is trained for the evaluation

    question_columns: tuple[str, ...] = ("question",)  # joined by a space
    answer_column: str = "answer"  # the answer of a row, such as a worked solution
    # the verifier's input: one column's text, or a JSON object of several; empty: the answer
    gold_columns: tuple[str, ...] = ()
    keep_space: bool = False  # keep white space at both ends of columns, as code needs it
    verifier: str = "final_number"  # checks answers: a verifier's name, or module:function
    verifier_options: dict = field(default_factory=dict)  # options of the verifier, as a table
    # several verifiers instead, as tables: name, weight, label and options of each
    verifiers: list[dict] = field(default_factory=list)
    prompt_template: str = "Question: {question}\nAnswer:"  # the text around a question
    calculator_marks: bool = False  # leave <<48/2=24>> in the worked answers
    demonstration_share: float = 0.5  # share of the training rows that trains the start checkpoint

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

    def make_verifier(self) -> Verifier:
        """Return the verifier that the suite file names."""
        return make_verifier(self.verifier, self.verifier_options, self.verifiers, self.folder)

    @cached_property
    def _verifier(self) -> Verifier:
        return self.make_verifier()

    @cached_property
    def _answers(self) -> dict[str, str]:
        """The gold answer of each question that was read."""
        return {}

    @cached_property
    def _parts(self) -> dict[str, list[Demonstration]]:
        return self._by_part(self._worked, ("demonstrations", "train", "validation", "test"))

    def _other_part(self, place: float) -> str:
        return "demonstrations" if place < self.demonstration_share else "train"

    def _worked(self, row: object) -> list[Demonstration]:
        """Return a row as a prompt with its answer and the worked answer to it."""
        answer = self._cell(row, self.answer_column)
        gold, names = self._gold(row, answer)
        try:
            final = self._verifier.read_gold(gold)
        except ValueError as error:
            raise ValueError(f"{names} {error}") from error
        worked = answer if self.calculator_marks else CALCULATION.sub("", answer)
        prompt = self._posed(row)
        plain = isinstance(prompt, str)
        gap = " " if plain and not self.keep_space and not prompt[-1:].isspace() else ""
        completion = gap + worked if plain else as_messages(worked, "assistant")
        posed = Prompt(f"{derive('prompt', prompt):016x}", prompt, final)
        known = self._answers.setdefault(posed.id, final)
        if known != final:
            raise ValueError(
                f"an earlier row has the same question with the answer {known[:40]!r}, not"
                f" {final[:40]!r}"
            )
        return [Demonstration(posed, completion)]

    def _gold(self, row: object, answer: str) -> tuple[str, str]:
        """Return the verifier's input from a row, and the columns that it is from."""
        if not self.gold_columns:
            return answer, repr(self.answer_column)
        known = dict(row) if isinstance(row, dict) else {}
        for column in self.gold_columns:
            if column not in known:
                raise ValueError(f"no column {column!r}; there are {', '.join(sorted(known))}")
        only = len(self.gold_columns) == 1 and isinstance(known[self.gold_columns[0]], str)
        gold = {column: known[column] for column in self.gold_columns}
        text = known[self.gold_columns[0]] if only else json.dumps(gold, sort_keys=True)
        return text, ", ".join(map(repr, self.gold_columns))

    def _cell(self, row: object, column: str) -> str:
        text = _cell(row, column)
        return text if self.keep_space else text.strip()

    def _posed(self, row: object) -> Text:
        """Return a row's question in the prompt template, or its conversation."""
        first = row.get(self.question_columns[0]) if isinstance(row, dict) else None
        if isinstance(first, str):
            first = from_json(first)
        if isinstance(first, list) and len(self.question_columns) == 1:
            return read_text(first)
        question = " ".join(self._cell(row, column) for column in self.question_columns)
        return self.prompt_template.replace("{question}", question)


def _cell(row: object, column: str) -> str:
    """Return a cell as text; a whole number has no decimals."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with {column!r}")
    if column not in row:
        raise ValueError(f"no column {column!r}; there are {', '.join(sorted(row)) or 'none'}")
    value = row[column]
    if isinstance(value, int | float) and not isinstance(value, bool):
        number(value, repr(column))
        value = str(value).removesuffix(".0")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column!r}: expected text or a number, not {str(value)[:40]!r}")
    value.encode()  # ValueError for a lone surrogate, which has no tokens
    return value


class Verdict(Judge):
    """One point for an answer that the suite's verifier accepts."""

    name = "verdict"
    length_bias = False

    def prepare(self, suite, stages):
        """Take the suite's verifier."""
        self.verifier = suite.make_verifier()
        if self.verifier is None:
            raise UsageError(
                f"The judge verdict asks the suite's verifier, and {suite.name} has none."
            )

    def score(self, prompts, completions):
        """Return the verdict per completion, 0 if there is none. All completions count as ended."""
        return self.score_sampled(prompts, completions, [True] * len(prompts))

    def score_sampled(self, prompts, completions, ended):
        """Return the verdict per completion, 0 where there is none."""
        return [v or 0.0 for v in verdicts(self.verifier, prompts, completions, ended).values]


@hookimpl
def register_suites(register):
    register(QuestionFile)


@hookimpl
def register_judges(register):
    register(Verdict)
