"""The columns that layouts have in common: prompts, system messages, tools and earlier turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import Demonstration, Labelled, Pair, Prompt, derive
from harness.core.data import Text
from harness.models.chat import FRAME

from .conversations import (
    as_messages,
    check_answer,
    divide,
    has_words,
    read_history,
    read_system,
    read_text,
    read_tools,
)

Example = Pair | Labelled | Demonstration
Row = Mapping[str, Any]

PROMPTS = (
    "prompt",
    "question",
    "instruction",
    "query",
)  # in this order, if the row has no prompt_column
BESIDE = ("input", "context")  # the input of an instruction: Alpaca's name, and Dolly's
# columns that may hold the prompt under an unusual name
PERHAPS = (
    "input",
    "context",
    "problem",
    "post",
    "document",
    "article",
    "text",
    "user",
    "human",
    "history",
    "user_prompt",
    "task",
)
SHOWN = 12  # columns that a message names
CONVERSATIONS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt")


@dataclass(frozen=True)
class Columns:
    """The columns of a row, and how they are read."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    ending: str = ""  # of an implicit prompt
    list_pairs: str = "best_worst"  # of ranked answers: best_worst, or all


def no_column(name: str, row: Row) -> str:
    """Return the message for a row without a column that is needed."""
    there = [str(n) for n in row][:SHOWN]
    more = f" and {len(row) - SHOWN} more" if len(row) > SHOWN else ""
    return f"no column {name!r}; there are {', '.join(sorted(there)) or 'none'}{more}"


def prompt_of(text: Text) -> Prompt:
    """Return a prompt, with an id from its text; raise ValueError for one without words."""
    if not has_words(text):
        raise ValueError("an empty prompt")
    return Prompt(f"{derive('prompt', text):016x}", text)


def pair_of(prompt: Text | None, chosen: Text, rejected: Text, columns: Columns, before=()) -> Pair:
    """Return a pair; `before` are the messages before the prompt: tools and system."""
    prompt, chosen, rejected = divide(prompt, chosen, rejected, columns.ending)
    for answer in (chosen, rejected):
        check_answer(answer)
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    if before:
        prompt = with_frame(before, prompt)
        chosen, rejected = (as_messages(t, "assistant") for t in (chosen, rejected))
    return Pair(prompt_of(prompt), chosen, rejected)


def check_implicit(row: Row, columns: Columns) -> None:
    """Raise ValueError if another column may hold the prompt of two texts. Their common beginning
    would then be part of the answers.
    """
    null = next((n for n in (columns.prompt, *PROMPTS) if row.get(n, "") is None), None)
    if null is not None:
        raise ValueError(f"{null!r} is null")
    name = next((n for n in PERHAPS if isinstance(row.get(n), str) and row[n].strip()), None)
    if name is not None and columns.prompt:
        raise ValueError(
            f'no column {columns.prompt!r}, but {name!r}: set prompt_column = "{name}", or'
            ' prompt_column = "" where the answers begin with their prompt'
        )


def prompt_in(row: Row, columns: Columns) -> Text | None:
    """Return the row's prompt; None if it is the common beginning of the answers."""
    if columns.prompt != Columns.prompt:
        return read_text(row[columns.prompt]) if columns.prompt in row else None
    for name in PROMPTS:
        if row.get(name) is not None:
            prompt = read_text(row[name])
            extras = (row.get(n) for n in BESIDE) if name == "instruction" else ()
            extra = next((e for e in extras if isinstance(e, str) and e.strip()), None)
            return f"{prompt}\n\n{extra}" if extra and isinstance(prompt, str) else prompt
    name = next((n for n in CONVERSATIONS if row.get(n)), None)
    turns = "" if name is None else read_text(row[name])
    # A conversation that ends with an answer is not a prompt: it repeats `chosen`.
    return None if isinstance(turns, str) or turns[-1]["role"] == "assistant" else turns


def frame_of(row: Row) -> list[dict[str, Any]]:
    """Return the messages before a row's conversation: the tools on offer, a system message, and
    the earlier turns.
    """
    name = next((n for n in SYSTEMS if row.get(n)), None)
    system = [] if name is None else read_system(row[name])
    turns = row.get("history")  # as text it is the prompt of other layouts
    earlier = read_history(turns) if isinstance(turns, list) else []
    return [*read_tools(row.get("tools")), *system, *earlier]


def with_frame(frame: Sequence[Any], prompt: Text) -> Text:
    """Return a prompt behind the messages of `frame_of`; its own tools and system message stay."""
    if not frame:
        return prompt
    messages = as_messages(prompt, "user")
    there = {m["role"] for m in messages if m["role"] in FRAME}
    return [*(m for m in frame if m["role"] not in there), *messages]


def number_in(value: object) -> float | None:
    """Return a finite number, which may be written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
