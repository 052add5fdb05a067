"""Which plugin an error comes from, by the frames of its traceback."""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType

from .registry import BUILT_IN, Origin, Registry


@dataclass(frozen=True)
class Culprit:
    """The plugin in whose code an error was raised."""

    name: str  # `The judge NAME`
    place: str  # file and line
    origin: Origin | None


def culprit(error: BaseException, registry: Registry) -> Culprit | None:
    """Return the innermost plugin in a traceback, or None.

    A method of a base class counts for the class of its `self`.
    """
    modules, blamed, trace = _modules(registry), None, error.__traceback__
    inside = ""  # the module of the plugin found last
    while trace is not None:
        frame, module = trace.tb_frame, trace.tb_frame.f_globals.get("__name__", "")
        named = modules.get(module)
        if named is not None:
            same = (blamed.name, blamed.origin) if blamed and module == inside else named
            name, origin = _of_self(frame, registry) or same
            blamed = Culprit(name, f"{frame.f_code.co_filename}, line {trace.tb_lineno}", origin)
            inside = module
        trace = trace.tb_next
    return blamed


def blamed(error: BaseException, registry: Registry, otherwise: str) -> str:
    """Return `The judge NAME failed: ValueError: message`; `otherwise` where no plugin is found."""
    kind, text, plugin = type(error).__name__, str(error), culprit(error, registry)
    failure = f"{kind}: {text}" if text else kind
    return f"{plugin.name if plugin else otherwise} failed: {failure}"


def foreign(error: BaseException, registry: Registry) -> bool:
    """Return whether an error was raised by a plugin that is not built in."""
    plugin = culprit(error, registry)
    return plugin is not None and (plugin.origin is None or plugin.origin.distribution != BUILT_IN)


def place_of(error: BaseException, registry: Registry) -> str:
    """Return the file and line of the plugin that raised an error; empty where none did."""
    plugin = culprit(error, registry)
    return plugin.place if plugin else "no plugin"


def _modules(registry: Registry) -> dict[str, tuple[str, Origin | None]]:
    """Return {module: (plugin, origin)}; `The plugin FILE` for a module of hooks alone."""
    names: dict[str, tuple[str, Origin | None]] = {}
    for name, plugin in registry.manager.list_name_plugin():
        distribution, _, file = name.partition(":")
        origin = Origin(file, distribution, "")
        names[str(getattr(plugin, "__name__", ""))] = (f"The plugin {file}", origin)
    for kind, classes in registry.classes.items():
        for name, cls in classes.items():
            names[cls.__module__] = _named(kind, name, registry)
    return names


def _named(kind: str, name: str, registry: Registry) -> tuple[str, Origin | None]:
    return f"The {kind[:-1]} {name}", registry.origins.get((kind, name))


def _of_self(frame: FrameType, registry: Registry) -> tuple[str, Origin | None] | None:
    cls = type(frame.f_locals.get("self"))
    names = (
        _named(kind, name, registry)
        for kind, classes in registry.classes.items()
        for name, one in classes.items()
        if one is cls
    )
    return next(names, None)
