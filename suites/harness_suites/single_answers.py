"""Rows with one answer: a labelled one, one to imitate, or one beside a rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import Demonstration, Labelled
from harness.core.data import Text

from .columns import (
    CONVERSATIONS,
    Columns,
    Example,
    Row,
    check_implicit,
    frame_of,
    pair_of,
    prompt_in,
    prompt_of,
    with_frame,
)
from .conversations import (
    as_messages,
    check_answer,
    check_contains,
    divide_one,
    is_trained,
    last_answer,
    read_text,
)

LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
VERDICTS = ("label", "kto_tag")  # whether a single answer is desirable: TRL's, LLaMA-Factory's
ANSWERS = ("completion", "output", "response")
REJECTED = ("rejected_response", "rejected_messages")  # ms-swift's, beside a whole conversation


def has_answer_and_rejected(row: Row, columns: Columns) -> bool:
    """Return whether a row is a conversation with a rejected answer beside it."""
    return has_conversation(row, columns) and any(name in row for name in REJECTED)


def answer_and_rejected(row: Row, columns: Columns) -> list[Example]:
    """`messages` that end with the better answer, and `rejected_response` (ms-swift)."""
    worse = next(name for name in REJECTED if name in row)
    prompt, chosen = last_answer(_turns(row))
    return [pair_of(prompt, chosen, read_text(row[worse]), columns, frame_of(row))]


def has_label(row: Row, columns: Columns) -> bool:
    """Return whether a row is one answer with a verdict on it."""
    is_labelled = any(name in row for name in VERDICTS)
    return is_labelled and (has_completion(row, columns) or has_conversation(row, columns))


def labelled(row: Row, columns: Columns) -> list[Example]:
    """An answer and `label`: single answers that are desirable or not (KTO)."""
    name = next(name for name in VERDICTS if name in row)
    good = LABELS.get(str(row[name]).strip().casefold())
    if good is None:
        raise ValueError(
            f"{name} is true or false, not {row[name]!r}. Rename the column if it is no verdict on"
            " the answer"
        )
    demo = _single(row, columns)
    return [Labelled(demo.prompt, demo.completion, good)]


def _single(row: Row, columns: Columns) -> Demonstration:
    """Return the only answer of a row.

    Raises:
        ValueError: Another column may hold a rejected answer, so it would be lost.
    """
    lost = next((n for n in row if "rejected" in n.lower() and isinstance(row[n], str | list)), "")
    if lost:
        raise ValueError(
            f"{lost!r} may hold a rejected answer: set chosen_column and rejected_column"
        )
    return (_completed if has_completion(row, columns) else _conversation)(row, columns)


def has_completion(row: Row, columns: Columns) -> bool:
    """Return whether a row has one answer in a column of its own."""
    return any(name in row for name in ANSWERS)


def _completed(row: Row, columns: Columns) -> Demonstration:
    name = next(name for name in ANSWERS if name in row)
    answer, prompt = read_text(row[name]), prompt_in(row, columns)
    frame = frame_of(row)
    if prompt is None:
        if isinstance(answer, str):
            check_implicit(row, columns)
        return _conversation_of(answer, frame)
    prompt, answer = divide_one(prompt, answer)
    check_answer(answer)
    if frame:
        prompt, answer = with_frame(frame, prompt), as_messages(answer, "assistant")
    return Demonstration(prompt_of(prompt), answer)


def imitated(row: Row, columns: Columns) -> list[Example]:
    """`prompt` and `completion`, or `instruction`, `input` and `output`, or a conversation: answers
    to imitate.
    """
    demo = _single(row, columns)
    if not isinstance(demo.completion, str) and not is_trained(demo.completion[0]):
        raise ValueError("the row itself says that its last answer is not to be trained on")
    return [demo]


def has_conversation(row: Row, columns: Columns) -> bool:
    """Return whether a row has a whole conversation."""
    return any(row.get(name) for name in CONVERSATIONS)


def _conversation(row: Row, columns: Columns) -> Demonstration:
    """`messages` or `conversations` (ShareGPT): the last answer is imitated."""
    turns, prompt = _turns(row), row.get(columns.prompt)
    if isinstance(prompt, str):
        check_contains(turns, prompt)
    return _conversation_of(turns, frame_of(row))


def _turns(row: Row) -> list[Any]:
    """Return the conversation of a row."""
    turns = read_text(row[next(name for name in CONVERSATIONS if row.get(name))])
    if isinstance(turns, str):
        raise ValueError("text without a prompt: an answer to imitate needs one")
    return turns


def _conversation_of(text: Text, frame: Sequence[Any]) -> Demonstration:
    if isinstance(text, str):
        raise ValueError("text without a prompt: an answer to imitate needs one")
    prompt, answer = last_answer(text)
    check_answer(answer)
    return Demonstration(prompt_of(with_frame(frame, prompt)), answer)
