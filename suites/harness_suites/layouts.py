"""The public layouts of preference data: the meaning of their columns.

Every layout becomes pairs of answers to one prompt, single answers with a label, or answers to
imitate. A row is read by the first layout whose columns it has; docs/your-model-and-data.md shows a
row of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from harness import Demonstration, Labelled, Pair, Prompt, derive
from harness.core.data import Text
from harness.models.chat import FRAME

from .conversations import (
    as_messages,
    check_answer,
    check_contains,
    divide,
    divide_one,
    has_words,
    is_trained,
    last_answer,
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
LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
VERDICTS = ("label", "kto_tag")  # whether a single answer is desirable: TRL's, LLaMA-Factory's
ANSWERS = ("completion", "output", "response")
CONVERSATIONS = ("messages", "conversations", "conversation")
REJECTED = ("rejected_response", "rejected_messages")  # ms-swift's, beside a whole conversation
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
SYSTEMS = ("system", "system_prompt")
LISTS = ("responses", "completions", "answers")
WORDS = ("text", "response", "answer", "completion", "content", "output")
SCORES = ("score", "pm_score", "overall_score", "rating", "reward")  # the higher, the better
RANKS = ("rank", "ranking")  # the lower, the better
_SCORED = re.compile("score|rating|reward|rank")  # of the two answers of a pair


@dataclass(frozen=True)
class Columns:
    """The columns of a row, and how they are read."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    ending: str = ""  # of an implicit prompt
    list_pairs: str = "best_worst"  # of ranked answers: best_worst, or all


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
    raise ValueError(_no_column(columns.chosen, row))


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


def _no_column(name: str, row: Row) -> str:
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
        prompt = _with_frame(before, prompt)
        chosen, rejected = (as_messages(t, "assistant") for t in (chosen, rejected))
    return Pair(prompt_of(prompt), chosen, rejected)


# -- the layouts -----------------------------------------------------------------------------------


def _has_pair(row: Row, columns: Columns) -> bool:
    return columns.chosen in row or columns.rejected in row or _is_renamed(columns)


def _is_renamed(columns: Columns) -> bool:
    return (columns.chosen, columns.rejected) != (Columns.chosen, Columns.rejected)


def _pair(row: Row, columns: Columns) -> list[Example]:
    """`chosen` and `rejected`, with the prompt beside them, in them, or both."""
    for column in (columns.chosen, columns.rejected):
        if column not in row:
            raise ValueError(_no_column(column, row))
    for better in row:
        if "chosen" in better and _SCORED.search(better):
            _check_order(row, better, better.replace("chosen", "rejected"))
    chosen, rejected = read_text(row[columns.chosen]), read_text(row[columns.rejected])
    prompt = _prompt(row, columns)
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        _check_implicit(row, columns)
    return [pair_of(prompt, chosen, rejected, columns, _frame(row))]


def _check_implicit(row: Row, columns: Columns) -> None:
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


def _check_order(row: Row, better: str, worse: str) -> None:
    """Raise ValueError if the row's own scores contradict the choice."""
    one, other = _number(row.get(better)), _number(row.get(worse))
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
    info, choice = row["info"], _number(row["choice"])
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
    prompt = _prompt(row, columns)
    if prompt is None:
        raise ValueError(f"no prompt beside {name!r}; the column is one of {', '.join(PROMPTS)}")
    texts = [_words(item) for item in items]
    return _ordered(prompt, texts, _worth(row, items), columns, _frame(row))


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
                    numbers = [number for v in values if (number := _number(v)) is not None]
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
    return [pair_of(prompt, texts[i], texts[j], columns, before) for i, j in places]


def _of_two(prompt: str, one: str, other: str, preference: Callable[[Row], float], *more: str):
    """Return the layout of two answers in columns of their own; above 0, the first is better."""
    needed = {prompt, one, other, *more}

    def is_there(row: Row, columns: Columns) -> bool:
        return needed <= set(row)

    def read(row: Row, columns: Columns) -> list[Example]:
        question = row[prompt]["full_text"] if isinstance(row[prompt], dict) else row[prompt]
        first = preference(row)
        texts = [read_text(row[name]) for name in (one, other)]
        return _ordered(read_text(question), texts, [first, 0.0], columns, _frame(row))

    return is_there, read


def _value(row: Row, name: str, allowed: Sequence[float] = ()) -> float:
    """Return a number of a row, which may be written as text."""
    number = _number(row[name])
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


def _has_answer_and_rejected(row: Row, columns: Columns) -> bool:
    return _has_conversation(row, columns) and any(name in row for name in REJECTED)


def _answer_and_rejected(row: Row, columns: Columns) -> list[Example]:
    """`messages` that end with the better answer, and `rejected_response` (ms-swift)."""
    worse = next(name for name in REJECTED if name in row)
    prompt, chosen = last_answer(_turns(row))
    return [pair_of(prompt, chosen, read_text(row[worse]), columns, _frame(row))]


def _has_label(row: Row, columns: Columns) -> bool:
    is_labelled = any(name in row for name in VERDICTS)
    return is_labelled and (_has_completion(row, columns) or _has_conversation(row, columns))


def _labelled(row: Row, columns: Columns) -> list[Example]:
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
    return (_completed if _has_completion(row, columns) else _conversation)(row, columns)


def _has_completion(row: Row, columns: Columns) -> bool:
    return any(name in row for name in ANSWERS)


def _completed(row: Row, columns: Columns) -> Demonstration:
    name = next(name for name in ANSWERS if name in row)
    answer, prompt = read_text(row[name]), _prompt(row, columns)
    frame = _frame(row)
    if prompt is None:
        if isinstance(answer, str):
            _check_implicit(row, columns)
        return _conversation_of(answer, frame)
    prompt, answer = divide_one(prompt, answer)
    check_answer(answer)
    if frame:
        prompt, answer = _with_frame(frame, prompt), as_messages(answer, "assistant")
    return Demonstration(prompt_of(prompt), answer)


def _imitated(row: Row, columns: Columns) -> list[Example]:
    """`prompt` and `completion`, or `instruction`, `input` and `output`, or a conversation: answers
    to imitate.
    """
    demo = _single(row, columns)
    if not isinstance(demo.completion, str) and not is_trained(demo.completion[0]):
        raise ValueError("the row itself says that its last answer is not to be trained on")
    return [demo]


def _has_conversation(row: Row, columns: Columns) -> bool:
    return any(row.get(name) for name in CONVERSATIONS)


def _conversation(row: Row, columns: Columns) -> Demonstration:
    """`messages` or `conversations` (ShareGPT): the last answer is imitated."""
    turns, prompt = _turns(row), row.get(columns.prompt)
    if isinstance(prompt, str):
        check_contains(turns, prompt)
    return _conversation_of(turns, _frame(row))


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
    return Demonstration(prompt_of(_with_frame(frame, prompt)), answer)


# -- cells -----------------------------------------------------------------------------------------


def _prompt(row: Row, columns: Columns) -> Text | None:
    """Return the row's prompt; None if it is the common beginning of the answers."""
    if columns.prompt != Columns.prompt:
        return read_text(row[columns.prompt]) if columns.prompt in row else None
    for name in PROMPTS:
        if row.get(name) is not None:
            prompt = read_text(row[name])
            extras = (row.get(n) for n in BESIDE) if name == "instruction" else ()
            extra = next((e for e in extras if isinstance(e, str) and e.strip()), None)
            return f"{prompt}\n\n{extra}" if extra else prompt
    name = next((n for n in CONVERSATIONS if row.get(n)), None)
    turns = "" if name is None else read_text(row[name])
    # A conversation that ends with an answer is not a prompt: it repeats `chosen`.
    return None if isinstance(turns, str) or turns[-1]["role"] == "assistant" else turns


def _frame(row: Row) -> list[dict[str, Any]]:
    """Return the messages before a row's conversation: the tools on offer, a system message, and
    the earlier turns.
    """
    name = next((n for n in SYSTEMS if row.get(n)), None)
    system = [] if name is None else read_system(row[name])
    turns = row.get("history")  # as text it is the prompt of other layouts
    earlier = read_history(turns) if isinstance(turns, list) else []
    return [*read_tools(row.get("tools")), *system, *earlier]


def _with_frame(frame: Sequence[Any], prompt: Text) -> Text:
    if not frame:
        return prompt
    messages = as_messages(prompt, "user")
    there = {m["role"] for m in messages if m["role"] in FRAME}
    return [*(m for m in frame if m["role"] not in there), *messages]


def _number(value: object) -> float | None:
    """Return a finite number, which may be written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


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
    (_has_answer_and_rejected, _answer_and_rejected),
    (_has_label, _labelled),
    (_has_completion, _imitated),
    (_has_conversation, _imitated),
)
