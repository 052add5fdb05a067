"""The report: one HTML page that opens from disk, made from records alone.

The same records give the same bytes.

It holds tables, plots, settings, provenance, citations, and a browser of samples. It needs no
server and no network. All content of records is treated as text and escaped.
"""

from __future__ import annotations

from pathlib import Path

from ...core.errors import UsageError

PROMPTS = 200  # of each suite in the sample browser by default
MAX_BYTES = 20_000_000


def page(
    results: Path, study: str | None = None, suite: str | None = None, prompts: int = PROMPTS
) -> str:
    """Return the page of a study, or of all runs below a results folder.

    Args:
        results: The results folder.
        study: A study's name; None for all runs.
        suite: A suite's name; None for all suites.
        prompts: Prompts of each suite in the sample browser.

    Raises:
        UsageError: There is no run, or the page would be larger than MAX_BYTES.
    """
    from .facts import context
    from .html import render
    from .sections import sections

    parts = sections(results, study, suite)
    text = render(context(parts, results, study, prompts))
    size = len(text.encode())
    if size > MAX_BYTES:
        raise UsageError(
            f"The page would have {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}: with"
            f" {prompts} prompts of each suite. Lower --prompts, or make a page of one suite with"
            " --suite."
        )
    return text
