"""What can be reached from an object through references: shows that a method cannot reach gold."""

from __future__ import annotations

import gc
import types
from collections.abc import Collection
from typing import Any

from ..api.contracts import Judge, Labeller, Suite
from ..core.data import Prompt

LEAVES = (type, types.ModuleType, types.CodeType, str, bytes, int, float, complex)


def neighbours(thing: Any) -> list[Any]:
    """Return what an object refers to, except modules, classes and globals, which any code can
    import.
    """
    if isinstance(thing, LEAVES):
        return []
    if isinstance(thing, types.FunctionType):
        cells = []
        for cell in thing.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # empty
                pass
        return [*cells, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, types.FrameType):
        return [dict(thing.f_locals), thing.f_back]
    if isinstance(thing, types.GeneratorType):
        return [thing.gi_frame]
    if isinstance(thing, dict) and "__builtins__" in thing:  # a module's namespace
        return []
    objects = [getattr(thing, "__wrapped__", None)] if callable(thing) else []
    return objects + [
        r for r in gc.get_referents(thing) if not isinstance(r, dict) or "__builtins__" not in r
    ]


def reachable(*roots: Any, test_ids: Collection[str] = ()) -> tuple[list[str], int]:
    """Return the judges, labellers, suites and test prompts that can be reached, and the number of
    objects visited.
    """
    seen: dict[int, Any] = {}
    queue, names = list(roots), set()
    while queue:
        thing = queue.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, (Judge, Labeller, Suite)):
            names.add(f"{type(thing).__module__}.{type(thing).__name__}")
        if isinstance(thing, Prompt) and thing.id in test_ids:
            names.add(f"prompt {thing.id}")
        queue.extend(neighbours(thing))
    return sorted(names), len(seen)
