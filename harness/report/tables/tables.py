"""A selection of runs as one table: rows, bold type and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.spec import START
from ...core.table import Cell, Table
from ..selection.comparable import shared_seed_of
from ..selection.select import Row, Selection
from .captions import ALPHA, INTERVAL, MOST_ROWS, SD, caption_of, conditions
from .columns import (
    Figures,
    chosen_columns,
    reused_share,
    row_cells,
    share_text,
    task_columns,
)
from .footnotes import Footnotes, collapses, held_out_text, of_grounds, open_footnote
from .judges import add_judge, check_judges, judges_note, name_of
from .tasks import task_figures, task_notes

NAMED = 5  # unfinished runs named in a note


def comparison(
    selection: Selection,
    columns: Sequence[str] = (),
    spread: str = INTERVAL,
    others: Sequence[Selection] = (),
    keep_empty: bool = True,
) -> Table:
    """Return the table of a selection: one row per method and settings.

    Args:
        selection: The runs.
        columns: Keys of COLUMNS in order; empty for all columns that have values.
        spread: INTERVAL for 95 % intervals behind means, SD for standard deviations over seeds.
        others: The runs as further judges evaluated them; each adds a column with its win-rate.
        keep_empty: Whether a column of `columns` without a value stays.

    Raises:
        UsageError: Evaluations by several judges differ in more than the judge.
    """
    figures_by_row, scores, paired, borrowed = _marked(selection, spread)
    of_judges = _add_judges(selection, figures_by_row, others, spread)
    judges = [name_of(one) for one in (selection, *others)] if others else []
    shown = chosen_columns(columns, task_columns(figures_by_row), judges)
    more = [[*collapses(f), *of_grounds(f, figures_by_row)] for f in figures_by_row]
    footnotes = Footnotes(selection, dict(enumerate(more)))
    rows = [row_cells(shown, figures, footnotes.of(i)) for i, figures in enumerate(figures_by_row)]
    every = bool(columns) and keep_empty
    kept = [i for i in range(len(shown)) if every or any(has_value(row[i]) for row in rows)]
    keys = [shown[i].key for i in kept]
    return Table(
        title=f"{selection.description}: {conditions(selection)}",
        columns=[shown[i].title_with(spread) for i in kept],
        rows=[[row[i] for i in kept] for row in rows],
        notes=[
            *_notes(selection, keys),
            *dict.fromkeys(note for one in (selection, *others) for note in judge_notes(one)),
            *of_judges,
            *missing_notes(figures_by_row),
            *graded_notes(figures_by_row),
            *length_notes(figures_by_row),
            *task_notes(figures_by_row),
            *_looked_up(figures_by_row, keys),
        ],
        plain=[with_footnotes(f, footnotes, footnotes.of(i)) for i, f in enumerate(figures_by_row)],
        caption=caption_of(selection, paired, borrowed, any(scores.values()), spread),
        footnotes={**open_footnote(figures_by_row, keys), **footnotes.texts},
        runs=[[r["folder"] for r in row.records] for row in selection.rows],
    )


def has_value(cell: Cell) -> bool:
    """Return whether a cell shows a value."""
    return cell.text not in ("-", "")


def _marked(
    selection: Selection, spread: str
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], bool, bool]:
    """Return the figures of every row with the marks of bold type, the scores (S, P) behind them,
    whether rows can be tested in pairs, and whether the tests pooled variances.
    """
    figures_by_row, scores, same = _figures(selection, spread)
    paired = same and _on_the_same_prompts(selection) and _share_grounds(selection)
    grounds = {row.name: row.grounds for row in selection.rows}
    borrowed = paired and mark_best(figures_by_row, scores, grounds)
    return figures_by_row, scores, paired, borrowed


def _add_judges(
    selection: Selection,
    figures_by_row: Sequence[dict[str, Any]],
    others: Sequence[Selection],
    spread: str,
) -> list[str]:
    """Add the win-rates by further judges to the figures of rows, and return the notes on them."""
    if not others:
        return []
    check_judges([selection, *others])
    notes = [judges_note([name_of(one) for one in (selection, *others)])]
    for other in others:
        figures, *_ = _marked(other, spread)
        notes += add_judge(figures_by_row, selection.rows, other, figures)
        notes += [f"By {name_of(other)}: {note}" for note in missing_notes(figures)]
        notes += [f"By {name_of(other)}: {other.no_win_rate}."] if other.no_win_rate else []
    return notes


def _figures(
    selection: Selection, spread: str
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], bool]:
    """Return the figures of every row, the scores (S, P) that bold type compares, and whether all
    rows answered prompts of the same names.
    """
    from ..selection.figures import answers_of, deviations, figures_of, same_prompts

    figures_by_row: list[dict[str, Any]] = []
    read: list[Any] = []
    scores: dict[str, dict[str, Any]] = {"win_rate": {}, "gold": {}}
    for row in selection.rows:
        answers = answers_of(row) if row.good else None
        figures_by_row.append(figures_of(row, answers) | task_figures(row.good))
        if spread == SD:
            figures_by_row[-1] |= {"spread": SD} | (deviations(answers) if answers else {})
        if answers is not None:
            read.append(answers)
            for name, key in (("win_rate", "win"), ("gold", "gold")):
                if key in answers.figures and name in figures_by_row[-1]:
                    scores[name][row.name] = answers.figures[key]
    return figures_by_row, scores, same_prompts(read)


def _on_the_same_prompts(selection: Selection) -> bool:
    """Return whether all runs of a ground were evaluated on prompts of the same content."""
    contents: dict[int, set[Any]] = {}
    for r in selection.good:
        contents.setdefault(shared_seed_of(r), set()).add(r["ground"].get("evaluation_prompts"))
    return all(len(own) < 2 for own in contents.values())


def _share_grounds(selection: Selection) -> bool:
    """Return whether any two rows have a ground in common."""
    grounds = [set(row.grounds) for row in selection.rows if row.good]
    return all(a & b for i, a in enumerate(grounds) for b in grounds[:i])


def with_footnotes(figures: Figures, footnotes: Footnotes, marks: Sequence[str]) -> Figures:
    """Return figures with their footnotes, for formats that show figures only."""
    return (
        {**figures, "footnotes": " ".join(footnotes.texts[mark] for mark in marks)}
        if marks
        else figures
    )


def mark_best(
    rows: Sequence[dict[str, Any]],
    scores: Mapping[str, Mapping[str, Any]],
    grounds: Mapping[str, Sequence[int]],
) -> bool:
    """Mark in the figures of each row whether its mean is best, and not significantly worse.

    If only the spread of its own seeds keeps a row from being excluded, it is marked as open, with
    the lowest and the highest mean of its seeds.

    Args:
        rows: The figures of each row.
        scores: Scores (S, P) by figure and row.
        grounds: The shared seed of each seed of a row.

    Returns:
        Whether the tests pooled the variances between seeds.
    """
    from ...statistics.compare import Standing, borrows, confidence_set
    from ..selection.figures import complete, of_prompts

    borrowed = False
    for name, by_row in scores.items():
        if not 2 <= len(by_row) <= MOST_ROWS:
            continue
        kept = complete(*by_row.values())  # a prompt with a missing score is left out for all rows
        if kept.sum() < 2:
            continue
        by_row = {row: of_prompts(own, kept) for row, own in by_row.items()}
        group = confidence_set(by_row, ALPHA, grounds=grounds)
        borrowed |= borrows(by_row, grounds)
        best = max(f[name] for f in rows if name in f)
        for figures in rows:
            if name in figures and figures["method"] in group:
                figures[f"{name}_best"] = figures[name] == best
                standing, own = group[figures["method"]], by_row[figures["method"]].mean(-1)
                figures[f"{name}_bold"] = standing is Standing.BEST
                if standing is Standing.OPEN:
                    figures[f"{name}_open"] = f"{own.min():.2f} to {own.max():.2f}"
    return borrowed


# -- caption and notes -----------------------------------------------------------------------------


def graded_notes(rows: Sequence[Figures]) -> list[str]:
    """Return the note on verdicts that are no shares of right answers; empty where all are."""
    sides = ("accuracy", "accuracy_low", "accuracy_high")
    ends = [row[side] for row in rows for side in sides if side in row]
    if not any(end < 0 or end > 1 for end in ends):
        return []
    return ["Accuracy is the mean of the verifier's grades here, not a share of right answers."]


def length_notes(rows: Sequence[Figures]) -> list[str]:
    """Return the note on a judge whose scores length itself does not move."""
    if not any(row.get("length_is_no_bias") for row in rows):
        return []
    return [
        "There is no length-controlled win-rate: the judge scores what an answer contains, so a"
        " longer answer that scores higher is better, and length is no bias of the judge."
    ]


def missing_notes(rows: Sequence[Figures]) -> list[str]:
    """Return the note on missing scores, by row; empty where none is missing."""
    counts = [
        f"{row['method']} {', '.join(f'{n} {name}' for name, n in row['missing'].items())}"
        for row in rows
        if row.get("missing")
    ]
    if not counts:
        return []
    return [
        "Missing scores: a prompt without a score on either side is left out and does not count"
        " as a loss:"
        f" {'; '.join(counts)}."
    ]


def judge_notes(selection: Selection) -> list[str]:
    """Return the notes on the quality of the judge behind the win-rates."""
    notes = []
    for record in selection.good:
        judge = record["evaluation"].get("judge", {})
        if held_out := judge.get("held_out"):
            notes.append(f"The judge {judge['name']} {held_out_text(held_out)}.")
        if "kl_temperature" in record["evaluation"]:
            notes.append(
                "Answers were sampled differently than in training; KL is measured on answers at"
                f" T={record['evaluation']['kl_temperature']:g}, as in training."
            )
        if "against" in record["evaluation"]:
            notes.append(f"The baseline is the answers of {record['evaluation']['against']}.")
    return [*dict.fromkeys(notes), *verdict_notes(selection)]


def verdict_notes(selection: Selection) -> list[str]:
    """Return the notes on replies without a verdict, position bias and self-agreement, by judge."""
    by_judge: dict[str, list[Mapping[str, Any]]] = {}
    for record in selection.good:
        judge = record["evaluation"].get("judge") or {}
        if judge.get("problems") or "position_bias" in judge or "self_agreement" in judge:
            by_judge.setdefault(str(judge["name"]), []).append(judge)
    return [
        f"Verdicts of {name}: {', '.join(_verdict_parts(judges))}."
        for name, judges in by_judge.items()
    ]


def _verdict_parts(judges: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the qualities of the verdicts in several runs: counts are sums, the rest ranges."""
    counts: Counter[str] = Counter()
    for judge in judges:
        counts.update(judge.get("problems", {}))
    parts = [f"{n} {kind}" for kind, n in sorted(counts.items())]
    bias = [j["position_bias"]["mean"] for j in judges if "position_bias" in j]
    parts += [f"position bias {_span(bias, '+.3f')}"] if bias else []
    for key, label in (
        ("position_consistency", "both orders agree on {} of the pairs"),
        ("self_agreement", "repeated questions agree on {}"),
    ):
        shares = [judge[key] for judge in judges if key in judge]
        parts += [label.format(_span(shares, ".0%"))] if shares else []
    return parts


def _span(values: Sequence[float], form: str) -> str:
    """Return the smallest and the largest value, or the only one."""
    ends = [f"{end(values):{form}}" for end in (min, max)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def start_note(rows: Sequence[Row]) -> str:
    """Return the note on rows of the method `start`; empty where there is none."""
    names = [row.name for row in rows if row.method == START and row.good]
    if not names:
        return ""
    rows_are = f"Row {names[0]} is" if len(names) == 1 else f"Rows {', '.join(names)} are"
    return f"{rows_are} a second draw from the start checkpoint: .5 up to noise."


NOTES = {
    "lc_win_rate": (
        "Length-controlled: the win-rate at equal length, by a logistic fit over the answers of all"
        " seeds (Dubois et al. 2024); length in characters. It is missing (-) if in some seed"
        " fewer than 5 % of the answers are at least as long, or at least as short, as the"
        " baseline's."
    ),
    "kl": (
        "KL is KL(policy || reference) in nats per answer, on the policy's own answers,"
        " Rao-Blackwellised over the vocabulary. The reference is the start checkpoint, or the"
        " model that `--reference` names."
    ),
    "flops": (
        "{costs} are those of the method; shared stages (SFT, preferences, reward model) are"
        " counted separately."
    ),
    "peak_memory": (
        "Peak MiB is the largest resident memory of the process while the method trained (on a"
        " GPU: of tensors)."
    ),
    "flops_per_answer": "FLOPs / answer is the cost of answering one prompt.",
}


COSTS = {  # columns named in the note on costs
    "seconds": "Train s, CPU s (of all threads)",
    "flops": "TFLOP",
    "tokens": "tokens",
    "reward_queries": "queries",
}


def _costs_note(keys: Sequence[str]) -> str:
    """Return the note on the cost columns that are shown."""
    *names, last = [name for key, name in COSTS.items() if key in keys]
    costs = f"{', '.join(names)} and {last}" if names else last
    return NOTES["flops"].format(costs=costs)


def _looked_up(rows: Sequence[Figures], keys: Sequence[str]) -> list[str]:
    """Return a note if the costs shown include cached work, with the largest share."""
    most = max((f for f in rows if "failure" not in f), key=reused_share, default=None)
    if most is None or not reused_share(most) or not {"seconds", "flops", "tokens"} & set(keys):
        return []
    return [
        "Costs are those of a method that runs alone. Cached results of the start checkpoint are"
        f" counted as if computed: up to {share_text(reused_share(most))} of the method's FLOPs"
        f" ({most['method']}). Their time is taken from the run that computed them. The column"
        " `reused` of `--columns` is the share of every row."
    ]


def _notes(selection: Selection, keys: Sequence[str]) -> list[str]:
    notes = [
        start_note(selection.rows) if "win_rate" in keys else "",
        " ".join(
            _costs_note(keys) if key == "flops" else note
            for key, note in NOTES.items()
            if key in keys
        ),
        *unfinished_notes(selection),
    ]
    notes += bounds_notes(selection.rows) if "kl" in keys else []
    return [note for note in notes if note]


def unfinished_notes(selection: Selection) -> list[str]:
    """Return the notes on runs that are unfinished, refused, damaged or without a seal."""
    reasons = "; ".join(f"{name}: {why}" for name, why in selection.refused.items())
    refused = [f"Refused: {reasons}."] if selection.refused else []
    refused += [f"Left out: {why}" for why in selection.damaged]
    if selection.unsealed:
        refused.append(
            f"No seal: {selection.unsealed} of {len(selection.records)} records are of an older"
            " version, and no digest protects their figures."
        )
    if not selection.unfinished:
        return refused
    more = ", ..." if len(selection.unfinished) > NAMED else ""
    names = ", ".join(selection.unfinished[:NAMED])
    count = len(selection.unfinished)
    return [
        f"Not finished, and left out: {count} run{'s' * (count > 1)} ({names}{more}) without"
        " result.json.",
        *refused,
    ]


def bounds_notes(rows: Sequence[Row]) -> list[str]:
    """Return the note on rows with an estimated KL, with its bounds; empty without such rows."""
    first = [(row.name, row.good[0]["evaluation"]) for row in rows if row.good]
    bounds = [
        f"{name} {evaluation['kl_bound']:.2f}"
        for name, evaluation in first
        if "kl_bound" in evaluation
    ]
    note = (
        "Without log-probabilities, KL is estimated (est.) from the reference's probability of the"
        " selected reward level (Beirami et al. 2024). It is at most log n - (n-1)/n:"
        f" {'; '.join(bounds)}."
    )
    return [note] if bounds else []
