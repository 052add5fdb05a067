"""The child process of `math_verify`: parses and compares with the package math-verify."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

logging.disable(logging.CRITICAL)  # the package logs what it cannot parse


def judge(question: dict[str, Any]) -> bool:
    """Return whether an answer equals the gold answer, or whether a gold answer can be read.

    Args:
        question: `gold`, and `answer`, which is None if only the gold answer is checked.
    """
    gold = parsed_gold(question["gold"])
    if question["answer"] is None:
        return bool(gold)
    answer = parse(question["answer"], parsing_timeout=None)
    return bool(gold) and bool(verify(gold, answer, timeout_seconds=None))


@lru_cache(maxsize=1000)
def parsed_gold(gold: str) -> list[Any]:
    """Return the expressions of a gold answer; an empty list for one that cannot be read."""
    marked = gold if re.search(r"\$|\\boxed|\\\(|\\\[", gold) else f"${gold}$"
    expressions: list[Any] = parse(marked, parsing_timeout=None)
    return [e for e in expressions if not isinstance(e, str)]
