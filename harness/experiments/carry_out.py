"""Carry out a spec in several processes.

Each of them runs `python -m harness.experiments.carry_out FILE`.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..api.registry import Registry, installed, load_file
from ..core.distributed import leave_process_group
from ..core.errors import HarnessError
from ..core.execution import Execution
from ..core.files import write_json
from ..core.spec import RunSpec, spec_from

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def carry_out(
    spec: RunSpec,
    registry: Registry,
    results: Path,
    plan: Mapping[str, Execution],
    processes: int,
) -> None:
    """Carry out a run in several processes on this machine, each part as planned.

    Raises:
        HarnessError: A process ended with an error. The run's folder may hold its failure.
    """
    with tempfile.TemporaryDirectory(prefix="harness-carry-out-") as folder:
        file = Path(folder) / "asked.json"
        task = {
            "spec": dataclasses.asdict(spec),
            "files": list(registry.files),
            "results": str(results.resolve()),
            "plan": {part: dataclasses.asdict(one) for part, one in plan.items()},
        }
        write_json(file, task)
        command = [sys.executable, *LAUNCHER, str(processes), "-m", __name__, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("harness: ")]
        reason = (lines or done.stderr.strip().splitlines()[-1:] or ["no message"])[0]
        raise HarnessError(f"{processes} processes failed: {reason.removeprefix('harness: ')}")


def main() -> None:
    """Be one of the processes."""
    from .prepare import RunOptions
    from .run import execute

    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    registry = installed()
    for path in task["files"]:
        load_file(registry, path)
    plan = {part: Execution(**one) for part, one in task["plan"].items()}
    settings = RunOptions(Path(task["results"]), warn=lambda line: None, plan=plan)
    try:
        execute(spec_from(task["spec"]), registry, settings)
    except HarnessError as error:
        sys.exit(f"harness: {error}")
    finally:
        leave_process_group()


if __name__ == "__main__":
    main()
