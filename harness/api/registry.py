"""Find plugins: entry points and plain files -> pluggy -> {kind: {name: class}}.

The loader is ours, not pluggy's: one broken plugin must not take the command down, the same name
from two distributions must be refused (or the wrong DPO would be measured), and a misspelt hook
must be noticed.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from ..core.digests import file_digest
from ..core.errors import UsageError, unknown
from ..core.global_state import put_back
from ..core.interrupts import asked_for
from ..core.spec import FORMER_METHODS
from . import hookspecs

KINDS = (
    "methods",
    "suites",
    "judges",
    "labellers",
    "verifiers",
    "engines",
    "reporters",
    "launchers",
)
BUILT_IN = "alignment-harness"
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from."""

    plugin: str  # entry-point name or file
    distribution: str
    version: str


@dataclass
class Registry:
    """Every plugin that loaded, by kind and name, and every one that did not, with the reason."""

    manager: pluggy.PluginManager
    classes: dict[str, dict[str, type[Any]]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    broken: dict[str, tuple[Origin, str]] = field(default_factory=dict)
    clashes: dict[tuple[str, str], list[Origin]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)  # plain files that were loaded, in order

    def name_of(self, kind: str, name: str) -> str:
        """Return the name a plugin is registered by: for a former name of a method, today's."""
        registered = name in self.classes[kind] or (kind, name) in self.clashes
        return name if registered or kind != "methods" else FORMER_METHODS.get(name, name)

    def get(self, kind: str, name: str) -> type[Any]:
        """Return a plugin class; raise UsageError when it is unknown, broken or offered twice."""
        name = self.name_of(kind, name)
        if (kind, name) in self.clashes:
            raise UsageError(_clash_message(kind, name, self.clashes[kind, name]))
        if name in self.classes[kind]:
            return self.classes[kind][name]
        if name in self.broken:
            origin, reason = self.broken[name]
            raise UsageError(f"The plugin {name!r} of {origin.distribution} did not load: {reason}")
        raise unknown(kind[:-1], name, self.classes[kind])

    def kinds_of(self, name: str, kinds: Sequence[str] = KINDS) -> tuple[list[str], str]:
        """Return the kinds that have a plugin of a name, and the plugin's own name.

        `verifier.exact` names the verifier alone, where a suite has the same name.
        """
        prefix, _, rest = name.partition(".")
        if rest and f"{prefix}s" in kinds:
            return ([f"{prefix}s"] if self._has(f"{prefix}s", rest) else []), rest
        name = self.name_of("methods", name)
        return [kind for kind in kinds if self._has(kind, name)], name

    def _has(self, kind: str, name: str) -> bool:
        return name in self.classes[kind] or (kind, name) in self.clashes

    def load(self, origin: Origin, module: ModuleType) -> None:
        """Register a plugin module's hooks and classes; raise ValueError when it is not a working
        plugin.
        """
        self.manager.register(module, name=f"{origin.distribution}:{origin.plugin}")
        offered: list[tuple[str, type[Any]]] = []
        hooks = {kind: getattr(module, f"register_{kind}", None) for kind in KINDS}
        try:
            self.manager.check_pending()
            if not any(hooks.values()) and not self.manager.get_hookcallers(module):
                raise ValueError(
                    "it registers nothing. A plugin has a function such as"
                    " `@hookimpl def register_methods(register): register(MyMethod)`"
                )
            for kind, hook in hooks.items():
                if hook is not None:
                    hook(functools.partial(_offer, offered, kind))
        except BaseException as error:
            self.manager.unregister(module)
            if asked_for(error):
                raise
            raise ValueError(str(error) or type(error).__name__) from error
        for kind, cls in offered:  # only now: of a plugin that fails halfway, nothing stays
            self._add(kind, origin, cls)

    def _add(self, kind: str, origin: Origin, cls: type[Any]) -> None:
        name = cls.name
        key = (kind, name)
        if key in self.origins:
            self.clashes.setdefault(key, [self.origins[key]]).append(origin)
        self.classes[kind][name] = cls
        self.origins[key] = origin


def _offer(offered: list[tuple[str, type[Any]]], kind: str, cls: type[Any]) -> None:
    """Take a class from a plugin's hook, if its name can be a name."""
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{cls.__name__}.name must be lower-case letters, digits and _, not {name!r}"
        )
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise ValueError(f"{cls.__name__} ({name}) does not define {', '.join(missing)}")
    offered.append((kind, cls))


def new_registry() -> Registry:
    """Return an empty registry that knows the hooks."""
    manager = pluggy.PluginManager("harness")
    manager.add_hookspecs(hookspecs)
    return Registry(manager)


@functools.cache
def installed() -> Registry:
    """Return the registry of every installed plugin, loaded once, in the order of their names."""
    registry = new_registry()
    for point in sorted(
        metadata.entry_points(group="harness"),
        key=lambda p: (p.name, _distribution(p).distribution),
    ):
        load_entry_point(registry, point)
    return registry


def load_entry_point(registry: Registry, point: metadata.EntryPoint) -> None:
    """Load one entry point; a failure of any kind is kept as `broken`, not raised."""
    origin = _distribution(point)
    try:
        package = point.value.partition(":")[0].partition(".")[0]
        built_in = origin.distribution == BUILT_IN  # a test holds that these change nothing
        plugin = f"The plugin {point.name} of {origin.distribution}"
        with nullcontext() if built_in else put_back(plugin, package):
            registry.load(origin, point.load())
    except BaseException as error:  # third-party code may raise anything; the command goes on
        if asked_for(error):
            raise
        registry.broken[point.name] = (origin, f"{type(error).__name__}: {error}")


def load_file(registry: Registry, path: str) -> None:
    """Load a plain file as a plugin (`-p FILE`); raise UsageError when it does not load."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"-p {path}: there is no such file.")
    if str(file.resolve()) in registry.files:
        raise UsageError(f"-p {path} is given twice.")
    name = f"harness_file_{file.stem}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"-p {path}: a plugin file ends in .py.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        with put_back(f"The plugin {file.name}", name):
            module_spec.loader.exec_module(module)
            registry.load(Origin(file.name, "file", file_digest(file)[:12]), module)
        registry.files.append(str(file.resolve()))
    except BaseException as error:
        if asked_for(error):
            raise
        raise UsageError(f"-p {path} did not load: {type(error).__name__}: {error}") from error


def plugins_in_use(registry: Registry) -> Mapping[str, str]:
    """Return {distribution: version} of everything that registered, for the record."""
    return {origin.distribution: origin.version for _, origin in sorted(registry.origins.items())}


def _distribution(point: metadata.EntryPoint) -> Origin:
    return Origin(point.name, *_name_and_version(point.dist))


@functools.cache  # reading metadata takes 1 ms, and a distribution has dozens of entry points
def _name_and_version(dist: metadata.Distribution | None) -> tuple[str, str]:
    return (dist.name, dist.version) if dist else ("unknown", "unknown")


def _clash_message(kind: str, name: str, origins: list[Origin]) -> str:
    offers = " and ".join(f"{o.distribution} {o.version} ({o.plugin})" for o in origins)
    return f"The {kind[:-1]} {name!r} is offered by {offers}. Uninstall one of them, or rename it."
