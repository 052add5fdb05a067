"""Checks that the model's tokenizer can render the rows. They run while rows are read, not while a
model trains.

A check renders the prompt of every row, and its answers if a stage or method trains on them. It
needs the model, so a suite without one (in `harness show`) is not checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from harness import Demonstration, Labelled, Pair, UsageError
from harness.models.chat import ChatOptions

_FINDINGS: dict[tuple[Any, ...], dict[int, str]] = {}  # the error of each checked row; "" for none


class RenderingCheck:
    """A check of rows against one tokenizer. Results are kept for the life of the process."""

    def __init__(self, model: str, options: ChatOptions, limit: int, answers: bool) -> None:
        self.model, self.options, self.limit, self.answers = model, options, limit, answers

    def check(self, example: Any) -> None:
        """Check one example.

        Raises:
            ValueError: The tokenizer's template cannot render it; the message says why.
            UsageError: The tokenizer has no template at all.
        """
        reasons = _FINDINGS.setdefault((self.model, self.options, self.limit, self.answers), {})
        key = hash(repr(example))
        if key not in reasons:
            reasons[key] = self._reason(example)
        if reasons[key]:
            raise ValueError(reasons[key])

    def _reason(self, example: Any) -> str:
        tokens = _tokens(self.model, self.options, self.limit)
        try:
            tokens.check_prompt(example.prompt.text)
            for answer in _answers(example) if self.answers else ():
                tokens.check_answer(example.prompt.text, answer)
        except UsageError as error:
            if tokens.chat is None:  # no row can be rendered, so the error is not in the row
                raise
            return str(error).rstrip(".")
        return ""


def _answers(example: Any) -> Iterator[Any]:
    if isinstance(example, Pair):
        yield from (example.chosen, example.rejected)
    elif isinstance(example, Demonstration | Labelled):
        yield example.completion


@lru_cache(maxsize=2)
def _tokens(model: str, options: ChatOptions, limit: int) -> Any:
    from harness.models.loading import load_tokenizer
    from harness.models.tokens import Tokens

    return Tokens(load_tokenizer(model), limit, chat=options)
