"""Every random number is a pure function of a seed and of what it is for, so that order and
restarts cannot matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from functools import lru_cache
from random import Random


def derive(*parts: object) -> int:
    """Return a seed in [0, 2**63) from any JSON-able parts; the same parts give the same seed
    everywhere.
    """
    text = json.dumps(parts, separators=(",", ":"), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=16)  # the same epoch's order is asked for at every turn
def permutation(n: int, *parts: Hashable) -> tuple[int, ...]:
    """Return a permutation of range(n) that depends on the parts alone."""
    order = list(range(n))
    Random(derive(*parts)).shuffle(order)
    return tuple(order)
