"""The caption of a table: what its figures are, their intervals, and the test behind bold type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..selection.select import Selection

ALPHA = 0.05
INTERVAL, SD = "interval", "sd"  # what stands behind a mean: see `harness table --spread`
MOST_ROWS = 200  # most rows of a table with bold type: more rows have too many pairs to test


def caption_of(
    selection: Selection, paired: bool, borrowed: bool, scored: bool, spread: str = INTERVAL
) -> str:
    """Return the caption: the figures, and the test behind bold type, as computed."""
    rows = [row for row in selection.rows if row.good]
    if not rows:
        return ""
    text = figures_text(selection, [len(row.good) for row in rows], spread)
    if not scored:
        return text
    if not paired:
        return (
            f"{text} Nothing is bold: tests are paired over prompts, and the rows answered"
            " different prompts."
        )
    return f"{text} {bold_text(len(rows), borrowed)}".strip()


def _answers_text(selection: Selection, spread: str) -> str:
    """Return the sentence on the other figures."""
    return (
        f"The figures are of answers on {selection.description}, {conditions(selection)}, with"
        f" {'95 % intervals' if spread == INTERVAL else 'standard deviations over seeds'}."
    )


def figures_text(selection: Selection, seeds: Sequence[int], spread: str = INTERVAL) -> str:
    """Return the definition of the win-rate, and the scope of its interval for these numbers of
    seeds.
    """
    if reason := selection.no_win_rate:
        return f"{reason[0].upper()}{reason[1:]}. {_answers_text(selection, spread)}"
    text = (
        f"Gold win-rate against the baseline's answers on {selection.description}, ties half,"
        f" {conditions(selection)}"
    )
    least, most = min(seeds), max(seeds)
    if spread == SD:
        return f"{text}; mean and standard deviation over seeds ({_seeds_text(seeds)})."
    if most == 1:
        return (
            f"{text}. One seed per row: the 95 % intervals are over prompts and apply to these"
            " checkpoints, not to the algorithms."
        )
    text += (
        f"; mean over {_seeds_text(seeds)} with 95 % intervals over seeds and prompts (two-way,"
        " Student's t over seeds)."
    )
    alone = " A row with one seed applies to that checkpoint, not to the algorithm."
    return text + alone if least == 1 else text


def _seeds_text(seeds: Sequence[int]) -> str:
    """Return how many seeds rows have: `5 seeds`, or `3 to 5 seeds`."""
    least, most = min(seeds), max(seeds)
    if least == most:
        return f"{least} seed{'s' * (least > 1)}"
    return f"{least} to {most} seeds"


def bold_text(rows: int, borrowed: bool) -> str:
    """Return the test behind bold type for this number of rows; empty for one row."""
    if rows < 2:
        return ""
    if rows > MOST_ROWS:
        return f"Nothing is bold: more than {MOST_ROWS} rows would be too many tests."
    pooled = (
        " (the variance between seeds pooled over alike rows, or the pair's own; Bonferroni)"
        if borrowed
        else ""
    )
    return (
        f"Bold: not significantly worse than the best mean (bold italic) at {ALPHA:.0%}, by t-tests"
        f" paired over prompts{pooled}, corrected stepwise from all {rows * (rows - 1) // 2}"
        " pairs of rows: of k remaining rows, the row that differs most from the best is removed"
        f" if its p-value times k (k - 1) / 2 is at most {ALPHA:.0%}."
    )


def conditions(selection: Selection) -> str:
    """Return the conditions of the evaluation: prompts, split, temperature."""
    if not selection.good:
        return "no finished run"
    evaluations = [r["evaluation"] for r in selection.good]
    texts = [
        f"{e['prompts']} {e['split']} prompts, one answer each {drawn(e)}" for e in evaluations
    ]
    return " or ".join(dict.fromkeys(texts))


def drawn(e: Mapping[str, Any]) -> str:
    """Return how answers were sampled: greedy, or with which temperature and top-p."""
    if e["temperature"] == 0:
        return "by greedy decoding"
    top_p = f", top-p {e['top_p']:g}" if "top_p" in e else ""
    return f"at T={e['temperature']:g}{top_p}"
