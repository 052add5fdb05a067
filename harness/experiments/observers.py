"""Call the life-cycle hooks of every plugin during a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ..api.registry import BUILT_IN, Registry
from ..core.distributed import is_main
from ..core.global_state import put_back
from ..core.interrupts import asked_for
from ..core.spec import RunSpec

Warn = Callable[[str], None]


class Observers:
    """Calls the life-cycle hooks of every plugin; an error in one of them is reported once and
    stops nothing.
    """

    def __init__(self, registry: Registry, spec: RunSpec, warn: Warn) -> None:
        self._hooks, self._spec, self._warn = registry.manager.hook, spec, warn
        self._failed: set[str] = set()

    def activity(self, name: str, step: int, total: int, ended: bool) -> None:
        """Call the hook of activities: see core/progress.py."""
        self("activity_changed", activity=name, step=step, total=total, ended=ended)

    def __call__(self, name: str, **arguments: Any) -> None:
        if not is_main():
            return
        arguments["spec"] = self._spec
        for impl in reversed(
            getattr(self._hooks, name).get_hookimpls()
        ):  # in pluggy's order: tryfirst is first
            plugin = str(impl.plugin_name)
            built_in = plugin.startswith(f"{BUILT_IN}:")  # tests hold that these change nothing
            kept = nullcontext() if built_in else put_back(f"The observer {plugin}")
            try:
                with kept:
                    impl.function(**{key: arguments[key] for key in impl.argnames})
            except BaseException as error:  # an error in a third-party observer must not end a run
                if asked_for(error):
                    raise
                if impl.plugin_name not in self._failed:
                    self._warn(
                        f"The observer {name} of {impl.plugin_name} failed: {type(error).__name__}:"
                        f" {error}"
                    )
                self._failed.add(impl.plugin_name)
