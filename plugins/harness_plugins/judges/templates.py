"""The question to a language model about two answers, and how its reply is read.

The built-in templates follow AlpacaEval 2 (Dubois et al. 2024, 2404.04475), MT-Bench (Zheng et al.
2023, 2306.05685) and Arena-Hard (Li et al. 2024, 2406.11939), in our own words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness import UsageError
from harness.core.suite_file import read_toml

from ..labellers.verdicts import REFUSALS

REFUSED, UNPARSED, CUT = "refused", "unparsed", "cut"  # problems: a reply without a verdict
FILTERED = "content_filter"  # the reason with which an endpoint ends a reply that it withholds
PLACES = re.compile(r"\{(prompt|first|second)\}")
APOSTROPHE = "['\u2019]"
MARK = "[["  # the beginning of a verdict inside a longer text


@dataclass(frozen=True)
class Template:
    """A question about two answers. Its verdicts are words, or marked words such as `[[A]]`."""

    user: str  # with {prompt}, {first} and {second}
    verdicts: Mapping[str, float]  # {verdict: P(the answer shown first is better)}
    system: str = ""
    max_tokens: int = 8  # of a reply

    @property
    def marked(self) -> bool:
        """Whether verdicts are marked inside a longer text."""
        return any(verdict.startswith(MARK) for verdict in self.verdicts)

    def question(self, prompt: str, first: str, second: str) -> str:
        """Return the question. Braces inside the texts stay as they are."""
        texts = {"prompt": prompt, "first": first, "second": second}
        return PLACES.sub(lambda match: texts[match.group(1)], self.user)

    def read(self, choice: Mapping[str, Any], soft: bool) -> float | str:
        """Return P(first is better) from a chat completion's choice, or the problem with it."""
        if choice["message"].get("refusal") or choice.get("finish_reason") == FILTERED:
            return REFUSED
        text = choice["message"].get("content") or ""
        if soft and (p := self.from_logprobs(choice)) is not None:
            return p
        verdict = self.read_text(text)
        cut = verdict == UNPARSED and choice.get("finish_reason") == "length"
        return CUT if cut else verdict

    def read_text(self, text: str) -> float | str:
        """Return P(first is better) for a reply that gives exactly one of the verdicts."""
        named = {verdict for verdict in self.verdicts if self._gives(text, verdict)}
        refused = REFUSALS.search(text) is not None
        if len(named) == 1 and not (refused and not self.marked):
            return self.verdicts[named.pop()]
        return REFUSED if refused and not named else UNPARSED

    def _gives(self, text: str, verdict: str) -> bool:
        if self.marked:
            return verdict in text
        # the m of "I'm" is no verdict
        word = rf"(?<!\w)(?<!\w{APOSTROPHE}){re.escape(verdict)}(?!{APOSTROPHE}?\w)"
        return re.search(word, text) is not None

    def from_logprobs(self, choice: Mapping[str, Any]) -> float | None:
        """Return the mean verdict under the probabilities of the token that gives it.

        It is the first token, or the one after the last `[[`. None if probabilities are missing, or
        show fewer than two verdicts.
        """
        try:
            tokens = choice["logprobs"]["content"]
            at = self._place([str(entry["token"]) for entry in tokens])
            shown = tokens[at]["top_logprobs"]
            top = [(str(e["token"]).strip(), float(e["logprob"])) for e in shown]
        except (LookupError, TypeError, ValueError):
            return None
        if not all(logprob <= 0.01 for _, logprob in top):  # not log-probabilities, or NaN
            return None
        values = {verdict.strip("[]"): value for verdict, value in self.verdicts.items()}
        seen = [(values[token], math.exp(logprob)) for token, logprob in top if token in values]
        if len({value for value, _ in seen}) < 2:
            return None
        return sum(value * p for value, p in seen) / sum(p for _, p in seen)

    def _place(self, tokens: list[str]) -> int:
        """Return the position of the token that gives the verdict."""
        if not self.marked:
            return 0
        for at in range(len(tokens) - 1, 0, -1):
            if "".join(tokens[:at]).endswith(MARK):
                return at
        raise LookupError("no verdict is marked")


def read_template(name: str) -> Template:
    """Return a built-in template, or that of a TOML file.

    Raises:
        UsageError: There is no such template, or the file is incomplete.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    file = Path(name)
    if not file.is_file():
        known = ", ".join(TEMPLATES)
        raise UsageError(f"template={name}: expected one of {known}, or a TOML file.")
    values = read_toml(file, "template ")
    known_fields = {field.name for field in fields(Template)}
    if unknown := sorted(set(values) - known_fields):
        raise UsageError(f"{file}: {unknown[0]} is none of {', '.join(sorted(known_fields))}.")
    _check(file, values)
    return Template(**values)


def _check(file: Path, values: Mapping[str, Any]) -> None:
    user, verdicts = values.get("user"), values.get("verdicts")
    if not isinstance(user, str) or set(PLACES.findall(user)) != {"prompt", "first", "second"}:
        raise UsageError(f"{file}: user is a text with {{prompt}}, {{first}} and {{second}}.")
    numbers = verdicts.values() if isinstance(verdicts, dict) else ()
    whole = all(isinstance(v, int | float) and 0 <= v <= 1 for v in numbers)
    if len(set(numbers)) < 2 or not whole:
        raise UsageError(
            f'{file}: verdicts = {{"A" = 1.0, "B" = 0.0}}: a table of at least two replies, each'
            " with the probability in [0, 1] that the answer shown first is better."
        )
    if not isinstance(values.get("system", ""), str) or not _is_count(values.get("max_tokens", 1)):
        raise UsageError(f"{file}: system is a text, and max_tokens a number of at least 1.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


ALPACA_EVAL = Template(
    system=(
        "You rank language models by the quality of their answers. Your choices make a leaderboard"
        " that should agree with what people prefer."
    ),
    user="""Two models answered the instruction below. Choose the answer that people would prefer.

## Instruction
{prompt}

## Answer of model "m"
{first}

## Answer of model "M"
{second}

## Task
Which model gave the better answer? Reply with its identifier alone, m or M, and with nothing else.

## Best model""",
    verdicts={"m": 1.0, "M": 0.0},
    max_tokens=4,
)
MT_BENCH = Template(
    system=(
        "You are an impartial judge of the answers of two AI assistants to a user's question."
        " Consider helpfulness, relevance, accuracy, depth and detail. Neither the order of the"
        " answers nor their length nor the assistants' names may decide. Explain your comparison"
        ' briefly, and end with exactly one verdict: "[[A]]" if assistant A is better, "[[B]]" if'
        ' assistant B is better, "[[C]]" for a tie.'
    ),
    user="""[User's question]
{prompt}

[Start of assistant A's answer]
{first}
[End of assistant A's answer]

[Start of assistant B's answer]
{second}
[End of assistant B's answer]""",
    verdicts={"[[A]]": 1.0, "[[B]]": 0.0, "[[C]]": 0.5},
    max_tokens=1024,
)
ARENA_HARD = Template(
    system=(
        "You are an impartial judge of the answers of two AI assistants to a user's prompt. First"
        " answer the prompt yourself. Then compare both answers with yours: name and correct"
        " mistakes, and consider whether they are helpful, relevant and concise. End with exactly"
        " one verdict: [[A>>B]] assistant A is significantly better, [[A>B]] slightly better,"
        " [[A=B]] a tie, [[B>A]] assistant B is slightly better, [[B>>A]] significantly better."
    ),
    user="""<|User Prompt|>
{prompt}

<|The Start of Assistant A's Answer|>
{first}
<|The End of Assistant A's Answer|>

<|The Start of Assistant B's Answer|>
{second}
<|The End of Assistant B's Answer|>""",
    verdicts={"[[A>>B]]": 1.0, "[[A>B]]": 1.0, "[[A=B]]": 0.5, "[[B>A]]": 0.0, "[[B>>A]]": 0.0},
    max_tokens=2048,
)
TEMPLATES = {"alpaca_eval": ALPACA_EVAL, "mt_bench": MT_BENCH, "arena_hard": ARENA_HARD}
