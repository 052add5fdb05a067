"""The unrounded figures of a table's row, with intervals from the answers behind them.

numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import UsageError
from ...core.run_folder import SAMPLES
from ...statistics.intervals import Array, Estimate, two_way_interval, win_rate_interval
from ...statistics.length import LengthControlled, length_controlled
from .agreement import MEANS, scores_of
from .filters import Record
from .run_files import length_is_bias, provenance_of, samples_of, withheld
from .select import Row, is_guest

SIGNED = ("gold", "proxy", "accuracy")  # those of them that may be negative
COLLAPSED = (
    0.25  # win-rate below which a policy has collapsed: a copy of the start checkpoint has .5
)


@dataclass(frozen=True)
class Answers:
    """The scores of a row's answers: matrices (S, P), a row per seed, a column per prompt."""

    prompts: Mapping[int, tuple[str, ...]]  # by ground
    seeds: tuple[int, ...]
    grounds: tuple[int, ...]  # the shared seed of each seed
    figures: Mapping[str, Array]  # `win`, and the figures of MEANS that all answers have
    characters: Array  # length of the answer
    baseline_characters: Array  # of the baseline's answer to the same prompt

    @property
    def win(self) -> Array | None:
        """Scores against the baseline: 1 a win, 0.5 a tie, 0 a loss, NaN no verdict.

        None without any verdict.
        """
        return self.figures.get("win")


def complete(*scores: Array) -> NDArray[np.bool_]:
    """Return the mask of prompts that every seed has a score for; NaN in scores (S, P) is
    missing.
    """
    return np.array(np.stack([np.isfinite(array).all(0) for array in scores]).all(0))


def there(scores: Array) -> Array:
    """Return scores (S, P) of the prompts that every seed has a score for."""
    return of_prompts(scores, complete(scores))


def of_prompts(scores: Array, kept: NDArray[np.bool_]) -> Array:
    """Return the scores (S, P) of some prompts, in the same memory order, so that sums are
    bit-identical.
    """
    return scores if kept.all() else np.ascontiguousarray(scores[:, kept])


def answers_of(row: Row) -> Answers:
    """Read the answers of a row's finished runs.

    Raises:
        UsageError: The seeds of a ground answered different prompts, or grounds have different
            numbers of them.
        HarnessError: The record was computed from other answers.
    """
    read = [_columns(r) for r in row.good]
    prompts = _prompts_by_ground(row, read)
    names = [name for name in ("win", *MEANS) if all(c[name] is not None for c in read)]
    matrices = {name: np.array([c[name] for c in read], dtype=np.float64) for name in names}
    characters, baseline = (
        np.array([c[key] for c in read], dtype=np.float64) for key in ("answer", "baseline")
    )
    seeds = tuple(r["seed"] for r in row.good)
    return Answers(prompts, seeds, row.grounds, matrices, characters, baseline)


def _prompts_by_ground(row: Row, read: Sequence[Mapping[str, Any]]) -> dict[int, tuple[str, ...]]:
    """Return the prompts of each ground; they are the same for its seeds."""
    prompts: dict[int, tuple[str, ...]] = {}
    for ground, columns in zip(row.grounds, read, strict=True):
        own = tuple(columns["prompt_id"])
        if prompts.setdefault(ground, own) != own:
            raise UsageError(
                f"The seeds of {row.name} answered different prompts, so they cannot be one row."
            )
    counts = {ground: len(own) for ground, own in prompts.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(
            f"The grounds of {row.name} have different numbers of prompts, so they cannot be one"
            f" row ({', '.join(f'shared seed {g}: {n}' for g, n in counts.items())}). Evaluate all"
            " on as many with --stage-set evaluation.prompts=N."
        )
    return prompts


def same_prompts(rows: Sequence[Answers]) -> bool:
    """Return whether rows answered the same prompts on every ground."""
    by_ground: dict[int, set[tuple[str, ...]]] = {}
    for answers in rows:
        for ground, own in answers.prompts.items():
            by_ground.setdefault(ground, set()).add(own)
    return all(len(prompts) == 1 for prompts in by_ground.values())


def _columns(record: Record) -> dict[str, Any]:
    samples = samples_of(record)
    return scores_of(record, samples) | {
        "prompt_id": [s["prompt_id"] for s in samples],
        "answer": [len(s["answer"]) for s in samples],
        "baseline": [len(s["baseline"]) for s in samples],
    }


def figures_of(row: Row, answers: Answers | None) -> dict[str, Any]:
    """Return all figures of a row by name, unrounded; intervals end in `_low` and `_high`.

    Args:
        row: The row.
        answers: Its answers; None if no run finished.
    """
    figures: dict[str, Any] = {
        "method": row.name,
        "seeds": len(row.good),
        "failed": len(row.failed),
    }
    grounds = row.grounds
    if len(set(grounds)) > 1:
        figures |= {"grounds": len(set(grounds)), "shared_seeds": _joined_numbers(grounds)}
    if answers is None:
        return figures | {"failure": row.records[0]["failure"]}
    known_scores = {name: there(scores) for name, scores in answers.figures.items()}
    known_scores = {name: scores for name, scores in known_scores.items() if scores.shape[1] > 1}
    if reason := withheld(row.good[0]):
        figures["no_win_rate"] = reason
    if "win" in known_scores:
        interval = win_rate_interval(known_scores["win"], grounds=grounds)
        figures |= _named("win_rate", interval)
        figures["win_rate_speaks_for"] = interval.label
        figures["win_rate_seed_sd"] = interval.seed_sd
        if interval.grounds > 1:
            figures["win_rate_ground_sd"] = interval.ground_sd
        if count := collapsed(known_scores["win"]):
            figures["collapsed"] = count
        if not length_is_bias(row.good[0]):
            figures["length_is_no_bias"] = True
        elif (lc := controlled(answers)).identified:
            figures |= _named("lc_win_rate", lc.win_rate)
    for name in MEANS:
        if name == "accuracy" and name in known_scores and _shares(known_scores[name]):
            figures |= _named(name, win_rate_interval(known_scores[name], grounds=grounds))
        elif name in known_scores:
            least = -math.inf if name in SIGNED else 0.0
            interval = two_way_interval(known_scores[name], grounds=grounds)
            figures |= _named(name, interval, least)
    missing = {n: int(np.isnan(scores).sum()) for n, scores in answers.figures.items()}
    if any(missing.values()):
        figures["missing"] = {n: count for n, count in missing.items() if count}
    return figures | {
        name: value for name, value in _recorded(row.good).items() if name not in figures
    }


def deviations(answers: Answers) -> dict[str, float]:
    """Return the standard deviation over seeds of every figure that each seed has, as `NAME_sd`.

    It is that of the seeds' means (n - 1 in the denominator); empty for one seed.
    """
    names = {"win": "win_rate", **{name: name for name in MEANS}}
    scores = {name: there(own) for name, own in answers.figures.items() if name in names}
    return {
        f"{names[name]}_sd": float(own.mean(1).std(ddof=1))
        for name, own in scores.items()
        if own.shape[0] > 1 and own.shape[1] > 1
    }


def _joined_numbers(numbers: Sequence[int]) -> str:
    return " ".join(map(str, sorted(set(numbers))))


def collapsed(win: Array) -> int:
    """Return how many seeds collapsed: their win-rate (S, P) is below COLLAPSED, and so is the
    upper end of its interval.
    """
    return sum(win_rate_interval(one).high < COLLAPSED for one in win)


def _shares(verdicts: Array) -> bool:
    """Return whether verdicts are between 0 and 1: a verifier may return any number."""
    return bool(((verdicts >= 0) & (verdicts <= 1)).all())


def controlled(answers: Answers) -> LengthControlled:
    """Return the length-controlled win-rate against the baseline; it may not be `identified`.

    Lengths are in characters, as in AlpacaEval: records do not count the tokens of the baseline.
    """
    assert answers.win is not None
    kept = complete(answers.win)
    return length_controlled(
        of_prompts(answers.win, kept),
        of_prompts(answers.characters, kept),
        of_prompts(answers.baseline_characters, kept),
        grounds=answers.grounds,
    )


def _named(name: str, interval: Estimate, least: float = -math.inf) -> dict[str, float]:
    """Return an estimate by name; its interval ends at the least possible value of the figure."""
    return {
        name: interval.mean,
        f"{name}_low": max(interval.low, min(interval.mean, least)),
        f"{name}_high": interval.high,
    }


def _recorded(good: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of the records: means over seeds."""
    first = good[0]
    row: dict[str, Any] = {
        name: first["evaluation"][name]
        for name in ("kl_estimator", "kl_missing")
        if name in first["evaluation"]
    }
    if all("accuracy" in r["evaluation"] for r in good):
        row["accuracy"] = fmean(r["evaluation"]["accuracy"]["mean"] for r in good)
    for name in ("pass_at_k", "maj_at_k"):
        if all(name in r["evaluation"] for r in good):
            row[name] = {
                k: fmean(r["evaluation"][name][k]["mean"] for r in good)
                for k in first["evaluation"][name]
            }
    if all("mean_of_answers" in r["evaluation"] for r in good):
        row["mean_of_answers"] = fmean(r["evaluation"]["mean_of_answers"]["mean"] for r in good)
    for name in ("eos_rate", "distinct"):
        row[name] = fmean(r["evaluation"][name] for r in good)
    row |= {} if is_guest(first) else _training(good)
    row["models"] = " ".join(sorted(first["cost"]["models"]))
    row["parameters_held"] = sum(m["parameters"] for m in first["cost"]["models"].values())
    row["bytes_held"] = sum(m["bytes"] for m in first["cost"]["models"].values())
    row["shared_seconds"] = first["cost"]["shared_total"]["seconds"]
    row["shared_flops"] = first["cost"]["shared_total"]["flops"]
    for name, figure in (("flops", "flops_per_answer"), ("queries", "reward_queries_per_answer")):
        row[f"{name}_per_answer"] = fmean(r["evaluation"]["inference"][figure] for r in good)
    row["folders"] = " ".join(r["folder"] for r in good)
    return row | _made_by(good)


def _training(good: Sequence[Record]) -> dict[str, float]:
    """Return the costs of training: means over seeds, and the largest peak of memory."""
    row: dict[str, float] = {}
    for name in good[0]["cost"]["method"]:
        if any(name not in r["cost"]["method"] for r in good):
            continue  # an older record has not all of them
        values = [r["cost"]["method"][name] for r in good]
        row[f"method_{name}"] = max(values) if name == "peak_memory" else fmean(values)
    for name in ("labels", "ai_labels"):
        row[name] = fmean(r["cost"][name] for r in good)
    return row


def _made_by(good: Sequence[Record]) -> dict[str, str]:
    """Return the digests of answers and code, and the commit: a repeated run must have the same."""
    provenances = [provenance_of(r) for r in good]
    return {
        "samples_sha256": _joined([r.get("files", {}).get(SAMPLES, "") for r in good]),
        "commit": _joined([_commit(m.get("git")) for m in provenances]),
        "code": _joined([m.get("code", {}).get("harness", "") for m in provenances]),
    }


def _commit(git: Mapping[str, Any] | None) -> str:
    return f"{git['commit']}{'-dirty' if git['dirty'] else ''}" if git else ""


def _joined(values: Sequence[str]) -> str:
    """Return the common value of all runs, or all values in the order of `folders` (`-`: none)."""
    return values[0] if len(set(values)) == 1 else " ".join(value or "-" for value in values)
