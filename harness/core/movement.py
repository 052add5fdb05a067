"""Whether a training moved its policy at all: decided here for the panel, records and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LEAST_KL = 1e-3  # nats per completion; below it a policy answers as the reference does


def unmoved(kl: float | None, rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the reasons why a training moved nothing; empty where it moved, or was none.

    Args:
        kl: KL of the trained policy to the reference, in nats per completion; None if unknown.
        rows: The metrics of every turn; empty for a method that trains nothing.
    """
    if not rows:
        return []
    silent = [row.get("groups_without_signal") for row in rows]
    norms = [row.get("grad_norm") for row in rows]
    reasons = {
        f"KL {kl or 0.0:.2g} is below {LEAST_KL:g} nats": kl is not None and abs(kl) < LEAST_KL,
        "no group had a signal: all its rewards were equal": all(share == 1 for share in silent),
        "every gradient was 0": all(norm == 0 for norm in norms),
    }
    return [reason for reason, holds in reasons.items() if holds]


def sentence(record: Mapping[str, Any]) -> str:
    """Return the message on a record in which nothing moved, else an empty text."""
    reasons = record.get("unmoved", [])
    return f"Nothing moved in training: {'; '.join(reasons)}." if reasons else ""
