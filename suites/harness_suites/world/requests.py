"""Requests with checkable constraints, replies to them, and the graded score of a reply.

`User: tell me about sea in 5 words . mention boat . avoid sand and salt . be polite . Assistant:`
  -> `please wave boat
fish shore fish .`
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from . import words as w


@dataclass(frozen=True)
class Request:
    topic: str
    length: int  # words asked for, the closing full stop and politeness not counted
    mention: tuple[str, ...]
    avoid: tuple[str, ...]
    polite: bool

    @property
    def prompt(self) -> str:
        manners = " be polite ." if self.polite else ""
        words = f"mention {' and '.join(self.mention)} . avoid {' and '.join(self.avoid)} ."
        return (
            f"{w.USER} tell me about {self.topic} in {self.length} words . {words}{manners}"
            f" {w.ASSISTANT}"
        )


def write_request(rng: Random) -> Request:
    """Draw a request: 4 to 10 words about one of 8 topics, a word to mention, a word to avoid,
    perhaps polite.
    """
    topic = rng.choice(list(w.TOPICS))
    mention, avoid = rng.sample(w.TOPICS[topic], 2)
    return Request(topic, rng.randint(4, 10), (mention,), (avoid,), rng.random() < 0.5)


def write_long_request(rng: Random) -> Request:
    """Draw a request with one or two words to mention and one or two to avoid: 70,560 in all; never
    in pretraining.
    """
    topic = rng.choice(list(w.TOPICS))
    mention, avoid = rng.randint(1, 2), rng.randint(1, 2)
    words = tuple(rng.sample(w.TOPICS[topic], mention + avoid))
    return Request(topic, rng.randint(4, 10), words[:mention], words[mention:], rng.random() < 0.5)


def write_reply(rng: Random, request: Request, keep: float = 1.0) -> str:
    """Answer with words of the topic; keep each constraint with probability `keep`."""
    kept = [rng.random() < keep for _ in range(4)]
    length = request.length if kept[0] else max(2, request.length + rng.choice((-3, -2, 2, 3)))
    pool = [t for t in w.TOPICS[request.topic] if t not in request.avoid]
    body = [rng.choice(pool) for _ in range(length)]
    if kept[1]:
        spots = list(range(length))
        for word in request.mention:
            body[spots.pop(rng.randrange(len(spots)))] = word
    elif set(request.mention) & set(body):
        body = [rng.choice([t for t in pool if t not in request.mention]) for _ in body]
    if not kept[2]:
        spots = [i for i, t in enumerate(body) if t not in request.mention or not kept[1]] or [0]
        body[rng.choice(spots)] = (
            rng.choice(request.avoid) if len(request.avoid) > 1 else request.avoid[0]
        )
    polite = request.polite if kept[3] else not request.polite
    return " ".join([*(["please"] if polite else []), *body, "."])


def expert_reply(rng: Random, request: Request) -> str:
    """Keep every constraint, and repeat no word directly."""
    while True:
        reply = write_reply(rng, request)
        if not read_reply(request, reply).repeats:
            return reply


def demonstration(rng: Random, request: Request) -> str:
    """Draw a reply of mixed quality: 30 % expert, 40 % average, 30 % careless."""
    quality = rng.random()
    if quality < 0.30:
        return expert_reply(rng, request)
    return write_reply(rng, request, 0.85 if quality < 0.70 else 0.6)


def kept_constraints(request: Request, reply: str) -> float:
    """Return the share of the four constraints (length, mention, avoid, politeness) a reply keeps,
    in [0, 1].
    """
    text = reply.split()
    polite, body = text[:1] == ["please"], [t for t in text if t not in ("please", ".")]
    named, shunned = set(request.mention) <= set(body), not set(request.avoid) & set(body)
    kept = (len(body) == request.length, named, shunned, polite == request.polite)
    return sum(kept) / 4


# -- the graded score ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """The measured features of a reply; `score` combines them into one number."""

    miss: int  # words too many or too few
    mention: float  # share of the words to mention that are named, in [0, 1]
    avoid: float  # share of the words to avoid that are left out, in [0, 1]
    polite: bool  # begins with "please" if and only if that was asked for
    repeats: int  # directly repeated words
    stray: int  # words that do not belong to the topic
    finished: bool  # ends with a full stop, its only one

    @property
    def score(self) -> float:
        """At most 1 for each of the four constraints, less the faults; in [-4, 4]."""
        kept = max(0.0, 1 - self.miss / 3) + self.mention + self.avoid + self.polite
        return max(
            -4.0, kept - 0.25 * self.repeats - 0.5 * self.stray - (0.0 if self.finished else 0.5)
        )


def read_reply(request: Request, reply: str) -> Reading:
    """Compare a reply with its request."""
    text = reply.split()
    finished = text[-1:] == ["."]
    polite = text[:1] == ["please"]
    body = text[int(polite) : len(text) - int(finished)]
    named = set(body)
    return Reading(
        miss=abs(len(body) - request.length),
        mention=sum(word in named for word in request.mention) / len(request.mention),
        avoid=sum(word not in named for word in request.avoid) / len(request.avoid),
        polite=polite == request.polite,
        repeats=sum(a == b for a, b in pairwise(body)),
        stray=sum(word not in w.TOPICS[request.topic] for word in body),
        finished=finished,
    )
