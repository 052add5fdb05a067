"""The verifier `constraints`: the share of checkable constraints that an answer keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache

from harness import hookimpl

from .answer_verifier import AnswerVerifier

LONGEST = 20_000  # characters of an answer


@dataclass
class Constraints(AnswerVerifier):
    """The share of constraints that an answer keeps, as in IFEval (Zhou et al. 2023).

    A gold answer is a JSON list of constraints, such as [{"kind": "words", "at_most": 20}]; with
    the option `constraints` they are the same for every row. The kinds are include, exclude, about,
    begin, end, words, items, lower, upper, no_commas, question and json. A constraint with
    "required": true has no share in the grade: an answer that breaks it gets 0. An answer without
    a word keeps no constraint.
    """

    name = "constraints"

    constraints: list[dict] = field(default_factory=list)  # of every answer, as tables
    graded: bool = True  # give the share kept; otherwise 1.0 if all are kept, else 0.0

    def check(self):
        """Raise ValueError for constraints that cannot be read."""
        if self.constraints:
            _read(self._own())

    def read_gold(self, text):
        """Return the constraints of a row; nothing if the options hold those of every row."""
        if self.constraints:
            return ""
        try:
            tables = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON list of constraints: {text[:40]!r}") from error
        return json.dumps([c.table() for c in _read(json.dumps(tables))], sort_keys=True)

    def verify(self, prompts, completions, golds, ended):
        """Return the share kept per completion; None where constraints are missing."""
        own = self._own() if self.constraints else None
        golds = [gold if own is None else own for gold in golds]
        rows = zip(completions, golds, ended, strict=True)
        return [
            None if gold is None else self._share(text, gold, end) if self.counts(end) else 0.0
            for text, gold, end in rows
        ]

    def grade(self, text, gold):
        """Return the share of constraints that a finished answer keeps."""
        return self._share(text, gold, True)

    def examples(self):
        if self.constraints:
            return []
        about = '{"kind": "about", "any": ["clock", "clocks"], "required": true}'
        return [
            ('[{"kind": "include", "words": ["river", "old"]}]', "The river is old."),
            ('{"kind": "begin", "text": "In short"}', "**In short**, yes."),
            ('{"kind": "end", "text": "good night"}', "I wish you a good night!"),
            ('{"kind": "items", "at_least": 2, "at_most": 2}', "- red\n- blue"),
            ('{"kind": "json", "keys": ["name"]}', '```json\n{"name": "Ann"}\n```'),
            (f'[{about}, {{"kind": "words", "at_most": 4}}]', "The clock is late."),
        ]

    def _own(self) -> str:
        return json.dumps(self.constraints, sort_keys=True)

    def _share(self, text: str, gold: str, end: bool) -> float:
        from .constraint_kinds import Answer  # imported late: `harness list` does not need it

        if len(text) > LONGEST:
            return 0.0
        answer, counted = Answer(text), []
        for constraint in _read(gold):
            kept = constraint.kept(answer, end)
            if constraint.required and not kept:
                return 0.0
            counted += [] if constraint.required else [kept]
        share = sum(counted) / len(counted)
        return share if self.graded else float(share == 1.0)


@lru_cache(maxsize=4096)
def _read(gold: str):
    from .constraint_kinds import read_constraints

    return read_constraints(json.loads(gold))


@hookimpl
def register_verifiers(register):
    register(Constraints)
