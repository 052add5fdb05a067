"""Numbers as models write them, read as exact fractions.

`read_number` reads one number at a token: digits with any grouping, decimals, fractions, mixed
numbers, powers, scientific notation, square roots, per cent, and English words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isqrt
from typing import NamedTuple

LONGEST = 270  # digits of a number; each side of a fraction
LARGEST_EXPONENT = LONGEST
MOST_BITS = 900  # of such a number

TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:[.,'_]\d+)*|(?<![\w.])\.\d+)(?:[eE][+-]?\d+(?!\w|\.\d))?)"
    r"|(?P<frac>\\frac)|(?P<root>\\sqrt|\u221a)|(?P<command>\\[A-Za-z]+)"
    r"|(?P<word>[A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u052f](?:\w*[^\W_])?(?:'[A-Za-z]{1,3}\b)?|[^\W\d_]+)"
    r"|(?P<power>\*\*|\^)|(?P<arrow>->|=>)|(?P<relation><=|>=|!=|[<>])|(?P<dots>\.\.+)"
    r"|(?P<equal>==|[=~])|(?P<plus>\+)|(?P<minus>[-\u2013])|(?P<times>[\u00d7*])"
    r"|(?P<divide>[/\u00f7])|(?P<either>\u00b1)|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<comma>[,;])|(?P<stop>[.!?])|(?P<colon>:)|(?P<currency>[$\xa4])|(?P<percent>%)"
    r"|(?P<degree>\u00b0)|(?P<index>_)|(?P<line>\n)|(?P<skipped>\ue000)|(?P<blocked>\ue001)"
    r"|(?P<other>\S)"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+|\d{1,3}(?:'\d{3})+|\d{1,3}(?:_\d{3})+")
_LAKHS = re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}")
_EUROPEAN = re.compile(r"(\d{1,3}(?:\.\d{3})+),(\d+)|(\d{1,3}(?:\.\d{3}){2,})|(0),(\d+)")
_GROUP = re.compile(r"\d{3}(?:\.\d+)?")

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {word: i for i, word in enumerate(_UNITS + _TEENS)} | {
    word: 10 * i for i, word in enumerate(_TENS, 2)
}
_LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PARTS |= {"eighth": 8, "ninth": 9, "tenth": 10}
_PARTS |= {f"{word}s": n for word, n in _PARTS.items() if word[-1] in "dh"}
_QUARTERS = {"quarter": 4, "quarters": 4}
_SUFFIX = {"k": 1000, "K": 1000, "M": 10**6, "bn": 10**9, "mn": 10**6, "B": 10**9}
LARGE_WORDS, NUMBER_WORDS = frozenset(_LARGE), frozenset(_SMALL)


class Token(NamedTuple):
    """A token of plain text: its kind, text and place."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Number:
    """A number: its value, or None if it cannot be read, and its tokens.

    A percent sign is not part of the value: `50%` is 50 with `percent`.
    """

    value: Fraction | None
    end: int  # the token behind it
    percent: bool = False
    word: bool = False  # written as a word


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of plain text, without spaces."""
    return [Token(m.lastgroup or "other", m[0], *m.span()) for m in TOKEN.finditer(text)]


_HINT = re.compile(rf"\d|frac|sqrt|{'|'.join(_SMALL)}", re.IGNORECASE)


def may_hold_number(text: str) -> bool:
    """Return False for a text that certainly holds no number: a fast check before reading."""
    return not text.isascii() or bool(_HINT.search(text))


def read_number(tokens: list[Token], at: int) -> Number | None:
    """Return the number that begins at a token, without its sign; None if none begins there."""
    number = _base(tokens, at)
    if number is None or number.value is None:
        return number
    number = _scaled(tokens, _divided(tokens, _with_fraction(tokens, _raised(tokens, number, at))))
    if number.value is None:
        return number
    size = max(number.value.numerator.bit_length(), number.value.denominator.bit_length())
    return _percent(tokens, number) if size <= MOST_BITS else replace(number, value=None)


def _base(tokens: list[Token], at: int) -> Number | None:
    """Return digits, a LaTeX fraction, a root or number words."""
    kind = kind_at(tokens, at)
    if kind == "number":
        return _digits(tokens, at)
    if kind == "frac":
        return _fraction(tokens, at)
    if kind == "root":
        return _root(tokens, at)
    return _words(tokens, at) if kind == "word" else None


def kind_at(tokens: list[Token], at: int) -> str:
    """Return the kind of a token; empty beyond the ends."""
    return tokens[at].kind if 0 <= at < len(tokens) else ""


def text_at(tokens: list[Token], at: int) -> str:
    """Return the text of a token in lower case; empty beyond the ends."""
    return tokens[at].text.lower() if 0 <= at < len(tokens) else ""


def glued(tokens: list[Token], at: int) -> bool:
    """Return whether no space stands between a token and the one before it."""
    return 0 < at < len(tokens) and tokens[at - 1].end == tokens[at].start


def decimal(text: str) -> Fraction | None:
    """Return the value of digits with grouping, decimals and exponent, or None."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > LONGEST or len(exponent) > 5 or abs(int(exponent or 0)) > LARGEST_EXPONENT:
        return None
    if mantissa.isdigit() and not exponent:
        return Fraction(int(mantissa))
    whole, dot, decimals = mantissa.partition(".")
    if _THOUSANDS.fullmatch(whole) or _LAKHS.fullmatch(whole):
        whole = re.sub(r"[,'_]", "", whole)
    if (whole and not whole.isdigit()) or (dot and not decimals.isdigit()):
        whole, decimals = _european(mantissa)
    if not whole and not decimals:
        return None
    value = Fraction(int((whole or "0") + decimals), 10 ** len(decimals))
    return value * Fraction(10) ** int(exponent) if exponent else value


def _european(text: str) -> tuple[str, str]:
    """Return whole part and decimals of `1.080,50`, `1.080.500` or `0,5`; empty for others."""
    match = _EUROPEAN.fullmatch(text)
    if match is None:
        return "", ""
    grouped, decimals, whole, zero, places = match.groups("")
    return (grouped or whole or zero).replace(".", ""), decimals or places


def _digits(tokens: list[Token], at: int) -> Number:
    """Return a number of digits; groups of three after single spaces belong to it."""
    text, end = tokens[at].text, at + 1
    if text.isdigit() and len(text) <= 3 and not text.startswith("0"):
        while _is_group(tokens, end):
            text, end = text + tokens[end].text, end + 1
    return Number(decimal(text), end)


def _is_group(tokens: list[Token], at: int) -> bool:
    """Return whether a token continues digits after one space, as in `1 080`."""
    if kind_at(tokens, at) != "number" or not _GROUP.fullmatch(tokens[at].text):
        return False
    if kind_at(tokens, at + 1) in ("divide", "frac") and glued(tokens, at + 1):
        return False
    return tokens[at].start == tokens[at - 1].end + 1


def _integer(tokens: list[Token], at: int) -> int | None:
    """Return a token that is a plain integer of at most four digits."""
    text = text_at(tokens, at)
    return int(text) if kind_at(tokens, at) == "number" and re.fullmatch(r"\d{1,4}", text) else None


def _braced(tokens: list[Token], at: int) -> tuple[Fraction | None, int]:
    """Return the value of a LaTeX argument, and the token behind it."""
    if kind_at(tokens, at) == "number":  # \frac12: one digit each
        return decimal(tokens[at].text), at + 1
    if kind_at(tokens, at) != "open":
        return None, at
    close = closing(tokens, at)
    signed = kind_at(tokens, at + 1) == "minus"
    number = read_number(tokens, at + 1 + signed)
    if number is None or number.value is None or number.end != close or number.percent:
        return None, close + 1
    return -number.value if signed else number.value, close + 1


def closing(tokens: list[Token], at: int) -> int:
    """Return the bracket that closes the one at a token; the last token where none does."""
    depth = 0
    for i in range(at, min(len(tokens), at + 200)):
        depth += (tokens[i].kind == "open") - (tokens[i].kind == "close")
        if depth == 0:
            return i
    return min(len(tokens), at + 200) - 1


def _fraction(tokens: list[Token], at: int) -> Number:
    r"""Return `\frac{a}{b}`, `\frac12` or `\frac1{2}`."""
    digits = text_at(tokens, at + 1)
    if kind_at(tokens, at + 1) == "number" and glued(tokens, at + 1) and len(digits) > 1:
        if len(digits) == 2 and digits.isdigit():
            return Number(_quotient(Fraction(int(digits[0])), Fraction(int(digits[1]))), at + 2)
        return Number(None, at + 2)
    above, middle = _braced(tokens, at + 1)
    below, end = _braced(tokens, middle)
    return Number(_quotient(above, below), max(end, at + 1))


def _quotient(above: Fraction | None, below: Fraction | None) -> Fraction | None:
    return above / below if above is not None and below else None


def _root(tokens: list[Token], at: int) -> Number:
    """Return the square root of a perfect square."""
    value, end = _braced(tokens, at + 1)
    if value is None or value < 0:
        return Number(None, max(end, at + 1))
    above, below = isqrt(value.numerator), isqrt(value.denominator)
    exact = above**2 == value.numerator and below**2 == value.denominator
    return Number(Fraction(above, below) if exact else None, end)


def _raised(tokens: list[Token], number: Number, at: int) -> Number:
    """Return a number with its exponent; degrees after it are a unit."""
    end = number.end
    if kind_at(tokens, end) == "degree" or (
        kind_at(tokens, end) == "power" and kind_at(tokens, end + 1) == "degree"
    ):
        end += 1 + (kind_at(tokens, end) == "power")
        scale = glued(tokens, end) and text_at(tokens, end) in ("c", "f", "k")
        return Number(number.value, end + scale, word=number.word)
    if kind_at(tokens, end) != "power":
        return number
    exponent, end = _exponent(tokens, end + 1)
    if kind_at(tokens, end) == "power":  # a tower
        return Number(None, end + 1)
    return Number(_power(number.value, exponent), end)


def _exponent(tokens: list[Token], at: int) -> tuple[int | None, int]:
    """Return an integer exponent, plain, signed or in braces, and the token behind it."""
    braced = kind_at(tokens, at) == "open"
    at += braced
    sign = -1 if kind_at(tokens, at) == "minus" else 1
    at += kind_at(tokens, at) in ("minus", "plus")
    value = _integer(tokens, at)
    if value is None or (braced and kind_at(tokens, at + 1) != "close"):
        return None, at + 1
    return sign * value, at + 1 + braced


def _power(base: Fraction | None, exponent: int | None) -> Fraction | None:
    """Return base ** exponent, or None if the result would be too long."""
    if base is None or exponent is None or abs(exponent) > LARGEST_EXPONENT:
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
    if bits > 2 * MOST_BITS or (base == 0 and exponent <= 0):
        return None
    return base**exponent


def _with_fraction(tokens: list[Token], number: Number) -> Number:
    """Return a mixed number: `2 1/2`, `2 and 1/2`, `2\\frac{1}{2}`, `2 and a half`."""
    value, at = number.value, number.end
    if value is None or value.denominator != 1:
        return number
    joined = text_at(tokens, at) == "and"
    start = at + joined
    if joined and text_at(tokens, start) == "a" and text_at(tokens, start + 1) == "half":
        return Number(value + Fraction(1, 2), start + 2, word=number.word)
    part = _proper(tokens, start, glued(tokens, start))
    return number if part is None else Number(value + part.value, part.end)  # type: ignore[operator]


def _proper(tokens: list[Token], at: int, close: bool) -> Number | None:
    """Return a fraction below 1 that begins at a token, or None."""
    if kind_at(tokens, at) == "frac":
        number = _fraction(tokens, at)
    elif kind_at(tokens, at + 1) == "divide" and not close:
        above, below = _integer(tokens, at), _integer(tokens, at + 2)
        if above is None or not below or kind_at(tokens, at + 3) == "divide":
            return None
        number = Number(Fraction(above, below), at + 3)
    else:
        return None
    return number if number.value is not None and 0 < number.value < 1 else None


def _divided(tokens: list[Token], number: Number) -> Number:
    """Return a quotient of two numbers, such as `144/2`."""
    at = number.end
    if number.value is None or kind_at(tokens, at) != "divide":
        return number
    if kind_at(tokens, at + 1) != "number":
        return number
    below = _digits(tokens, at + 1)
    if kind_at(tokens, below.end) in ("divide", "power") and kind_at(tokens, below.end + 1) in (
        "number",
        "open",
    ):
        return Number(None, below.end + 1)
    return Number(_quotient(number.value, below.value), below.end)


def _scaled(tokens: list[Token], number: Number) -> Number:
    """Return a number times a power of ten, or times thousand, million and so on."""
    at = number.end
    times = kind_at(tokens, at) == "times" or text_at(tokens, at) == "x"
    if times and text_at(tokens, at + 1) == "10" and kind_at(tokens, at + 2) == "power":
        exponent, end = _exponent(tokens, at + 3)
        scale = _power(Fraction(10), exponent)
        value = None if scale is None or number.value is None else number.value * scale
        return Number(value, end)
    if kind_at(tokens, at) != "word" or number.value is None or number.word:
        return number
    if glued(tokens, at) and tokens[at].text in _SUFFIX:
        return Number(number.value * _SUFFIX[tokens[at].text], at + 1)
    scale = _LARGE.get(text_at(tokens, at), 0)
    return Number(number.value * scale, at + 1) if scale else number


def _percent(tokens: list[Token], number: Number) -> Number:
    """Return a number with the percent sign or word behind it."""
    at = number.end
    word = text_at(tokens, at)
    if kind_at(tokens, at) == "percent" or word in ("percent", "pct"):
        return Number(number.value, at + 1, True, number.word)
    if word == "per" and text_at(tokens, at + 1) == "cent":
        return Number(number.value, at + 2, True, number.word)
    return number


def _words(tokens: list[Token], at: int) -> Number | None:
    """Return a number in English words: `twenty-five`, `one hundred and twelve`, `two thirds`."""
    total, group, end = 0, _SMALL.get(text_at(tokens, at)), at + 1
    if group is None:
        return None
    while True:
        skip = end + (kind_at(tokens, end) == "minus" and glued(tokens, end))
        skip += text_at(tokens, skip) == "and" and text_at(tokens, skip + 1) in _SMALL
        word = text_at(tokens, skip)
        if word in _LARGE:
            scale = _LARGE[word]
            total, group = (total, group * scale) if scale == 100 else (total + group * scale, 0)
        elif word in _SMALL and _fits(group, _SMALL[word]):
            group += _SMALL[word]
        else:
            break
        end = skip + 1
    return _worded(tokens, at, total + group, end)


def _fits(group: int, value: int) -> bool:
    """Return whether a small number can follow what was read: `twenty five`, `hundred twelve`."""
    if group == 0 or group % 100 == 0:
        return value > 0
    return group % 10 == 0 and group % 100 >= 20 and 0 < value < 10


def _worded(tokens: list[Token], at: int, value: int, end: int) -> Number:
    """Return a number of words, with the part behind it: `two thirds`, `three-quarters`."""
    hyphen = kind_at(tokens, end) == "minus" and glued(tokens, end)
    word = text_at(tokens, end + hyphen)
    parts = _PARTS | _QUARTERS if hyphen else _PARTS
    if value and word in parts and value < parts[word]:
        return Number(Fraction(value, parts[word]), end + hyphen + 1, word=True)
    return Number(Fraction(value), end, word=True)
