"""Checks of a labeller's output."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from ..core.data import Comparison, Prompt
from ..core.errors import HarnessError


def checked_labels(
    labels: Sequence[Comparison], count: int, labeller: str, prompt: Prompt
) -> Sequence[Comparison]:
    """Return a labeller's comparisons of `count` completions.

    Raises:
        HarnessError: A comparison is no probability between 0 and 1, or is not of two of the
            completions. The message names the labeller.
    """
    for c in labels:
        fine = isinstance(c.p, Real) and 0.0 <= c.p <= 1.0  # false for NaN
        pair = {c.first, c.second} <= set(range(count)) and c.first != c.second
        if not fine or not pair:
            raise HarnessError(
                f"The labeller {labeller} gave p = {c.p!r} for completions {c.first!r} and"
                f" {c.second!r} of prompt {prompt.id}: expected a number from 0 to 1 for two"
                f" different completions out of 0 to {count - 1}."
            )
    return labels
