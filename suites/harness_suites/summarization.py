"""Summarization: procedural news with a graded gold judge, and a noisy
labeller.

Gold is `documents.Reading.score`: the importance of the named facts, less wrong words, repetitions,
unimportant clauses and length. Preferences come from a Bradley-Terry labeller on gold, optionally
biased towards long summaries, which a policy can exploit through the proxy reward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from harness import Demonstration, Judge, Principle, Prompt, UsageError, hookimpl

from .embedded import RECOMMENDED, SHORT, Embedded
from .embedded import BradleyTerry as BradleyTerry
from .world import documents
from .world.documents import Document, Reading

SIZES = {
    "demonstrations": 4000,
    "preferences": 4000,
    "train": 4000,
    "validation": 1024,
    "test": 2048,
}


@cache
def document_of(seed: int, split: str, index: int) -> Document:
    """Return one document: a pure function of its name."""
    return documents.write_document(Random(f"summarization/{seed}/{split}/{index}"))


@dataclass
class Summarization(Embedded):
    """Summarise a news text in at most 26 tokens: the important facts, correctly stated, and
    nothing else.
    """

    name, version = "summarization", "1"
    judge_name, usual_length = "summary_gold", 14

    settings = {  # chosen on the validation split
        **RECOMMENDED,
        "stage.sft": {"steps": 150, "batch_size": 32, "learning_rate": 2e-3},
        "stage.preferences": {"prompts": 2000, "completions": 4},
        "stage.reward_model": {
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "pooling": "sum",
        },
    }
    quick = SHORT

    def prompts(self, split: str) -> list[Prompt]:
        """Return the prompts of a split."""
        return [
            Prompt(f"{split}/{i}", self.document(f"{split}/{i}").prompt)
            for i in range(SIZES[split])
        ]

    def size(self, split: str) -> int:
        """Return how many prompts a split has."""
        return SIZES[split]

    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return summaries of mixed quality."""
        prompts = self.prompts(split)
        return [Demonstration(prompt, self._demonstration(prompt)) for prompt in prompts]

    def references(self, split: str) -> dict[str, str]:
        """Return the expert summaries, for ROUGE."""
        return {p.id: documents.expert_summary(self.document(p.id)) for p in self.prompts(split)}

    def principles(self) -> list[Principle]:
        """Return the constitution. Each sentence concerns one aspect of a summary; none covers all
        of gold.
        """

        def check(measure: Callable[[Reading], float]) -> Callable[[Prompt, str], float]:
            return lambda prompt, text: measure(
                documents.read_summary(self.document(prompt.id), text)
            )

        return [
            Principle(
                "important",
                "A good summary names more of the important facts.",
                check(lambda r: r.recall),
            ),
            Principle(
                "true",
                "A good summary states nothing wrong.",
                check(lambda r: -r.wrong_slots - r.malformed),
            ),
            Principle(
                "once", "A good summary does not repeat itself.", check(lambda r: -r.duplicates)
            ),
            Principle(
                "relevant", "A good summary leaves out what is idle.", check(lambda r: -r.idle)
            ),
            Principle(
                "short",
                "A good summary has no more than 18 words.",
                check(lambda r: -max(0, r.words - 18)),
            ),
        ]

    @property
    def max_new_tokens(self) -> int:
        """A summary has at most 26 tokens, its end included."""
        return documents.MAX_SUMMARY_TOKENS

    def document(self, prompt_id: str) -> Document:
        """Return the document behind a prompt."""
        split, _, index = prompt_id.partition("/")
        return document_of(self.shared_seed, split, int(index))

    def _demonstration(self, prompt: Prompt) -> str:
        rng = Random(f"demonstration/{self.shared_seed}/{prompt.id}")
        return documents.demonstration(rng, self.document(prompt.id))


class SummaryGold(Judge):
    """The graded score of a summary against its document's facts."""

    name = "summary_gold"
    length_bias = False

    def prepare(self, suite, stages):
        """Take the documents of the suite."""
        if not isinstance(suite, Summarization):
            raise UsageError(
                f"The judge summary_gold knows the suite summarization only, not {suite.name}."
            )
        self.document = suite.document

    def score(self, prompts, completions):
        """Return a score in [-4, 4] per summary."""
        pairs = zip(prompts, completions, strict=True)
        return [documents.read_summary(self.document(p.id), text).score for p, text in pairs]


@hookimpl
def register_suites(register):
    register(Summarization)


@hookimpl
def register_judges(register):
    register(SummaryGold)
