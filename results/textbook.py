"""The table that tutorials print with words, with measured numbers in each cell: `python
results/textbook.py [RAW]`.

Reads the runs of results/main.toml, and of results/labels.toml where that study was run, below RAW
(results/raw) and writes results/textbook.md, and textbook.csv with the figures behind it,
unrounded, and the folders of their runs. What needs the labels study is left out without it, and
the note says so.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from harness_plugins.reporters import CSV, Markdown

from harness.api.registry import installed
from harness.core.spec import START
from harness.core.table import Cell, Table
from harness.report.selection.figures import answers_of
from harness.report.selection.filters import Filter
from harness.report.selection.select import Row, Selection, select, suite_records
from harness.report.tables.columns import short
from harness.report.tables.tables import comparison
from harness.statistics.compare import Comparison, compare

ROOT = Path(__file__).parent
FIRST = "summarization"
SHARES = {67: "1/30", 400: "1/5"}  # of the 2,000 prompts whose answers are labelled
ALL = 2000
APART = 0.2  # a difference of seeds' win-rates that a mean would hide
# a method on samples of its own policy, and the same loss on samples of the start checkpoint
FRESH = {
    "online_dpo": ("dpo", "main"),
    "raft": ("raft (one round)", "labels"),
}
BOLD = "win_rate_bold"  # said by harness.report.tables
CONTROLS = ("shuffled", "random", "sft_chosen")
COLUMNS = [
    "method",
    "reward model?",
    "online?",
    "models held",
    "weights held",
    "peak memory / SFT",
    "train FLOPs / SFT",
    "sd over seeds",
    "failed runs",
    "labels",
    "win-rate at 1/30, 1/5 and all labels",
    "gain from fresh samples",
    "not significantly worse than the best on",
]
NOTE = """\
From results/main.toml ({suites}){labels}. Models, weights and labels are those on summarization
(rlvr: arithmetic). Ratios are to the shared SFT stage, as means over suites. Peak memory is that of
the process; at this model size, most of it is Python and torch. sd over seeds: the standard
deviation of the win-rate without the variation from prompts and answers, the largest of the
suites; none seen: prompts and answers explain all differences between seeds. Gain from fresh
samples: the win-rate less that of the same loss on samples of the start checkpoint (online_dpo:
dpo; raft: one round of as many samples), on summarization, paired over prompts; -: no such
counterpart was trained. {few}Not significantly worse than the best on: the suites on which the
method's win-rate (in brackets) is bold in results/SUITE.md, by that table's tests over all its
rows; a row with a dagger there is not bold. -: none, and for the start checkpoint, with which the
others are compared. Failed runs crashed or diverged: a policy that collapsed counts as finished.
All runs are on one ground (shared seed 0). All figures are about a
model of 0.3M parameters."""
FEW = """\
Few labels: means of two seeds, with all labels of five. Two seeds allow no useful interval, so none
is given; seeds that differ by more than 0.2 are in brackets (with few labels, PPO exploits a flaw
in the reward model). -: not in results/labels.toml. """


@dataclass(frozen=True)
class Runs:
    """What the table is made of; `few` by prompts labelled, empty where the labels study was not
    run.
    """

    main: Mapping[str, Selection]
    figures: Mapping[
        str, Mapping[str, Mapping[str, Any]]
    ]  # of `main`: the figures of the suite's table by row
    few: Mapping[int, Selection]


def main(raw: Path = ROOT / "raw", folder: Path = ROOT) -> None:
    """Write the table and the figures behind it."""
    found = read(raw)
    names = list(dict.fromkeys(row.name for chosen in found.main.values() for row in chosen.rows))
    shown = [
        name for name in names if "(" not in name or name == "rlaif (dpo)"
    ]  # controls stand in the main table
    rows = [[Cell(text) for text in cells(name, found)] for name in shown]
    told = (
        " and results/labels.toml"
        if found.few
        else "; results/labels.toml was not run, so nothing is said of few labels"
    )
    kept = [i for i, name in enumerate(COLUMNS) if found.few or "all labels" not in name]
    rows = [[row[i] for i in kept] for row in rows]
    note = " ".join(
        NOTE.format(suites=", ".join(found.main), labels=told, few=FEW if found.few else "").split()
    )
    made = Table(
        "The textbook table, measured",
        [COLUMNS[i] for i in kept],
        rows,
        [note],
        list(behind(found, shown)),
    )
    (folder / "textbook.md").write_text(Markdown().render(made), encoding="utf-8")
    (folder / "textbook.csv").write_text(CSV().render(made), encoding="utf-8")


def read(raw: Path) -> Runs:
    """Return the runs below a folder, the first suite first."""
    suites = sorted(
        {r["suite"] for r in suite_records(raw, "main")}, key=lambda suite: (suite != FIRST, suite)
    )
    chosen = {suite: select(raw, Filter(suite, "main")) for suite in suites}
    figures = {
        suite: {f["method"]: f for f in comparison(one).plain} for suite, one in chosen.items()
    }
    labelled = (raw / "studies" / "labels").is_dir()
    return Runs(
        chosen, figures, {n: with_labels(raw, n) for n in (*SHARES, ALL)} if labelled else {}
    )


def cells(name: str, found: Runs) -> Iterator[str]:
    """Yield the cells of a method's row."""
    rows = rows_of(name, found)
    costs = [r["cost"] for row in rows.values() for r in row.good]
    first = [r["cost"] for r in rows.get(FIRST, next(iter(rows.values()))).good]
    models = first[0]["models"]
    yield name
    yield "yes" if any("reward" in role for role in models) else "no"
    yield online(name, any(c["method"]["tokens_generated"] for c in costs))
    yield f"{len(models)} ({' + '.join(sorted(models))})"
    yield f"{sum(m['bytes'] for m in models.values()) / 2**20:.1f} MiB"
    yield ratio(costs, "peak_memory") if any(c["method"]["peak_memory"] for c in costs) else "-"
    yield ratio(costs, "flops")
    yield spread(
        {suite: found.figures[suite][row.name]["win_rate_seed_sd"] for suite, row in rows.items()}
    )
    yield (
        f"{sum(len(row.failed) for row in rows.values())}"
        f"/{sum(len(row.records) for row in rows.values())}"
    )
    yield asked(first)
    yield against_labels(name, rows.get(FIRST), found.few)
    gain = fresh(name, found)
    yield f"{gain.difference:+.3f} [{gain.low:.3f}, {gain.high:.3f}]" if gain else "-"
    yield among_the_best(name, found.figures)


def rows_of(name: str, found: Runs) -> dict[str, Row]:
    """Return a method's rows by suite, where a run of it finished."""
    return {
        suite: row
        for suite, chosen in found.main.items()
        if (row := named(chosen, name)) and row.good
    }


def behind(found: Runs, shown: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the figures of each row on each suite, and with few labels, unrounded; folders as seen
    from the top.
    """
    for suite, by_row in found.figures.items():
        for name in shown:
            row = rows_of(name, found).get(suite)
            if row is not None:
                costs, gain = (
                    [r["cost"] for r in row.good],
                    fresh(name, found) if suite == FIRST else None,
                )
                told = {
                    f"{part}_to_sft": mean_ratio(costs, part) for part in ("peak_memory", "flops")
                }
                if gain:
                    told |= {
                        "fresh": gain.difference,
                        "fresh_low": gain.low,
                        "fresh_high": gain.high,
                    }
                yield {"study": "main", "suite": suite} | _plain(by_row[row.name]) | told
    for prompts, chosen in found.few.items():
        for figures in comparison(chosen).plain:
            yield {"study": "labels", "suite": FIRST, "prompts_labelled": prompts} | _plain(figures)


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    return dict(figures) | {
        "folders": str(figures.get("folders", "")).replace(f"{ROOT.parent}/", "")
    }


def mean_ratio(costs: Sequence[Mapping[str, Any]], part: str) -> float:
    """Return the mean ratio of a part of the methods' costs to the shared SFT stage's, where there
    is any.
    """
    paid = [c for c in costs if c["method"][part]]
    return fmean(c["method"][part] / c["shared"]["sft"][part] for c in paid) if paid else 0.0


def ratio(costs: Sequence[Mapping[str, Any]], part: str) -> str:
    """Return it in two digits."""
    return f"{mean_ratio(costs, part):.2f}"


def spread(of_suites: Mapping[str, float]) -> str:
    """Return the largest sd over seeds with its suite; as an estimate it is cut at 0 where there is
    none to be seen.
    """
    worst = max(of_suites, key=lambda suite: of_suites[suite])
    return f"{of_suites[worst]:.3f} ({worst})" if of_suites[worst] > 0 else "none seen"


def online(name: str, generates: bool) -> str:
    """Return whether a method learns from samples of the policy as it then is; RRHF's are of the
    start checkpoint.
    """
    kind = (
        installed().classes["methods"][name].kind if name in installed().classes["methods"] else ""
    )
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


def with_labels(raw: Path, prompts: int) -> Selection:
    """Return the runs of results/labels.toml with the answers to so many prompts labelled."""
    return select(raw, Filter(FIRST, "labels", where={"stage.preferences.prompts": str(prompts)}))


def named(chosen: Selection, name: str) -> Row | None:
    """Return the row of a method, whatever a sweep adds to its name."""
    return next((row for row in chosen.rows if row.entry == name), None)


def against_labels(name: str, full: Row | None, few: Mapping[int, Selection]) -> str:
    """Return win-rates from few labels to all."""
    found = [row for n in SHARES if n in few and (row := named(few[n], name))]
    if full is None or len(found) < len(SHARES):
        return "-"
    return ", ".join([*map(with_ends, found), f"{full.mean('win_rate'):.3f}"])


def with_ends(row: Row) -> str:
    """Return a row's win-rate, and the seeds' lowest and highest where they are far apart."""
    rates = [r["evaluation"]["win_rate"]["mean"] for r in row.good]
    ends = f" ({min(rates):.3f} to {max(rates):.3f})" if max(rates) - min(rates) > APART else ""
    return f"{fmean(rates):.3f}{ends}"


def fresh(name: str, found: Runs) -> Comparison | None:
    """Return the paired comparison with the same loss on the start checkpoint's samples, if that
    was trained.
    """
    row = rows_of(name, found).get(FIRST)
    if name not in FRESH or row is None:
        return None
    other, study = FRESH[name]
    chosen = found.main[FIRST] if study == "main" else found.few.get(ALL)
    stale = named(chosen, other) if chosen else None
    return compare(answers_of(row).win, answers_of(stale).win) if stale else None


def among_the_best(name: str, figures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the suites on whose table a method is bold, with its win-rate; the reference and
    controls are left out.
    """
    if any(word in name for word in CONTROLS):
        return "a control"
    bold = [
        (suite, rows[name]["win_rate"])
        for suite, rows in figures.items()
        if rows.get(name, {}).get(BOLD)
    ]
    return ", ".join(f"{suite} ({rate:.3f})" for suite, rate in bold if name != START) or "-"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
