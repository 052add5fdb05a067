"""The verifier `regex`: an answer matches a regular expression."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness import Verifier, hookimpl

LONGEST = 20_000  # characters of an answer
MODES = ("search", "full")


@dataclass
class Regex(Verifier):
    """Right if an answer matches a regular expression of Python's module re.

    Without `pattern`, each gold answer is a pattern. With `group`, the text that the group captures
    must be the gold answer. The match runs in a child process: an answer on which it takes longer
    than `time_limit` is wrong.
    """

    name, reads_prompt = "regex", False

    pattern: str = ""  # the regular expression; empty: each row's gold answer is one
    mode: str = "search"  # search: it matches a part of the answer; full: the whole answer
    group: int = 0  # the group that must hold the gold answer; 0: matching is enough
    must_end: bool = True  # an answer that was cut at the length limit is wrong
    time_limit: float = 0.5  # seconds of processor time for one answer

    def check(self):
        """Raise ValueError for a pattern that cannot be used."""
        if self.mode not in MODES:
            raise ValueError(f"mode is {' or '.join(MODES)}, not {self.mode!r}")
        if self.time_limit <= 0:
            raise ValueError("time_limit must be above 0")
        groups = _compiled(self.pattern).groups if self.pattern else 0
        if not 0 <= self.group <= groups:
            raise ValueError(f"group = {self.group}: the pattern has {groups} groups")

    def read_gold(self, text):
        """Return the gold answer: nothing, a pattern, or the text that the group must hold."""
        if self.pattern:
            return text.strip() if self.group else ""
        _compiled(text)
        return text

    def verify(self, prompts, completions, golds, ended):
        """Return 1.0 or 0.0 per completion; None if a gold answer is needed and missing."""
        needs_gold = not self.pattern or self.group
        rows = list(zip(completions, golds, ended, strict=True))
        return [
            None if needs_gold and gold is None else float(self._grade(text, gold or "", end))
            for text, gold, end in rows
        ]

    def _grade(self, text: str, gold: str, end: bool) -> bool:
        if (self.must_end and not end) or len(text) > LONGEST:
            return False
        question = [self.pattern or gold, text, self.mode, self.group]
        (answer,) = self._worker().ask([question])
        if "error" in answer:
            return False
        captured = answer["value"]
        return captured is not None and (not self.group or captured.strip() == gold)

    def examples(self):
        if self.pattern or self.group:
            return []
        return [(r"^\d+ apples$", "72 apples")] if self.mode == "search" else [(r"\d+", "72")]

    def close(self):
        """End the child process."""
        self._worker().close()

    def _worker(self):
        from .timed_worker import worker_for  # imported late: `harness list` starts no child

        return worker_for(f"{__name__}:matched", self.time_limit)


def matched(question: list) -> str | None:
    """Return the text that a group captured, None if the pattern does not match. Runs in the
    child.
    """
    pattern, text, mode, group = question
    find = re.fullmatch if mode == "full" else re.search
    match = find(pattern, text)
    return None if match is None else match[group] or ""


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression: {pattern[:60]!r}: {error}") from error


@hookimpl
def register_verifiers(register):
    register(Regex)
