"""`harness compare A B`: two runs or methods on the same prompts, and one sentence as the result.

Prompts are paired. Seeds of the two are treated as independent, as in tables, although seed s of
both draws its answers with the same uniform numbers. The resulting correlation is small: 0.03 to
0.14 of a cell's noise on the embedded suites. Ignoring it makes the interval wider, never narrower.
Pairing the seeds would halve the degrees of freedom: intervals 5 to 30 % wider with three seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import HarnessError, UsageError, unknown
from ...core.run_folder import SPEC, flatten, read_failure, read_result
from ...experiments.study.file import text_of
from ..selection.comparable import check_grounds, own_reward, shared_seed_of, unlike
from ..selection.figures import (
    Answers,
    answers_of,
    complete,
    controlled,
    of_prompts,
    same_prompts,
)
from ..selection.filters import Filter, Record
from ..selection.run_files import length_is_bias, samples_of, spec_of, withheld, without_doubtful
from ..selection.select import Row, chosen, rows_of, suites_of
from .verdict import verdict

if TYPE_CHECKING:
    from ...statistics.compare import Comparison
    from ...statistics.intervals import Array
    from ...statistics.length import LengthControlled

MEASURES = {  # figure of the evaluation: (column of samples.jsonl, label, decimals)
    "win_rate": ("win", "win-rate vs baseline", 3),
    "gold": ("gold", "gold reward", 3),
    "proxy": ("proxy", "proxy reward", 3),
    "accuracy": ("accuracy", "accuracy", 3),
    "kl": ("kl", "KL (nats)", 2),
    "length": ("length", "length (tokens)", 1),
}
SHOWN = 2  # prompts with the answers of both


@dataclass(frozen=True)
class Measure:
    """A figure of both, and their paired difference if there is a value per prompt."""

    name: str
    label: str
    a: float
    b: float
    digits: int
    difference: Comparison | None  # None if an answer has no value: a verdict in an older record
    note: str = ""


@dataclass(frozen=True)
class HeadToHead:
    """The answer with more gold on each prompt; with several seeds by their mean."""

    wins: int
    ties: int
    losses: int
    p: float  # exact sign test
    improvement: float  # P(an answer of A is above an answer of B to the same prompt), ties half


@dataclass(frozen=True)
class Cost:
    """One cost of both."""

    label: str
    both: tuple[float, float]
    unit: str = ""


@dataclass(frozen=True)
class Example:
    """A prompt with the answers of both, of the first seed of each."""

    title: str
    prompt: str
    answers: tuple[str, str]
    gold: tuple[float, float] | None  # None where the judge gives no scores


@dataclass(frozen=True)
class Compared:
    """The content of `harness compare`."""

    suite: str
    a: Row
    b: Row
    prompts: int
    split: str
    options: list[str]  # options in which they differ
    measures: list[Measure]
    head: HeadToHead | None  # None where the judge gives no gold scores
    # length-controlled win-rates against the baseline; None where there is no win-rate
    controlled: tuple[LengthControlled, LengthControlled] | None
    costs: list[Cost]
    examples: list[Example]
    verdict: str


# -- rows ------------------------------------------------------------------------------------------


def two_rows(results: Path, names: tuple[str, str], criteria: Filter) -> tuple[str, Row, Row]:
    """Return (suite, A, B) of two names: run folders, methods or labels of rows.

    Raises:
        UsageError: A name is unknown or ambiguous, or the two cannot be compared.
    """
    folders = [_run_at(name) for name in names]
    known: list[Row] = []
    suite = criteria.suite or next((r.records[0]["suite"] for r in folders if r is not None), None)
    if None not in folders and (criteria.study or criteria.where):
        raise UsageError(
            "--study and --where select runs of a method, but A and B are both run folders."
        )
    if None in folders:
        suite, records = chosen(results, Filter(suite, criteria.study, where=criteria.where))
        known = rows_of(records)
    a, b = (row or _named(name, known, criteria) for name, row in zip(names, folders, strict=True))
    if a.name == b.name:
        a, b = replace(a, name=f"{a.name} (A)"), replace(b, name=f"{b.name} (B)")
    for row in (a, b):
        if row.records[0]["suite"] != suite:
            raise UsageError(
                f"{row.name} is of the suite {row.records[0]['suite']}, not of {suite}."
            )
        if not row.good:
            raise UsageError(
                f"{row.name} has no finished run to compare. It failed: {row.failed[0]['failure']}"
            )
    shared = {_place(r) for r in a.good} & {_place(r) for r in b.good}
    if shared:
        raise UsageError(f"A and B are the same run: {', '.join(sorted(shared))}.")
    check_grounds({row.name: row.grounds for row in (a, b)})
    for what, values in unlike([*a.good, *b.good]).items():
        differences = "; ".join(
            f"{value}: {', '.join(sorted(set(runs)))}" for value, runs in values.items()
        )
        raise UsageError(f"A and B are not comparable: {what} differs ({differences}).")
    return str(suite), a, b


def suites_to_compare(
    results: Path, names: tuple[str, str], criteria: Filter
) -> Sequence[str | None]:
    """Return the suites with runs of both names; [None] if a run folder decides the suite."""
    if criteria.suite is not None or any(_run_at(name) for name in names):
        return [criteria.suite]
    suites = suites_of(results, criteria)
    rows = {suite: rows_of(chosen(results, replace(criteria, suite=suite))[1]) for suite in suites}
    common = [s for s in suites if all(_matches(rows[s], name) for name in names)]
    if common or len(suites) == 1:
        return common or [None]
    every = [row for suite_rows in rows.values() for row in suite_rows]
    for name in names:
        if not _matches(every, name):
            known = {row.name for row in every} | {row.method for row in every}
            raise unknown("run folder, method or row", name, known)
    raise UsageError(f"No suite has runs of both {names[0]} and {names[1]}.")


def _matches(rows: Sequence[Row], name: str) -> bool:
    return any(name == row.name or row.is_called(name) for row in rows)


def _place(record: Record) -> str:
    return str(Path(record["folder"]).resolve())


def _run_at(name: str) -> Row | None:
    """Return the run in a folder as a row, or None if the name is not a run folder."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    record = read_result(folder) or read_failure(folder)
    if record is None:
        if len(folder.parts) > 1:
            raise UsageError(f"{name} is not the folder of a finished run: it has no result.json.")
        return None  # a folder that has the name of a method
    run = {**without_doubtful(record), "folder": str(folder)}
    return Row(
        f"{record['method']} seed {record['seed']}", record["method"], [run], record["method"]
    )


def _named(name: str, rows: Sequence[Row], criteria: Filter) -> Row:
    """Return the row with a name."""
    exact = [row for row in rows if row.name == name]
    matching = exact or [row for row in rows if row.is_called(name)]
    if len(matching) > 1:
        labels = "; ".join(repr(row.name) for row in matching)
        raise UsageError(
            f"There are several rows of {name}: {labels}. Name one of them, or a run folder."
        )
    if not matching:
        among = "".join(f" with {option}={value}" for option, value in criteria.where.items())
        raise unknown(
            f"run folder, method or row{among}",
            name,
            {row.name for row in rows} | {row.method for row in rows},
        )
    return matching[0]


def differing(a: Row, b: Row) -> list[str]:
    """Return the options in which two rows differ, `name A | B`; options of both rows first."""
    one, other = _options(a.good[0]), _options(b.good[0])
    differences = []
    for name in sorted(dict.fromkeys([*one, *other]), key=lambda n: not (n in one and n in other)):
        x, y = (text_of(values[name]) if name in values else "-" for values in (one, other))
        if x != y:
            differences.append(f"{name} {x} | {y}")
    return differences


def _options(record: Record) -> dict[str, Any]:
    """Return all settings of a run, by the names used to set them."""
    if not (Path(record["folder"]) / SPEC).exists():
        return dict(record["options"])
    spec = spec_of(record)
    names = (
        "model",
        "start",
        "reference",
        "reward_model",
        "engine",
        "dtype",
        "weights",
        "snapshots",
        "quick",
    )
    rest = {k: spec[k] for k in names if k in spec}
    stages, budget = (
        flatten(spec.get("stages", {}), "stage."),
        flatten(spec.get("budget", {}), "budget."),
    )
    return {
        **spec["options"],
        **flatten(spec.get("labeller_options", {}), "labeller."),
        **stages,
        **budget,
        **rest,
    }


# -- the comparison --------------------------------------------------------------------------------


def compared(results: Path, names: tuple[str, str], criteria: Filter) -> Compared:
    """Return the comparison of two runs or methods."""
    suite, a, b = two_rows(results, names, criteria)
    ours, theirs = answers_of(a), answers_of(b)
    if not same_prompts([ours, theirs]):
        raise HarnessError(
            "The samples.jsonl of these runs do not have the same prompts in the same order."
        )
    reason = withheld(a.good[0]) or withheld(b.good[0])
    if not reason and (ours.win is None or theirs.win is None):
        raise UsageError(
            "A run has no win-rate: its judge gave no verdict. Evaluate it with another judge:"
            " harness evaluate RUN --judge NAME."
        )
    e = a.good[0]["evaluation"]
    return Compared(
        suite,
        a,
        b,
        e["prompts"],
        e["split"],
        differing(a, b),
        measures_of(a, b, ours, theirs),
        _by_gold(ours, theirs, _one_set_of_prompts(a)),
        None if reason or not length_is_bias(a.good[0]) else (controlled(ours), controlled(theirs)),
        costs_of(a, b),
        examples(*(samples_of(r) for r in _first_of_both(a, b))),
        f"{reason[0].upper()}{reason[1:]}." if reason else _by_wins(a, b, ours.win, theirs.win),
    )


def _by_wins(a: Row, b: Row, ours: Array | None, theirs: Array | None) -> str:
    """Return the sentence on the prompts for which both have verdicts."""
    assert ours is not None and theirs is not None
    return verdict(a, b, *_of_both(ours, theirs))


def _of_both(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the scores of both, (S, P) each, on the prompts on which none is missing."""
    both = complete(x, y)
    return of_prompts(x, both), of_prompts(y, both)


def _first_of_both(a: Row, b: Row) -> tuple[Record, Record]:
    """Return the first run of each on their first common ground."""
    ground = min(set(a.grounds) & set(b.grounds))
    first, second = (next(r for r in row.good if shared_seed_of(r) == ground) for row in (a, b))
    return first, second


def measures_of(a: Row, b: Row, ours: Answers, theirs: Answers) -> list[Measure]:
    """Return the measures that both rows have: means, and paired differences over prompts."""
    from ...statistics.compare import compare
    from ...statistics.intervals import ground_means

    measures = []
    for name, (column, label, digits) in MEASURES.items():
        x, y = (answers.figures.get(column) for answers in (ours, theirs))
        if x is not None and y is not None and complete(x, y).sum() > 1:
            x, y = _of_both(x, y)
            grounds = (ours.grounds, theirs.grounds)
            first, second = (
                float(ground_means(s, g).mean()) for s, g in zip((x, y), grounds, strict=True)
            )
            means, difference = (first, second), compare(x, y, grounds=grounds)
        else:
            means, difference = (a.mean(name), b.mean(name)), None
        if name == "proxy" and len({own_reward(r).get("weights") for r in (*a.good, *b.good)}) > 1:
            continue  # scores of two models
        if not np.isnan(means).any():
            measures.append(
                Measure(
                    name,
                    label,
                    *means,
                    digits,
                    difference,
                    _estimated(a, b) if name == "kl" else "",
                )
            )
    return measures


def _estimated(a: Row, b: Row) -> str:
    """Return a note on rows with a KL that was not computed from log-probabilities."""
    kinds = {row.name: row.good[0]["evaluation"].get("kl_estimator", "") for row in (a, b)}
    return ", ".join(
        f"{name}'s KL: {kind}" for name, kind in kinds.items() if kind not in ("", "rao-blackwell")
    )


def _one_set_of_prompts(row: Row) -> bool:
    """Return whether all grounds of a row have the same prompts."""
    return len({r["ground"].get("evaluation_prompts") for r in row.good}) == 1


def _by_gold(ours: Answers, theirs: Answers, same: bool) -> HeadToHead | None:
    """Return the answers with more gold, prompt by prompt; None from a judge without scores.

    With several grounds, each is compared on its own prompts; `same`: they all have the same.
    """
    x, y = (answers.figures.get("gold") for answers in (ours, theirs))
    if x is None or y is None:
        return None
    x, y = _of_both(x, y)
    if len({*ours.grounds, *theirs.grounds}) > 1:
        common = sorted(set(ours.grounds) & set(theirs.grounds))
        x = by_prompt(x, ours.grounds, common, same)
        y = by_prompt(y, theirs.grounds, common, same)
    return head_to_head(x, y)


def by_prompt(scores: Array, own: Sequence[int], common: Sequence[int], same: bool) -> Array:
    """Return the means over seeds of every prompt, (1, P); (1, G P) if grounds have other prompts.

    Args:
        scores: Scores (S, P).
        own: The ground of each seed.
        common: The grounds to take.
        same: Whether the grounds have the same prompts.
    """
    from ...statistics.intervals import ground_means

    kept = [i for i, ground in enumerate(own) if ground in common]
    means: Array = ground_means(scores[kept], [own[i] for i in kept])
    if len(common) == 1 or same:
        means = np.asarray(means.mean(0))
    return means.reshape(1, -1)


def head_to_head(x: Array, y: Array) -> HeadToHead:
    """Return wins, ties and losses of gold scores (S, P) by prompt, with their sign test."""
    from ...statistics.aggregate import probability_of_improvement
    from ...statistics.compare import sign_test

    a, b = x.mean(0), y.mean(0)
    wins, losses = int((a > b).sum()), int((a < b).sum())
    improvement = probability_of_improvement(x, y)
    return HeadToHead(
        wins, len(a) - wins - losses, losses, sign_test(a.tolist(), b.tolist()), improvement
    )


def costs_of(a: Row, b: Row) -> list[Cost]:
    """Return the costs of training and of an answer, means over seeds."""

    kinds = {
        "training FLOPs": ("cost.method.flops", ""),
        "training seconds": ("cost.method.seconds", "s"),
        "peak memory": ("cost.method.peak_memory", "B"),
        "labels": ("cost.labels", ""),
        "AI labels": ("cost.ai_labels", ""),
        "reward queries": ("cost.method.reward_queries", ""),
        "FLOPs per answer": ("evaluation.inference.flops_per_answer", ""),
    }
    flat = [[flatten(record) for record in row.good] for row in (a, b)]

    def means(name: str) -> tuple[float, float]:
        ours, theirs = (fmean(record[name] for record in records) for records in flat)
        return ours, theirs

    costs = [Cost(label, means(name), unit) for label, (name, unit) in kinds.items()]
    return [cost for cost in costs if cost.label != "AI labels" or any(cost.both)]


def examples(ours: Sequence[Record], theirs: Sequence[Record]) -> list[Example]:
    """Return the prompts on which A, and on which B, has the largest lead in gold.

    Without gold scores they are the first prompts.
    """
    pairs = [
        (x, y)
        for x, y in zip(ours, theirs, strict=True)
        if x.get("gold") is not None and y.get("gold") is not None
    ]
    if not pairs:
        return [
            Example(f"prompt {x['prompt_id']}", x["prompt"], (x["answer"], y["answer"]), None)
            for x, y in zip(ours[:SHOWN], theirs[:SHOWN], strict=True)
        ]
    ours, theirs = zip(*pairs, strict=True)
    gaps = np.array([x["gold"] - y["gold"] for x, y in pairs])
    chosen = []
    for side, index, gap in (
        ("A", int(gaps.argmax()), gaps.max()),
        ("B", int(gaps.argmin()), -gaps.min()),
    ):
        if gap > 0:
            x, y = ours[index], theirs[index]
            title = f"{side} has the largest lead in gold (+{gap:.2f}) on prompt {x['prompt_id']}"
            chosen.append(
                Example(title, x["prompt"], (x["answer"], y["answer"]), (x["gold"], y["gold"]))
            )
    return chosen
