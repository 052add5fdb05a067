"""The report: one HTML page that opens from disk, made from records alone, the same bytes every
time.

It holds tables, plots, settings, provenance, citations, and a browser of samples. There is no
server, no network and no font or script from elsewhere; what comes from records is text, and is
escaped wherever it stands.
"""

from __future__ import annotations

from pathlib import Path

from ...core.errors import UsageError

PROMPTS = 200  # of each suite in the sample browser, where nothing else is asked for
MAX_BYTES = 20_000_000


def page(
    results: Path, study: str | None = None, suite: str | None = None, prompts: int = PROMPTS
) -> str:
    """Return the page of a study, or of all runs below a results folder; `prompts` of each suite
    can be browsed.

    Raises UsageError where there is no run, or where the page would be larger than MAX_BYTES.
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
