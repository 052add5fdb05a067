"""The verb list: the plugins that are installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import click

from ..api.contracts import Method
from ..api.registry import KINDS, Registry
from ..core.options import summary_of
from ..experiments.requirements.asks import Asks, asks_of
from .echo import echo
from .options import plugin_files

METHOD_COLUMNS = "{:<22} {:<33} {:<7} {}"


@click.command("list")
@plugin_files
def list_plugins(registry: Registry) -> None:
    """List methods by family, suites and other plugins, with their distributions."""
    for kind in KINDS:
        names = registry.classes[kind]
        if names:
            echo(kind, bold=True)
        if kind == "methods":
            _methods(registry)
            continue
        for name in sorted(names):
            _line(registry, kind, name)
    for name, (origin, reason) in registry.broken.items():
        echo(f"broken: {name} of {origin.distribution} {origin.version}: {reason}", fg="red")
    for (kind, name), origins in registry.clashes.items():
        offers = ", ".join(f"{o.distribution} {o.version}" for o in origins)
        echo(f"clash: {kind[:-1]} {name} is offered by {offers}; it cannot be used", fg="red")


def _line(registry: Registry, kind: str, name: str) -> None:
    """Print a plugin with its distribution."""
    origin, about = registry.origins[kind, name], _about(kind, registry.classes[kind][name])
    echo(f"  {name:<16} {about:<118.118} {origin.distribution} {origin.version}")


def _methods(registry: Registry) -> None:
    """Print the methods by family, then what their columns mean, and their aliases."""
    classes = registry.classes["methods"]
    titles = METHOD_COLUMNS.format("needs", "models held", "optimum", "paper")
    families: dict[str, list[str]] = {}
    for name in sorted(classes):
        families.setdefault(classes[name].kind or "method", []).append(name)
    for family in sorted(families, key=lambda f: (-len(families[f]), f)):
        echo(f"  {family} ({len(families[family])})", bold=True)
        echo(f"  {'name':<16} {titles}")
        for name in families[family]:
            _line(registry, "methods", name)
    stated = sum(_states_optimum(cls) for cls in classes.values())
    echo(
        f"  {len(classes)} methods. {stated} state their optimum: `harness check NAME` measures the"
        " distance of a trained policy to it."
    )
    _aliases(registry)


def _states_optimum(cls: Any) -> bool:
    return cls.optimum is not Method.optimum


def _about(kind: str, cls: Any) -> str:
    """Return the text of a plugin in the list; of a method the columns of METHOD_COLUMNS."""
    if kind != "methods":
        return summary_of(cls)
    if cls.extra and find_spec(cls.extra) is None:
        return f"needs pip install 'alignment-harness[{cls.extra}]'"
    try:
        method = cls()
        needs, holds = method.required(), _held(asks_of(method))
    except Exception:  # a third-party class with required options: show what it declares
        needs, holds = cls.needs, ""
    stated = "stated" if _states_optimum(cls) else "-"
    return METHOD_COLUMNS.format(", ".join(sorted(needs)) or "nothing", holds, stated, cls.paper)


def _held(asks: Asks) -> str:
    """Return the models that a method holds while it trains, at its default options."""
    held = {
        "policy": asks.trains,
        "reference": asks.reference,
        "critic": asks.critic,
        "reward": asks.rewards > 0,
        "teacher": asks.teaches,
    }
    return ", ".join(name for name, is_held in held.items() if is_held) or "start"


def _aliases(registry: Registry) -> None:
    """Print names of the field that are options of a method, and no methods of their own."""
    names = {
        alias: f"{name} {options}"
        for name, cls in registry.classes["methods"].items()
        for alias, options in getattr(cls, "aliases", {}).items()
    }
    if names:
        echo("aliases", bold=True)
    for alias in sorted(names):
        echo(f"  {alias:<16} {names[alias]}")
