"""Random numbers as pure functions of a seed and a purpose.

Execution order and restarts therefore do not change them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from functools import lru_cache
from random import Random


def derive(*parts: object) -> int:
    """Return a seed in [0, 2**63) from JSON-able parts; equal parts give equal seeds."""
    text = json.dumps(parts, separators=(",", ":"), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=16)  # every turn of an epoch uses the same order
def permutation(n: int, *parts: Hashable) -> tuple[int, ...]:
    """Return a permutation of range(n) that depends on the parts alone."""
    order = list(range(n))
    Random(derive(*parts)).shuffle(order)
    return tuple(order)


def endless_order(n: int, first: int, size: int, *parts: Hashable) -> list[int]:
    """Return `size` row numbers from position `first` of an endless order of n rows.

    The order is shuffled anew in each epoch; it depends on the parts and the epoch alone.
    """
    rows: list[int] = []
    while len(rows) < size:
        epoch, offset = divmod(first + len(rows), n)
        rows += permutation(n, *parts, epoch)[offset : offset + size - len(rows)]
    return rows
