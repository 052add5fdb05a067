"""`harness compare A B` of two folders that lm-evaluation-harness wrote with `--log_samples`.

Documents are paired by number and content. The comparator of lm-evaluation-harness treats the two
sets of outcomes as independent (its z test), and misses differences that a paired test finds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.digests import digest_of
from ...core.errors import HarnessError, UsageError
from ...core.plain_text import visible
from .verdict import p_text

if TYPE_CHECKING:
    from ...statistics.compare import Comparison

SAMPLES = "samples_*.jsonl"
DATED = re.compile(
    r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl"
)
NO_METRIC = frozenset(
    ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics")
    + ("doc_hash", "prompt_hash", "target_hash")
)
LEAST = 2  # documents of a paired test

Document = tuple[int, str]  # number and digest of the content
Outcomes = dict[Document, float]
Key = tuple[str, str, str]  # task, metric, filter


@dataclass(frozen=True)
class TaskComparison:
    """One metric of one task: both means and the paired difference A - B over shared documents."""

    task: str
    metric: str
    filter: str
    a: float
    b: float
    difference: Comparison
    documents: int  # shared, with an outcome on both sides
    only: tuple[int, int]  # documents of one side alone, or without an outcome on the other
    sign_p: float  # exact sign test; McNemar's for outcomes of 0 and 1


@dataclass(frozen=True)
class LogsCompared:
    """The content of `harness compare` of two folders of logs."""

    a: str
    b: str
    tasks: list[TaskComparison]
    notes: list[str]


def is_log_folder(name: str) -> bool:
    """Return whether a name is a folder with sample logs of lm-evaluation-harness."""
    folder = Path(name)
    return folder.is_dir() and bool(_folders_with_logs(folder))


def _folders_with_logs(folder: Path) -> list[Path]:
    """Return the folder itself, or the folders below it that have logs: one for each model."""
    if any(folder.glob(SAMPLES)):
        return [folder]
    return sorted({file.parent for file in folder.glob(f"*/{SAMPLES}")})


def compared_logs(a: str, b: str) -> LogsCompared:
    """Return the paired comparison of two folders of logs, task by task.

    Raises:
        UsageError: A folder has no logs or those of several models, or nothing is shared.
        HarnessError: A file is damaged.
    """
    from ...statistics.compare import holm

    files = [_files_of(name) for name in (a, b)]
    tasks = sorted(set(files[0]) & set(files[1]))
    if not tasks:
        raise UsageError(
            f"{a} and {b} have no task in common. A has {', '.join(sorted(files[0]))}; B has"
            f" {', '.join(sorted(files[1]))}. Name logs of the same tasks."
        )
    notes = [
        f"{side} alone has the task{'s' * (len(rest) > 1)} {', '.join(rest)}: not compared."
        for side, rest in zip("AB", _alone(files), strict=True)
        if rest
    ]
    compared: list[TaskComparison] = []
    for task in tasks:
        ours, theirs = (_outcomes(task, side[task], notes) for side in files)
        compared += _compared_task(ours, theirs, (files[0][task], files[1][task]))
    family = holm([one.difference.p for one in compared])
    compared = [_adjusted(one, p) for one, p in zip(compared, family, strict=True)]
    return LogsCompared(a, b, compared, list(dict.fromkeys(notes)))


def _alone(files: list[dict[str, Path]]) -> list[list[str]]:
    first, second = (set(side) for side in files)
    return [sorted(first - second), sorted(second - first)]


def _adjusted(one: TaskComparison, p: float) -> TaskComparison:
    return replace(one, difference=replace(one.difference, adjusted=p))


def _files_of(name: str) -> dict[str, Path]:
    """Return the newest log of each task in a folder."""
    folders = _folders_with_logs(Path(name)) if Path(name).is_dir() else []
    if not folders:
        raise UsageError(
            f"{name} holds no sample logs of lm-evaluation-harness (samples_TASK_DATE.jsonl). Write"
            " them with: lm-eval run ... --output_path DIR --log_samples. Two such folders are"
            " compared with each other, and a run with another run."
        )
    if len(folders) > 1:
        known = ", ".join(folder.name for folder in folders)
        raise UsageError(
            f"{name} holds logs of several models: {known}. Name one of their folders."
        )
    newest: dict[str, tuple[str, Path]] = {}
    for file in sorted(folders[0].glob(SAMPLES)):
        match = DATED.fullmatch(file.name)
        task, date = (match["task"], match["date"]) if match else (_undated(file), "")
        newest[task] = max(newest.get(task, ("", file)), (date, file))
    return {task: file for task, (_, file) in newest.items()}


def _undated(file: Path) -> str:
    return file.stem.removeprefix("samples_")


# -- outcomes --------------------------------------------------------------------------------------


def _outcomes(task: str, file: Path, notes: list[str]) -> dict[Key, Outcomes]:
    """Return the outcomes of every metric and filter of a log."""
    outcomes: dict[Key, Outcomes] = {}
    for number, row in _rows(file):
        document = _document(row, file, number)
        label = str(row.get("filter", "none"))
        for metric in _metrics(row):
            value = row.get(metric)
            if not _is_outcome(value):
                notes.append(f"{task}: {metric} has no single number per document: not compared.")
                continue
            of_metric = outcomes.setdefault((task, metric, label), {})
            if document in of_metric:
                raise HarnessError(
                    f"{file}, line {number}: the document {document[0]} is there twice. Two"
                    " evaluations wrote to one file: repeat one of them into a new folder."
                )
            of_metric[document] = math.nan if value is None else float(value)
    return outcomes


def _rows(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise HarnessError(
                    f"{file}, line {number} is not JSON ({error}). The file is damaged or cut."
                ) from None
            if not isinstance(row, dict) or not isinstance(row.get("doc_id"), int):
                raise HarnessError(
                    f"{file}, line {number} has no doc_id, as samples of"
                    " lm-evaluation-harness have."
                )
            yield number, row


def _document(row: Mapping[str, Any], file: Path, number: int) -> Document:
    """Return what identifies a document: its number, and the digest of its content."""
    if "doc_hash" in row:
        return row["doc_id"], str(row["doc_hash"])
    if "doc" not in row:
        raise HarnessError(f"{file}, line {number} has neither doc_hash nor doc.")
    return row["doc_id"], digest_of(row["doc"])


def _metrics(row: Mapping[str, Any]) -> list[str]:
    """Return the names of a sample's metrics; older logs do not list them."""
    listed = row.get("metrics")
    if isinstance(listed, list):
        return [str(name) for name in listed]
    return [name for name in row if name not in NO_METRIC]


def _is_outcome(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float))


def _compared_task(
    ours: Mapping[Key, Outcomes], theirs: Mapping[Key, Outcomes], files: tuple[Path, Path]
) -> list[TaskComparison]:
    """Return the comparisons of the metrics that both logs of a task have."""
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise UsageError(
            f"{files[0]} and {files[1]} have no metric with the same filter in common."
        )
    return [_compared(key, ours[key], theirs[key], files) for key in shared]


def _compared(
    key: Key, ours: Outcomes, theirs: Outcomes, files: tuple[Path, Path]
) -> TaskComparison:
    from ...statistics.compare import compare, sign_test

    both = [
        document
        for document, value in ours.items()
        if not math.isnan(value) and not math.isnan(theirs.get(document, math.nan))
    ]
    if len(both) < LEAST:
        raise UsageError(
            f"{files[0]} and {files[1]} share {len(both)} documents with outcomes of {key[1]}; a"
            f" paired test needs at least {LEAST}. They are of other data, or of other parts of it."
        )
    x, y = ([side[document] for document in both] for side in (ours, theirs))
    return TaskComparison(
        *key,
        a=math.fsum(x) / len(x),
        b=math.fsum(y) / len(y),
        difference=compare([x], [y]),
        documents=len(both),
        only=(len(ours) - len(both), len(theirs) - len(both)),
        sign_p=sign_test(x, y),
    )


# -- output ----------------------------------------------------------------------------------------


def grid(compared: LogsCompared) -> list[list[str]]:
    """Return the comparison as a table, its head first."""
    family = len(compared.tasks) > 1
    head = ["task", "metric", "filter", "A", "B", "A - B [95 %]", "p", "sign test", "documents"]
    rows = [head[:7] + ["p (Holm)"] * family + head[7:]]
    for one in compared.tasks:
        d = one.difference
        adjusted = [_p(d.adjusted)] * family if d.adjusted is not None else []
        values = [f"{one.a:.4g}", f"{one.b:.4g}", _interval(d), _p(d.p), *adjusted]
        cells = [one.task, one.metric, one.filter, *values, _p(one.sign_p), str(one.documents)]
        rows.append([visible(cell) for cell in cells])
    return rows


def _interval(d: Comparison) -> str:
    return f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


def _p(p: float) -> str:
    return p_text(p).removeprefix("p = ").removeprefix("p ")


def notes_of(compared: LogsCompared) -> list[str]:
    """Return the remarks below the table."""
    left = [
        f"{one.task}, {one.metric}: {one.only[0]} documents of A and {one.only[1]} of B are not"
        " shared, or have no outcome."
        for one in compared.tasks
        if any(one.only)
    ]
    return [
        *compared.notes,
        *left,
        "Documents are paired. One evaluation of each: these checkpoints, not these algorithms.",
    ]


def logs_as_json(compared: LogsCompared) -> dict[str, Any]:
    """Return the comparison as a value of JSON."""
    return asdict(compared)
