"""The verb list: the plugins that are installed."""

from __future__ import annotations

from typing import Any

import click

from ..api.registry import KINDS, Registry
from ..core.options import summary_of
from .echo import echo
from .options import plugin_files


@click.command("list")
@plugin_files
def list_plugins(registry: Registry) -> None:
    """List methods, suites and other plugins, with their distributions."""
    for kind in KINDS:
        names = registry.classes[kind]
        if names:
            echo(kind, bold=True)
        for name in sorted(names):
            origin = registry.origins[kind, name]
            echo(
                f"  {name:<16} {_about(kind, names[name]):<112.112} {origin.distribution}"
                f" {origin.version}"
            )
    for name, (origin, reason) in registry.broken.items():
        echo(f"broken: {name} of {origin.distribution} {origin.version}: {reason}", fg="red")
    for (kind, name), origins in registry.clashes.items():
        offers = ", ".join(f"{o.distribution} {o.version}" for o in origins)
        echo(f"clash: {kind[:-1]} {name} is offered by {offers}; it cannot be used", fg="red")


def _about(kind: str, cls: Any) -> str:
    """Return the text of a plugin in the list: of a method also kind, needs and paper."""
    if kind != "methods":
        return summary_of(cls)
    try:
        needs = ", ".join(sorted(cls().required())) or "nothing"
    except Exception:  # a third-party class with required options: show what it declares
        needs = ", ".join(sorted(cls.needs))
    return f"{cls.kind or 'method':<20} needs {needs:<30} {cls.paper}"
