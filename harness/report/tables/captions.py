"""The caption of a table: what its figures are, their intervals, and the test behind bold type."""

from __future__ import annotations

from collections import Counter
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
    text = figures_text(selection, [row.grounds for row in rows], spread)
    if not scored:
        return text
    if not paired:
        return (
            f"{text} Nothing is bold: tests are paired over prompts, and the rows answered"
            " different prompts."
        )
    several = any(len(set(row.grounds)) > 1 for row in rows)
    return f"{text} {bold_text(len(rows), borrowed, several)}".strip()


def _answers_text(selection: Selection, spread: str) -> str:
    """Return the sentence on the other figures."""
    return (
        f"The figures are of answers on {selection.description}, {conditions(selection)}, with"
        f" {'95 % intervals' if spread == INTERVAL else 'standard deviations over seeds'}."
    )


def figures_text(
    selection: Selection, grounds: Sequence[Sequence[int]], spread: str = INTERVAL
) -> str:
    """Return the definition of the win-rate, and the scope of its interval.

    Args:
        selection: The runs.
        grounds: Of each row, the shared seed of each seed.
        spread: INTERVAL or SD.
    """
    if reason := selection.no_win_rate:
        return f"{reason[0].upper()}{reason[1:]}. {_answers_text(selection, spread)}"
    text = (
        f"Gold win-rate against the baseline's answers on {selection.description}, ties half,"
        f" {conditions(selection)}"
    )
    seeds, every = [len(own) for own in grounds], sorted({g for own in grounds for g in own})
    if spread == SD:
        of_grounds = f", on {len(every)} grounds" if len(every) > 1 else ""
        return (
            f"{text}; mean and standard deviation over seeds ({_counted(seeds, 'seed')}"
            f"{of_grounds})."
        )
    if len(every) > 1:
        return f"{text}; {_over_grounds(grounds, every)}"
    one = (
        f" All runs are on one ground (shared seed {every[0]}): one start checkpoint, one set of"
        " preferences and one reward model. The intervals do not cover others."
    )
    if max(seeds) == 1:
        return (
            f"{text}. One seed per row: the 95 % intervals are over prompts and apply to these"
            f" checkpoints, not to the algorithms.{one}"
        )
    text += (
        f"; mean over {_counted(seeds, 'seed')} with 95 % intervals over seeds and prompts"
        f" (two-way, Student's t over seeds).{one}"
    )
    alone = " A row with one seed applies to that checkpoint, not to the algorithm."
    return text + alone if min(seeds) == 1 else text


def _counted(counts: Sequence[int], unit: str) -> str:
    """Return how many seeds or grounds rows have: `5 seeds`, or `3 to 5 seeds`."""
    least, most = min(counts), max(counts)
    number = str(least) if least == most else f"{least} to {most}"
    return f"{number} {unit}{'s' * (most > 1)}"


def _over_grounds(grounds: Sequence[Sequence[int]], every: Sequence[int]) -> str:
    """Return what the figures of several grounds are."""
    seeds = [count for own in grounds for count in Counter(own).values()]
    counts = [len(set(own)) for own in grounds]
    text = (
        f"mean over {_counted(counts, 'ground')} (shared seeds {', '.join(map(str, every))}) of"
        f" {_counted(seeds, 'seed')} each, with 95 % intervals over grounds, seeds and prompts"
        " (seeds nested in grounds, Student's t over grounds). Each ground has a start checkpoint,"
        " preferences and a reward model of its own. Grounds count equally."
    )
    alone = " A row on one ground applies to that ground only."
    return text + alone if min(counts) == 1 else text


def bold_text(rows: int, borrowed: bool, several: bool = False) -> str:
    """Return the test behind bold type for this number of rows; empty for one row.

    Args:
        rows: Rows of the table.
        borrowed: Whether the tests pooled a variance.
        several: Whether there are several grounds.
    """
    if rows < 2:
        return ""
    if rows > MOST_ROWS:
        return f"Nothing is bold: more than {MOST_ROWS} rows would be too many tests."
    unit = "grounds" if several else "seeds"
    pooled = (
        f" (the variance between {unit} pooled over alike rows, or the pair's own; Bonferroni)"
        if borrowed
        else ""
    )
    over = "grounds and prompts" if several else "prompts"
    return (
        f"Bold: not significantly worse than the best mean (bold italic) at {ALPHA:.0%}, by t-tests"
        f" paired over {over}{pooled}, corrected stepwise from all {rows * (rows - 1) // 2}"
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
