"""The built-in methods, and a registry that has the suite `small`."""

from harness.api.registry import Registry, installed, load_file

from .tools import small_suite

# `checkpoint` is none without the name of a model
METHODS = sorted(set(installed().classes["methods"]) - {"checkpoint"})


def small_registry() -> Registry:
    """Return a registry of its own with the built-in plugins and the suite `small`."""
    registry = installed.__wrapped__()
    load_file(registry, str(small_suite()))
    return registry
