"""Requests with checkable constraints: `User: tell me about sea in 5 words . mention boat . avoid sand . Assistant:`"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from . import words as w


@dataclass(frozen=True)
class Request:
    topic: str
    length: int  # words asked for, the closing full stop and politeness not counted
    mention: str
    avoid: str
    polite: bool

    @property
    def prompt(self) -> str:
        manners = " be polite ." if self.polite else ""
        asked = f"tell me about {self.topic} in {self.length} words . mention {self.mention} . avoid {self.avoid} ."
        return f"{w.USER} {asked}{manners} {w.ASSISTANT}"


def write_request(rng: Random) -> Request:
    """Draw a request: 4 to 10 words about one of 8 topics, a word to mention, a word to avoid, perhaps polite."""
    topic = rng.choice(list(w.TOPICS))
    mention, avoid = rng.sample(w.TOPICS[topic], 2)
    return Request(topic, rng.randint(4, 10), mention, avoid, rng.random() < 0.5)


def write_reply(rng: Random, request: Request, keep: float = 1.0) -> str:
    """Answer with words of the topic; each of the four constraints is kept with probability `keep`."""
    kept = [rng.random() < keep for _ in range(4)]
    length = request.length if kept[0] else max(2, request.length + rng.choice((-3, -2, 2, 3)))
    pool = [t for t in w.TOPICS[request.topic] if t != request.avoid]
    body = [rng.choice(pool) for _ in range(length)]
    if kept[1]:
        body[rng.randrange(length)] = request.mention
    elif request.mention in body:
        body = [rng.choice([t for t in pool if t != request.mention]) for _ in body]
    if not kept[2]:
        spots = [i for i, t in enumerate(body) if t != request.mention or not kept[1]] or [0]
        body[rng.choice(spots)] = request.avoid
    polite = request.polite if kept[3] else not request.polite
    return " ".join([*(["please"] if polite else []), *body, "."])


def kept_constraints(request: Request, reply: str) -> float:
    """Return the share of the four constraints (length, mention, avoid, politeness) a reply keeps, in [0, 1]."""
    text = reply.split()
    polite, body = text[:1] == ["please"], [t for t in text if t not in ("please", ".")]
    kept = (len(body) == request.length, request.mention in body, request.avoid not in body, polite == request.polite)
    return sum(kept) / 4
