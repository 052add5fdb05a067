"""Stand-in until the plots take a Selection."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..select import Selection


@dataclass(frozen=True)
class Plot:
    """A kind of picture."""

    about: str


KINDS = {"frontier": Plot("win-rate against KL")}


def render(kind: str, selection: Selection, style: str) -> bytes:
    """Return a picture."""
    import matplotlib

    from ..plots import frontier

    matplotlib.rcParams["svg.hashsalt"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        frontier(selection.results, selection.suite, Path(folder) / f"a.{style}", selection.study)
        return re.sub(rb"<dc:date>.*?</dc:date>", b"", (Path(folder) / f"a.{style}").read_bytes())
