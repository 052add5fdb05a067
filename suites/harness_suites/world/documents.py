"""News documents, their summaries at three qualities, and the graded score of a summary.

A document reports facts (agent, verb, object, place); the verb decides how important a fact is. A
good summary names the important facts with the right words and leaves the rest out.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from . import words as w

WEIGHTS = {
    **dict.fromkeys(w.MAJOR_VERBS, 3),
    **dict.fromkeys(w.MEDIUM_VERBS, 2),
    **dict.fromkeys(w.MINOR_VERBS, 0),
}
MAX_DOCUMENT_WORDS = 70
MAX_SUMMARY_TOKENS = 26  # words and the end-of-sequence token


@dataclass(frozen=True)
class Fact:
    agent: str
    verb: str
    object: str
    place: str

    @property
    def weight(self) -> int:
        return WEIGHTS[self.verb]

    def clause(self, with_place: bool = True) -> str:
        core = f"{self.agent} {self.verb} {self.object}"
        return f"{core} in {self.place}" if with_place else core


@dataclass(frozen=True)
class Document:
    text: str
    facts: tuple[Fact, ...]  # in the order of the text

    @property
    def prompt(self) -> str:
        return f"{self.text} {w.DOCUMENT_END}"

    @property
    def important(self) -> list[Fact]:
        return [fact for fact in self.facts if fact.weight]


def write_document(rng: Random, majors: int | None = None, mediums: int | None = None) -> Document:
    """Draw a document of 1-2 major, 1-2 medium and 1-2 minor facts with filler (or of the counts
    given).
    """
    while True:
        counts = (
            majors or rng.randint(1, 2),
            mediums if mediums is not None else rng.randint(1, 2),
            rng.randint(1, 2),
        )
        facts = _facts(rng, *counts)
        sentences = [(fact, _render(rng, fact)) for fact in facts]
        sentences += [(None, line) for line in rng.sample(w.FILLERS, rng.randint(2, 3))]
        rng.shuffle(sentences)
        text = " ".join(line for _, line in sentences)
        if len(text.split()) <= MAX_DOCUMENT_WORDS:
            return Document(text, tuple(fact for fact, _ in sentences if fact))


def write_short_document(rng: Random, facts: int) -> Document:
    """Draw an easy document of `facts` facts and no filler: the first steps of pretraining."""
    drawn = _facts(rng, *[(1, 0, 0), (1, 1, 0), (1, 1, 1)][facts - 1])
    rng.shuffle(drawn)
    return Document(" ".join(_render(rng, fact) for fact in drawn), tuple(drawn))


def _facts(rng: Random, majors: int, mediums: int, minors: int) -> list[Fact]:
    verbs = (
        rng.sample(w.MAJOR_VERBS, majors)
        + rng.sample(w.MEDIUM_VERBS, mediums)
        + rng.sample(w.MINOR_VERBS, minors)
    )
    n = len(verbs)
    columns = (rng.sample(w.AGENTS, n), verbs, rng.sample(w.OBJECTS, n), rng.sample(w.PLACES, n))
    return [Fact(*column) for column in zip(*columns, strict=True)]


def _render(rng: Random, fact: Fact) -> str:
    return rng.choice(w.TEMPLATES).format(
        a=fact.agent,
        v=fact.verb,
        o=fact.object,
        p=fact.place,
        j=rng.choice(w.ADJECTIVES),
        d=rng.choice(w.DAYS),
    )


# -- summaries -------------------------------------------------------------------------------------


def expert_summary(document: Document) -> str:
    """Name every important fact with its place, in the order of the document."""
    return _join([fact.clause() for fact in document.important])


def average_summary(rng: Random, document: Document) -> str:
    """Name one or two facts, important or not; one in eight has a wrong word."""
    facts = rng.sample(document.facts, min(len(document.facts), rng.randint(1, 2)))
    return _join([_maybe_corrupt(rng, fact, 0.12).clause(rng.random() < 0.7) for fact in facts])


def careless_summary(rng: Random, document: Document) -> str:
    """Name one to three facts, one in four with a wrong word, repetitions and stock phrases."""
    facts = rng.sample(document.facts, min(len(document.facts), rng.randint(1, 3)))
    clauses = [_maybe_corrupt(rng, fact, 0.25).clause(rng.random() < 0.5) for fact in facts]
    if rng.random() < 0.25:
        clauses.append(rng.choice(clauses))
    if rng.random() < 0.4:
        clauses.insert(rng.randint(0, len(clauses)), rng.choice(w.FLUFF))
    return _fit(clauses)


def neutral_summary(rng: Random, document: Document) -> str:
    """Name facts chosen without regard to importance, all words right. The base model is pretrained
    on such summaries.
    """
    count = rng.choices((1, 2, 3, 4), (55, 25, 12, 8))[0]
    facts = rng.sample(document.facts, min(len(document.facts), count))
    clauses = [fact.clause(rng.random() < 0.4) for fact in facts]
    if rng.random() < 0.5:
        clauses.insert(rng.randint(0, len(clauses)), rng.choice(w.FLUFF))
    return _fit(clauses)


def fact_list(document: Document) -> str:
    """Name every fact in the order of the document. It teaches which words belong together, but no
    preference.
    """
    return _join([fact.clause() for fact in document.facts])


def demonstration(rng: Random, document: Document) -> str:
    """Draw a summary of mixed quality: 40 % expert, 40 % average, 20 % careless."""
    quality = rng.random()
    if quality < 0.40:
        return expert_summary(document)
    return average_summary(rng, document) if quality < 0.80 else careless_summary(rng, document)


def _maybe_corrupt(rng: Random, fact: Fact, rate: float) -> Fact:
    if rng.random() >= rate:
        return fact
    slot = rng.choice(("agent", "object", "place"))
    pool = {"agent": w.AGENTS, "object": w.OBJECTS, "place": w.PLACES}[slot]
    wrong = rng.choice([word for word in pool if word != getattr(fact, slot)])
    return Fact(**{**fact.__dict__, slot: wrong})


def _fit(clauses: list[str]) -> str:
    while len(_join(clauses).split()) > MAX_SUMMARY_TOKENS - 1:
        clauses = clauses[:-1]
    return _join(clauses)


def _join(clauses: list[str]) -> str:
    return " ; ".join(clauses) + " ."


# -- the graded score ------------------------------------------------------------------------------


@dataclass
class Reading:
    """The measured features of a summary; `score` combines them into one number."""

    recall: float = 0.0  # named share of the total importance, in [0, 1]
    wrong_slots: int = 0
    duplicates: int = 0
    malformed: int = 0
    idle: int = 0  # stock phrases and unimportant facts
    words: int = 0
    finished: bool = False  # ends with a full stop

    @property
    def score(self) -> float:
        """4 recall less the faults; at most 4, never below -4."""
        faults = (
            0.35 * self.wrong_slots + 0.4 * self.duplicates + 0.5 * self.malformed + 0.3 * self.idle
        )
        length = 0.04 * max(0, self.words - 18)
        return max(-4.0, 4 * self.recall - faults - length - (0.0 if self.finished else 0.3))


def read_summary(document: Document, summary: str) -> Reading:
    """Compare a summary with the document's facts, clause by clause."""
    text = summary.split()
    reading = Reading(words=len(text), finished=bool(text) and text[-1] == ".")
    body = " ".join(text[:-1] if reading.finished else text)
    gained: dict[Fact, float] = {}
    for clause in body.split(" ; ") if body else []:
        _read_clause(document, clause.split(), reading, gained)
    total = sum(fact.weight for fact in document.facts)
    reading.recall = sum(fact.weight * share for fact, share in gained.items()) / total
    return reading


def _read_clause(
    document: Document, clause: list[str], reading: Reading, gained: dict[Fact, float]
) -> None:
    if " ".join(clause) in w.FLUFF:
        reading.idle += 1
        return
    if not _well_formed(clause):
        reading.malformed += 1
        return
    fact, matches = _closest(document, clause)
    place = clause[4] if len(clause) == 5 else None
    wrong_place = place is not None and place != fact.place
    reading.wrong_slots += 3 - matches + wrong_place
    if matches < 2:
        return
    if fact in gained:
        reading.duplicates += 1
        return
    reading.idle += fact.weight == 0
    gained[fact] = (1.0 if matches == 3 else 0.3) * (1.0 if place == fact.place else 0.7)


def _well_formed(clause: list[str]) -> bool:
    core = (
        len(clause) in (3, 5)
        and clause[0] in w.AGENTS
        and clause[1] in WEIGHTS
        and clause[2] in w.OBJECTS
    )
    return core and (len(clause) == 3 or (clause[3] == "in" and clause[4] in w.PLACES))


def _closest(document: Document, clause: list[str]) -> tuple[Fact, int]:
    def matches(fact: Fact) -> int:
        return (fact.agent == clause[0]) + (fact.verb == clause[1]) + (fact.object == clause[2])

    best = max(document.facts, key=matches)  # the first of equals
    return best, matches(best)
