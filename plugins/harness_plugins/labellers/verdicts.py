"""Reads an endpoint's answer: a verdict, a refusal, or an unreadable answer."""

from __future__ import annotations

import math
import re

REFUSED = "refused"
REFUSALS = re.compile(
    r"\b(sorry|apologi[sz]e|can(?:no|')t (?:help|assist|answer|compare|do|provide|judge)|unable to|"
    r"refuse|decline|not able to|against my)\b",
    re.IGNORECASE,
)


def probability(choice, verdicts, soft) -> float | str | None:
    """Return the probability of the first verdict; REFUSED for a refusal, None for an answer that
    cannot be read.

    `soft` takes it from the log-probabilities of the first token if the endpoint gives those of
    both verdicts.
    """
    if choice["message"].get("refusal"):
        return REFUSED
    p = from_logprobs(choice, verdicts) if soft else None
    return from_text(choice["message"].get("content") or "", verdicts) if p is None else p


def from_text(text, verdicts) -> float | str | None:
    """Return 1 or 0 for a text that names one of the verdicts and not the other."""
    named = {v for v in verdicts if re.search(rf"(?<!\w){re.escape(v)}(?!\w)", text)}
    if len(named) == 1 and not REFUSALS.search(text):
        return 1.0 if verdicts[0] in named else 0.0
    return REFUSED if REFUSALS.search(text) else None


def from_logprobs(choice, verdicts) -> float | None:
    """Return the softmax over the two verdicts, with the probabilities of forms with and without a
    space added.
    """
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        given = [(str(entry["token"]).strip(), float(entry["logprob"])) for entry in top]
    except (LookupError, TypeError, ValueError):
        return None
    if not all(logprob <= 0.01 for _, logprob in given):  # not log-probabilities, or NaN
        return None
    one, two = (sum(math.exp(logprob) for token, logprob in given if token == v) for v in verdicts)
    return one / (one + two) if one and two else None
