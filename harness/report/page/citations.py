"""BibTeX of the methods' papers, from papers.bib in this folder, and of the harness."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ... import __version__

PAPERS = Path(__file__).parent / "papers.bib"


def bibtex(papers: Iterable[str]) -> list[str]:
    """Return an entry for the harness and one for each paper; of an unknown paper its address."""
    known = entries()
    urls = dict.fromkeys(url for url in papers if url)
    return [_harness(), *(known.get(arxiv_id(url), "") or _bare(url) for url in urls)]


def entries() -> dict[str, str]:
    """Return the known entries by arXiv id."""
    texts = re.split(r"\n(?=@)", PAPERS.read_text(encoding="utf-8").strip())
    return {re.findall(r"eprint = \{(.*?)\}", entry)[0]: entry.strip() for entry in texts}


def arxiv_id(url: str) -> str:
    """Return the arXiv id in an address without its version; empty if there is none."""
    match = re.search(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", url)
    return match[1] if match else ""


def _harness() -> str:
    return (
        "@software{alignment_harness,\n  title = {alignment-harness: a plugin-based benchmark"
        f" harness for LLM alignment methods}},\n  version = {{{__version__}}},\n}}"
    )


def _bare(url: str) -> str:
    key = re.sub(r"\W+", "_", arxiv_id(url) or url).strip("_")
    return f"@misc{{{key},\n  url = {{{url}}},\n}}"
