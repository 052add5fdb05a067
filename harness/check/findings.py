"""Findings of proofs, the options of a check, and its report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..core.interrupts import asked_for

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one proof: its question, how it ended, and what was measured."""

    proof: str
    status: str
    detail: str


@dataclass
class Options:
    """The size of a check."""

    suite: str | None = None  # None: an embedded suite that provides what the method needs
    settings: tuple[str, ...] = ()
    optimum_settings: tuple[
        str, ...
    ] = ()  # further settings of the run that is compared with the optimum
    # also runs of full size: whether the method beats the start checkpoint and reaches its optimum
    full: bool = True
    processes: bool = True  # also a training in two processes
    results: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="harness-check-")))
    say: Callable[[str], None] = lambda line: None  # receives progress
    # the model whose tokenizer and weights a suite is tried with; None: its own
    model: str | None = None


def report(name: str, findings: list[Finding]) -> str:
    """Return the findings as Markdown, for a plugin's README."""
    failed = sum(f.status == FAILED for f in findings)
    verdict = (
        f"{failed} of {len(findings)} proofs failed"
        if failed
        else f"{len(findings)} proofs, none failed"
    )
    rows = [f"| {f.proof} | {f.status} | {f.detail.replace('|', '/')} |" for f in findings]
    return (
        "\n".join(
            [
                f"**harness check {name}**: {verdict}",
                "",
                "| proof | | measured |",
                "|---|---|---|",
                *rows,
            ]
        )
        + "\n"
    )


def attempt(proof: str, run: Callable[[], str]) -> Finding:
    """Run a proof: it returns what it measured, or raises AssertionError with the fault."""
    try:
        return Finding(proof, PASSED, run())
    except AssertionError as error:
        return Finding(proof, FAILED, str(error))
    except BaseException as error:  # third-party code: any exception is a finding
        if asked_for(error):
            raise
        return Finding(proof, FAILED, f"{type(error).__name__}: {error}")
