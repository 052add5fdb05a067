"""Preferences: K completions per prompt of the start checkpoint, ranked by the labeller; or fixed pairs of a data set.

Three Parquet files, each a `datasets.Dataset`: `pairs` (prompt, chosen, rejected) for methods, `rankings` and
`heldout` (prompt, completions, ranks) for the reward model. Token ids stand beside the text, because re-tokenised text
need not give the ids that were sampled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ..data import Pair, Prompt, Text, completion_text
from ..errors import UsageError
from ..meter import Meter
from ..rollout import Sampler
from ..seeds import derive
from ..spec import PreferenceOptions
from ..tokens import Batch, Tokens

if TYPE_CHECKING:
    from . import Stages

Row = dict[str, Any]
Made = tuple[dict[str, Any], dict[str, Any]]  # info, cost


def sample(stages: Stages, prompts: Sequence[Prompt], options: PreferenceOptions, out: Path) -> Made:
    """Sample K completions per prompt, have them ranked, write the files; return (info, cost)."""
    if stages.labeller is None:
        raise UsageError(f"The suite {stages.spec.suite_name} has neither fixed preferences nor a labeller.")
    meter = Meter()
    bench = stages.shop.bench(meter, stages.spec.shared_seed)
    sampler = Sampler(bench.engine, bench.sampling, meter, bench.eos, (stages.spec.shared_seed, "preferences"))
    sampler.phase = "preferences"
    batch = sampler.draw(stages.start, stages.tokens.prompt_batch(prompts, bench.device), options.completions)
    with meter.phase("preferences"):
        rows, agreed, counted = _rank(stages, batch)
        kept = max(1, len(rows) - round(options.heldout * len(rows)))
        info = _write(rows[:kept], rows[kept:], out)
        meter.add(labels=info["labels"] + info["heldout_labels"])
    return info | {"label_ceiling": round(agreed / counted, 4) if counted else None}, meter.snapshot()


def take(stages: Stages, pairs: Sequence[Pair], options: PreferenceOptions, out: Path) -> Made:
    """Write fixed pairs as the same files; return (info, cost)."""
    meter = Meter()
    with meter.phase("preferences"):
        whole = rankings_of(stages.tokens, pairs, options.heldout)
        info = _write(whole["train"], whole["heldout"], out)
        meter.add(labels=info["labels"] + info["heldout_labels"])
    info |= {"cut_prompts": stages.tokens.cut_prompts, "cut_completions": stages.tokens.cut_completions}
    return info | {"label_ceiling": None}, meter.snapshot()


def rankings_of(tokens: Tokens, pairs: Sequence[Pair], heldout: float) -> dict[str, list[Row]]:
    """Return pairs as rankings of two, split by position into `train` and `heldout`."""
    rows = []
    for pair in pairs:
        ids = [tokens.completion_ids(pair.prompt.text, c) for c in (pair.chosen, pair.rejected)]
        rows.append(_row(pair.prompt, [pair.chosen, pair.rejected], ids, [0, 1]))
    kept = max(1, len(rows) - round(heldout * len(rows)))
    return {"train": rows[:kept], "heldout": rows[kept:]}


def read_rankings(folder: Path) -> dict[str, list[Row]]:
    """Return the rankings of a preferences artifact: `train` and `heldout`."""
    return {"train": _read(folder / "rankings.parquet"), "heldout": _read(folder / "heldout.parquet")}


def read_pairs(folder: Path) -> list[tuple[Prompt, list[int], list[int]]]:
    """Return the pairs of a preferences artifact as (prompt, chosen ids, rejected ids)."""
    rows = _read(folder / "pairs.parquet")
    return [(prompt_of(row), list(row["chosen_ids"]), list(row["rejected_ids"])) for row in rows]


def prompt_of(row: Row) -> Prompt:
    """Return the prompt of a row."""
    return Prompt(row["prompt_id"], _from_cell(row["prompt"]))


def _rank(stages: Stages, batch: Batch) -> tuple[list[Row], int, int]:
    """Return ranked rows, and on how many of how many pairs the label agrees with the labeller's noiseless order."""
    assert stages.labeller is not None
    rows, agreed, counted = [], 0, 0
    ids, lengths = batch["completion_ids"].tolist(), batch.lengths.tolist()
    for i, (prompt, texts) in enumerate(zip(batch.prompts.prompts, stages.tokens.texts(batch), strict=True)):
        rng = Random(derive(stages.spec.shared_seed, "labels", prompt.id))
        ranks = stages.labeller.rank(prompt, texts, lengths[i], rng)
        rows.append(_row(prompt, texts, [c[:n] for c, n in zip(ids[i], lengths[i], strict=True)], ranks))
        utilities = stages.labeller.ceiling(prompt, texts, lengths[i])
        if utilities is not None:
            agreements = _agreements(ranks, utilities)
            agreed, counted = agreed + sum(agreements), counted + len(agreements)
    return rows, agreed, counted


def _agreements(ranks: Sequence[int], utilities: Sequence[float]) -> list[bool]:
    """Return for every strictly ordered pair whether the label agrees with the noiseless utility."""
    pairs = combinations(range(len(ranks)), 2)
    ordered = [(a, b) for a, b in pairs if ranks[a] != ranks[b] and utilities[a] != utilities[b]]
    return [(ranks[a] < ranks[b]) == (utilities[a] > utilities[b]) for a, b in ordered]


def _row(prompt: Prompt, completions: Sequence[Text], ids: Sequence[Sequence[int]], ranks: Sequence[int]) -> Row:
    texts = [completion_text(c) for c in completions]
    return {
        "prompt_id": prompt.id, "prompt": _cell(prompt.text), "completions": texts,
        "completion_ids": [list(c) for c in ids], "ranks": list(ranks),
    }  # fmt: skip


def _write(train: list[Row], heldout: list[Row], out: Path) -> dict[str, Any]:
    pairs = [pair for row in train for pair in _pairs_of(row)]
    if not pairs:
        raise UsageError("The preferences hold no strictly ordered pair.")
    for name, rows in (("pairs", pairs), ("rankings", train), ("heldout", heldout)):
        _save(rows, out / f"{name}.parquet")
    heldout_labels = sum(len(_pairs_of(row)) for row in heldout)
    return {"prompts": len(train), "labels": len(pairs), "heldout_labels": heldout_labels}


def _pairs_of(row: Row) -> list[Row]:
    """Return every strictly ordered pair of a ranking; equal texts say nothing and are left out."""
    found = []
    for a, b in combinations(range(len(row["ranks"])), 2):
        w, l = (a, b) if row["ranks"][a] < row["ranks"][b] else (b, a)
        if row["ranks"][w] != row["ranks"][l] and row["completion_ids"][w] != row["completion_ids"][l]:
            texts, ids = row["completions"], row["completion_ids"]
            found.append({
                "prompt_id": row["prompt_id"], "prompt": row["prompt"], "chosen": texts[w], "rejected": texts[l],
                "chosen_ids": ids[w], "rejected_ids": ids[l],
            })  # fmt: skip
    return found


def _save(rows: list[Row], path: Path) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_list(rows).to_parquet(path)


def _read(path: Path) -> list[Row]:
    import pyarrow.parquet as pq

    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


def _cell(text: Text) -> str:
    """Return a prompt as one column value: plain text as it is, messages as JSON behind a marker."""
    return text if isinstance(text, str) else "\x00" + json.dumps(text)


def _from_cell(cell: str) -> Text:
    messages: Text = json.loads(cell[1:]) if cell.startswith("\x00") else cell
    return messages
