"""The verdicts of a judge on the policy's answers against the baseline's, each computed once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..api.adapters import written_as
from ..api.contracts import Answer, Judge, PairVerdict
from ..api.judge_contract import check_verdicts, preferences, scores
from ..core.data import Prompt
from ..core.digests import digest_of, package_digest
from ..core.distributed import ALONE, DistributedContext
from ..core.errors import HarnessError
from ..core.fault_points import fault_point
from ..core.files import make_folder
from ..core.global_state import put_back
from ..core.progress import EVALUATION, activity
from ..core.watchdog import waiting_for
from ..statistics.judges import held_out_figures, no_win_rate, verdict_figures

CHUNK = 16  # pairs between two writes of the verdict log


@dataclass
class Judged:
    """A judge's view of a policy's answers and of the baseline's."""

    wins: list[float]  # P(ours is better) per prompt; NaN: no verdict, or no win-rate at all
    gold: list[float] | None  # scores of our answers; None from a judge that only compares
    baseline_gold: list[float] | None
    notes: list[Mapping[str, Any]]  # of each verdict; empty mappings where there are none
    figures: dict[str, Any]  # of the verdicts: missing, ties, position bias


def judge_answers(
    judge: Judge,
    prompts: Sequence[Prompt],
    ours: Sequence[Answer],
    theirs: Sequence[Answer],
    folder: Path,
    distributed: DistributedContext = ALONE,
) -> Judged:
    """Judge each of our answers against that of the baseline.

    Args:
        judge: The judge, prepared.
        prompts: n prompts.
        ours: n answers of the policy.
        theirs: n answers of the baseline.
        folder: Where the verdicts of a costly judge are kept.
        distributed: Of a costly judge only the main process asks.

    Raises:
        HarnessError: The judge gave no verdict at all, or what are no scores.
    """
    with activity(EVALUATION, "evaluation: judge"):
        gold = base = None
        if scores(type(judge)):
            gold, base = _scores_of_both(judge, prompts, ours, theirs)
        if gold is not None and base is not None and not _compares(judge):
            verdicts = [PairVerdict(p) for p in preferences(gold, base)]
        else:
            log = VerdictLog(folder, judge) if judge.costly else None
            own_verdicts = (
                _verdicts_of_rest(judge, prompts, ours, theirs, log) if distributed.main else []
            )
            verdicts = (
                distributed.broadcast_from_main(own_verdicts) if judge.costly else own_verdicts
            )
    wins = [verdict.p for verdict in verdicts]
    asked = [verdict.p for verdict in verdicts if not verdict.note.get("equal")]
    if all(math.isnan(p) for p in asked or wins):  # equal answers are ties without a judge
        raise HarnessError(
            f"The judge {judge.name} gave no verdict on any of {len(asked or wins)} pairs of"
            " different answers, so there is no win-rate. The trained policy is kept. Look at the"
            " judge, or name another with: harness evaluate RUN --judge NAME."
        )
    content = {} if judge.length_bias else {"length_bias": False}
    figures = {"name": judge.name, **content, **_options(judge), **_quality(judge)}
    notes = [verdict.note for verdict in verdicts]
    judged = Judged(wins, gold, base, notes, figures | verdict_figures(wins, notes))
    reason = no_win_rate(figures.get("held_out"))
    return _withheld(judged, reason) if reason else judged


def _withheld(judged: Judged, reason: str) -> Judged:
    """Return verdicts without a win-rate and without scores, which would give one.

    What the judge returned is kept in the notes of the answers.
    """
    kept: list[Mapping[str, Any]] = []
    for i, note in enumerate(judged.notes):
        scores = (judged.gold, judged.baseline_gold)
        values = (judged.wins[i], *(side[i] if side else math.nan for side in scores))
        named = zip(("p", "gold", "baseline_gold"), values, strict=True)
        kept.append({**note, "withheld": {n: v for n, v in named if math.isfinite(v)}})
    return replace(
        judged,
        wins=[math.nan] * len(judged.wins),
        gold=None,
        baseline_gold=None,
        notes=kept,
        figures={**judged.figures, "no_win_rate": reason},
    )


def _scores_of_both(
    judge: Judge, prompts: Sequence[Prompt], ours: Sequence[Answer], theirs: Sequence[Answer]
) -> tuple[list[float], list[float]]:
    """Return the scores of both sides' answers."""
    with waiting_for(f"the judge {judge.name}"), put_back(f"The judge {judge.name}"):
        fault_point("judge")
        gold, base = (judge.scores_of(prompts, side) for side in (ours, theirs))
    for side in (gold, base):
        _check_scores(judge, side, len(prompts))
    return gold, base


def _check_scores(judge: Judge, found: Any, n: int) -> None:
    """Refuse what are not n numbers, under the judge's name."""
    wanted = f"expected {n} numbers, NaN for a missing score"
    try:
        count = len([float(score) for score in found])
    except (TypeError, ValueError, OverflowError):
        raise HarnessError(
            f"The judge {judge.name} returned {str(found)[:60]}; {wanted}."
        ) from None
    if count != n:
        raise HarnessError(f"The judge {judge.name} returned {count} scores; {wanted}.")


def _compares(judge: Judge) -> bool:
    """Return whether a judge compares by other means than its scores."""
    cls = type(judge)
    return cls.compare is not Judge.compare or cls.verdicts is not Judge.verdicts


def _options(judge: Judge) -> dict[str, Any]:
    identity = judge.identity()
    return {"options": identity} if identity else {}


def _quality(judge: Judge) -> dict[str, Any]:
    agreement = judge.agreement()
    if not agreement:
        return {}
    return {"held_out": held_out_figures(agreement["accuracy"], agreement["pairs"])}


def _verdicts_of_rest(
    judge: Judge,
    prompts: Sequence[Prompt],
    ours: Sequence[Answer],
    theirs: Sequence[Answer],
    log: VerdictLog | None,
) -> list[PairVerdict]:
    """Return a verdict per prompt; pairs in the log are not judged again."""
    keys = [pair_key(*pair) for pair in zip(prompts, ours, theirs, strict=True)]
    known = log.read() if log else {}
    open_rows = [i for i, key in enumerate(keys) if key not in known]
    for rows in _chunks(open_rows, CHUNK if log else len(open_rows) or 1):
        a, b = ([side[i] for i in rows] for side in (ours, theirs))
        with waiting_for(f"the judge {judge.name}"), put_back(f"The judge {judge.name}"):
            fault_point("judge")
            verdicts = judge.verdicts([prompts[i] for i in rows], a, b)
        check_verdicts(judge, verdicts, len(rows))
        known.update(zip((keys[i] for i in rows), verdicts, strict=True))
        if log:
            log.add([(keys[i], verdict) for i, verdict in zip(rows, verdicts, strict=True)])
    return [known[key] for key in keys]


def _chunks(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def pair_key(prompt: Prompt, ours: Answer, theirs: Answer) -> str:
    """Return the key of a pair of answers in the verdict log."""
    return digest_of([prompt.id, prompt.text, asdict(ours), asdict(theirs)])[:32]


def judge_key(judge: Judge) -> str:
    """Return a digest of everything that decides a judge's verdicts: name, version, code,
    options.
    """
    code = package_digest(written_as(judge))
    return digest_of([judge.name, judge.version, code, judge.identity()])


class VerdictLog:
    """The verdicts of one judge on disk, as JSON lines. No pair is judged twice, in this run or in
    another one of the same results folder. A line that a crash has cut is skipped.
    """

    def __init__(self, folder: Path, judge: Judge) -> None:
        name = judge.name.replace(":", "-")
        self.file = make_folder(folder) / f"{name}-{judge_key(judge)[:16]}.jsonl"

    def read(self) -> dict[str, PairVerdict]:
        """Return the verdicts so far. A pair without a verdict is judged again."""
        if not self.file.exists():
            return {}
        verdicts = {}
        for line in self.file.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                verdicts[row["pair"]] = PairVerdict(float(row["p"]), row["note"])
            except (ValueError, KeyError, TypeError):
                continue
        return verdicts

    def add(self, verdicts: Sequence[tuple[str, PairVerdict]]) -> None:
        """Append verdicts, and wait until they are on disk."""
        rows = [
            {"pair": key, "p": verdict.p, "note": dict(verdict.note)}
            for key, verdict in verdicts
            if not math.isnan(verdict.p)
        ]
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write("\n" * bool(rows) + "".join(f"{json.dumps(row)}\n" for row in rows))
            stream.flush()
