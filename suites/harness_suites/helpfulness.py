"""Helpfulness: instructions with checkable constraints, and a gold judge that grades how many were
kept.

A request names a topic, a length, one or two words to mention, one or two to avoid, and perhaps
asks for politeness. Gold is `requests.Reading.score`. Preferences come from the Bradley-Terry
labeller on gold, optionally biased towards long replies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from harness import SPLITS, Demonstration, Judge, Principle, Prompt, UsageError, hookimpl

from .embedded import RECOMMENDED, SAMPLES, SHORT, Embedded
from .world import requests
from .world.requests import Reading, Request

SIZES = {
    "demonstrations": 6000,
    "preferences": 4000,
    "train": 4000,
    "validation": 1024,
    "test": 2048,
}


@cache
def requests_of(seed: int) -> dict[str, tuple[Request, ...]]:
    """Return the requests by split, all distinct."""
    rng, seen = Random(f"helpfulness/{seed}"), set()
    drawn: dict[str, tuple[Request, ...]] = {}
    for split in SPLITS:
        split_requests: list[Request] = []
        while len(split_requests) < SIZES[split]:
            request = requests.write_long_request(rng)
            if request not in seen:
                seen.add(request)
                split_requests.append(request)
        drawn[split] = tuple(split_requests)
    return drawn


@dataclass
class Helpfulness(Embedded):
    """Answer a request within its constraints: length, topic, words to mention and to avoid,
    politeness.
    """

    name, version = "helpfulness", "1"
    judge_name, usual_length = "helpfulness_gold", 9

    # chosen on the validation split: a few trials of the reward model and GRPO, one of the others
    settings = {
        **RECOMMENDED,
        "stage.sft": {"steps": 200, "batch_size": 32, "learning_rate": 2e-3},
        "stage.preferences": {"prompts": 2000, "completions": 4},
        "stage.reward_model": {
            "epochs": 6,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "pooling": "sum",
        },
        "grpo": SAMPLES | {"learning_rate": 5e-4, "beta": 0.2},
    }
    quick = SHORT

    def prompts(self, split: str) -> list[Prompt]:
        """Return the prompts of a split."""
        return [
            Prompt(f"{split}/{i}", request.prompt)
            for i, request in enumerate(requests_of(self.shared_seed)[split])
        ]

    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return replies of mixed quality."""
        return [
            Demonstration(prompt, self._demonstration(prompt)) for prompt in self.prompts(split)
        ]

    def principles(self) -> list[Principle]:
        """Return the constitution. Each sentence concerns one aspect of a reply; none covers all of
        gold.
        """

        def check(measure: Callable[[Reading], float]) -> Callable[[Prompt, str], float]:
            return lambda prompt, text: measure(requests.read_reply(self.request(prompt.id), text))

        return [
            Principle(
                "length",
                "A good reply has as many words as it was asked for.",
                check(lambda r: -r.miss),
            ),
            Principle(
                "mention",
                "A good reply names what it was asked to mention.",
                check(lambda r: r.mention),
            ),
            Principle(
                "avoid",
                "A good reply leaves out what it was asked to avoid.",
                check(lambda r: r.avoid),
            ),
            Principle(
                "polite",
                "A good reply is polite if and only if that was asked.",
                check(lambda r: r.polite),
            ),
            Principle("topic", "A good reply keeps to the topic.", check(lambda r: -r.stray)),
            Principle(
                "fluent",
                "A good reply does not stammer and ends.",
                check(lambda r: r.finished - r.repeats),
            ),
        ]

    @property
    def max_new_tokens(self) -> int:
        """Politeness, ten words, three more words, the full stop and the end are 16 tokens."""
        return 16

    def request(self, prompt_id: str) -> Request:
        """Return the request behind a prompt."""
        split, _, index = prompt_id.partition("/")
        return requests_of(self.shared_seed)[split][int(index)]

    def _demonstration(self, prompt: Prompt) -> str:
        rng = Random(f"demonstration/{self.shared_seed}/{prompt.id}")
        return requests.demonstration(rng, self.request(prompt.id))


class HelpfulnessGold(Judge):
    """The graded score of a reply against its request's constraints."""

    name = "helpfulness_gold"
    length_bias = False

    def prepare(self, suite, stages):
        """Take the requests of the suite."""
        if not isinstance(suite, Helpfulness):
            raise UsageError(
                f"The judge helpfulness_gold knows the suite helpfulness only, not {suite.name}."
            )
        self.request = suite.request

    def score(self, prompts, completions):
        """Return a score in [-4, 4] per reply."""
        pairs = zip(prompts, completions, strict=True)
        return [requests.read_reply(self.request(p.id), text).score for p, text in pairs]


@hookimpl
def register_suites(register):
    register(Helpfulness)


@hookimpl
def register_judges(register):
    register(HelpfulnessGold)
