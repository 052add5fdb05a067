"""Scored lists of completions, as methods are given them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from ..core.data import Ranked, RankedCompletions
from ..models.tokens import Tokens


def tokenised(
    lists: Sequence[Ranked], tokens: Tokens, tell: Callable[[str], None]
) -> list[RankedCompletions]:
    """Return the lists of the most frequent length as token ids, with scores in units of their
    spread.

    Args:
        lists: Those of the suite.
        tokens: The start checkpoint's.
        tell: Is told how many lists of other lengths are left out.
    """
    if not lists:
        return []
    # of lengths that are as frequent, the longest
    length, _ = max(Counter(len(x.scores) for x in lists).items(), key=lambda x: (x[1], x[0]))
    kept = [x for x in lists if len(x.scores) == length]
    if len(kept) < len(lists):
        tell(
            f"{len(lists) - len(kept)} of {len(lists)} lists have not {length} completions, as most"
            " have, and are left out: a batch has lists of one length."
        )
    scores = [score for one in kept for score in one.scores]
    mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
    if not math.isfinite(spread) or spread == 0:
        raise ValueError("the scores of the lists are all equal, or not finite")
    return [
        RankedCompletions(
            one.prompt,
            [tokens.completion_ids(one.prompt.text, text) for text in one.completions],
            tuple((score - mean) / spread for score in one.scores),
        )
        for one in kept
    ]
