"""Text of an answer in plain characters: one form for every digit, sign, space and LaTeX command.

Text that cannot be part of an answer becomes one of two marks: SKIPPED for a date or a time of day,
BLOCKED for a number that is not an answer, such as a ratio.
"""

from __future__ import annotations

import re
import unicodedata

SKIPPED, BLOCKED = "\ue000", "\ue001"
GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"  # braces, and at most one pair of braces inside

_SINGLE = {
    **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011\u207b", "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u200e\u200f", ""),
    **dict.fromkeys("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\xad", ""),
    **dict.fromkeys("\xa0\u2007\u2008\u2009\u200a\u202f\u2006\u3000\t\r", " "),
    **dict.fromkeys("\u00d7\u2715\u22c5\u2219\u00b7\u2217", " \u00d7 "),
    **dict.fromkeys("\u2044\u2215", "/"),
    **dict.fromkeys("\u2248\u2243\u2245\u223c", " ~ "),
    **dict.fromkeys("\u2192\u21d2\u27f9\u21a6\u27f6", " -> "),
    **dict.fromkeys("\u2264\u2265\u2260\u226a\u226b", " < "),
    **dict.fromkeys('\u201c\u201d\u201e\u00ab\u00bb"`\u300c\u300d', " "),
    **dict.fromkeys("\u2018\u2019\u2032", "'"),
    "\u00f7": " \u00f7 ",
    "\u2014": " \u2013 ",  # a long dash separates; it is not a minus
    "\u066b": ".",
    "\u066c": ",",
    "\u060c": ", ",
    "\u3001": ", ",
    "\u3002": " . ",
    "\u2026": "...",
    "\u2213": "\u00b1",
    "\ue000": "",
    "\ue001": "",
}
_NEEDED = {
    **dict.fromkeys(("times", "cdot", "ast"), " \u00d7 "),
    "div": " \u00f7 ",
    **dict.fromkeys(("approx", "sim", "simeq", "cong"), " ~ "),
    **dict.fromkeys(("le", "leq", "ge", "geq", "lt", "gt", "ne", "neq"), " < "),
    **dict.fromkeys(("pm", "mp"), "\u00b1"),
    **dict.fromkeys(("to", "rightarrow", "Rightarrow", "implies", "longrightarrow"), " -> "),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "frac"), "\\frac"),
    **dict.fromkeys(("circ", "degree"), "\u00b0"),
    **dict.fromkeys(("ldots", "dots", "cdots"), "..."),
    **dict.fromkeys(("left", "right", "big", "Big", "displaystyle", "boldsymbol"), ""),
    **dict.fromkeys(("bf", "quad", "qquad", "enspace", "thinspace", "hfill"), " "),
    **dict.fromkeys(("lbrace", "rbrace"), " "),
    **dict.fromkeys(("therefore", "because", "hspace", "large", "Large", "small", "color"), " "),
    **dict.fromkeys(("begin", "end", "aligned", "align", "par", "newline", "displaymath"), " "),
}
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mathrm|mathbf|mathit|mathsf|mbox|emph|operatorname"
    r"|boxed|fbox|underline|boldsymbol|bm)\s*" + GROUP
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SYMBOL = re.compile(r"\\([^A-Za-z0-9])")
_SYMBOLS = {
    **dict.fromkeys(",;: ", " "),
    **dict.fromkeys("()[]", " "),
    "!": "",
    "$": "\xa4",
    "%": "%",
    "\\": "\n",
    "#": "#",
    "&": "&",
    "_": "_",
    "{": "(",
    "}": ")",
}
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_DATE = re.compile(
    r"(?<![\w.,/-])(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:\d{4}|\d{2}))"
    r"(?![\w/-]|[.,]\d)"
    rf"|\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}\b"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH},? \d{{4}}\b"
    rf"|\b{_MONTH} (?:\d{{1,2}}(?:st|nd|rd|th)?|\d{{4}})\b(?!,?\d| [a-z]| ?[-+*/=%])"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH}(?![\w])"
)
_TIME = re.compile(
    r"(?<![\w.,:])\d{1,2}(?::\d{2}){0,2} ?(?:[ap]\.m\.|[apAP][mM]\b|o'clock\b)"
    r"|(?<=\bat )\d{1,2}:\d{2}\b(?!:)"
)
_RATIO = re.compile(r"(?<![\w.,])\d+(?:\.\d+)?(?: ?: ?\d+(?:\.\d+)?)+(?![\w])")
_TAG = re.compile(
    r"</?[A-Za-z][A-Za-z0-9]{0,12}(?: [^<>\n]{0,60})?/?>|<\|[^<>|\n]{1,30}\|>"
    r"|\[/?[A-Za-z]{2,12}\]|&[a-z]{2,6};"
)
_RANGE = re.compile("(?<=\\d)[~\\u301c](?=\\d)")  # 5~7
_CURRENCY = re.compile(r"\b(?:US|USD|EUR|GBP|INR|CAD|AUD|Rs)(?=\d)")
_SUPERSCRIPT = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_CALCULATION = re.compile(r"<<[^<>]{0,200}>>")
_OPENING = re.compile(r"(?<![\w)\]}*_])[*_]{1,3}(?=[^\s*_])")
_CLOSING = re.compile(r"(?<=[^\s*_])[*_]{1,3}(?![\w(\[{*_\\])")


def plain(text: str) -> str:
    """Return a text with plain digits, signs, spaces and operators, and without markup.

    The time is linear in the length of the text.
    """
    if not text.isascii():
        text = _SUPERSCRIPT.sub(_raised, text)
        text = "".join(map(_character, text))
    else:
        text = text.replace('"', " ").replace("`", " ").replace("\t", " ").replace("\r", " ")
    text = text.replace(SKIPPED, "").replace(BLOCKED, "")
    if "\\" in text or "{" in text:
        text = _without_latex(text)
    text = _TAG.sub(" ", _CALCULATION.sub(" ", text))
    if "*" in text or "_" in text:
        text = _CLOSING.sub("", _OPENING.sub("", text))
    if any(c.isdigit() for c in text):
        text = _RANGE.sub("-", text)
        text = _DATE.sub(SKIPPED, _CURRENCY.sub("\xa4", text))
        text = _RATIO.sub(BLOCKED, _TIME.sub(SKIPPED, text))
    return text


def _raised(match: re.Match[str]) -> str:
    """Return superscript digits as one power: `^10`."""
    return "^" + unicodedata.normalize("NFKC", match.group()).replace("\u2212", "-")


def _character(c: str) -> str:
    """Return the plain form of one character."""
    if c < "\x80":
        return " " if c in '"`\t\r' else c
    if c in _SINGLE:
        return _SINGLE[c]
    kind = unicodedata.category(c)
    if kind == "Nd":
        return str(unicodedata.decimal(c))
    if kind == "No":
        return _number_character(c)
    if kind == "Sc":
        return "\xa4"
    if "\uff01" <= c <= "\uff5e":  # full width
        return chr(ord(c) - 0xFEE0)
    return c


def _number_character(c: str) -> str:
    """Return a subscript as an index, and a fraction with a slash."""
    form = unicodedata.normalize("NFKC", c).replace("\u2044", "/")
    name = unicodedata.name(c, "")
    if name.startswith("SUBSCRIPT"):
        return f"_{form}"
    return f" {form} " if "/" in form else c


def _without_latex(text: str) -> str:
    """Return a text with LaTeX commands as plain characters; unknown commands keep their names."""
    text = text.replace("{,}", ",").replace("\\,\\!", "").replace("{.}", ".")
    text = text.replace("{\\,}", " ")
    for _ in range(3):  # commands inside commands
        text, changed = _TEXT.subn(r" \1 ", text)
        if not changed:
            break
    text = _SYMBOL.sub(lambda m: _SYMBOLS.get(m[1], " "), text)
    return _COMMAND.sub(lambda m: _NEEDED.get(m[1], m[0]), text).replace("{\u00b0}", "\u00b0")
