"""The template of the page: all text is escaped, and a browser fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.plain_text import escape_of, visible

HERE = Path(__file__).parent


def render(facts: Mapping[str, Any], template: str = "page.html") -> str:
    """Return a page. Its facts include `browser`, the data of the sample browser, if it has one."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    environment.filters["empty_first"] = empty_first
    assets: dict[str, str] = {"style": Markup((HERE / "page.css").read_text(encoding="utf-8"))}
    if "browser" in facts:
        script = (HERE / "page.js").read_text(encoding="utf-8")
        assets |= {
            "script": Markup(script),
            "script_hash": script_hash(script),
            "samples": Markup(inline_json(facts["browser"])),
        }
    return environment.get_template(template).render(**facts, **assets) + "\n"


def empty_first(texts: Sequence[str]) -> int:
    """Return the number of empty texts at the start. For a reversed row that is the number of cells
    to span.
    """
    return next((i for i, text in enumerate(texts) if text), 0)


def inline_json(value: Any) -> str:
    """Return JSON for a <script> element: ASCII without the special characters of HTML."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, escape_of(character))
    return text


def script_hash(script: str) -> str:
    """Return the Content-Security-Policy source expression that allows this script only."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def data_uri(svg: bytes) -> str:
    """Return a picture as a data address; in an <img> its scripts cannot run."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
