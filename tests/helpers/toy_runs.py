"""Made-up run folders whose figures are the means of their samples: gold reward is a known function
of KL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.run_folder import write_rows
from harness.report.selection.filters import Filter
from harness.report.selection.select import Selection, select

from .tools import estimate, put, record

PROMPTS = 48
Gold = Callable[[float], float]  # gold reward over SFT's, of d = sqrt(KL)


def hump(d: float) -> float:
    """Gao et al.'s form for RL, alpha 1.5 and beta 0.8."""
    return d * (1.5 - 0.8 * math.log(d)) if d > 0 else 0.0


def samples(kl: float, gold: float, seed: int, noise: float = 1.0) -> list[dict[str, Any]]:
    """Return PROMPTS samples of mean KL `kl` and mean gold reward `gold` over SFT's, whose mean is
    1.
    """
    shared, own = np.random.default_rng(7), np.random.default_rng([int(1000 * kl), seed])
    hard, mine = shared.normal(size=PROMPTS), noise * own.normal(size=PROMPTS)
    theirs = 1 + hard - hard.mean()
    ours = theirs.mean() + gold + 0.5 * (hard - hard.mean()) + mine - mine.mean()
    spread = own.uniform(0.5, 1.5, size=PROMPTS)
    return [
        {
            "prompt_id": f"test/{i}",
            "prompt": "p",
            "answer": "a",
            "baseline": "s",
            "ended": True,
            "gold": float(g),
            "baseline_gold": float(t),
            "proxy": float(2 * g),
            "baseline_proxy": float(t),
            "kl": float(kl * k),
            "length": int(10 + 2 * gold),
            "win": 1.0 if g > t else 0.5 if g == t else 0.0,
        }
        for i, (g, t, k) in enumerate(zip(ours, theirs, spread / spread.mean(), strict=True))
    ]


def run(
    results: Path,
    method: str,
    seed: int = 0,
    kl: float = 1.0,
    options: Mapping[str, Any] | None = None,
    gold: Gold = hump,
    cost: Mapping[str, float] | None = None,
    curve: Sequence[float] = (),
    metrics: Sequence[Mapping[str, float]] = (),
    noise: float = 1.0,
    **more: Any,
) -> dict[str, Any]:
    """Write a run folder below `results` and return its record; `curve`: KLs of snapshots."""
    rows = samples(kl, gold(math.sqrt(kl)), seed, noise)
    options = dict(options or {"beta": 0.1})
    told = " ".join(f"{name}={value}" for name, value in options.items())
    recipe = f"{method} {told} on {more.get('suite', 'toy')}"
    made = record(method, seed, recipe=recipe, options=options, **more)
    mean = {
        name: float(np.mean([r[name] for r in rows]))
        for name in ("gold", "proxy", "kl", "length", "win")
    }
    made["evaluation"] |= {name: estimate(mean[name]) for name in ("gold", "proxy", "kl", "length")}
    made["evaluation"] |= {
        "win_rate": estimate(mean["win"]),
        "prompts": PROMPTS,
        "baseline_gold": 1.0,
        "baseline_proxy": 2.0,
    }
    if curve:
        made["evaluation"]["curve"] = [snapshot(i, at, gold) for i, at in enumerate(curve, 1)]
    if options.get("n"):
        made["evaluation"] |= {
            "kl_bound": math.log(options["n"]) - (options["n"] - 1) / options["n"],
            "kl_estimator": "best-of-n level mass",
        }
    made["cost"]["method"] |= cost or {}
    before = set(results.glob("runs/*/*/*"))
    put(results, made)
    (folder,) = set(results.glob("runs/*/*/*")) - before
    write_rows(folder / "samples.jsonl", rows)
    write_rows(folder / "metrics.jsonl", [dict(m) for m in metrics])
    return made


def snapshot(number: int, kl: float, gold: Gold) -> dict[str, float]:
    """Return a point of a run's curve."""
    own = gold(math.sqrt(kl))
    return {
        "step": 10.0 * number,
        "win_rate": 0.5 + 0.1 * math.tanh(own),
        "gold": 1.0 + own,
        "proxy": 2.0 + kl**0.5,
        "kl": kl,
        "length": 12.0,
    }


def logged(steps: int, seed: int, *names: str) -> list[dict[str, float]]:
    """Return what a method logs: each figure rises, with noise of its seed."""
    rng = np.random.default_rng(seed)
    rows = [
        {name: float(math.log1p(i) + 0.2 * rng.normal()) for name in names} for i in range(steps)
    ]
    return [{"step": float(i), **row} for i, row in enumerate(rows, 1)]


def study(results: Path) -> Selection:
    """Write SFT, best-of-n over n, two sweeps of beta, one with snapshots, and a control; return
    their selection.
    """
    betas = (0.02, 0.05, 0.1, 0.2, 0.4)
    for seed in range(3):
        free = {"flops": 0.0, "seconds": 0.0, "peak_memory": 0}
        run(results, "start", seed, 0.0, {"unused": True}, cost=free)
        for n in (2, 4, 16, 64):
            kl = 0.95 * (math.log(n) - (n - 1) / n)
            run(results, "best_of_n", seed, kl, {"n": n}, lambda d: d * (1.9 - 0.45 * d), free)
        for i, beta in enumerate(betas):
            kl, cost = (
                (0.3 + 0.1 * seed * (i == 1)) / beta,
                {"flops": 2e12 + 2e11 * i, "seconds": 60.0 + seed + 9 * i},
            )
            path = tuple(kl * k / 6 for k in range(1, 7))
            told = logged(40, seed, "reward", "kl", "length", "loss")
            run(results, "ppo", seed, kl, {"beta": beta}, curve=path, cost=cost, metrics=told)
            kl, cost = 0.2 / beta, {"flops": 1e12 + 1e10 * i, "seconds": 20.0 + seed + i}
            run(
                results,
                "dpo",
                seed,
                kl,
                {"beta": beta, "shuffle_labels": False},
                lambda d: 0.7 * hump(d),
                cost,
                metrics=logged(60, seed, "loss"),
            )
        run(
            results,
            "dpo",
            seed,
            0.7,
            {"beta": 0.1, "shuffle_labels": True},
            lambda d: 0.0,
            metrics=logged(60, seed, "loss"),
        )
    return chosen(results)


def chosen(results: Path, **asked: Any) -> Selection:
    """Return the runs below a folder."""
    return select(results, Filter(**asked))
