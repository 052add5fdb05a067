"""What `--dry-run` prints of a run, and of the runs of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..api.registry import Registry

if TYPE_CHECKING:
    from ..core.spec import RunSpec
    from ..experiments.study.cells import Cell


def of_run(spec: RunSpec, registry: Registry, results: Path) -> str:
    """Return the requirements of a run as text."""
    from ..experiments.requirements.moments import machine_of
    from ..experiments.requirements.show import described, requirements_of

    machine = machine_of(spec.execution.device)
    return described(requirements_of(spec, registry, results, machine))


def of_study(cells: Sequence[Cell], registry: Registry, results: Path) -> str:
    """Return the requirements of the runs of a study that use the user's own models; empty without
    any. Embedded models take some MiB, so nothing heavy is imported for them.
    """
    own = [cell for cell in cells if cell.spec.model and not cell.refused]
    if not own:
        return ""
    from ..experiments.requirements.study import study_requirements

    return f"\n{study_requirements(own, registry, results)}\n"
