"""The columns of the comparison table: their keys, titles and cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.errors import unknown
from ...core.table import Cell
from ..selection.select import counted
from .captions import INTERVAL, SD
from .footnotes import DAGGER
from .tasks import names_in

Figures = Mapping[str, Any]
LAST_OF_QUALITY = "length"  # the column after which those of tasks stand
WITHHELD = "--"  # a win-rate that is not given


@dataclass(frozen=True)
class Column:
    """A column of the comparison: its key for --columns, its title, and its cell of a row."""

    key: str
    title: str
    write: Callable[[Figures], Cell]
    usual: bool = True  # whether it is shown without --columns

    def title_with(self, spread: str) -> str:
        """Return the title, which names the interval or the standard deviation."""
        return self.title if spread == INTERVAL else self.title.replace("[95 %]", "(sd)")


def chosen_columns(
    keys: Sequence[str], more: Sequence[Column] = (), judges: Sequence[str] = ()
) -> list[Column]:
    """Return columns by key; without keys all usual ones.

    Args:
        keys: The keys; empty for all usual columns.
        more: Columns that stand after those of quality.
        judges: Where a table has several judges, their names: each has a win-rate.

    Raises:
        UsageError: A key is unknown.
    """
    at = [column.key for column in COLUMNS].index(LAST_OF_QUALITY) + 1
    columns = [*COLUMNS[:at], *more, *COLUMNS[at:]]
    if judges:
        columns[2:3] = [replace(columns[2], title=by_judge(judges[0])), *judge_columns(judges[1:])]
    known = {c.key: c for c in columns}
    for key in keys:
        if key not in known:
            raise unknown("column", key, known)
    return [known[key] for key in keys] or [c for c in columns if c.usual]


def task_columns(rows: Sequence[Figures]) -> list[Column]:
    """Return two columns for each task of lm-evaluation-harness: its outcome and its tax."""
    return [
        column
        for name, title in names_in(rows).items()
        for column in (
            Column(f"task.{name}", title, _outcome(f"task.{name}", ".3f")),
            Column(f"tax.{name}", f"alignment tax: {name}", _outcome(f"tax.{name}", "+.3f")),
        )
    ]


def judge_columns(judges: Sequence[str]) -> list[Column]:
    """Return a column for each further judge of a table: the win-rate by its verdicts."""
    return [
        Column(f"win_rate.{name}", by_judge(name), _win_rate(f"win_rate.{name}")) for name in judges
    ]


def by_judge(name: str) -> str:
    """Return the title of a judge's column."""
    return f"win-rate by {name} [95 %]"


def _outcome(name: str, form: str) -> Callable[[Figures], Cell]:
    """Return a cell with an interval, or without one where a metric has none."""

    def write(f: Figures) -> Cell:
        return Cell(f"{f[name]:{form}}") if f"{name}_low" not in f and name in f else bounded(f)

    bounded = estimate(name, form)
    return write


def row_cells(columns: Sequence[Column], figures: Figures, marks: tuple[str, ...]) -> list[Cell]:
    """Return the cells of a row; if no run finished, the reason takes the place of figures."""
    if "failure" not in figures:
        return [
            replace(c.write(figures), marks=marks) if c.key == "seeds" else c.write(figures)
            for c in columns
        ]
    reason = iter([Cell(f"failed: {figures['failure']}")])
    named = {"method": Cell(str(figures["method"])), "seeds": replace(_seeds(figures), marks=marks)}
    return [named[c.key] if c.key in named else next(reason, Cell("")) for c in columns]


def _seeds(f: Figures) -> Cell:
    return Cell(counted(f["seeds"], f["failed"], f.get("grounds", 1)))


def estimate(name: str, form: str, ends: str = "") -> Callable[[Figures], Cell]:
    """Return a function that writes an estimate with its interval, or `-` if a row has none.

    Figures with the key `spread` have the standard deviation over seeds in place of the interval.
    """

    def spread(f: Figures) -> str:
        if f.get("spread") == SD:
            return f"\u00b1 {f[f'{name}_sd']:{form}}" if f"{name}_sd" in f else ""
        return f"[{f[f'{name}_low']:{ends or form}}, {f[f'{name}_high']:{ends or form}}]"

    def write(f: Figures) -> Cell:
        if name not in f:
            return Cell("-")
        return Cell(
            f"{f[name]:{form}}",
            spread(f),
            f.get(f"{name}_bold", False),
            f.get(f"{name}_best", False),
            (DAGGER,) if f"{name}_open" in f else (),
        )

    return write


def _win_rate(name: str) -> Callable[[Figures], Cell]:
    """Return a function that writes a win-rate; `--` if the judge may be no better than a coin."""
    known = estimate(name, ".3f")
    return lambda f: Cell(WITHHELD) if f"no_{name}" in f else known(f)


def _kl(f: Figures) -> Cell:
    cell = estimate("kl", ".2f")(f)
    return cell if "kl" not in f else replace(cell, text=f"{cell.text}{kl_mark(f['kl_estimator'])}")


def kl_mark(estimator: str) -> str:
    """Return the mark of a KL that was not computed from log-probabilities."""
    return "" if estimator == "rao-blackwell" else " (est.)"


def _accuracy(f: Figures) -> Cell:
    """Return the accuracy, without an interval if a verdict is missing."""
    mean_only = "accuracy" in f and "accuracy_low" not in f
    return Cell(f"{f['accuracy']:.3f}") if mean_only else estimate("accuracy", ".3f")(f)


def _at_k(name: str) -> Callable[[Figures], Cell]:
    """Return the cell of a figure for the largest k, where several answers were drawn."""

    def write(f: Figures) -> Cell:
        by_k = f.get(name)
        if not by_k:
            return Cell("-")
        k = max(by_k, key=int)
        return Cell(f"{by_k[k]:.3f} (k={k})")

    return write


def _mean_of_answers(f: Figures) -> Cell:
    return Cell(f"{f['mean_of_answers']:.3f}" if "mean_of_answers" in f else "-")


def _plainly(write: Callable[[Figures], str]) -> Callable[[Figures], Cell]:
    return lambda f: Cell(write(f))


def short(number: float) -> str:
    """Return a number in three digits with its unit."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def reused_share(f: Figures) -> float:
    """Return the reused share of a method's FLOPs; 0 for older records without it."""
    return float(f.get("method_flops_reused", 0.0) / (f.get("method_flops") or 1.0))


def _cost(write: Callable[[Figures], str]) -> Callable[[Figures], Cell]:
    """Return a cell of a training cost: blank for a model that was trained elsewhere."""
    return lambda f: Cell(write(f) if "method_flops" in f else "")


def share_text(share: float) -> str:
    return "-" if not share else "<1%" if share < 0.005 else f"{share:.0%}"


def _or_dash(number: float) -> str:
    return short(number) if number else "-"


COLUMNS = (
    Column("method", "method", _plainly(lambda f: f["method"])),
    Column("seeds", "seeds", _seeds),
    Column("win_rate", "win-rate vs baseline [95 %]", _win_rate("win_rate")),
    Column("lc_win_rate", "length-controlled", estimate("lc_win_rate", ".3f")),
    Column("gold", "gold", estimate("gold", ".2f")),
    Column("proxy", "proxy", estimate("proxy", ".2f")),
    Column("accuracy", "accuracy", _accuracy),
    Column("pass_at_k", "pass@k", _at_k("pass_at_k")),
    Column("maj_at_k", "maj@k", _at_k("maj_at_k")),
    Column("mean_of_answers", "mean of n answers", _mean_of_answers),
    Column("kl", "KL (nats)", _kl),
    Column("length", "length", _plainly(lambda f: f"{f['length']:.1f}")),
    Column(
        "seconds",
        "train s / CPU s",
        _cost(lambda f: f"{f['method_seconds']:.0f} / {f['method_cpu_seconds']:.0f}"),
    ),
    Column("flops", "train TFLOP", _cost(lambda f: f"{f['method_flops'] / 1e12:.3g}")),
    Column(
        "reused", "cached (of FLOPs)", _cost(lambda f: share_text(reused_share(f))), usual=False
    ),
    Column(
        "tokens",
        "tokens gen. / trained",
        _cost(
            lambda f: f"{short(f['method_tokens_generated'])} / {short(f['method_tokens_trained'])}"
        ),
    ),
    Column("reward_queries", "reward queries", _cost(lambda f: short(f["method_reward_queries"]))),
    Column(
        "verifier_queries",
        "verifier queries",
        _cost(lambda f: _or_dash(f["method_verifier_queries"])),
    ),
    Column("labels", "labels", _cost(lambda f: short(f["labels"]))),
    Column("ai_labels", "AI labels", _cost(lambda f: _or_dash(f["ai_labels"]))),
    Column(
        "models",
        "models held (params)",
        _plainly(lambda f: f"{f['models'].replace(' ', ' + ')} ({short(f['parameters_held'])})"),
    ),
    Column(
        "peak_memory",
        "peak MiB",
        _cost(
            lambda f: f"{f['method_peak_memory'] / 2**20:.0f}" if f["method_peak_memory"] else "-"
        ),
    ),
    Column(
        "flops_per_answer",
        "FLOPs / answer",
        _plainly(lambda f: f"{f['flops_per_answer']:.2g}" if f["flops_per_answer"] else "-"),
    ),
    Column(
        "queries_per_answer",
        "queries / answer",
        _plainly(lambda f: _or_dash(f["queries_per_answer"])),
    ),
)
