"""Special tokens inside the text of a user's data: they would end an answer or begin a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..core.errors import UsageError
from .chat import Chat

# what common chat templates begin a prompt with, and end an answer with
OPENINGS = (
    "<|im_start|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<bos><start_of_turn>",
    "[INST]",
    "<s>[INST]",
    "<|user|>",
    "<|system|>",
    "<|User|>",
)
ENDINGS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")


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
        self._renders = chat is not None
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

    def check_rendered(self, text: str) -> None:
        """Raise UsageError for a text that another model's chat template has rendered before, so
        that this one would render it as the words of a question.
        """
        start = next((mark for mark in OPENINGS if text.lstrip().startswith(mark)), "")
        if start:
            raise UsageError(
                f"the prompt begins with {start!r}, so the chat template of another model has"
                " rendered it: give the words of the question, or messages"
            )

    def check_answer(self, text: str) -> None:
        """Raise UsageError for an answer that holds a special token; an end token at its end is
        allowed.
        """
        text = text.rstrip()
        end = next((end for end in self._ends if text.endswith(end)), "")
        self.check(text.removesuffix(end), "the answer")
        other = next((mark for mark in ENDINGS if text.endswith(mark)), "")
        if other and other != end and self._renders and "<s>" not in text:  # HTML has <s>
            raise UsageError(
                f"the answer ends with {other!r}, which ends answers of another model and is text"
                " for this one: remove it"
            )
