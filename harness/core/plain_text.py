r"""Text of users, models and records, made safe for a terminal, Markdown and a spreadsheet.

Control characters, terminal escapes, surrogates, zero-width and bidirectional characters become
visible, as in \u202e. Zero-width joiners stay: scripts and emoji need them.
"""

from __future__ import annotations

import re

# Control characters but tab and newline, surrogates, and what turns or hides the text around it
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u180e\ud800-\udfff\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_FORMULA = re.compile(r"[=+@\t\r]|-(?!$)")  # how a cell begins that a spreadsheet computes
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.I)


def visible(text: str) -> str:
    r"""Return text with invisible and bidirectional characters escaped, as in \u202e."""
    return UNSEEN.sub(lambda match: escape_of(match[0]), text)


def escape_of(character: str) -> str:
    r"""Return a character's escape, as in \u202e."""
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\u{{{ord(character):x}}}"


def one_line(text: object) -> str:
    """Return text as one visible line; white space becomes single spaces."""
    return visible(" ".join(str(text).split()))


def markdown(text: object, cell: bool = False) -> str:
    r"""Return text as one line of Markdown without links, images and HTML.

    Args:
        text: Any text.
        cell: Whether it is a cell of a table: a pipe becomes `\|`.
    """
    line = one_line(text)
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    line = re.sub(r"!(?=\[)", r"\\!", line)
    line = re.sub(r"\](?=[(\[:])", r"\\]", line)
    return (
        re.sub(r"\\*\|", lambda pipe: "\\" * (2 * len(pipe[0]) - 1) + "|", line) if cell else line
    )


def spreadsheet(value: object) -> object:
    """Return a value of a CSV file. Text that a spreadsheet would compute gets a leading quote;
    numbers stay unchanged.
    """
    if not isinstance(value, str):
        return value
    formula = _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return ("'" if formula else "") + visible(value)
