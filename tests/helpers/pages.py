"""Shared by the tests of the report page: a made-up study whose texts are hostile and whose figures
are known.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from harness.core.records import write_sealed
from harness.core.run_folder import write_rows
from harness.report.page import page

from .tools import estimate, failure, put, record

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    '<img src="x" onerror="window.hacked = 3">',
    "\"><svg onload='window.hacked = 4'>",
    "<!--<script>",
    "{{ 7 * 7 }} {% raw %} ${7 * 7}",
    r"\begin{document} $x_1$ \input{/etc/passwd}",
    "\u202eback to front\u2066 \u200b\u2028 \x00\x07\x1b[31m \ud800 end",
    "javascript:window.hacked = 5",
    "long" * 3000,
    "",
    "\u05e9\u05dc\u05d5\u05dd \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "&lt;b&gt; & &amp; &#60;",
]
PROMPTS = 24
LABEL = "ppo <img src=x onerror=window.hacked=6>"
DPO = "dpo (default, tuned)"  # what a study calls it when tuning leaves it as it was


def samples(method: str, seed: int, n: int = PROMPTS) -> list[dict[str, Any]]:
    """Answers to n prompts: gold is in halves, so there are ties; every text is hostile."""
    rng, shared = Random(f"{method} {seed}"), Random("shared")
    rows = []
    for i in range(n):
        text, baseline_gold = HOSTILE[i % len(HOSTILE)], shared.randrange(-2, 3) / 2
        gold = rng.randrange(-2, 4) / 2
        rows.append(
            {
                "prompt_id": f"test/{i}",
                "prompt": f"prompt {i}: {text}",
                "baseline": f"baseline {i}: {text}",
                "baseline_gold": baseline_gold,
                "baseline_proxy": baseline_gold / 2,
                "answer": f"{method} {seed} says {i}: {text}",
                "gold": gold,
                "proxy": gold + rng.uniform(-1, 1),
                "kl": rng.uniform(0, 5),
                "length": rng.randrange(1, 30),
                "ended": rng.random() < 0.9,
                "win": 1.0 if gold > baseline_gold else 0.5 if gold == baseline_gold else 0.0,
            }
        )
    return rows


def add(results: Path, method: str = "dpo", seed: int = 0, n: int = PROMPTS, **more: Any) -> Path:
    """Write a run whose record is that of its answers, and return its folder."""
    rows = samples(method, seed, n)
    made = record(method, seed, **more)
    for name, column in (("win_rate", "win"), *((c, c) for c in ("gold", "proxy", "kl", "length"))):
        made["evaluation"][name] = estimate(fmean(row[column] for row in rows))
    made["evaluation"]["prompts"] = n
    put(results, made)
    folder = sorted((results / "runs" / made["suite"] / method).iterdir())[-1]
    write_rows(folder / "samples.jsonl", rows)
    write_sealed(folder / "provenance.json", PROVENANCE)
    return folder


PROVENANCE = {
    "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    "plugins": {"alignment-harness": "0.1.0"},
    "machine": {"system": "Linux", "processor": "<b>a processor</b>", "cores": 2},
    "code": {"harness": "ab", "method": "cd"},
    "git": {"commit": "c0ffee", "dirty": True},
    "command": ["__main__.py", "run", "--method", "it's <i>", "--seed", "0"],
}
PAPER = {"dpo": "https://arxiv.org/abs/2305.18290", "ppo": "https://arxiv.org/abs/2203.02155"}


def study(results: Path) -> Path:
    """Write a study of two suites: SFT, PPO under a hostile label with two seeds, DPO; a failed and
    a refused run.
    """
    folders = {}
    for suite in ("toy", "<i>other"):
        for label, method, seed in (
            ("start", "start", 0),
            (LABEL, "ppo", 0),
            (LABEL, "ppo", 1),
            (DPO, "dpo", 0),
        ):
            more = {
                "suite": suite,
                "paper": PAPER.get(method, ""),
                "recipe": f"{method}-on-{suite}",
            }
            folders[add(results, method, seed, **more)] = label
    why = "Loss is nan: <script>window.hacked = 7</script> \u202eturned \x00 \ud800"
    put(results, failure("kto", why=why, finished_at="2026-01-01T00:00:00Z", recipe="kto-on-toy"))
    folders[next((results / "runs/toy/kto").iterdir())] = "kto"
    write_study(results, folders)
    return results


def write_study(results: Path, labels: dict[Path, str], name: str = "mine") -> None:
    """Write what a study leaves beside its runs."""
    cells = [
        {
            "label": label,
            "entry": label,
            "method": f.parts[-2],
            "suite": f.parts[-3],
            "seed": int(f.name[4]),
            "fingerprint": f.name,
            "folder": str(f.relative_to(results)),
            "trial": False,
            "refused": "",
        }
        for f, label in labels.items()
    ]
    left = {**cells[0], "label": "grpo", "folder": "runs/toy/grpo/seed0-none"}
    cells += [left, {**left, "label": "rlvr", "refused": "toy has no verifier </td>"}]
    folder = results / "studies" / name
    folder.mkdir(parents=True)
    write_sealed(folder / "cells.json", {"cells": cells})
    (folder / "study.toml").write_text('suites = ["toy"]  # <script>window.hacked = 8</script>\n')
    trials = [
        {"options": {}, "fingerprint": "a", "folder": "b", "status": "done", "gold": 1.25},
        {
            "options": {"beta": 0.3},
            "fingerprint": "c",
            "folder": "d",
            "status": "diverged",
            "gold": None,
        },
    ]
    search = {
        "method": "dpo",
        "suite": "toy",
        "label": DPO,
        "row": DPO,
        "chosen": 0,
        "trials": trials,
    }
    write_sealed(
        folder / "tune.json",
        {"trials": 2, "seed": 4, "rule": "highest mean gold", "searches": [search]},
    )


def write_page(results: Path, file: Path, **asked: Any) -> Path:
    """Write a page and return its file."""
    file.write_text(page(results, **asked), encoding="utf-8")
    return file


def browsed(text: str) -> list[dict[str, Any]]:
    """The sample browser's data in a page."""
    found: list[dict[str, Any]] = json.loads(text.split('id="samples">')[1].split("</script>")[0])[
        "suites"
    ]
    return found
