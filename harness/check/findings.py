"""What a proof found, how much is tried, and the report of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass(frozen=True)
class Finding:
    """One proof: what was asked, how it ended, and what was measured."""

    proof: str
    status: str
    told: str


@dataclass
class Options:
    """How much is tried."""

    suite: str | None = None  # None: an embedded suite that can serve the method
    settings: tuple[str, ...] = ()
    optimum_settings: tuple[
        str, ...
    ] = ()  # over these, in the run that is compared with the optimum
    full: bool = True  # also runs of full size: beats the start checkpoint, reaches its optimum
    processes: bool = True  # also a training in two processes
    results: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="harness-check-")))
    say: Callable[[str], None] = lambda line: None  # progress
    model: str | None = None  # whose tokenizer and weights a suite is tried with; None: its own


def report(name: str, findings: list[Finding]) -> str:
    """Return the findings as Markdown, for a plugin's README."""
    failed = sum(f.status == FAILED for f in findings)
    verdict = (
        f"{failed} of {len(findings)} proofs failed"
        if failed
        else f"{len(findings)} proofs, none failed"
    )
    rows = [f"| {f.proof} | {f.status} | {f.told.replace('|', '/')} |" for f in findings]
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
    """Run a proof: it returns what it measured, or raises AssertionError with what is wrong."""
    try:
        return Finding(proof, PASSED, run())
    except AssertionError as error:
        return Finding(proof, FAILED, str(error))
    except Exception as error:  # a stranger's code: whatever it raises is a finding
        return Finding(proof, FAILED, f"{type(error).__name__}: {error}")
