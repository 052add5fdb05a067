"""Measure how many short programs the verifier `code` checks in a second.

python benchmarks/isolation.py [--workers 2] [--programs 400] [--hostile 0.2]
"""

from __future__ import annotations

import argparse
import json
import resource
import time

from harness_plugins.isolation.confine import Limits
from harness_plugins.isolation.pool import Pool

HOSTILE = (
    "import os\nos._exit(0)",
    "import os\nos.fork()",
    "x = bytearray(3 << 30)",
    "raise SystemExit",
    "open('/etc/passwd').read()",
)


def job(number: int, program: str) -> dict[str, object]:
    """Return a job that checks one program against three asserts."""
    head = f'def add{number}(x):\n    """Add {number}."""\n'
    tests = "".join(f"    assert candidate({x}) == {x + number}\n" for x in range(3))
    return {
        "kind": "functions",
        "program": program or f"{head}    return x + {number}\n",
        "head": head,
        "entry": f"add{number}",
        "tests": [f"def check(candidate):\n{tests}"],
    }


def measure(pool: Pool, programs: int, hostile: float) -> dict[str, float]:
    """Return programs per second of wall clock and per CPU second, and how many passed."""
    every = round(1 / hostile) if hostile else 0
    jobs = [
        job(n, HOSTILE[n // every % len(HOSTILE)] if every and n % every == 0 else "")
        for n in range(programs)
    ]
    begun = time.perf_counter()
    replies = pool.run(jobs)
    seconds = time.perf_counter() - begun
    passed = sum(reply["passed"] for reply in replies)
    return {"programs_per_second": programs / seconds, "passed": passed, "hostile": hostile}


def main() -> None:
    """Measure without and with hostile programs, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--programs", type=int, default=400)
    parser.add_argument("--hostile", type=float, default=0.2, help="share of hostile programs")
    options = parser.parse_args()
    pool = Pool(Limits(), options.workers)
    measure(pool, 20, 0.0)  # the workers start
    for _ in range(3):
        for share in (0.0, options.hostile):
            print(json.dumps(measure(pool, options.programs, share)), flush=True)
    pool.close()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"cpu_seconds_of_workers": usage.ru_utime + usage.ru_stime}))


if __name__ == "__main__":
    main()
