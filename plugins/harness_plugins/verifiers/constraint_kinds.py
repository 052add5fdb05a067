"""Constraints on an answer that code can check: the values of each kind, and when an answer keeps
it.

The time is linear in the length of an answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

MOST_CONSTRAINTS = 20
_WORD = re.compile(r"[^\W_](?:[^\W_]|['\u2019\-\u2010\u2011](?=[^\W_])|(?<=\d)[.,](?=\d))*")
_ITEM = re.compile(r"(?m)^[ \t]*(?:[-*+\u2022\u2013]|\d{1,3}[.)])[ \t]+(?=.*[^\W_])")
_FENCE = re.compile(r"(?s)```[A-Za-z]*[ \t]*\n(.*?)\n?[ \t]*```")
_COMMAS = frozenset(",\uff0c\u3001\u060c\ufe50\ufe51")
_CLOSING = " \t\r\n\"'`*_)]}\u201d\u2019\u00bb"
_QUESTION_MARKS = ("?", "\uff1f", "\u061f")


def words_of(text: str) -> list[str]:
    """Return the words of a text without regard to case.

    A word is a run of letters and digits. Apostrophes and hyphens inside it are part of it, and so
    are the points and commas of a number.
    """
    text = unicodedata.normalize("NFC", text)
    if not text.isascii():  # combining accents belong to the letter before them
        text = "".join(c for c in text if unicodedata.category(c)[0] != "M")
    return [_same_marks(word).casefold() for word in _WORD.findall(text)]


def _same_marks(word: str) -> str:
    return word.replace("\u2019", "'").replace("\u2010", "-").replace("\u2011", "-")


@dataclass(frozen=True)
class Answer:
    """An answer in the forms that constraints use."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        """The words without regard to case."""
        return words_of(self.text)

    @cached_property
    def joined(self) -> str:
        """The words with one space around each."""
        return f" {' '.join(self.words)} "

    def count(self, phrase: str) -> int:
        """Return how often a phrase occurs in the answer, as whole words."""
        return self.joined.replace(" ", "  ").count(f" {'  '.join(words_of(phrase))} ")

    def cased(self) -> set[str]:
        """Return which of the categories Lu and Ll the letters have."""
        return {unicodedata.category(c) for c in self.text if c.isalpha()} & {"Lu", "Ll", "Lt"}


def _within(number: int, needs: Mapping[str, Any]) -> bool:
    return needs.get("at_least", 0) <= number <= needs.get("at_most", number)


def _include(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return all(answer.count(word) >= needs.get("at_least", 1) for word in needs["words"])


def _exclude(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return not any(answer.count(word) for word in needs["words"])


def _about(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return any(answer.count(word) for word in needs["any"])


def _begin(answer: Answer, needs: Mapping[str, Any]) -> bool:
    phrase = words_of(needs["text"])
    return answer.words[: len(phrase)] == phrase


def _end(answer: Answer, needs: Mapping[str, Any]) -> bool:
    phrase = words_of(needs["text"])
    return answer.words[-len(phrase) :] == phrase


def _words(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return _within(len(answer.words), needs)


def _items(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return _within(len(_ITEM.findall(answer.text)), needs)


def _lower(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return answer.cased() == {"Ll"}


def _upper(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return answer.cased() == {"Lu"}


def _no_commas(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return _COMMAS.isdisjoint(answer.text)


def _question(answer: Answer, needs: Mapping[str, Any]) -> bool:
    return answer.text.rstrip(_CLOSING).endswith(_QUESTION_MARKS)


def _json(answer: Answer, needs: Mapping[str, Any]) -> bool:
    """Return whether the whole answer, or the one fenced block that it is, has the keys.

    Each key has a value that is not empty, and no key occurs twice.
    """
    text = answer.text.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(
            fenced[1] if fenced else text,
            object_pairs_hook=_without_repeats,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and all(
        value.get(key) not in (None, "", [], {}) for key in needs["keys"]
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@dataclass(frozen=True)
class Kind:
    """A kind of constraint: when an answer keeps it, and the values that it needs or may have.

    `whole` is set where an answer that was cut cannot keep it.
    """

    kept: Callable[[Answer, Mapping[str, Any]], bool]
    needs: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()
    whole: bool = False


LIMITS = ("at_least", "at_most")
KINDS = {
    "include": Kind(_include, ("words",), ("at_least",)),
    "exclude": Kind(_exclude, ("words",)),
    "about": Kind(_about, ("any",)),
    "begin": Kind(_begin, ("text",)),
    "end": Kind(_end, ("text",), whole=True),
    "words": Kind(_words, (), LIMITS, whole=True),
    "items": Kind(_items, (), LIMITS, whole=True),
    "lower": Kind(_lower),
    "upper": Kind(_upper),
    "no_commas": Kind(_no_commas),
    "question": Kind(_question, whole=True),
    "json": Kind(_json, ("keys",), whole=True),
}


@dataclass(frozen=True)
class Constraint:
    """One constraint. A required one has no share in the grade, and an answer that breaks it has
    grade 0.
    """

    kind: str
    needs: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False

    def kept(self, answer: Answer, end: bool) -> bool:
        """Return whether an answer keeps it; an answer without a word keeps no constraint."""
        kind = KINDS[self.kind]
        return bool(answer.words) and (end or not kind.whole) and kind.kept(answer, self.needs)

    def table(self) -> dict[str, Any]:
        """Return the constraint as a table."""
        return {"kind": self.kind, **self.needs} | ({"required": True} if self.required else {})


def read_constraints(tables: object) -> tuple[Constraint, ...]:
    """Return constraints from a table or a list of tables.

    Raises:
        ValueError: A kind or a value is unknown, missing or of the wrong type.
    """
    tables = [tables] if isinstance(tables, dict) else tables
    if not isinstance(tables, list) or not 0 < len(tables) <= MOST_CONSTRAINTS:
        raise ValueError(f"expected 1 to {MOST_CONSTRAINTS} constraints, as a list of objects")
    constraints = tuple(_constraint(table) for table in tables)
    if all(constraint.required for constraint in constraints):
        raise ValueError("all constraints are required, and none is left to grade")
    return constraints


def _constraint(table: object) -> Constraint:
    if not isinstance(table, dict) or table.get("kind") not in KINDS:
        raise ValueError(
            f"{str(table)[:60]}: expected an object whose kind is one of {', '.join(KINDS)}"
        )
    name, required = table["kind"], table.get("required", False)
    needs = {key: value for key, value in table.items() if key not in ("kind", "required")}
    kind = KINDS[name]
    known = (*kind.needs, *kind.may_have)
    for key in (*needs, *kind.needs):
        if key not in known or key not in needs:
            raise ValueError(f"{name} has {', '.join(known) or 'no values'}: {str(table)[:60]}")
    if not isinstance(required, bool):
        raise ValueError(f"{name}: required is true or false, not {required!r}")
    for key, value in needs.items():
        _check_value(name, key, value)
    if kind.may_have == LIMITS:
        _check_limits(name, needs)
    return Constraint(name, needs, required)


def _check_value(name: str, key: str, value: object) -> None:
    if key in LIMITS:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {key} is a whole number above 0, not {value!r}")
        return
    texts: Sequence[object] = [value] if key == "text" else value if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) and words_of(text) for text in texts):
        expected = "a text" if key == "text" else "a list of texts"
        raise ValueError(f"{name}: {key} is {expected} with a word in it, not {str(value)[:40]!r}")


def _check_limits(name: str, needs: Mapping[str, Any]) -> None:
    if not needs or needs.get("at_least", 1) > needs.get("at_most", needs.get("at_least", 1)):
        raise ValueError(f"{name}: give at_least, at_most, or both in this order: {dict(needs)}")
