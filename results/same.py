"""Whether two folders of raw runs hold the same runs of a study: `python results/same.py A B
STUDY`.

Runs are matched by label, suite and seed; metrics, answers and weights are compared by bytes, a
column of the answers that only one side has left out. Exit code 1 where any differ.
"""

import json
import sys
from filecmp import cmp
from pathlib import Path

from harness.core.run_folder import METRICS, SAMPLES, read_rows
from harness.experiments.study.state import CELLS, study_folder

WEIGHTS = "policy/model.safetensors"
Cell = tuple[str, str, int]


def cells(raw: Path, study: str) -> dict[Cell, Path]:
    """Return the finished runs of a study by label, suite and seed."""
    told = json.loads((study_folder(raw, study) / CELLS).read_text(encoding="utf-8"))
    found = {(c["label"], c["suite"], c["seed"]): raw / c["folder"] for c in told if not c["trial"]}
    return {cell: folder for cell, folder in found.items() if (folder / "result.json").is_file()}


def differing(a: Path, b: Path) -> list[str]:
    """Return the files in which two run folders differ."""
    names = [name for name in (METRICS, WEIGHTS) if (a / name).is_file() or (b / name).is_file()]
    off = [
        n
        for n in names
        if not ((a / n).is_file() and (b / n).is_file() and cmp(a / n, b / n, shallow=False))
    ]
    ours, theirs = read_rows(a / SAMPLES), read_rows(b / SAMPLES)
    common = ours[0].keys() & theirs[0].keys()
    kept = [[{key: row[key] for key in common} for row in rows] for rows in (ours, theirs)]
    return off + ([SAMPLES] if kept[0] != kept[1] else [])


def main(first: Path, second: Path, study: str) -> int:
    """Print which runs differ, and how many are the same."""
    ours, theirs = cells(first, study), cells(second, study)
    both = sorted(ours.keys() & theirs.keys())
    off = {cell: names for cell in both if (names := differing(ours[cell], theirs[cell]))}
    for (label, suite, seed), names in off.items():
        print(f"{label} on {suite}, seed {seed}: {', '.join(names)}")
    print(
        f"{len(both) - len(off)} of {len(both)} runs are the same ({len(ours)} and {len(theirs)}"
        " finished)."
    )
    return 1 if off or not both else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
