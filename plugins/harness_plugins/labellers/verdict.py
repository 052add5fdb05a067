"""The labeller `verdict`: preferences from the verdicts of the suite's verifier."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from harness import Comparison, Labeller, UsageError, hookimpl, verdicts


@dataclass
class VerdictLabeller(Labeller):
    """Prefers the completion with the better verdict of the suite's verifier.

    So methods that learn from preferences run on every suite with a verifier. Equal verdicts give
    no label, and neither does a completion that cannot be graded.
    """

    name, human = "verdict", False

    error_rate: float = 0.0  # share of labels that are reversed by chance

    def check(self):
        """Raise ValueError for a rate outside [0, 1]."""
        if not 0 <= self.error_rate <= 1:
            raise ValueError("error_rate lies in [0, 1]")

    def prepare(self, suite, judge):
        """Take the suite's verifier."""
        self.verifier = suite.make_verifier()
        if self.verifier is None:
            raise UsageError(
                f"The labeller verdict asks the suite's verifier, and {suite.name} has none."
            )
        self.counts = {"answers": 0, "accepted": 0, "asked": 0}

    def compare(self, prompt, completions, lengths, rng):
        """Return the labels of completions that all ended by themselves."""
        return self.compare_sampled(prompt, completions, lengths, [True] * len(completions), rng)

    def compare_sampled(self, prompt, completions, lengths, ended, rng):
        """Return a comparison for every pair with different verdicts."""
        values = self._verdicts(prompt, completions, ended)
        self.counts["answers"] += len(values)
        self.counts["accepted"] += sum(value == 1.0 for value in values)
        labels = []
        for i, j in combinations(range(len(values)), 2):
            wrong = rng.random() < self.error_rate  # drawn for every pair: one stream
            if None not in (values[i], values[j]) and values[i] != values[j]:
                labels.append(Comparison(i, j, float((values[i] > values[j]) != wrong)))
        self.counts["asked"] += len(labels)
        return labels

    def ceiling(self, prompt, completions, lengths):
        """Return the verdicts, for the share of labels that the error rate reversed."""
        values = self._verdicts(prompt, completions, [True] * len(completions))
        return None if None in values else values

    def usage(self):
        """Return how many answers were checked and accepted, and how many pairs were labelled."""
        return dict(self.counts)

    def _verdicts(self, prompt, completions, ended):
        n = len(completions)
        return verdicts(self.verifier, [prompt] * n, completions, ended).values


@hookimpl
def register_labellers(register):
    register(VerdictLabeller)
