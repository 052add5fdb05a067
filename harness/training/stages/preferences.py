"""Preferences: ranked completions of the start checkpoint, or fixed pairs of a data set.

They are three Parquet files, each a `datasets.Dataset`. `pairs` (prompt, chosen, rejected and p,
the labeller's certainty) is for methods. `rankings` and `heldout` (prompt, completions and labels
of pairs of them) are for the reward model. Token ids stand beside the text, because tokenising the
text again may give other ids than were sampled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import comb
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ...api.contracts import Labeller
from ...core.data import (
    Comparison,
    Labelled,
    LabelledCompletion,
    LabelledPair,
    Pair,
    Prompt,
    Text,
    completion_text,
)
from ...core.errors import UsageError
from ...core.fault_points import fault_point
from ...core.global_state import put_back
from ...core.progress import STAGES, activity, advance
from ...core.seeds import derive
from ...core.settings import PreferenceOptions
from ...core.watchdog import waiting_for
from ...models.batches import Batch
from ...models.generation import Sampler
from ...models.tokens import Tokens
from ..labels import checked_labels

if TYPE_CHECKING:
    from .runtime import StageContext

Row = dict[str, Any]


InfoAndCost = tuple[dict[str, Any], dict[str, Any]]  # info, cost


def sample(
    stages: StageContext,
    labeller: Labeller,
    prompts: Sequence[Prompt],
    options: PreferenceOptions,
    out: Path,
) -> InfoAndCost:
    """Sample K completions per prompt, label pairs of them, write the files; return (info,
    cost).
    """
    meter = stages.stage_runtime.meter()
    runtime = stages.stage_runtime.runtime(meter, stages.spec.shared_seed)
    sampler = Sampler(
        runtime.engine,
        runtime.sampling,
        meter,
        runtime.eos,
        (stages.spec.shared_seed, "preferences"),
        runtime.distributed,
    )
    sampler.phase = "preferences"
    start, prompt_batch = stages.start, stages.tokens.prompt_batch(prompts, runtime.device)
    with activity(STAGES, "preferences: completions"):
        batch = sampler.draw(start, prompt_batch, options.completions)
    with meter.phase("preferences"):
        with activity(STAGES, "preferences: labels"):
            rows, agreements, equal = _compared(stages, labeller, batch, options.labels)
        kept = max(1, len(rows) - round(options.heldout * len(rows)))
        info = _write(rows[:kept], rows[kept:], out) | {"equal_pairs": equal}
        heldout = [agreed for row in agreements[kept:] for agreed in row]
        info |= labeller.usage()  # a labeller's own count of requests, where it keeps one
        meter.add(**{"labels" if labeller.human else "ai_labels": int(info["asked"])})
    ceiling = round(sum(heldout) / len(heldout), 4) if heldout else None
    return info | {"label_ceiling": ceiling, "labeller": labeller.name}, meter.snapshot()


def take(
    stages: StageContext,
    pairs: Sequence[Pair],
    labelled: Sequence[Labelled],
    options: PreferenceOptions,
    out: Path,
) -> InfoAndCost:
    """Write fixed pairs and single labelled completions as such files; return (info, cost)."""
    meter, tokens = stages.stage_runtime.meter(), stages.tokens.counting_afresh()
    with meter.phase("preferences"):
        whole = rankings_of(tokens, pairs[: options.labels or None], options.heldout)
        if labelled:
            singles = rankings_of(tokens, labelled[: options.labels or None], options.heldout)
            info = _write_labelled(singles, whole["train"], out)
        else:
            info = _write(whole["train"], whole["heldout"], out)
        info["equal_pairs"] = sum(not row["p"] for rows in whole.values() for row in rows)
        meter.add(labels=info["asked"])
    learned = (labelled or pairs)[: options.labels or None]
    info |= {
        "cut_prompts": tokens.count_cut(row.prompt.text for row in learned),
        "cut_completions": tokens.cut_completions,
    }
    return info | {"label_ceiling": None}, meter.snapshot()


def rankings_of(
    tokens: Tokens, examples: Sequence[Pair] | Sequence[Labelled], heldout: float
) -> dict[str, list[Row]]:
    """Return pairs as rankings of two, and labelled completions as rows of one with a `label`.

    They are split by position into `train` and `heldout`.
    """
    rows = [_ranking(tokens, example) for example in examples]
    kept = max(1, len(rows) - round(heldout * len(rows)))
    return {"train": rows[:kept], "heldout": rows[kept:]}


def _ranking(tokens: Tokens, example: Pair | Labelled) -> Row:
    prompt = example.prompt
    if isinstance(example, Labelled):
        ids = tokens.completion_ids(prompt.text, example.completion)
        return _row(prompt, [example.completion], [ids], []) | {"label": example.label}
    texts = [example.chosen, example.rejected]
    both = [tokens.completion_ids(prompt.text, text) for text in texts]
    return _row(prompt, texts, both, [Comparison(0, 1, example.p)])


def read_rankings(folder: Path) -> dict[str, list[Row]]:
    """Return the rankings of a preferences artifact: `train` and `heldout`."""
    heldout = folder / "heldout.parquet"
    return {
        "train": _read(folder / "rankings.parquet"),
        "heldout": _read(heldout) if heldout.exists() else [],
    }


def read_labelled(folder: Path) -> list[LabelledCompletion]:
    """Return the single labelled completions of a preferences artifact; none if it has pairs
    only.
    """
    rows = [row for row in _read(folder / "rankings.parquet") if row.get("label") is not None]
    return [
        LabelledCompletion(prompt_of(r), list(r["completion_ids"][0]), r["label"]) for r in rows
    ]


def read_pairs(folder: Path) -> list[LabelledPair]:
    """Return the pairs of a preferences artifact; none if it has labelled completions only."""
    file = folder / "pairs.parquet"
    rows = _read(file) if file.exists() else []
    return [
        LabelledPair(prompt_of(r), list(r["chosen_ids"]), list(r["rejected_ids"]), r["p"])
        for r in rows
    ]


def prompt_of(row: Row) -> Prompt:
    """Return the prompt of a row."""
    return Prompt(row["prompt_id"], _from_cell(row["prompt"]))


def comparisons_of(row: Row) -> list[Comparison]:
    """Return the labels of the pairs of a row."""
    return [
        Comparison(i, j, p) for i, j, p in zip(row["first"], row["second"], row["p"], strict=True)
    ]


def _compared(
    stages: StageContext, labeller: Labeller, batch: Batch, limit: int
) -> tuple[list[Row], list[list[float]], int]:
    """Return rows with labels, the agreement of each label with the noiseless utilities, and the
    number of compared pairs that were equal.

    The labeller is not shown prompts that could take it past `limit` labels (0: no limit).
    """
    rows: list[Row] = []
    agreements: list[list[float]] = []
    ids, lengths = batch["completion_ids"].tolist(), batch.lengths.tolist()
    counted, equal, most = 0, 0, comb(len(ids[0]), 2)
    ended = batch["ended"].tolist()
    for i, (prompt, texts) in enumerate(
        zip(batch.prompts.prompts, stages.tokens.texts(batch), strict=True)
    ):
        if limit and counted + most > limit:
            break
        advance(i, batch.shape[0])
        rng = Random(derive(stages.spec.shared_seed, "labels", prompt.id))
        name = labeller.name
        with waiting_for(f"the labeller {name}"), put_back(f"The labeller {name}"):
            fault_point("label")
            labels = labeller.compare_sampled(prompt, texts, lengths[i], ended[i], rng)
        comparisons = checked_labels(labels, len(texts), labeller.name, prompt)
        rows.append(
            _row(
                prompt, texts, [c[:n] for c, n in zip(ids[i], lengths[i], strict=True)], comparisons
            )
        )
        equal += len(comparisons) - len(rows[-1]["p"])
        counted = int(labeller.usage().get("asked", counted + len(rows[-1]["p"])))
        utilities = labeller.ceiling(prompt, texts, lengths[i])
        agreements.append([] if utilities is None else _agreements(comparisons, utilities))
    return rows, agreements, equal


def _agreements(comparisons: Sequence[Comparison], utilities: Sequence[float]) -> list[float]:
    """Return 1 for every preference that agrees with the noiseless utilities, 0 for any other, and
    half for a tie.

    Their mean over held-out pairs is the highest accuracy that a reward model can reach: that of
    the utilities themselves.
    """
    labelled = [
        (c.p > 0.5, utilities[c.first] - utilities[c.second]) for c in comparisons if c.p != 0.5
    ]
    return [0.5 if margin == 0 else float(first == (margin > 0)) for first, margin in labelled]


def _row(
    prompt: Prompt,
    completions: Sequence[Text],
    ids: Sequence[Sequence[int]],
    comparisons: Sequence[Comparison],
) -> Row:
    """Return a row. Pairs of equal completions are dropped: nothing can be learned from them."""
    comparisons = [c for c in comparisons if list(ids[c.first]) != list(ids[c.second])]
    return {
        "prompt_id": prompt.id,
        "prompt": _cell(prompt.text),
        "completions": [completion_text(c) for c in completions],
        "completion_ids": [list(c) for c in ids],
        "first": [c.first for c in comparisons],
        "second": [c.second for c in comparisons],
        "p": [float(c.p) for c in comparisons],
        "notes": [json.dumps(dict(c.note), sort_keys=True) for c in comparisons],
    }


def _write(train: list[Row], heldout: list[Row], out: Path) -> dict[str, Any]:
    pairs = [pair for row in train for pair in _pairs_of(row)]
    if not pairs:
        raise UsageError(
            "The preferences hold no pair of which one is preferred: the labeller found all"
            " completions of each prompt equally good. Use a stronger base model, or more"
            " completions per prompt: --stage-set preferences.completions=8."
        )
    for name, rows in (("pairs", pairs), ("rankings", train), ("heldout", heldout)):
        _save(rows, out / f"{name}.parquet")
    heldout_labels = sum(len(_pairs_of(row)) for row in heldout)
    labels = sum(len(row["p"]) for row in [*train, *heldout])
    return {
        "prompts": len(train),
        "labels": len(pairs),
        "heldout_labels": heldout_labels,
        "asked": labels,
    }


def _write_labelled(
    singles: dict[str, list[Row]], pairs: Sequence[Row], out: Path
) -> dict[str, Any]:
    """Write labelled completions, and the pairs that completions of one prompt form."""
    train, heldout = singles["train"], singles["heldout"]
    labelled = [pair for row in pairs for pair in _pairs_of(row)]
    for name, rows in (("pairs", labelled), ("rankings", train), ("heldout", heldout)):
        if rows:
            _save(rows, out / f"{name}.parquet")
    return {
        "prompts": len({row["prompt_id"] for row in train}),
        "labels": len(train),
        "heldout_labels": len(heldout),
        "asked": len(train) + len(heldout),
        "pairs": len(labelled),
    }


def _pairs_of(row: Row) -> list[Row]:
    """Return the pairs of a row with a preference, chosen first."""
    texts, ids = row["completions"], row["completion_ids"]
    pairs = []
    for i, j, p, note in zip(row["first"], row["second"], row["p"], row["notes"], strict=True):
        if p != 0.5:
            (w, l), sure = ((i, j), p) if p > 0.5 else ((j, i), 1 - p)
            pairs.append(
                {
                    "prompt_id": row["prompt_id"],
                    "prompt": row["prompt"],
                    "chosen": texts[w],
                    "rejected": texts[l],
                    "chosen_ids": ids[w],
                    "rejected_ids": ids[l],
                    "p": sure,
                    "note": note,
                }
            )
    return pairs


def _save(rows: list[Row], path: Path) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_list(rows).to_parquet(path)


def _read(path: Path) -> list[Row]:
    import pyarrow.parquet as pq

    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


def _cell(text: Text) -> str:
    """Return a prompt as one column value: plain text unchanged, messages as marked JSON."""
    return text if isinstance(text, str) else "\x00" + json.dumps(text)


def _from_cell(cell: str) -> Text:
    messages: Text = json.loads(cell[1:]) if cell.startswith("\x00") else cell
    return messages
