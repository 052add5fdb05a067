"""The kinds of instructions: the text of each, its constraints, and an answer that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from .instruction_words import ENDINGS, KEYS, OPENINGS, TASKS, TOPICS, WORDS

FILLERS = "very often at home and with good friends on every warm day of a long year".split()


@dataclass(frozen=True)
class Instruction:
    """An instruction, its constraints as JSON, and an answer that keeps them."""

    text: str
    gold: str
    answer: str


@dataclass
class Parts:
    """One constraint of an instruction: its wording, its parameters, and the parts of an answer
    that keeps it.

    The answer to an instruction is `begin`, a clause about the topic, `inside` and `end`.
    """

    say: str
    constraint: dict[str, object]
    begin: str = ""
    inside: str = ""
    end: str = ""
    words: int = 0  # words of the answer; 0: not fixed
    lower: bool = False
    mark: str = "."
    task: str = ""  # replaces a task that asks for sentences
    answer: Callable[[str], str] | None = None  # replaces the whole answer


def _include(rng: Random) -> Parts:
    word = rng.choice(WORDS)
    say = rng.choice(
        ('Include the word "{}".', 'Use the word "{}".', 'The word "{}" must be in your answer.')
    )
    return Parts(
        say.format(word), {"kind": "include", "words": [word]}, inside=f"and the word {word}"
    )


def _begin(rng: Random) -> Parts:
    text = rng.choice(OPENINGS)
    say = rng.choice(('Begin with "{}".', 'Start your answer with "{}".'))
    return Parts(say.format(text), {"kind": "begin", "text": text}, begin=f"{text}:")


def _end(rng: Random) -> Parts:
    text = rng.choice(ENDINGS)
    say = rng.choice(('End with "{}".', 'The last words of your answer must be "{}".'))
    return Parts(say.format(text), {"kind": "end", "text": text}, end=text)


def _at_most_words(rng: Random) -> Parts:
    most = rng.randrange(8, 21)
    say = rng.choice(("Use at most {} words.", "Answer in {} words or fewer."))
    return Parts(say.format(most), {"kind": "words", "at_most": most})


def _exact_words(rng: Random) -> Parts:
    n = rng.randrange(6, 16)
    say = rng.choice(("Use exactly {} words.", "Your answer must have exactly {} words."))
    return Parts(say.format(n), {"kind": "words", "at_least": n, "at_most": n}, words=n)


def _items(rng: Random) -> Parts:
    n = rng.randrange(2, 6)
    task = rng.choice(
        (
            "Make a list about {topic}.",
            "List things that go with {topic}.",
            "List a few things about {topic}.",
        )
    )
    say = rng.choice(("Write exactly {} items, each on a line that begins with a dash.",))
    lines = ("good {}", "{} for children", "old {}", "a day with {}", "more {}")
    return Parts(
        say.format(n),
        {"kind": "items", "at_least": n, "at_most": n},
        task=task,
        answer=lambda topic: "\n".join(f"- {line.format(topic)}" for line in lines[:n]),
    )


def _lower(rng: Random) -> Parts:
    say = rng.choice(
        ("Use only lower case letters.", "Write everything in lower case.", "Use no capitals.")
    )
    return Parts(say, {"kind": "lower"}, lower=True)


def _no_commas(rng: Random) -> Parts:
    say = rng.choice(("Do not use commas.", "Use no commas.", "Write without any comma."))
    return Parts(say, {"kind": "no_commas"})


def _question(rng: Random) -> Parts:
    task = rng.choice(("Ask me something about {topic}.", "Write a question about {topic}."))
    say = rng.choice(
        ("Your answer must end with a question mark.", "Answer with nothing but a question.")
    )
    return Parts(say, {"kind": "question"}, begin="Is it true that", mark="?", task=task)


def _json(rng: Random) -> Parts:
    keys = rng.choice(KEYS)
    task = rng.choice(("Describe {topic}.", "Tell me something about {topic}."))
    say = rng.choice(
        (
            'Answer with a JSON object that has the keys "{}" and "{}", and with nothing else.',
            'Write only a JSON object with the keys "{}" and "{}".',
        )
    )
    return Parts(
        say.format(*keys),
        {"kind": "json", "keys": list(keys)},
        task=task,
        answer=lambda topic: json.dumps({keys[0]: f"good {topic}", keys[1]: "all that I know"}),
    )


MAKERS = {
    "include": _include,
    "begin": _begin,
    "end": _end,
    "at_most_words": _at_most_words,
    "exact_words": _exact_words,
    "items": _items,
    "lower": _lower,
    "no_commas": _no_commas,
    "question": _question,
    "json": _json,
}
SINGLE_KINDS = tuple(MAKERS)
ANY_KIND = (*SINGLE_KINDS, "two")
PAIRS = (
    ("include", "lower"),
    ("include", "no_commas"),
    ("include", "question"),
    ("include", "at_most_words"),
    ("begin", "include"),
    ("begin", "no_commas"),
    ("begin", "end"),
    ("begin", "at_most_words"),
    ("end", "lower"),
    ("end", "at_most_words"),
    ("question", "lower"),
    ("lower", "exact_words"),
    ("lower", "no_commas"),
    ("items", "lower"),
    ("items", "no_commas"),
)


@dataclass
class _Parts:
    """Parts of an instruction with their constraints."""

    parts: list[Parts] = field(default_factory=list)

    def of(self, name: str) -> str:
        return next((value for part in self.parts if (value := getattr(part, name))), "")


def draw(kind: str, seed: str, on_topic: bool = True) -> Instruction:
    """Return an instruction of a kind; the seed decides it.

    With `on_topic`, the first constraint requires that an answer mentions the topic.
    """
    rng = Random(f"instructions/{kind}/{seed}")
    kinds = rng.choice(PAIRS) if kind == "two" else (kind,)
    parts = _Parts([MAKERS[name](rng) for name in kinds])
    topic = rng.choice(TOPICS)
    task = (parts.of("task") or rng.choice(TASKS)).replace("{topic}", topic)
    about = {"kind": "about", "any": forms_of(topic), "required": True}
    constraints = [about] * on_topic + [part.constraint for part in parts.parts]
    return Instruction(
        " ".join([task, *(part.say for part in parts.parts)]),
        json.dumps(constraints, sort_keys=True),
        _answer(topic, parts),
    )


def forms_of(topic: str) -> list[str]:
    """Return a topic in singular and plural."""
    forms = {topic, f"{topic}s"}
    if topic.endswith("s"):
        forms.add(topic[:-1])
    if topic.endswith("es"):
        forms.add(topic[:-2])
    if topic.endswith("ies"):
        forms.add(f"{topic[:-3]}y")
    if topic.endswith("ves"):
        forms.add(f"{topic[:-3]}f")
    return sorted(forms)


def _answer(topic: str, parts: _Parts) -> str:
    """Return an answer that keeps all constraints of an instruction."""
    whole = next((part.answer for part in parts.parts if part.answer), None)
    lower = any(part.lower for part in parts.parts)
    if whole is not None:
        text = whole(topic)
        return text.lower() if lower else text
    inside = " ".join(part.inside for part in parts.parts if part.inside)
    words = f"{parts.of('begin')} people like {topic} {inside}".split()
    n = next((part.words for part in parts.parts if part.words), 0)
    words += FILLERS[: max(0, n - len(words))] + parts.of("end").split()
    mark = next((part.mark for part in parts.parts if part.mark != "."), ".")
    text = " ".join(words) + mark
    return text.lower() if lower else text[0].upper() + text[1:]
