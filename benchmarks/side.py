"""One side of the comparison, in a process of its own: `python side.py '{"side": ..., "points":
[...], ...}'`.

A point is a work at a size, a batch and a shape; a seed says which rows of the data
are drawn and what is said. Some points may share a process; the peak of memory is then of all.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import report
import roofline
import world
from clock import resident


def take(side: str, point: dict[str, Any], models: Path) -> dict[str, Any]:
    """Take the steps of one point; return lists over steps of seconds, real completion tokens and
    FLOPs needed.
    """
    import torch

    torch.set_num_threads(1)
    rate = roofline.gflops()
    work, batch = point["work"], point["batch"]
    shape = point["shape"] | {"seed": point.get("seed", 0)}
    model = world.build(point["size"], models, shape["completion"])
    if side == "peers":
        import peers as told
    else:
        import ours as told  # type: ignore[no-redef]
    with Updates() as updates:
        clock, lengths = told.run(work, model, batch, point["steps"], shape)
    seconds = clock.seconds
    if work not in roofline.DRAWS:
        lengths = [roofline.data_lengths(work, batch, shape)] * len(seconds)
    assert len(seconds) == len(lengths) == point["steps"], (len(seconds), len(lengths))
    flops = [roofline.needed(work, point["size"], shape, some) for some in lengths]
    costs = {
        "seconds": seconds,
        "tokens": [sum(some) for some in lengths],
        "flops": flops,
        "samples": len(lengths[0]),
    }
    memory = {"before": clock.before, "peak": resident("VmHWM")}
    used = report.versions("torch", "transformers", *(["trl"] if side == "peers" else []))
    about = {"gflops": rate, "software": used, "processor": report.processor()}
    return costs | {"updates": updates.per_step(point["steps"])} | memory | about


class Updates:
    """Counts what any optimiser of the process does: both sides must update equally often."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def __enter__(self) -> Updates:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.handle = register_optimizer_step_post_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _count(self, optimizer: Any, *_: Any) -> None:
        self.counts[id(optimizer)] = self.counts.get(id(optimizer), 0) + 1

    def per_step(self, steps: int) -> float:
        """Return updates of the weights per step; a critic with an optimiser of its own is updated
        beside them.
        """
        return max(self.counts.values(), default=0) / steps


def main() -> None:
    """Take the points, and write what was found, one line a point."""
    task = json.loads(sys.argv[1])
    with open(task["out"], "a", encoding="utf-8") as out:
        for point in task["points"]:
            if task["side"] == "build":
                costs: dict[str, Any] = {
                    "model": str(world.build(point["size"], Path(task["models"]), point["limit"]))
                }
            else:
                costs = take(task["side"], point, Path(task["models"]))
            out.write(json.dumps(costs) + "\n")
            out.flush()
            gc.collect()


if __name__ == "__main__":
    main()
