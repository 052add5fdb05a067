"""The public layouts of preference data: the meaning of their columns.

Every layout becomes pairs of answers to one prompt, single answers with a label, or answers to
imitate. A row is read by the first layout whose columns it has; docs/your-model-and-data.md shows a
row of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from harness.core.data import Ranked, Text

from .columns import (
    PROMPTS,
    Columns,
    Example,
    Row,
    check_implicit,
    frame_of,
    no_column,
    number_in,
    pair_of,
    prompt_in,
)
from .conversations import read_text
from .single_answers import (
    VERDICTS,
    answer_and_rejected,
    has_answer_and_rejected,
    has_completion,
    has_conversation,
    has_label,
    imitated,
    labelled,
)

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
LISTS = ("responses", "completions", "answers")
WORDS = ("text", "response", "answer", "completion", "content", "output")
SCORES = ("score", "pm_score", "overall_score", "rating", "reward")  # the higher, the better
RANKS = ("rank", "ranking")  # the lower, the better
_SCORED = re.compile("score|rating|reward|rank")  # of the two answers of a pair


def read_row(row: object, columns: Columns) -> list[Example]:
    """Return the examples of a row.

    Raises:
        ValueError: The row has no known layout, or cannot be used.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with {columns.chosen!r} and {columns.rejected!r}")
    filled = _without_nulls(row, columns)
    _check_media(filled)
    for is_there, read in LAYOUTS:
        if is_there(filled, columns):
            try:
                return read(filled, columns)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(f"{type(error).__name__}: {error}") from error
    raise ValueError(no_column(columns.chosen, row))


def _without_nulls(row: Row, columns: Columns) -> Row:
    """Return a row without the null cells that a table of several layouts gives it.

    A null is kept in a column whose absence would be an error: a prompt, a label, one answer of
    two.
    """
    pair = (columns.chosen, columns.rejected)
    kept = {columns.prompt, *PROMPTS, *VERDICTS}
    kept |= set(pair) if any(row.get(name) is not None for name in pair) else set()
    return {name: cell for name, cell in row.items() if cell is not None or name in kept}


def _check_media(row: Row) -> None:
    """Raise ValueError for a row whose text is about an image, a video or a sound."""
    name = next((n for n in MEDIA if row.get(n) is not None and row[n] not in ("", [], {})), None)
    if name is not None:
        raise ValueError(f"{name!r} is not empty: only text can be read")


# -- the layouts -----------------------------------------------------------------------------------


def _has_pair(row: Row, columns: Columns) -> bool:
    return columns.chosen in row or columns.rejected in row or _is_renamed(columns)


def _is_renamed(columns: Columns) -> bool:
    return (columns.chosen, columns.rejected) != (Columns.chosen, Columns.rejected)


def _pair(row: Row, columns: Columns) -> list[Example]:
    """`chosen` and `rejected`, with the prompt beside them, in them, or both."""
    for column in (columns.chosen, columns.rejected):
        if column not in row:
            raise ValueError(no_column(column, row))
    for better in row:
        if "chosen" in better and _SCORED.search(better):
            _check_order(row, better, better.replace("chosen", "rejected"))
    chosen, rejected = read_text(row[columns.chosen]), read_text(row[columns.rejected])
    prompt = prompt_in(row, columns)
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        check_implicit(row, columns)
    return [pair_of(prompt, chosen, rejected, columns, frame_of(row))]


def _check_order(row: Row, better: str, worse: str) -> None:
    """Raise ValueError if the row's own scores contradict the choice."""
    one, other = number_in(row.get(better)), number_in(row.get(worse))
    if one is None or other is None:
        return
    if (one > other) if "rank" in better else (one < other):
        raise ValueError(
            f"{better} = {row[better]} and {worse} = {row[worse]} say that rejected is better"
        )


def _has_summaries(row: Row, columns: Columns) -> bool:
    return {"info", "summaries", "choice"} <= set(row)


def _summaries(row: Row, columns: Columns) -> list[Example]:
    """`info`, `summaries` and `choice`: OpenAI's comparisons of summaries (TL;DR)."""
    info, choice = row["info"], number_in(row["choice"])
    texts = [f" {s['text'].strip()}" for s in row["summaries"]]
    if choice not in (0, 1) or len(texts) != 2:
        raise ValueError(
            f"choice is 0 or 1 of two summaries, not {row['choice']!r} of {len(texts)}"
        )
    return [pair_of(_post(info), texts[int(choice)], texts[1 - int(choice)], columns)]


def _post(info: Row) -> str:
    """Return a post as the prompt of Stiennon et al. (2009.01325), or an article likewise."""
    if info.get("post"):
        parts = (("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"))
    else:
        parts = (("TITLE: ", "title"), ("ARTICLE: ", "article"))
    lines = [f"{name}{info[key].strip()}" for name, key in parts if info.get(key)]
    if len(lines) < 2 and "article" not in info:
        raise ValueError("info holds neither a post nor an article")
    return "\n\n".join([*lines, "TL;DR:"])


def _has_list(row: Row, columns: Columns) -> bool:
    return any(isinstance(row.get(name), list) for name in LISTS)


def _ranked(row: Row, columns: Columns) -> list[Example]:
    """`responses`, `completions` or `answers` with scores or ranks, inside them or in columns of
    their own.
    """
    name = next(name for name in LISTS if isinstance(row.get(name), list))
    items = row[name]
    prompt = prompt_in(row, columns)
    if prompt is None:
        raise ValueError(f"no prompt beside {name!r}; the column is one of {', '.join(PROMPTS)}")
    texts = [_words(item) for item in items]
    return _ordered(prompt, texts, _worth(row, items), columns, frame_of(row))


def _words(item: object) -> Text:
    if isinstance(item, dict) and "role" not in item and "from" not in item:
        name = next((n for n in WORDS if n in item), None)
        if name is None:
            raise ValueError(f"an answer with neither of {', '.join(WORDS)}")
        item = item[name]
    return read_text(item)


def _worth(row: Row, items: Sequence[Any]) -> list[float]:
    """Return a number per answer, higher is better, from its own fields or from the row's."""
    for names, sign in ((SCORES, 1), (RANKS, -1)):
        for name in names:
            own = [i.get(name) for i in items if isinstance(i, dict)]
            beside = row.get(f"{name}s", row.get(name))
            for values in (own, beside):
                if isinstance(values, list) and len(values) == len(items) > 0:
                    numbers = [number for v in values if (number := number_in(v)) is not None]
                    if len(numbers) == len(values):
                        return [sign * number for number in numbers]
    raise ValueError(
        f"no score or rank for each answer: expected one of the columns {', '.join(SCORES + RANKS)}"
    )


def _ordered(
    prompt: Text, texts: Sequence[Text], worth: Sequence[float], columns: Columns, before: Any = ()
) -> list[Example]:
    """Return pairs of answers with different scores: the best and the worst, or all pairs."""
    order = sorted(range(len(texts)), key=lambda i: -worth[i])
    if not order or worth[order[0]] == worth[order[-1]]:
        raise ValueError("no answer is better than another")
    places = [(order[0], order[-1])]
    if columns.list_pairs == "all":
        places = [(i, j) for i, j in combinations(order, 2) if worth[i] > worth[j]]
    pairs = [pair_of(prompt, texts[i], texts[j], columns, before) for i, j in places]
    answers = [_as_answer(prompt, texts, i, columns, before) for i in range(len(texts))]
    whole = Ranked(pairs[0].prompt, tuple(answers), tuple(worth))
    return [replace(pairs[0], listed=whole), *pairs[1:]]


def _as_answer(prompt: Text, texts: Sequence[Text], at: int, columns: Columns, before: Any) -> Text:
    """Return an answer of a list in the form that it has in a pair."""
    other = next(text for text in texts if text != texts[at])
    return pair_of(prompt, texts[at], other, columns, before).chosen


def _of_two(prompt: str, one: str, other: str, preference: Callable[[Row], float], *more: str):
    """Return the layout of two answers in columns of their own; above 0, the first is better."""
    needed = {prompt, one, other, *more}

    def is_there(row: Row, columns: Columns) -> bool:
        return needed <= set(row)

    def read(row: Row, columns: Columns) -> list[Example]:
        question = row[prompt]["full_text"] if isinstance(row[prompt], dict) else row[prompt]
        first = preference(row)
        texts = [read_text(row[name]) for name in (one, other)]
        return _ordered(read_text(question), texts, [first, 0.0], columns, frame_of(row))

    return is_there, read


def _value(row: Row, name: str, allowed: Sequence[float] = ()) -> float:
    """Return a number of a row, which may be written as text."""
    number = number_in(row[name])
    if number is None or (allowed and number not in allowed):
        expected = " or ".join(f"{a:g}" for a in allowed) or "a number"
        raise ValueError(f"{name} is {expected}, not {row[name]!r}")
    return number


def _has_arena(row: Row, columns: Columns) -> bool:
    return {"conversation_a", "conversation_b", "winner"} <= set(row)


def _arena(row: Row, columns: Columns) -> list[Example]:
    """`conversation_a`, `conversation_b` and `winner`: the chatbot arena."""
    if row["winner"] not in ("model_a", "model_b"):
        raise ValueError(f"no answer is better than another: winner = {row['winner']!r}")
    texts = [read_text(row[name]) for name in ("conversation_a", "conversation_b")]
    won, lost = texts if row["winner"] == "model_a" else texts[::-1]
    return [pair_of(None, won, lost, columns)]


LAYOUTS: tuple[tuple[Callable[[Row, Columns], bool], Callable[[Row, Columns], list[Example]]], ...]
LAYOUTS = (
    (_has_pair, _pair),
    (_has_summaries, _summaries),
    _of_two(
        "history",
        "human_ref_A",
        "human_ref_B",
        lambda r: _value(r, "labels", (0, 1)) - 0.5,
        "labels",
    ),
    _of_two(
        "prompt",
        "response_0",
        "response_1",
        lambda r: 0.5 - _value(r, "better_response_id", (0, 1)),
        "better_response_id",
    ),
    _of_two(
        "question",
        "answer_0",
        "answer_1",
        lambda r: _value(r, "score_0") - _value(r, "score_1"),
        "score_0",
    ),
    _of_two(
        "prompt",
        "response_1",
        "response_2",
        lambda r: -_value(r, "preference_strength"),
        "preference_strength",
    ),
    _of_two("question", "response_j", "response_k", lambda r: 1.0),  # stack-exchange-paired
    _of_two(
        "context",
        "response1",
        "response2",
        lambda r: -_value(r, "overall_preference"),
        "overall_preference",
    ),
    (_has_arena, _arena),
    (_has_list, _ranked),
    (has_answer_and_rejected, answer_and_rejected),
    (has_label, labelled),
    (has_completion, imitated),
    (has_conversation, imitated),
)
