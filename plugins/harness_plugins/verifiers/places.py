"""The position of the answer in a text: in a box, after a marker, or after words like "answer is".

All functions take time linear in a bounded part of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MARKER = "####"  # the marker of the final answer in GSM8K and similar data
LONGEST_TEXT = 20_000  # characters at the end of a text in which the answer is searched
CUE_TEXT = 4_000  # characters in which "answer is" and the like are searched
NEAR = 300  # characters that are read in a box, and after a marker
CUES = 8  # number of boxes that are tried, from the end
MARKUP = "*_\"' \t\n"  # characters allowed between a marker and its answer
_NEXT_QUESTION = re.compile(
    r"\n[ \t]*(?:[*_#]{0,4}[ \t]?(?:question|problem|exercise|q|user|human)"
    r"(?:[ \t]\d{1,3})?[*_]{0,3}[ \t]?:|<\|)",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"</?(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
BOXES = ("\\boxed", "\\fbox")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_CUE = re.compile(
    r"\banswers?\b[^.\n:=?!\uff1a]{0,60}?(?:\b(?:is|are|was|equals|be)\b[*_:\uff1a]{0,4}|[:=\uff1a])"
    r"|\banswer\b[*_]{0,3} [-\u2013\u2014] "
    r"|<answer>|\bans\b\.?\s?[:=]|^[ \t]*[*_]{0,3}A[*_]{0,3}:"
    r"|^[#*_ \t]{0,8}(?:the |my |final )*answer[*_#: \t]{0,8}$"
    r"|\u7b54\u6848[^\n\d]{0,6}?[\u662f\u4e3a:\uff1a]",
    re.IGNORECASE | re.MULTILINE,
)
_CUE_WORD = re.compile(r"[Aa]ns|ANS|A[*_]{0,3}:|\u7b54\u6848")
_CUE_CASE = re.compile(r"^[ \t]*[*_]{0,3}a[*_]{0,3}:", re.MULTILINE)
_UNBRACED = re.compile(r"[^\s${}\\]{1,40}")  # `\boxed 7`: up to a space or the end of the formula
_BETWEEN_BOXES = re.compile(r"[\s,;$]*(?:and|or|,)[\s,;$]*|[\s,;$]*")


def end_of(text: str) -> str:
    """Return the end of a text: what follows its thoughts, without the further questions that
    follow its answer. Thoughts that do not end have no answer behind them.
    """
    text = behind_thoughts(text).strip()
    match = _NEXT_QUESTION.search(text, 1)
    return text[: match.start()] if match and text[: match.start()].strip() else text


def behind_thoughts(text: str) -> str:
    """Return the end of a text behind the last `</think>` or the like; where nothing is there, the
    text outside of thoughts. A thought that does not end takes the rest of the text.
    """
    if text.rfind("<think>", 0, -LONGEST_TEXT) > text.rfind("</think>"):
        return ""
    text = text[-LONGEST_TEXT:]
    if "<" not in text:
        return text
    outside, at, inside = list[str](), 0, False
    for mark in _THOUGHT.finditer(text):
        if mark[0].startswith("</"):
            outside = outside if inside else []  # the prompt has opened this thought
            at, inside = mark.end(), False
        elif not inside:
            outside.append(text[at : mark.start()])
            inside = True
    if not inside:
        outside.append(text[at:])
    return outside[-1] if outside and outside[-1].strip() and not inside else "\n".join(outside)


def last_box(text: str) -> str | None:
    """Return the content of the last `\\boxed{}`; None without a box, and an empty text for a box
    that cannot be read.
    """
    text = text[-LONGEST_TEXT:]
    starts = _last_boxes(text)
    if not starts:
        return None
    contents = [_braces(text, end) for _, end in starts]
    last = contents[-1][0]
    if len(contents) == 2 and starts[1][0] < contents[0][1]:  # a box in a box
        outer = contents[0][0].strip()
        return last if outer == text[starts[1][0] : contents[1][1]] else outer
    if len(contents) == 2 and contents[0][0].strip() != last.strip():
        between = text[contents[0][1] : starts[1][0]]
        if _BETWEEN_BOXES.fullmatch(between):  # two answers
            return ""
    return last


def _last_boxes(text: str) -> list[tuple[int, int]]:
    """Return the positions of the last two boxes, and the positions after their names."""
    boxes: list[tuple[int, int]] = []
    end = len(text)
    while len(boxes) < 2:
        start = max(text.rfind(name, 0, end) for name in BOXES)
        if start < 0:
            break
        match = _BOX.match(text, start)
        boxes.insert(0, (start, match.end() if match else end))
        end = start
    return boxes


def _braces(text: str, start: int) -> tuple[str, int]:
    """Return the content of the braces that begin at a position, and the position after them.

    Without braces the content ends at a space, as in `$\\boxed 7$`.
    """
    if text[start : start + 1] != "{":
        match = _UNBRACED.match(text, start)
        return (match[0].rstrip(".,;"), match.end()) if match else ("", start)
    depth = 0
    for place in range(start, min(len(text), start + NEAR)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place], place + 1
    return "", start


def behind_cues(text: str) -> Iterator[str]:
    """Yield the text after each "answer is", "answer:" and the like, the last one first."""
    text = text[-CUE_TEXT:]
    words = [m.start() for m in _CUE_WORD.finditer(text)]
    if words:
        text = text[max(0, words[-CUES:][0] - 20) :]
        cues = [m for m in _CUE.finditer(text) if not _CUE_CASE.fullmatch(m.group())]
        for cue in reversed(cues[-CUES:]):
            yield text[cue.end() : cue.end() + NEAR]
