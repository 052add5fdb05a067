"""What the runs of a study take together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...api.registry import Registry
from ..study.cells import Cell, ground_of
from .moments import machine_of
from .show import Requirements, of_study, requirements_of


def study_requirements(cells: Sequence[Cell], registry: Registry, results: Path) -> str:
    """Return the peak, disk and time of runs as text; runs that differ in their seed are alike."""
    known: dict[str, Requirements] = {}
    for cell in cells:
        alike = replace(cell.spec, seed=0).fingerprint()
        if alike not in known:
            machine = machine_of(cell.spec.execution.device)
            known[alike] = requirements_of(cell.spec, registry, results, machine)
    needs = {cell.name: known[replace(cell.spec, seed=0).fingerprint()] for cell in cells}
    return of_study(needs, {cell.name: ground_of(cell) for cell in cells})
