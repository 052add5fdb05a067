"""Special tokens inside the text of a user's data: they would end an answer or begin a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..core.errors import UsageError
from .chat import Chat


class SpecialTokens:
    """The texts that a tokenizer reads as special tokens, and the markers of a template around
    turns.

    Args:
        tokenizer: The tokenizer.
        ends: The ids of the tokens that end a completion.
        chat: The chat template, where there is one.
    """

    def __init__(self, tokenizer: Any, ends: Iterable[int], chat: Chat | None) -> None:
        every = (tokenizer.decode([end]) for end in sorted(ends))
        self._ends = [text for text in every if text.strip()]
        added = tokenizer.added_tokens_decoder.values()
        marks = {str(token) for token in added if token.special} | set(self._ends)
        marks |= chat.marks if chat else set()
        marks -= {tokenizer.unk_token}  # the unknown token
        self._marks = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))

    def check(self, text: str, what: str) -> None:
        """Raise UsageError for text that holds a special token; `what` names the text in the
        message.
        """
        match = self._marks.search(text)
        if match and match[0]:
            raise UsageError(
                f"{what} holds {match[0]!r} as text, which the model reads as the end of an answer,"
                " the beginning of a turn or another special token"
            )

    def check_answer(self, text: str) -> None:
        """Raise UsageError for an answer that holds a special token; an end token at its end is
        allowed.
        """
        text = text.rstrip()
        end = next((end for end in self._ends if text.endswith(end)), "")
        self.check(text.removesuffix(end), "the answer")
