"""The number that an answer gives, and the number of a gold answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from .mentions import VALUE, Mention, mentions_of
from .numbers import Token, kind_at, may_hold_number, text_at, tokens_of
from .places import MARKER, MARKUP, NEAR, behind_cues, end_of, last_box
from .plain_text import plain

TAIL = 600  # characters that are read at the end of a text without a marker
TAILS = (
    (25, 200),
    (60, TAIL),
)  # tokens of the end of a text, and in how many characters: then more
CONTEXT_TOKENS = 8  # tokens before a number that decide its role
FILLER_WORDS = 8  # words that may stand between `answer is` and its number
_NUMBERED = re.compile(r"(\d{1,2})[.):] +[A-Za-z]")  # a heading with a number
_LABELLED = re.compile(r"[A-Za-z]+ (\d{1,2})\b")  # Step 1
_TIE = re.compile(r"(?<=[\w}])~(?=[\w\\])")  # LaTeX's space: 1~080, 72~cm
_HEADS = re.compile(r"^[ \t]*#{1,6}", re.MULTILINE)
_CORRECTS = re.compile(
    r"(?i)\b(?:wait|sorry|oops|correction|scratch that|i mean|i meant|my mistake|on second thought"
    r"|let me (?:correct|fix|recheck|redo))\b|[.;,!] (?:no|actually), "
)
_ENDS_SENTENCE = frozenset({"line", "stop"})
FILLERS = frozenset(
    "about approximately approx around roughly exactly only just simply therefore thus so then now"
    " a an the total of that there are is be will it he she they we you equal equals to has have"
    " had and in all sold final probably indeed rs usd eur dollars inr gbp".split()
)


@dataclass(frozen=True)
class Answer:
    """The number of an answer: its value, and whether it is a percentage."""

    value: Fraction
    percent: bool = False

    @property
    def text(self) -> str:
        """The number as text: an integer or a fraction, with % if it is a percentage."""
        return str(self.value) + "%" * self.percent


def gives(text: str, gold: str) -> bool:
    """Return whether an answer gives the gold number.

    `50%` is 0.5 only where the gold number is a percentage; elsewhere the sign is a unit.
    """
    answer = answer_number(text)
    return answer is not None and is_gold(answer, gold)


def is_gold(answer: Answer, gold: str) -> bool:
    """Return whether a number equals the gold number; see `gives`."""
    wanted = Fraction(gold.rstrip("%"))
    if gold.endswith("%") and not answer.percent:
        wanted /= 100
    return answer.value == wanted


def gold_number(text: str) -> Answer | None:
    """Return the number of a gold answer, which must be the only one in its place."""
    box = last_box(text)
    if box is not None:
        return only_number(box)
    if MARKER in text:
        text = text[text.rfind(MARKER) + len(MARKER) :]
    return only_number(text)


def answer_number(text: str) -> Answer | None:
    """Return the number that an answer gives, or None."""
    text = end_of(text)
    box = last_box(text)
    if box is not None:
        return only_number(box)
    if MARKER in text:
        present, number = _behind_marker(text)
        if present:
            return number
        text = _HEADS.sub("", text)
    present, number = _behind_cue(text)
    return number if present else _last_number(text)


def only_number(text: str) -> Answer | None:
    """Return the number of a text with exactly one number and nothing that changes it."""
    if len(text) > NEAR:
        return None
    tokens = tokens_of(plain(_TIE.sub(" ", text.strip())))
    mentions = mentions_of(tokens, strict=True)
    if not mentions or any(f.kind != VALUE for f in mentions[-1:]):
        return None
    first, last = mentions[0], mentions[-1]
    if len(mentions) > 1 and not (
        last.equation and all(f.end <= last.start for f in mentions[:-1])
    ):
        return None
    if any(_alters(tokens, i) for i in range(len(tokens)) if not first.start <= i < last.end):
        return None
    return _answer(last)


def _alters(tokens: list[Token], at: int) -> bool:
    """Return whether a token makes more of an answer than a number and its unit."""
    kind, text = kind_at(tokens, at), text_at(tokens, at)
    if kind in ("command", "relation", "skipped", "blocked", "root", "either", "index"):
        return True
    if kind == "stop":
        return text == "!" and at == len(tokens) - 1
    if kind == "word" and len(text) == 1 and kind_at(tokens, at + 1) != "equal":
        return text not in ("m", "g", "s", "h", "l", "a", "c", "f", "k", "w", "v", "j", "n")
    return kind == "other" and text in "|!"


def _answer(mentions: Mention | None) -> Answer | None:
    """Return the answer of a mention, None for one that is blocked."""
    if mentions is None or mentions.value is None:
        return None
    return Answer(mentions.value, mentions.percent)


def _behind_marker(text: str) -> tuple[bool, Answer | None]:
    """Return whether a `####` is followed by an answer, and the number of the first one.

    A marker with words behind it is a heading. The last marker with nothing behind it is an answer
    that was not given.
    """
    start, headings = text.find(MARKER), 0
    while start >= 0:
        behind = start + len(MARKER)
        region = text[behind : behind + NEAR].lstrip("#" + MARKUP)
        if not region.strip():
            return True, None
        numbered = _NUMBERED.match(region) or _LABELLED.match(region)
        if numbered and int(numbered[1]) == headings + 1:
            headings += 1
        else:
            tokens = tokens_of(plain(region))
            mentions = mentions_of(tokens, inline=True)
            if mentions and _is_near(tokens, mentions[0].start, 0):
                return True, _answer(_chain_end(tokens, mentions))
        start = text.find(MARKER, behind + 1)
    return False, None


def _behind_cue(text: str) -> tuple[bool, Answer | None]:
    """Return whether `answer is` or the like is followed by a number, and the last such number."""
    for region in behind_cues(text):
        if not may_hold_number(region):
            continue
        behind = region.lstrip(MARKUP)
        tokens = tokens_of(plain(behind))
        mentions = mentions_of(tokens, inline="\n" not in region[: len(region) - len(behind)])
        if not mentions:
            continue
        if _is_near(tokens, mentions[0].start, 0):
            last = _chain_end(tokens, mentions)
            if _is_working(mentions, last, tokens):
                return False, None
            return True, _corrected(behind, _answer(last))
        if _is_only(tokens, mentions):
            return True, _answer(mentions[0])
    return False, None


def _corrected(text: str, answer: Answer | None) -> Answer | None:
    """Return an answer, or the only number of a correction after it; none if the correction is
    unclear.
    """
    correction = _CORRECTS.search(text)
    if correction is None:
        return answer
    mentions = mentions_of(tokens_of(plain(text[correction.end() :])), inline=True)
    if not mentions:
        return answer
    return _answer(mentions[0]) if len(mentions) == 1 else None


def _is_near(tokens: list[Token], at: int, start: int) -> bool:
    """Return whether only signs and filler words stand between two tokens."""
    for token in tokens[start:at]:
        if token.kind == "word" and token.text.lower() not in FILLERS and len(token.text) > 1:
            return False
        if token.kind in ("stop", "skipped", "blocked", "number", "frac", "comma"):
            return False
    return True


def _is_only(tokens: list[Token], mentions: list[Mention]) -> bool:
    """Return whether the first number is the only one of the sentence that begins the tokens."""
    end = next((i for i, t in enumerate(tokens) if t.kind in _ENDS_SENTENCE), len(tokens))
    words = sum(t.kind == "word" for t in tokens[: mentions[0].start])
    inside = [f for f in mentions if f.start < end]
    return len(inside) == 1 and words <= FILLER_WORDS


def _chain_end(tokens: list[Token], mentions: list[Mention]) -> Mention:
    """Return the last number of the calculation that the first one begins: `48 + 24 = 72`."""
    last = mentions[0]
    for following in mentions[1:]:
        between = tokens[last.end : following.start]
        linked = any(t.kind in ("equal", "plus", "minus", "times", "divide") for t in between)
        broken = any(t.kind in ("line", "stop", "comma") for t in between)
        if broken or not linked or sum(t.kind == "word" for t in between) > 3:
            break
        last = following
    return last


def _is_working(mentions: list[Mention], last: Mention, tokens: list[Token]) -> bool:
    """Return whether a calculation after a cue is only the beginning of a worked answer."""
    if last is mentions[0]:
        return False
    rest = [f for f in mentions if f.start > last.end]
    return bool(rest) and any(t.kind == "equal" for t in tokens[last.end : rest[-1].start])


def _last_number(text: str) -> Answer | None:
    """Return the last number of a text; None if the last mention is not a number by itself."""
    region = text[-TAIL:]
    if len(region) < len(text):  # begin at a whole word
        cut = re.search(r"\s", region)
        region = region[cut.end() :] if cut else ""
    region = plain(region)
    for size, end in TAILS:
        part = _last_tokens(region, size, end)
        mentions = mentions_of(part)
        if mentions and mentions[-1].start >= CONTEXT_TOKENS and _is_balanced(part):
            break
    if re.fullmatch(r"\s*[\d.,]+!\s*", region):
        return None  # a factorial
    return _answer(mentions[-1]) if mentions else None


def _last_tokens(text: str, most: int, end: int) -> list[Token]:
    """Return the last tokens of a text; those of its last characters where these are enough."""
    space = re.compile(r"\s").search(text, len(text) - end) if len(text) > end else None
    if space is not None:
        tokens = tokens_of(text[space.end() :])
        if len(tokens) >= most:
            return tokens[-most:]
    return tokens_of(text)[-most:]


def _is_balanced(tokens: list[Token]) -> bool:
    """Return whether every bracket that closes was opened in these tokens."""
    depth = 0
    for token in tokens:
        depth += (token.kind == "open") - (token.kind == "close")
        if depth < 0:
            return False
    return True
