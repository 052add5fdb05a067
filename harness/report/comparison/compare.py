"""`harness compare A B`: two runs or methods on the same prompts, paired, and a sentence that says
what it comes to.

Seeds are taken as independent between the two, though seed s of one and of the other draw their
answers with the same uniform numbers: what that correlates is small (0.03 to 0.14 of a cell's noise
on the embedded suites), it makes the interval a little wide, never narrow, and pairing seeds would
leave half the degrees of freedom (intervals 5 to 30 % wider with three seeds). It is also how
tables compare. Prompts are paired, which is what matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import HarnessError, UsageError, unknown
from ...core.run_folder import flatten, read_failure, read_result
from ...experiments.study.file import text_of
from ..selection.figures import Answers, answers_of, controlled
from ..selection.select import (
    Filter,
    Record,
    Row,
    chosen,
    rows_of,
    samples_of,
    spec_of,
    suites_of,
    unlike,
)

if TYPE_CHECKING:
    from ...statistics.compare import Comparison
    from ...statistics.intervals import Array
    from ...statistics.length import LengthControlled

MEASURES = {  # figure of the evaluation: (column of samples.jsonl, what it is called, decimals)
    "win_rate": ("win", "win-rate vs baseline", 3),
    "gold": ("gold", "gold reward", 3),
    "proxy": ("proxy", "proxy reward", 3),
    "accuracy": ("accuracy", "accuracy", 3),
    "kl": ("kl", "KL (nats)", 2),
    "length": ("length", "length (tokens)", 1),
}
ALPHA = 0.05


@dataclass(frozen=True)
class Measure:
    """A figure of both, and their difference where there is a value per prompt."""

    name: str
    label: str
    a: float
    b: float
    digits: int
    difference: Comparison | None  # None where an answer has no value: a verdict in an older record
    note: str = ""


@dataclass(frozen=True)
class HeadToHead:
    """Whose answer gold prefers, prompt by prompt; with several seeds the mean gold of each on a
    prompt.
    """

    wins: int
    ties: int
    losses: int
    p: float  # exact sign test
    improvement: float  # P(an answer of A is above an answer of B to the same prompt), ties half


@dataclass(frozen=True)
class Cost:
    """What one thing cost both."""

    label: str
    both: tuple[float, float]
    unit: str = ""


@dataclass(frozen=True)
class Example:
    """A prompt with the answers of both, of the first seed of each."""

    title: str
    prompt: str
    answers: tuple[str, str]
    gold: tuple[float, float]


@dataclass(frozen=True)
class Compared:
    """Everything `harness compare` says."""

    suite: str
    a: Row
    b: Row
    prompts: int
    split: str
    options: list[str]  # in which they differ
    measures: list[Measure]
    head: HeadToHead
    controlled: tuple[LengthControlled, LengthControlled]  # length-controlled win-rates vs baseline
    costs: list[Cost]
    examples: list[Example]
    verdict: str


# -- who -------------------------------------------------------------------------------------------


def two_rows(results: Path, names: tuple[str, str], asked: Filter) -> tuple[str, Row, Row]:
    """Return (suite, A, B), each named by a run folder, a method or a row's label; raise UsageError
    where unclear.
    """
    folders = [_run_at(name) for name in names]
    known: list[Row] = []
    suite = asked.suite or next((r.records[0]["suite"] for r in folders if r is not None), None)
    if None not in folders and (asked.study or asked.where):
        raise UsageError(
            "--study and --where choose among the runs of a method: A and B are both run folders."
        )
    if None in folders:
        suite, records = chosen(results, Filter(suite, asked.study, where=asked.where))
        known = rows_of(records)
    a, b = (row or _named(name, known, asked) for name, row in zip(names, folders, strict=True))
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
    for what, values in unlike([*a.good, *b.good]).items():
        told = "; ".join(f"{value}: {', '.join(sorted(set(who)))}" for value, who in values.items())
        raise UsageError(
            f"A and B do not stand on identical ground and cannot be compared: {what} differs"
            f" ({told})."
        )
    return str(suite), a, b


def suites_to_compare(results: Path, names: tuple[str, str], asked: Filter) -> Sequence[str | None]:
    """Return the suites with runs of both names; [None] where a run folder decides the suite."""
    if asked.suite is not None or any(_run_at(name) for name in names):
        return [asked.suite]
    suites = suites_of(results, asked)
    rows = {suite: rows_of(chosen(results, replace(asked, suite=suite))[1]) for suite in suites}
    common = [s for s in suites if all(_matches(rows[s], name) for name in names)]
    if common or len(suites) == 1:
        return common or [None]
    every = [row for found in rows.values() for row in found]
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
    """Return the run in a folder as a row, or None where the name is not that of a run folder."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    record = read_result(folder) or read_failure(folder)
    if record is None:
        if len(folder.parts) > 1:
            raise UsageError(
                f"{name} is not the folder of a run that ended: it has no result.json."
            )
        return None  # a folder that happens to be called like a method
    found = {**record, "folder": str(folder)}
    return Row(
        f"{record['method']} seed {record['seed']}", record["method"], [found], record["method"]
    )


def _named(name: str, rows: Sequence[Row], asked: Filter) -> Row:
    """Return the row of a name."""
    exact = [row for row in rows if row.name == name]
    found = exact or [row for row in rows if row.is_called(name)]
    if len(found) > 1:
        labels = "; ".join(repr(row.name) for row in found)
        raise UsageError(
            f"There are several rows of {name}: {labels}. Name one of them, or a run folder."
        )
    if not found:
        among = "".join(f" with {option}={value}" for option, value in asked.where.items())
        raise unknown(
            f"run folder, method or row{among}",
            name,
            {row.name for row in rows} | {row.method for row in rows},
        )
    return found[0]


def differing(a: Row, b: Row) -> list[str]:
    """Return in which options two rows differ, as `name A's | B's`, those that both have first."""
    one, other = _options(a.good[0]), _options(b.good[0])
    told = []
    for name in sorted(dict.fromkeys([*one, *other]), key=lambda n: not (n in one and n in other)):
        x, y = (text_of(values[name]) if name in values else "-" for values in (one, other))
        if x != y:
            told.append(f"{name} {x} | {y}")
    return told


def _options(record: Record) -> dict[str, Any]:
    """Return everything that was set for a run, by the name it is set by."""
    try:
        spec = spec_of(record)
    except FileNotFoundError:
        return dict(record["options"])
    names = ("model", "start", "reference", "engine", "dtype", "weights", "snapshots", "quick")
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


# -- how they compare ------------------------------------------------------------------------------


def compared(results: Path, names: tuple[str, str], asked: Filter) -> Compared:
    """Return the comparison of two runs or methods."""
    suite, a, b = two_rows(results, names, asked)
    ours, theirs = answers_of(a), answers_of(b)
    if ours.prompts != theirs.prompts:
        raise HarnessError(
            "The samples.jsonl of these runs are not of the same prompts in the same order."
        )
    gold = [answers.figures.get("gold") for answers in (ours, theirs)]
    if gold[0] is None or gold[1] is None:
        raise HarnessError(
            "A run has no gold scores in its samples.jsonl: delete its folder and run it again."
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
        head_to_head(gold[0], gold[1]),
        (controlled(ours), controlled(theirs)),
        costs_of(a, b),
        examples(samples_of(a.good[0]), samples_of(b.good[0])),
        verdict(a, b, ours.win, theirs.win),
    )


def measures_of(a: Row, b: Row, ours: Answers, theirs: Answers) -> list[Measure]:
    """Return every measure that both have: means, and the paired difference where there is a value
    per prompt.
    """
    from ...statistics.compare import compare

    found = []
    for name, (column, label, digits) in MEASURES.items():
        x, y = (answers.figures.get(column) for answers in (ours, theirs))
        if x is not None and y is not None:
            means, difference = (float(x.mean()), float(y.mean())), compare(x, y)
        else:
            means, difference = (a.mean(name), b.mean(name)), None
        if not np.isnan(means).any():
            found.append(
                Measure(
                    name,
                    label,
                    *means,
                    digits,
                    difference,
                    _estimated(a, b) if name == "kl" else "",
                )
            )
    return found


def _estimated(a: Row, b: Row) -> str:
    """Return who has no log-probabilities, so that its KL is an estimate of another kind."""
    kinds = {row.name: row.good[0]["evaluation"].get("kl_estimator", "") for row in (a, b)}
    return ", ".join(
        f"{name}'s KL: {kind}" for name, kind in kinds.items() if kind not in ("", "rao-blackwell")
    )


def head_to_head(x: Array, y: Array) -> HeadToHead:
    """Return wins, ties and losses of gold scores (S, P) by prompt, their sign test, the
    probability of improvement.
    """
    from ...statistics.aggregate import probability_of_improvement
    from ...statistics.compare import sign_test

    a, b = x.mean(0), y.mean(0)
    wins, losses = int((a > b).sum()), int((a < b).sum())
    improvement = probability_of_improvement(x, y)
    return HeadToHead(
        wins, len(a) - wins - losses, losses, sign_test(a.tolist(), b.tolist()), improvement
    )


def costs_of(a: Row, b: Row) -> list[Cost]:
    """Return what training cost, and an answer, the mean over seeds."""

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

    found = [Cost(label, means(name), unit) for label, (name, unit) in kinds.items()]
    return [cost for cost in found if cost.label != "AI labels" or any(cost.both)]


def examples(ours: Sequence[Record], theirs: Sequence[Record]) -> list[Example]:
    """Return the prompt on which A is ahead by most gold, and the one on which B is, of a run's
    samples of each.
    """
    gaps = np.array([x["gold"] - y["gold"] for x, y in zip(ours, theirs, strict=True)])
    found = []
    for who, index, gap in (
        ("A", int(gaps.argmax()), gaps.max()),
        ("B", int(gaps.argmin()), -gaps.min()),
    ):
        if gap > 0:
            x, y = ours[index], theirs[index]
            title = f"{who} is ahead by most gold (+{gap:.2f}) on prompt {x['prompt_id']}"
            found.append(
                Example(title, x["prompt"], (x["answer"], y["answer"]), (x["gold"], y["gold"]))
            )
    return found


# -- what it comes to ------------------------------------------------------------------------------


def verdict(a: Row, b: Row, x: Array, y: Array) -> str:
    """Return one sentence on the win scores (S, P): who beats whom by how much, or what such a
    study could find.
    """
    from ...statistics.compare import compare

    found = compare(x, y)
    speaks = speaks_for(a, b)
    if found.p <= ALPHA:
        better, worse, sign = (a, b, 1) if found.difference > 0 else (b, a, -1)
        low, high = sorted((sign * found.low, sign * found.high))
        told = (
            f"{better.name} beats {worse.name} by {abs(found.difference):.3f} [{low:.3f},"
            f" {high:.3f}] of win-rate"
        )
        return f"{told}, {p_text(found.p)}; {speaks}"
    least = detectable(x, y)
    can = (
        "no difference is found by it"
        if least is None
        else f"this study can find {least:.3f} (harness power)"
    )
    return (
        f"{a.name} and {b.name} are not distinguishable by win-rate: {found.difference:+.3f} "
        f"[{found.low:+.3f}, {found.high:+.3f}], {p_text(found.p)}; {can}; {speaks}"
    )


def speaks_for(a: Row, b: Row) -> str:
    """Return what a comparison speaks for: a method's only seed says nothing of the spread between
    its seeds.
    """
    alone = [row.name for row in (a, b) if len(row.good) == 1]
    if len(alone) == 2:
        return "one seed each: these checkpoints, not these algorithms"
    if alone:
        return f"one seed of {alone[0]}: that checkpoint, not the algorithm"
    return f"{len(a.good)} and {len(b.good)} seeds: these algorithms"


def detectable(x: Array, y: Array) -> float | None:
    """Return the smallest difference of win-rates found with 80 % power by a study like this one,
    (S, P) each.

    Ties, the spread between seeds, and what seeds and methods share on a prompt are those of the
    data.
    """
    from ...statistics.intervals import parts, two_way_interval
    from ...statistics.power import Design, minimum_detectable_effect

    seeds = min(len(x), len(y))
    both = [x[:seeds], y[:seeds]]
    ties = min(float(np.mean([(m == 0.5).mean() for m in both])), 0.99)
    spread = [float(m.var()) for m in both]
    shared = max(float(np.cov(x.mean(0), y.mean(0))[0, 1]), 0.0) / max(fmean(spread), 1e-12)
    if seeds == 1:
        return minimum_detectable_effect(
            Design(x.shape[1], 1, ties, correlation=min(shared, 0.99)), True
        )
    of_prompt = [
        float(parts(m).prompts) * x.shape[1] / max(v, 1e-12)
        for m, v in zip(both, spread, strict=True)
    ]
    share = min(fmean(of_prompt), 1.0)
    sd = fmean(two_way_interval(m).seed_sd for m in both)
    return minimum_detectable_effect(
        Design(x.shape[1], seeds, ties, sd, share, min(shared, share, 0.99)), True
    )


def p_text(p: float) -> str:
    """Return a p-value as it is written."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
