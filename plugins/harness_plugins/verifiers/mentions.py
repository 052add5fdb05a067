"""The numbers of a text in order, each with its role in the text.

A mention is a VALUE, or BLOCKED: a number that is no answer by itself, such as an end of a range,
an operand, or a coordinate. Remarks are left out: a date, a list marker, a citation, an identifier,
an exponent of a unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from .numbers import (
    NUMBER_WORDS,
    Number,
    Token,
    closing,
    glued,
    kind_at,
    read_number,
    text_at,
)

VALUE, BLOCKED = "value", "blocked"
OPERATORS = frozenset({"plus", "minus", "times", "divide", "power"})
OPERANDS = frozenset({"number", "frac", "root", "open", "command"})
# after these words a minus belongs to the number that follows
BEFORE_SIGN = frozenset("is are be was equals answer result get gets gives of by to".split())
LABELS = frozenset(
    "step part case question problem chapter figure fig table page section equation eq example"
    " exercise line option choice method scenario round item rule no phase stage task level"
    " version route highway room flight gate platform channel apartment".split()
)
# before these words or after them a number is not the answer itself
BEFORE = frozenset(
    "than least most not isn't wasn't aren't never between twice half double triple except over"
    " under above below past".split()
)
# `the square of 7` is another number
FUNCTIONS = frozenset(
    "square squared cube root factorial multiple multiples reciprocal inverse opposite logarithm"
    " log factor factors divisor divisors power powers remainder complement".split()
)
APPLIED_BEFORE = frozenset("ln sin cos tan cot log".split())  # `ln 5`; but a log 72 inches long
APPLIED = frozenset("squared cubed factorial choose mod modulo".split())  # to the number before
WORD_OPERATORS = frozenset("plus minus times multiplied divided".split())
POINTERS = frozenset("the these those both all last first next other no every each any".split())
UNIT_LETTERS = frozenset("m g s h l t w v j".split())
ORDINALS = frozenset("st nd rd th".split())
PARTS = frozenset(
    "cent cents minute minutes min second seconds sec inch inches ounce ounces".split()
)
PARTS |= frozenset("hour hours day days week weeks month months pence gram grams".split())
FRACTION_WORDS = frozenset("half third quarter out".split()) | NUMBER_WORDS
NUMERIC = frozenset({"number", "frac", "root"})


@dataclass(frozen=True)
class Mention:
    """A number of a text: VALUE or BLOCKED, its value, and its tokens."""

    kind: str
    value: Fraction | None
    percent: bool
    start: int
    end: int
    word: bool = False
    equation: bool = False  # the right-hand side of an equation


def mentions_of(tokens: list[Token], strict: bool = False, inline: bool = False) -> list[Mention]:
    """Return the numbers of a text in order.

    Args:
        tokens: The tokens of plain text.
        strict: The text is an answer alone: nothing is a list marker, a label or a remark.
        inline: The text begins within a line: its first number is no list marker.
    """
    mentions: list[Mention] = []
    at = 0
    while at < len(tokens):
        plain = strict or (inline and at == 0)
        at = _remark_end(tokens, at, mentions, strict) or _find(tokens, at, mentions, plain)
    return mentions


def _find(tokens: list[Token], at: int, mentions: list[Mention], strict: bool) -> int:
    """Add what begins at a token, if anything, and return the token behind it."""
    kind = kind_at(tokens, at)
    if kind == "blocked":
        mentions.append(Mention(BLOCKED, None, False, at, at + 1))
        return at + 1
    if kind == "word" and text_at(tokens, at) not in NUMBER_WORDS:
        return _after_word(tokens, at)
    number = read_number(tokens, at)
    if number is None:
        return at + 1
    if _skipped(tokens, at, number, strict):
        return max(number.end, at + 1)
    mentions.append(_finding(tokens, at, number, mentions))
    return max(number.end, at + 1)


def _after_word(tokens: list[Token], at: int) -> int:
    """Return the token behind a word and its exponent or index: `m^2`, `x_{12}`."""
    end = at + 1
    while kind_at(tokens, end) in ("power", "index"):
        if kind_at(tokens, end + 1) == "open":
            end = closing(tokens, end + 1) + 1
        else:
            end += 2 + (kind_at(tokens, end + 1) == "minus")
    return end


def _remark_end(tokens: list[Token], at: int, mentions: list[Mention], strict: bool) -> int:
    """Return the token behind a remark in brackets, or 0 where none begins.

    `(72)` and `[72]` alone are not remarks; `(1, 2)` is a blocked mention.
    """
    if kind_at(tokens, at) != "open" or tokens[at].text == "{":
        return 0
    close = closing(tokens, at)
    if kind_at(tokens, close) != "close":
        return 0
    inside = tokens[at + 1 : close]
    if any(_separates(t) for t in inside) and _has_number(inside):
        if _is_tuple(inside):
            mentions.append(Mention(BLOCKED, None, False, at, close + 1))
            return close + 1
        return 0 if strict else close + 1
    if strict or not _has_number(inside):
        return 0
    if _is_expression(tokens, at, close):
        return 0
    signed = kind_at(tokens, at + 1) in ("minus", "plus")
    alone = read_number(tokens, at + 1 + signed)
    single = alone is not None and alone.end == close and alone.value is not None
    if single and not _follows_words(tokens, at, mentions):
        return 0
    return close + 1


def _separates(token: Token) -> bool:
    """Return whether a token is a comma, or digits with a comma that groups no thousands."""
    pair = token.kind == "number" and re.fullmatch(r"\d+,(?:\d{1,2}|\d{4,})", token.text)
    return token.kind == "comma" or bool(pair)


def _has_number(tokens: list[Token]) -> bool:
    return any(t.kind in ("number", "frac", "blocked") for t in tokens)


def _is_tuple(inside: list[Token]) -> bool:
    """Return whether brackets hold a tuple or an interval: no words but names of one letter."""
    return all(t.kind != "word" or len(t.text) == 1 for t in inside)


def _is_expression(tokens: list[Token], at: int, close: int) -> bool:
    """Return whether brackets are part of a calculation: `(48 + 24) * 2`, `2 (3 + 4)`."""
    operators = OPERATORS | {"equal"}
    after = kind_at(tokens, close + 1) in operators and kind_at(tokens, close + 2) != "word"
    return (
        after
        or kind_at(tokens, at - 1) in (OPERATORS - {"minus"})
        or (glued(tokens, at) and kind_at(tokens, at - 1) in ("number", "close"))
    )


def _follows_words(tokens: list[Token], at: int, mentions: list[Mention]) -> bool:
    """Return whether brackets with one number are a remark on the text before them."""
    before = kind_at(tokens, at - 1)
    if tokens[at].text == "[":
        return before in ("word", "number", "stop", "percent", "close")
    if before == "word" and glued(tokens, at):
        return True  # f(2)
    return bool(mentions) and mentions[-1].end == at


def _skipped(tokens: list[Token], at: int, number: Number, strict: bool) -> bool:
    """Return whether a number is a marker, a label, an ordinal or part of a name."""
    if _is_marker(tokens, at, number) and not strict:
        return True
    before = at - 1
    if kind_at(tokens, before) == "minus" and glued(tokens, at) and glued(tokens, before):
        if kind_at(tokens, before - 1) == "word":  # COVID-19
            return True
    dotted = kind_at(tokens, before) == "stop" and glued(tokens, before)
    if text_at(tokens, before - dotted) in LABELS:
        return True
    if kind_at(tokens, before) == "other" and tokens[before].text == "#" and glued(tokens, at):
        return True
    end = number.end
    if glued(tokens, end) and text_at(tokens, end) in ORDINALS:
        return True
    compound = kind_at(tokens, end) == "minus" and glued(tokens, end) and glued(tokens, end + 1)
    if compound and kind_at(tokens, end + 1) == "word":  # 5-day
        return True
    return number.word and not strict and _is_pronoun(tokens, at, number)


def _is_pronoun(tokens: list[Token], at: int, number: Number) -> bool:
    """Return whether a number word points at something: `this one`, `the two`, `one of them`."""
    if text_at(tokens, at - 1) in POINTERS or text_at(tokens, number.end) in ("of", "another"):
        return True
    if number.end != at + 1 or text_at(tokens, at) != "one":
        return False
    before = kind_at(tokens, at - 1)
    stands_alone = before in ("", "colon", "line", "equal")
    return not stands_alone and text_at(tokens, at - 1) not in BEFORE_SIGN


def _is_marker(tokens: list[Token], at: int, number: Number) -> bool:
    """Return whether a number marks a list item: `1.` or `2)` before text on its line."""
    if kind_at(tokens, at) != "number" or number.end != at + 1 or len(tokens[at].text) > 3:
        return False
    first = at - 1
    first -= kind_at(tokens, first) == "open"
    if kind_at(tokens, first) not in ("", "line"):
        return False
    mark = tokens[at + 1] if at + 1 < len(tokens) else None
    if mark is None or not glued(tokens, at + 1) or mark.text not in (".", ")", ":"):
        return False
    return kind_at(tokens, at + 2) not in ("", "line") and not glued(tokens, at + 2)


def _finding(tokens: list[Token], at: int, number: Number, mentions: list[Mention]) -> Mention:
    """Return a number with its sign, blocked if its surroundings require it."""
    sign, left = _sign(tokens, at)
    equation = kind_at(tokens, left) in ("equal", "arrow")
    blocked = (
        number.value is None
        or sign == 0
        or _blocked_before(tokens, left, at)
        or _blocked_behind(tokens, number)
        or _joined(tokens, left, at, number, mentions)
    )
    value = None if blocked or number.value is None else sign * number.value
    kind = BLOCKED if blocked else VALUE
    return Mention(kind, value, number.percent, at, number.end, number.word, equation)


def _sign(tokens: list[Token], at: int) -> tuple[int, int]:
    """Return the sign of a number, 0 for one that cannot be read, and the token before it."""
    left, sign = at - 1, 0
    while kind_at(tokens, left) in ("currency", "plus", "minus") or (
        text_at(tokens, left) in ("minus", "negative")
    ):
        kind = kind_at(tokens, left)
        if kind != "currency":
            if sign or not _is_sign(tokens, left):
                return 0, left
            sign = 1 if kind == "plus" else -1
        left -= 1
    return sign or 1, left


def _is_sign(tokens: list[Token], at: int) -> bool:
    """Return whether a plus or minus is a sign and no operator."""
    before = at - 1
    while kind_at(tokens, before) == "currency":
        before -= 1
    kind = kind_at(tokens, before)
    if kind in ("number", "close", "percent", "frac", "degree", "command", "power", "index"):
        return False
    if kind == "line" or kind == "":
        return kind_at(tokens, at) == "word" or glued(tokens, at + 1) or not _is_bullet(tokens, at)
    if kind == "word" and text_at(tokens, before) not in BEFORE_SIGN:
        spaced = not glued(tokens, at) and glued(tokens, at + 1)
        return spaced and kind_at(tokens, at) in ("plus", "minus")
    return True


def _is_bullet(tokens: list[Token], at: int) -> bool:
    """Return whether a minus at the beginning of a line may begin an item of a list."""
    return any(t.kind in ("word", "line") for t in tokens[at + 1 : at + 40]) or at > 0


def _blocked_before(tokens: list[Token], left: int, at: int) -> bool:
    """Return whether the tokens before a number make it part of something else."""
    kind, word = kind_at(tokens, left), text_at(tokens, left)
    if kind in ("power", "index", "either", "relation", "dots", "command"):
        return True
    if kind in ("times", "divide", "plus"):
        return kind != "times" or not _is_mark(tokens, left)
    if kind in NUMERIC and left == at - 1:  # two numbers side by side
        return True
    if word in BEFORE or (word == "to" and text_at(tokens, left - 1) == "up"):
        return True
    if word in APPLIED_BEFORE and text_at(tokens, left - 1) not in ("a", "the", "each", "this"):
        return True
    if word == "of" and text_at(tokens, left - 1) in FUNCTIONS:
        return True
    if word == "to" and text_at(tokens, left - 1) in ("quarter", "half"):
        return True  # a time of day
    if word in ("times", "plus", "x", "choose", "mod", "modulo"):
        return kind_at(tokens, left - 1) in (*NUMERIC, "word", "percent", "close")
    return word == "by" and text_at(tokens, left - 1) in ("multiplied", "divided")


def _is_mark(tokens: list[Token], at: int) -> bool:
    """Return whether a star begins an item of a list or marks emphasis."""
    return kind_at(tokens, at - 1) in ("", "line", "colon", "stop", "comma")


def _blocked_behind(tokens: list[Token], number: Number) -> bool:
    """Return whether the tokens after a number make it part of something else."""
    at = number.end
    kind, word = kind_at(tokens, at), text_at(tokens, at)
    if kind == "dots" and number.value is not None:
        return number.value.denominator != 1 or kind_at(tokens, at + 1) == "comma"
    if kind in ("index", "either", "command", "root", "relation", "power", "frac", "number"):
        return True
    if kind == "other" and tokens[at].text in "&\u2030":  # per mille
        return True
    if kind == "other" and glued(tokens, at) and tokens[at].text in "|@":
        return True
    if kind in OPERATORS:
        return _operand_at(tokens, at + 1, kind, at)
    if kind == "word":
        return _blocked_by_word(tokens, at, word)
    return kind == "open" and glued(tokens, at)


def _operand_at(tokens: list[Token], at: int, operator: str, where: int) -> bool:
    """Return whether an operator is followed by an operand: then it is a calculation."""
    kind = kind_at(tokens, at)
    if kind in OPERANDS or kind == "currency" and kind_at(tokens, at + 1) in OPERANDS:
        return True
    if kind == "word" and operator in ("times", "power", "plus", "minus"):
        return len(tokens[at].text) == 1 and tokens[at].text.lower() not in ("a", "i")
    return operator == "power"


def _blocked_by_word(tokens: list[Token], at: int, word: str) -> bool:
    """Return whether a word behind a number makes it a term, an operand or a part of a quantity."""
    if _is_word_operator(tokens, at) or word in APPLIED:
        return True
    if word == "times" and text_at(tokens, at + 1) in ("table", "tables"):
        return True
    if len(word) == 1 and word.isascii() and word not in UNIT_LETTERS:
        if glued(tokens, at) or word in ("x", "y", "z", "n"):
            return True
    if glued(tokens, at) and re.search(r"\d.|_", word):  # 72e3x
        return True
    if word in ("more", "less", "fewer", "greater") and text_at(tokens, at + 1) == "than":
        return True
    end = _behind_units(tokens, at)
    kind = kind_at(tokens, end)
    if kind in ("plus", "times", "divide"):
        return _operand_at(tokens, end + 1, kind, end)
    if kind == "minus" and not glued(tokens, end):
        return kind_at(tokens, end + 1) in NUMERIC and not glued(tokens, end + 1)
    return _is_word_operator(tokens, end)


def _is_word_operator(tokens: list[Token], at: int) -> bool:
    """Return whether a word calculates with the number behind it: `times 3`, `divided by 2`."""
    if text_at(tokens, at) not in WORD_OPERATORS:
        return False
    behind = at + 1 + (kind_at(tokens, at + 1) == "currency")
    return kind_at(tokens, behind) in NUMERIC or text_at(tokens, behind) in ("by", *NUMBER_WORDS)


def _behind_units(tokens: list[Token], at: int) -> int:
    """Return the token behind at most three words and their exponents."""
    for _ in range(3):
        if kind_at(tokens, at) != "word" or text_at(tokens, at) in WORD_OPERATORS:
            break
        at = _after_word(tokens, at)
    return at


def _joined(
    tokens: list[Token], left: int, at: int, number: Number, mentions: list[Mention]
) -> bool:
    """Return whether a number is one of several: `2 or 3`, `70 to 72`, `1, 2, 3`, `2 hours 5 min`.

    The number before it is blocked too.
    """
    start, end = _name_start(tokens, left), number.end
    word, kind = text_at(tokens, start), kind_at(tokens, start)
    before = mentions[-1] if mentions else None
    near = before is not None and 0 <= start - before.end <= 2
    adjacent = before is not None and before.end == start
    joined = False
    if near and word in ("or", "to", "of", "by", "versus", "vs") or adjacent and word == "and":
        joined = True
    elif adjacent and (word == "in" or tokens[start].text == "&"):  # 7 in 10, 7 & 8
        joined = True
    elif near and word == "and" and text_at(tokens, end) in PARTS:
        joined = True
    elif adjacent and kind in ("comma", "minus", "dots") and not _has_unit(tokens, end):
        joined = True
    elif word == "of" and text_at(tokens, start - 1) in FRACTION_WORDS:
        joined = True
    elif word == "and" and before is not None and _between(tokens, before.start):
        joined = True
    elif before is not None and _is_compound(tokens, before.end, at, end):
        joined = True
    if joined and before is not None and near:
        mentions[-1] = Mention(BLOCKED, None, False, before.start, before.end)
    return joined


def _name_start(tokens: list[Token], left: int) -> int:
    """Return the token before `x =`, if that stands before a number."""
    if kind_at(tokens, left) == "equal" and kind_at(tokens, left - 1) == "word":
        return left - 2
    return left


def _has_unit(tokens: list[Token], at: int) -> bool:
    """Return whether a word that is no conjunction stands behind a number."""
    return kind_at(tokens, at) == "word" and text_at(tokens, at) not in ("and", "or")


def _between(tokens: list[Token], at: int) -> bool:
    """Return whether `between` stands shortly before a number."""
    return any(text_at(tokens, i) in ("between", "from") for i in range(at - 3, at))


def _is_compound(tokens: list[Token], start: int, at: int, end: int) -> bool:
    """Return whether two numbers are one quantity in two units: `2 hours 30 minutes`."""
    words = [t.kind for t in tokens[start:at]]
    return words in (["word"], ["word", "comma"]) and text_at(tokens, end) in PARTS
