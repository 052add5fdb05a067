"""The content of a page, gathered from records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...core.errors import HarnessError
from ...core.table import Table
from ..plots import KINDS, render
from ..selection.select import Selection
from ..tables.tables import comparison
from . import provenance, settings
from .checklist import checklist
from .citations import bibtex
from .html import data_uri
from .samples import browser
from .sections import Section


def context(
    sections: Sequence[Section], results: Path, study: str | None, prompts: int
) -> dict[str, Any]:
    """Return the values that the template shows."""
    environments = provenance.Environments()
    shown = [_section(section, environments) for section in sections]
    facts: dict[str, Any] = {
        "title": f"Study {study}" if study else "All runs",
        "version": __version__,
        "sections": shown,
        "environments": environments.rows(),
        "study": provenance.study_of(results, study, sections) if study else None,
        "browser": {"suites": browser(sections, prompts)},
        "citations": bibtex(
            r.get("paper", "") for section in sections for r in section.selection.records
        ),
    }
    captions = [s["table"].caption or (s["table"].notes or [""])[-1] for s in shown]
    return {**facts, "checklist": checklist(sections, captions, facts)}


def _section(section: Section, environments: provenance.Environments) -> dict[str, Any]:
    selection = section.selection
    table = comparison(selection)
    rows: list[dict[str, Any]] = [
        {
            "name": row.name,
            "anchor": f"{section.key}-r{i}",
            "options": own,
            "seeds": settings.seeds(row),
            "runs": runs,
        }
        for i, (row, own, runs) in enumerate(
            zip(
                selection.rows,
                settings.options(selection),
                provenance.runs(section, environments),
                strict=True,
            )
        )
    ]
    anchors = {run["folder"]: row["anchor"] for row in rows for run in row["runs"]}
    return {
        "key": section.key,
        "title": section.title,
        "suite": selection.suite,
        "apart": section.apart,
        "ground": section.ground,
        "table": table,
        "links": _links(table, anchors),
        "plots": _plots(section),
        "rows": rows,
        "data": settings.data_lines(selection),
        "shared": settings.shared_settings(selection),
        "failures": settings.failures(selection),
        "costs": settings.costs(selection),
    }


def _links(table: Table, anchors: dict[str, str]) -> list[str]:
    """Return the anchor of the runs of each row of a table; empty if it has none."""
    links = [
        next((anchors.get(provenance.run_key(f), "") for f in folders), "")
        for folders in table.runs
    ]
    return links + [""] * (len(table.rows) - len(links))


def _plots(section: Section) -> list[dict[str, str]]:
    return [plot(kind, section.selection, section.title) for kind in KINDS]


def plot(kind: str, selection: Selection, title: str) -> dict[str, str]:
    """Return a picture, or the reason why it could not be drawn."""
    about = KINDS[kind].about
    try:
        address = data_uri(render(kind, selection, "svg"))
    except HarnessError as error:  # nothing to draw, or no matplotlib
        return {"kind": kind, "about": about, "address": "", "message": str(error)}
    rows = ", ".join(row.name for row in selection.rows)
    return {
        "kind": kind,
        "about": about,
        "address": address,
        "message": f"{about}. {title}: {rows}.",
    }
