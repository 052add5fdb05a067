"""Trainings in two processes, for the proofs. Each process runs `python -m
harness.check.two_processes`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..api.registry import Registry, installed, load_file
from ..core.distributed import is_main
from ..core.execution import NOT_SHARDED
from ..core.files import write_json
from .findings import Options

Rows = list[dict[str, float]]  # metrics, one dict per turn


def together(
    cases: Sequence[tuple[str, str]],
    registry: Registry,
    options: Options,
    shard: str = NOT_SHARDED,
) -> dict[str, Rows]:
    """Train each (method, suite) in two processes on CPU; return {method: metrics}.

    The stages are there already. `shard` is the value of `--shard`.
    """
    with tempfile.TemporaryDirectory(dir=options.results) as folder:
        out = Path(folder) / "rows.json"
        task = {
            "cases": list(cases),
            "files": registry.files,
            "settings": options.settings,
            "results": str(options.results),
            "out": str(out),
            "shard": shard,
        }
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
        ]
        done = subprocess.run(
            [*launcher, "-m", "harness.check.two_processes", json.dumps(task)],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        lines = [
            line for line in done.stderr.splitlines() if "Error" in line
        ] or done.stderr.splitlines()[-1:]
        assert done.returncode == 0, f"two processes failed: {' / '.join(lines[:2])}"
        rows: dict[str, Rows] = json.loads(out.read_text(encoding="utf-8"))
        return rows


def main() -> None:
    """Run one of the two processes."""
    from ..core.distributed import leave_process_group
    from .trials import Trials
    from .variations import FEW_TOKENS

    task = json.loads(sys.argv[1])
    registry = installed()
    for file in task["files"]:
        load_file(registry, file)
    options = Options(settings=tuple(task["settings"]), results=Path(task["results"]))
    rows = {}
    for method, suite in task["cases"]:
        bench = Trials(method, suite, registry, replace(options, suite=suite), task["shard"])
        rows[method] = bench.train(
            distributed=bench.distributed, micro_batch_tokens=FEW_TOKENS
        ).rows  # both have work
        bench.close()
    if is_main():
        write_json(Path(task["out"]), rows)
    leave_process_group()


if __name__ == "__main__":
    main()
