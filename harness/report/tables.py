"""Records to one Table: a row per method and recipe, the mean over seeds, and a refusal to mix unlike ground."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import UsageError, unknown
from ..evaluation.stats import t_quantile
from ..store import runs
from ..study.state import places_of
from .table import Table

Record = Mapping[str, Any]
Key = tuple[str, str]  # of a row: method, and what else makes it one
Groups = dict[Key, list[Record]]
COLUMNS = (
    "method", "seeds", "win-rate vs SFT [95 %]", "gold", "proxy", "accuracy", "KL (nats)", "length", "train s / CPU s",
    "train TFLOP", "tokens gen. / trained", "reward queries", "verifier queries", "labels", "AI labels",
    "models held (params)", "peak MiB", "FLOPs / answer", "queries / answer",
)  # fmt: skip
FIGURES = ("win_rate", "gold", "proxy", "accuracy", "kl", "length")  # of an evaluation, as means
OPTIONAL = {"proxy": ".2f", "accuracy": ".3f"}  # columns that a suite may not have, and how they are written


def comparison(
    results: Path, suite: str | None = None, methods: Sequence[str] = (), each: bool = False, study: str | None = None
) -> Table:
    """Return the comparison of all runs of a suite below a results folder, or of a study: a row per method, or run."""
    chosen, records = select(results, suite, study)
    records = [r for r in records if not methods or r["method"] in methods or r.get("label") in methods]
    if not records:
        raise UsageError(f"No run of {chosen} is of {' or '.join(methods)}.")
    check_ground(_good(records))
    groups = _grouped(records)
    names = _row_names(groups)
    if each:
        groups, names = _split(groups, names)
    ordered = sorted(groups, key=lambda key: (key[0] != "sft", _strength(groups[key]), key))
    plain = [_plain_row(names[key], groups[key]) for key in ordered]
    cells = [_cells(names[key], groups[key]) for key in ordered]
    told = [
        i for i in range(len(COLUMNS)) if any(row[i] not in ("-", "") for row in cells)
    ]  # columns that say anything
    columns, rows = [COLUMNS[i] for i in told], [[row[i] for i in told] for row in cells]
    return Table(f"{chosen}: {_conditions(records)}", columns, rows, _notes(groups, names), plain)


def row_names(records: Iterable[Record]) -> list[str]:
    """Return for each record the name of its row in the comparison of all."""
    records = list(records)
    names = _row_names(_grouped(records))
    return [names[r["method"], r["recipe"]] for r in records]


def _grouped(records: Iterable[Record]) -> Groups:
    groups: Groups = {}
    for record in records:
        groups.setdefault((record["method"], record["recipe"]), []).append(record)
    return groups


def _split(groups: Groups, names: Mapping[Key, str]) -> tuple[Groups, dict[Key, str]]:
    """Return groups of one run each, and their names."""
    runs = {(key[0], f"{key[1]} {r['seed']}"): (key, r) for key, group in groups.items() for r in group}
    split: Groups = {key: [r] for key, (_, r) in runs.items()}
    return split, {key: f"{names[old]}, seed {r['seed']}" for key, (old, r) in runs.items()}


def select(results: Path, suite: str | None, study: str | None = None) -> tuple[str, list[dict[str, Any]]]:
    """Return the suite asked for (or the only one) and its records, one per recipe and seed; a study's with labels."""
    found = runs(results)
    if study is not None:
        labels = places_of(results, study)
        found = ((folder, {**r, "label": labels[str(folder)].label}) for folder, r in found if str(folder) in labels)
    records = _newest(found)
    suites = sorted({r["suite"] for r in records})
    if not records:
        raise UsageError(f"There is no run below {results}. Make one: harness run --method ppo --suite summarization")
    if suite is None and len(suites) > 1:
        raise UsageError(f"Name one suite with --suite: there are runs of {', '.join(suites)}.")
    chosen = suite or suites[0]
    if chosen not in suites:
        raise unknown("suite with runs", chosen, suites)
    return chosen, [r for r in records if r["suite"] == chosen]


def check_ground(records: Sequence[Record]) -> None:
    """Raise UsageError when runs were not made on identical ground, naming what differs."""
    for name in dict.fromkeys(key for r in records for key in r["ground"]):
        values: dict[str, list[str]] = {}
        for r in records:
            values.setdefault(str(r["ground"].get(name)), []).append(f"{r['method']} seed {r['seed']}")
        if len(values) > 1:
            told = "; ".join(f"{value}: {', '.join(sorted(set(who)))}" for value, who in values.items())
            raise UsageError(
                f"These runs differ in {name} and cannot stand in one table ({told}). Choose with --methods, or keep "
                f"runs of unlike ground under different --results folders, or name a --study."
            )


def _newest(found: Iterable[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one record per recipe and seed: the newest, where code has changed between runs of the same spec."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for folder, record in found:
        key = (record["recipe"], record["seed"])
        record = {**record, "folder": str(folder)}
        if key not in best or record.get("finished_at", "") > best[key].get("finished_at", ""):
            best[key] = record
    return list(best.values())


def _row_names(groups: Mapping[tuple[str, str], Sequence[Record]]) -> dict[tuple[str, str], str]:
    """Return row labels: the method, and where it stands several times, the options asked for in which rows differ."""
    names = {}
    for key in groups:
        same = [groups[k][0] for k in groups if k[0] == key[0]]
        mine = groups[key][0]["options"]
        differing = [o for o in mine if len({repr(r["options"].get(o)) for r in same}) > 1]
        asked = groups[key][0].get("asked", differing)  # the rest followed from these
        told = ", ".join(f"{o}={mine[o]}" for o in differing if o in asked)
        quick = " quick" if groups[key][0].get("quick") else ""
        name = groups[key][0].get("label")  # a study's own word
        names[key] = f"{name or key[0]}{quick}" + (f" ({told})" if told and not name else "")
    duplicates = [n for n in names.values() if list(names.values()).count(n) > 1]
    return {key: f"{name} [{key[1][:4]}]" if name in duplicates else name for key, name in names.items()}


def _good(group: Sequence[Record]) -> list[Record]:
    return [r for r in group if "failure" not in r]


def _strength(group: Sequence[Record]) -> float:
    good = _good(group)
    return -fmean(r["evaluation"]["win_rate"]["mean"] for r in good) if good else 1.0


def _plain_row(name: str, group: Sequence[Record]) -> dict[str, Any]:
    good = _good(group)
    row: dict[str, Any] = {"method": name, "seeds": len(good), "failed": len(group) - len(good)}
    if not good:
        return row | {"failure": group[0]["failure"]}
    for figure in FIGURES:
        if all(figure in r["evaluation"] for r in good):
            row[figure] = fmean(r["evaluation"][figure]["mean"] for r in good)
    row["win_rate_low"], row["win_rate_high"] = _interval(good)
    row["kl_estimator"] = good[0]["evaluation"]["kl_estimator"]
    row["eos_rate"] = fmean(r["evaluation"]["eos_rate"] for r in good)
    row["distinct"] = fmean(r["evaluation"]["distinct"] for r in good)
    for figure in good[0]["cost"]["method"]:
        values = [r["cost"]["method"][figure] for r in good]
        row[f"method_{figure}"] = max(values) if figure == "peak_memory" else fmean(values)
    for figure in ("labels", "ai_labels"):
        row[figure] = fmean(r["cost"][figure] for r in good)
    row["models"] = " ".join(sorted(good[0]["cost"]["models"]))
    row["parameters_held"] = sum(m["parameters"] for m in good[0]["cost"]["models"].values())
    row["shared_seconds"] = good[0]["cost"]["shared_total"]["seconds"]
    row["shared_flops"] = good[0]["cost"]["shared_total"]["flops"]
    row["flops_per_answer"] = fmean(r["evaluation"]["inference"]["flops_per_answer"] for r in good)
    row["queries_per_answer"] = fmean(r["evaluation"]["inference"]["reward_queries_per_answer"] for r in good)
    row["folders"] = " ".join(r["folder"] for r in good)
    return row


def _interval(good: Sequence[Record]) -> tuple[float, float]:
    """Return the win-rate's interval: over prompts for one seed; over seeds and prompts for several.

    For several seeds the variance between seeds (t over seeds) and the prompts' are added: conservative, since part of
    the spread between seeds is the prompts' own.
    """
    estimates = [r["evaluation"]["win_rate"] for r in good]
    if len(estimates) == 1:
        return estimates[0]["low"], estimates[0]["high"]
    means = [e["mean"] for e in estimates]
    mean = fmean(means)
    between = math.fsum((m - mean) ** 2 for m in means) / (len(means) - 1) / len(means)
    half_prompts = fmean((e["high"] - e["low"]) / 2 for e in estimates)
    half = math.hypot(t_quantile(0.975, len(means) - 1) * math.sqrt(between), half_prompts)
    return max(0.0, mean - half), min(1.0, mean + half)


def _cells(name: str, group: Sequence[Record]) -> list[str]:
    row = _plain_row(name, group)
    seeds = f"{row['seeds']}/{len(group)}" if row["failed"] else str(row["seeds"])
    if "failure" in row:
        return [name, seeds, f"failed: {row['failure']}", *[""] * (len(COLUMNS) - 3)]
    estimate = "" if row["kl_estimator"] == "rao-blackwell" else " (est.)"
    return [
        name, seeds, f"{row['win_rate']:.3f} [{row['win_rate_low']:.3f}, {row['win_rate_high']:.3f}]",
        f"{row['gold']:.2f}", *(f"{row[name]:{form}}" if name in row else "-" for name, form in OPTIONAL.items()),
        f"{row['kl']:.2f}{estimate}", f"{row['length']:.1f}",
        f"{row['method_seconds']:.0f} / {row['method_cpu_seconds']:.0f}", f"{row['method_flops'] / 1e12:.3g}",
        f"{_short(row['method_tokens_generated'])} / {_short(row['method_tokens_trained'])}",
        _short(row["method_reward_queries"]), _or_dash(row["method_verifier_queries"]), _short(row["labels"]),
        _or_dash(row["ai_labels"]),
        f"{row['models'].replace(' ', ' + ')} ({_short(row['parameters_held'])})",
        f"{row['method_peak_memory'] / 2**20:.0f}" if row["method_peak_memory"] else "-",
        f"{row['flops_per_answer']:.2g}", _or_dash(row["queries_per_answer"]),
    ]  # fmt: skip


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _or_dash(number: float) -> str:
    return _short(number) if number else "-"


def _conditions(records: Sequence[Record]) -> str:
    good = _good(records)
    if not good:
        return "no finished run"
    evaluation = good[0]["evaluation"]
    return f"{evaluation['prompts']} {evaluation['split']} prompts, one answer each at T={evaluation['temperature']:g}"


def _notes(groups: Mapping[Key, Sequence[Record]], names: Mapping[Key, str]) -> list[str]:
    notes = [
        "KL is KL(policy || SFT) in nats per completion, Rao-Blackwellised over the vocabulary on the policy's own "
        "answers. Train s, CPU s (of all threads), TFLOP, tokens and queries are the method's own; shared stages (SFT, "
        "preferences, reward model) are billed apart. Peak MiB is the process's resident memory while the method "
        "trained (on a GPU, what tensors took there). FLOPs / answer is the cost of answering one prompt.",
    ]
    bounds = {
        names[key]: r["evaluation"]["kl_bound"]
        for key, group in groups.items()
        for r in _good(group)
        if "kl_bound" in r["evaluation"]
    }
    for name, bound in bounds.items():
        notes.append(
            f"{name} has no log-probabilities: its KL is estimated from the reference's mass on the selected reward "
            f"level (Beirami et al. 2024); log n - (n-1)/n = {bound:.2f} bounds it."
        )
    if any(len(group) > 1 for group in groups.values()):
        notes.append("Intervals add the spread between seeds (Student's t) to that between prompts: conservative.")
    else:
        notes.append("One seed per row: the intervals are over prompts and speak for these checkpoints only.")
    return notes
