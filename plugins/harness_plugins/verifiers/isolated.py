"""The common part of verifiers that run programs: they run nothing without isolation."""

from __future__ import annotations

from harness import HarnessError

from ..isolation.confine import IsolationError, Limits, missing
from ..isolation.pool import Container, Pool, warm_pool


def refuse_without_isolation(container: str) -> None:
    """Raise ValueError if this machine cannot isolate a program and no container is set."""
    problem = "" if container else missing()
    if problem:
        raise ValueError(f"programs run in isolation only. {problem} (option: container = IMAGE)")


def pool_of(
    limits: Limits, workers: int, readable: tuple[str, ...], container: Container | None
) -> Pool:
    """Return the warm pool of these settings; raise HarnessError if it cannot be made."""
    try:
        return warm_pool(limits, workers, readable, container)
    except IsolationError as error:
        raise HarnessError(f"No program was run: {error}") from error
