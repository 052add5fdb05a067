"""Dialogues written as plain text, in the form of Anthropic's HH-RLHF.

\\n\\nHuman: a question\\n\\nAssistant: an answer\\n\\nHuman: another\\n\\nAssistant:
"""

from __future__ import annotations

import re

from .data import Message

ANSWER = "\n\nAssistant:"  # the end of a transcript that requests an answer
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Return whether a text is a dialogue that begins with `Human:` and requests an answer."""
    return bool(_TURN.match(text)) and text.rstrip(" ").endswith(ANSWER)


def has_turns(text: str) -> bool:
    """Return whether a text contains the beginning of a turn, not at its own beginning."""
    return bool(re.search(r"\n\n(Human|Assistant):", text))


def messages_of(transcript: str) -> list[Message]:
    """Return the messages of a transcript, without the empty answer at its end. Turns of one
    speaker in a row are one message, with an empty line between them.
    """
    pieces = _TURN.split(transcript)[1:]
    messages: list[Message] = []
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        role, content = _ROLES[speaker], text.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + content
        else:
            messages.append({"role": role, "content": content})
    return messages[:-1] if messages and not messages[-1]["content"] else messages


def later_turns(transcript: str) -> list[str]:
    """Return the transcript's ends that begin with a later turn of the human, longest first."""
    starts = [m.start() for m in re.finditer(r"\n\nHuman:", transcript)]
    return [transcript[start:] for start in starts if start]
