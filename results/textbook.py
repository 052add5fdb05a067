"""The table that tutorials print with words, with measured numbers in each cell: `python results/textbook.py`.

Reads the runs of results/main.toml, and of results/labels.toml where that study was run, below results/raw and writes
results/textbook.md. What needs the labels study is left out without it, and the note says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from harness_plugins.reporters import Markdown

from harness.registry import installed
from harness.report.figures import answers_of
from harness.report.select import Filter, Row, Selection, select, suite_records
from harness.report.table import Cell, Table
from harness.report.tables import short
from harness.statistics.compare import compare
from harness.statistics.intervals import win_rate_interval

ROOT = Path(__file__).parent
RAW = ROOT / "raw"
FIRST = "summarization"
SHARES = {67: "1/30", 400: "1/5"}  # of the 2,000 prompts whose answers are labelled
APART = 0.2  # a difference of seeds' win-rates that a mean would hide
FRESH = {  # a method on samples of its own policy, and the same loss on samples of the start checkpoint
    "online_dpo": ("dpo", "main"), "raft": ("raft (one round)", "labels"),
}  # fmt: skip
COLUMNS = [
    "method", "reward model?", "online?", "models held", "weights held", "peak memory / SFT", "train FLOPs / SFT",
    "sd over seeds", "failed runs", "labels", "win-rate at 1/30, 1/5 and all labels", "gain from fresh samples",
    "where it shines",
]  # fmt: skip
NOTE = """From results/main.toml ({suites}){labels}. Models, weights and labels are those on summarization
(rlvr: arithmetic). Ratios are to the shared SFT stage, means over suites; peak memory is the process's, most of
which is Python and torch at this model size. sd over seeds: of the win-rate, apart from prompts and answers,
the largest of the suites. Gain from fresh samples: win-rate less that of the same loss on the start
checkpoint's samples (online_dpo: dpo; raft: one round of as many samples), on summarization, paired over
prompts. {few}Where it shines: the suite with its best rank by win-rate, controls left out. All of this is about a
model of 0.3M parameters."""


FEW = """Few labels: two seeds, against five with all, of the methods in results/labels.toml (in brackets seeds that
are more than 0.2 apart: with few labels PPO's finds a hole in the reward model). """


def main() -> None:
    """Write the table."""
    suites = sorted({r["suite"] for r in suite_records(RAW, "main")}, key=lambda suite: (suite != FIRST, suite))
    by_suite = {suite: select(RAW, Filter(suite, "main")) for suite in suites}
    names = list(dict.fromkeys(row.name for chosen in by_suite.values() for row in chosen.rows))
    labelled = (RAW / "studies" / "labels").is_dir()
    few = {n: with_labels(n) for n in SHARES} if labelled else {}
    shown = [name for name in names if "(" not in name or name == "rlaif (dpo)"]  # controls stand in the main table
    rows = [[Cell(text) for text in cells(name, by_suite, few)] for name in shown]
    told = (
        " and results/labels.toml"
        if labelled
        else "; results/labels.toml was not run, so nothing is said of few labels"
    )
    kept = [i for i, name in enumerate(COLUMNS) if labelled or "all labels" not in name]
    rows = [[row[i] for i in kept] for row in rows]
    note = " ".join(NOTE.format(suites=", ".join(suites), labels=told, few=FEW if labelled else "").split())
    made = Table("The textbook table, measured", [COLUMNS[i] for i in kept], rows, [note])
    (ROOT / "textbook.md").write_text(Markdown().render(made), encoding="utf-8")


def cells(name: str, by_suite: dict[str, Selection], few: dict[int, Selection]) -> Iterator[str]:
    """Yield the cells of a method's row."""
    rows = {suite: row for suite, chosen in by_suite.items() if (row := named(chosen, name)) and row.good}
    costs = [r["cost"] for row in rows.values() for r in row.good]
    first = [r["cost"] for r in rows.get(FIRST, next(iter(rows.values()))).good]
    models, own = first[0]["models"], [c["method"] for c in costs]
    yield name
    yield "yes" if any("reward" in role for role in models) else "no"
    yield online(name, any(c["tokens_generated"] for c in own))
    yield f"{len(models)} ({' + '.join(sorted(models))})"
    yield f"{sum(m['bytes'] for m in models.values()) / 2**20:.1f} MiB"
    peaks = [
        c["method"]["peak_memory"] / c["shared"]["sft"]["peak_memory"] for c in costs if c["method"]["peak_memory"]
    ]
    yield f"{fmean(peaks):.2f}" if peaks else "-"
    yield f"{fmean(c['method']['flops'] / c['shared']['sft']['flops'] for c in costs):.2f}"
    spread = {suite: win_rate_interval(answers_of(row).win).seed_sd for suite, row in rows.items()}
    worst = max(spread, key=lambda suite: spread[suite])
    yield f"{spread[worst]:.3f} ({worst})"
    yield f"{sum(len(row.failed) for row in rows.values())}/{sum(len(row.records) for row in rows.values())}"
    yield asked(first)
    yield against_labels(name, rows.get("summarization"), few)
    yield fresh(name, rows.get("summarization"), by_suite["summarization"])
    yield shines(name, by_suite)


def online(name: str, generates: bool) -> str:
    """Return whether a method learns from samples of the policy as it then is; RRHF's are of the start checkpoint."""
    kind = installed().classes["methods"][name].kind if name in installed().classes["methods"] else ""
    if kind == "inference only":
        return "when it answers"
    return "yes" if generates and kind != "offline preference" else "no"


def asked(costs: Sequence[Mapping[str, Any]]) -> str:
    """Return how many labels were asked for, of people and of models."""
    told = []
    for figure, what in (("labels", ""), ("ai_labels", " AI")):
        numbers = sorted({c[figure] for c in costs})
        if numbers[-1]:
            told.append(" to ".join(dict.fromkeys((short(numbers[0]), short(numbers[-1])))) + what)
    return ", ".join(told) or "0"


def with_labels(prompts: int) -> Selection:
    """Return the runs of results/labels.toml with the answers to so many prompts labelled."""
    return select(RAW, Filter("summarization", "labels", where={"stage.preferences.prompts": str(prompts)}))


def named(chosen: Selection, name: str) -> Row | None:
    """Return the row of a method, whatever a sweep adds to its name."""
    return next((row for row in chosen.rows if row.entry == name), None)


def against_labels(name: str, full: Row | None, few: dict[int, Selection]) -> str:
    """Return win-rates from few labels to all."""
    found = [row for n in few if (row := named(few[n], name))]
    if full is None or len(found) < len(SHARES):
        return "-"
    return ", ".join([*map(with_ends, found), f"{full.mean('win_rate'):.3f}"])


def with_ends(row: Row) -> str:
    """Return a row's win-rate, and the seeds' lowest and highest where they are far apart."""
    rates = [r["evaluation"]["win_rate"]["mean"] for r in row.good]
    ends = f" ({min(rates):.3f} to {max(rates):.3f})" if max(rates) - min(rates) > APART else ""
    return f"{fmean(rates):.3f}{ends}"


def fresh(name: str, row: Row | None, main: Selection) -> str:
    """Return the paired difference to the same loss on the start checkpoint's samples."""
    if name not in FRESH or row is None:
        return "-"
    other, study = FRESH[name]
    if study == "labels" and not (RAW / "studies" / "labels").is_dir():
        return "-"
    chosen = (
        main
        if study == "main"
        else select(RAW, Filter("summarization", study, where={"stage.preferences.prompts": "2000"}))
    )
    stale = named(chosen, other)
    if stale is None:
        return "-"
    found = compare(answers_of(row).win, answers_of(stale).win)
    return f"{found.difference:+.3f} [{found.low:.3f}, {found.high:.3f}]"


def shines(name: str, by_suite: dict[str, Selection]) -> str:
    """Return the suite where a method's rank by win-rate is best."""
    ranks = {}
    for suite, chosen in by_suite.items():
        order = ranking(chosen.rows)
        if name in order:
            ranks[suite] = (order.index(name) + 1, len(order))
    if not ranks:
        return "a control"
    best = min(ranks, key=lambda suite: ranks[suite][0] / ranks[suite][1])
    return f"{best} ({ranks[best][0]} of {ranks[best][1]})"


def ranking(rows: Sequence[Row]) -> list[str]:
    """Return the methods by win-rate, the best first, without controls."""
    controls = ("shuffled", "random", "sft_chosen")
    good = [row for row in rows if row.good and not any(word in row.name for word in controls)]
    return [row.name for row in sorted(good, key=lambda row: -row.mean("win_rate"))]


if __name__ == "__main__":
    main()
