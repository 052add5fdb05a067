"""The verifier `final_number`: the number that an answer ends in, in any notation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness import Verifier, hookimpl

MARKER = "####"  # what stands before the final answer of GSM8K and its kin
WORD = re.compile(r"[\w.,/%$*^+\u2212\u2013-]+")  # numbers and all that may be glued to one
NUMBER = re.compile(
    r"([+-]?)\$?([+-]?)((?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)?(?:\.[0-9]+)?)(?:/([0-9]+))?%?[A-Za-z]*"
)
LONGEST = 64  # characters of a word that can be an answer


def final_number(text: str) -> str | None:
    """Return the last number after the last `####`, or of the whole text, in normal form; None if
    it is not readable.

    A number is a word of its own: `12` in `112`, `9**12`, `1e12` or `x12` is not one, and neither
    is a word with digits of another script. If the last word with digits is not a number, there is
    none: nothing further back is the answer. One pass over the text; digits are compared as text,
    so no length of them costs more.
    """
    last = None
    for match in WORD.finditer(text, text.rfind(MARKER) + 1):
        if any(map(str.isnumeric, match.group())):
            last = match.group()
    return None if last is None or len(last) > LONGEST else _normal(last)


def _normal(word: str) -> str | None:
    """Return a number without `+`, commas, idle zeros, currency, per cent and unit: `$1,080.50.` is
    1080.5.
    """
    match = NUMBER.fullmatch(word.strip("*_").rstrip(".,$*_").replace("\u2212", "-"))
    if match is None or not match[3] or (match[1] and match[2]):
        return None
    whole, _, decimals = match[3].replace(",", "").partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    value = f"{whole}.{decimals}" if decimals else whole
    if match[4] and match[4].lstrip("0") != "1":
        value += f"/{match[4].lstrip('0')}"
    return f"-{value}" if "-" in (match[1], match[2]) and value != "0" else value


@dataclass
class FinalNumber(Verifier):
    """Right if the final number of an answer is the gold answer's, in any notation."""

    name, reads_prompt = "final_number", False

    def read_gold(self, text):
        """Return the number that a worked answer ends in; ValueError where there is none."""
        number = final_number(text)
        if number is None:
            raise ValueError(f"ends in no readable number: {text[-40:]!r}")
        return number

    def verify(self, prompts, completions, golds, ended):
        """Return 1.0 or 0.0 per completion; None where there is no gold answer."""
        return [
            None if gold is None else float(final_number(text) == gold)
            for text, gold in zip(completions, golds, strict=True)
        ]

    def examples(self):
        return [("48+24 = 72 clips.\n#### 72", "She sold 72"), ("1080", "#### $1,080.00")]


@hookimpl
def register_verifiers(register):
    register(FinalNumber)
