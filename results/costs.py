"""What a run of each method costs on each embedded suite, for `harness study --dry-run` where
nothing was run yet.

    python results/costs.py [RAW] > harness/experiments/study/costs.csv

From the finished runs of the main study below RAW (results/raw) that nobody set an option of: mean
CPU seconds and FLOPs of the method and of its evaluation. Shared stages have rows of their own.
A pair loss that the study did not train costs what dpo does, or simpo without a reference: the
loss is a function of the same log-probabilities.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from harness.api.registry import installed
from harness.core.run_folder import runs
from harness.experiments.requirements.asks import asks_of
from harness.experiments.study.state import SHARED, places_of

raw = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "raw")
main, found = places_of(raw, "main"), defaultdict(list)
for folder, record in runs(raw):
    if str(folder) in main and "failure" not in record and not record["asked"]:
        parts = record["cost"]["method"], record["cost"]["evaluation"]
        found[record["method"], record["suite"]].append(
            [sum(p[name] for p in parts) for name in ("cpu_seconds", "flops")]
        )
        if record["method"] == "ppo":  # it needs every shared stage
            shared = record["cost"]["shared_total"]
            found[SHARED, record["suite"]].append([shared["cpu_seconds"], shared["flops"]])
trained = {method for method, _ in found}
for name, cls in installed().classes["methods"].items():
    if name not in trained and hasattr(cls, "pair_loss"):
        like, passes = ("dpo" if asks_of(cls()).reference else "simpo"), cls.passes
        for suite in {suite for method, suite in found if method == like}:
            found[name, suite] = [[x * passes for x in row] for row in found[like, suite]]
writer = csv.writer(sys.stdout, lineterminator="\n")
writer.writerow(["method", "suite", "cpu_seconds", "flops"])
for (method, suite), costs in sorted(found.items()):
    seconds, flops = (fmean(column) for column in zip(*costs, strict=True))
    writer.writerow([method, suite, f"{seconds:.1f}", f"{flops:.3g}"])
