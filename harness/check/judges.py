"""The agreement of a judge with human preferences, or with another judge: before its win-rates are
believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from ..api.adapters import make
from ..api.contracts import Answer, Judge
from ..api.judge_contract import check_verdicts
from ..api.participants import participants
from ..api.registry import Registry
from ..api.resolve import Request, resolve
from ..core.data import Prompt
from ..core.errors import UsageError
from ..core.fixed_answers import lines
from ..core.options import parse_settings
from ..core.run_folder import SAMPLES, read_rows
from ..statistics.judges import COIN, NEAR_COIN, Agreement, agreement, verdict_figures
from ..statistics.over_prompts import PromptEstimate
from .findings import SKIPPED, Finding, Options, attempt

PROMPTS = ("prompt", "instruction", "question")
CHOSEN = ("chosen", "rejected")
SIDES = (
    ("a", "b"),
    ("answer_a", "answer_b"),
    ("response_a", "response_b"),
    ("output_1", "output_2"),
    CHOSEN,
)
TURN = "\n\nAssistant:"  # a turn of HH-RLHF, whose two answers begin with their prompt
HUMAN = {"p", "winner", "preference"}
WINNERS = {"a": 1.0, "model_a": 1.0, "1": 1.0, "b": 0.0, "model_b": 0.0, "2": 0.0, "tie": COIN}


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, and the share of humans who prefer the first."""

    prompt: Prompt
    a: str
    b: str
    p: float


def judge_findings(
    name: str, registry: Registry, options: Options, against: Path
) -> Iterator[Finding]:
    """Yield the findings on a judge: its agreement with the preferences of a file."""
    rows = read_preferences(against)
    judge: Judge = make("judges", name, parse_settings(options.settings, "--set"), registry)
    if judge.learns:
        raise UsageError(
            f"The judge {name} learns from the preferences of a suite. Every run shows its accuracy"
            " on held-out ones."
        )
    results: dict[str, Any] = {}

    def judged() -> str:
        judge.prepare(_suite(options, registry), None)
        ours, theirs = [Answer(row.a) for row in rows], [Answer(row.b) for row in rows]
        verdicts = judge.verdicts([row.prompt for row in rows], ours, theirs)
        check_verdicts(judge, verdicts, len(rows))
        results["agreement"] = agreement([v.p for v in verdicts], [row.p for row in rows])
        figures = verdict_figures([v.p for v in verdicts], [v.note for v in verdicts])
        return f"{len(rows)} pairs, {figures['missing']} without a verdict{_bias(figures)}"

    yield attempt("gives verdicts", judged)
    if "agreement" in results:
        yield from _agreement_findings(results["agreement"])


def _suite(options: Options, registry: Registry) -> Any:
    """Return the suite of `--suite`, which a judge may read; None without it."""
    if options.suite is None:
        return None
    return participants(resolve(Request("start", options.suite), registry), registry).suite


def _bias(figures: Mapping[str, Any]) -> str:
    if "position_bias" not in figures:
        return ""
    bias = figures["position_bias"]
    return f", position bias {bias['mean']:+.3f} [{bias['low']:.3f}, {bias['high']:.3f}]"


def _agreement_findings(measured: Agreement) -> Iterator[Finding]:
    def better() -> str:
        accuracy = measured.accuracy
        assert accuracy is not None, "no pair has both a verdict and a human preference"
        shown = f"accuracy {_text(accuracy)}"
        assert accuracy.low > COIN, f"{shown}: not shown to be better than a coin"
        return shown + (", hardly better than a coin" if accuracy.mean < NEAR_COIN else "")

    yield attempt("is better than a coin", better)
    others = {"Cohen's kappa": measured.kappa, "Spearman's correlation": measured.spearman}
    for label, value in others.items():
        if value is None:
            yield Finding(label, SKIPPED, "not defined: one side gives one value only")
        else:
            yield attempt(label, lambda value=value: _text(value))  # type: ignore[misc]


def _text(estimate: PromptEstimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] on {estimate.n} pairs"


# -- the file --------------------------------------------------------------------------------------


def read_preferences(file: Path) -> list[Preference]:
    """Return the preferences of a JSON-lines file, or the verdicts of a finished run's judge.

    A row has a prompt, two answers, and who prefers which: `winner` (a, b or tie), `preference`
    (1, 2, or between them), or `p`, the share of humans who prefer the first. Answers that are
    called chosen and rejected need none; every other such pair is turned, so that a judge which
    prefers a place gains nothing.

    Raises:
        UsageError: There is no such file, or a row lacks something.
    """
    if (file / SAMPLES).is_file():
        return _verdicts_of_run(file)
    if not file.is_file():
        raise UsageError(f"--against {file}: there is no such file, and no run's folder.")
    rows: list[Preference] = []
    for number, line in enumerate(filter(str.strip, lines(file.read_text(encoding="utf-8"))), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"--against {file}: line {number} is no JSON: {error}.") from None
        rows.append(_preference(row, f"--against {file}: row {number}", len(rows)))
    if len(rows) < 2:
        raise UsageError(f"--against {file}: two preferences or more were expected.")
    return rows


def _verdicts_of_run(folder: Path) -> list[Preference]:
    """Return the verdicts of a run's judge on its answers and the baseline's.

    Every other pair is turned. Pairs without a verdict are left out.
    """
    known = [row for row in read_rows(folder / SAMPLES) if row.get("win") is not None]
    if len(known) < 2:
        raise UsageError(
            f"--against {folder}: its judge gave no verdicts, so there is nothing to agree with."
        )
    pairs = []
    for i, row in enumerate(known):
        prompt = Prompt(str(row["prompt_id"]), row["prompt"])
        a, b, p = row["answer"], row["baseline"], float(row["win"])
        pairs.append(Preference(prompt, b, a, 1 - p) if i % 2 else Preference(prompt, a, b, p))
    return pairs


def _preference(row: Any, where: str, place: int) -> Preference:
    row = row if isinstance(row, dict) else {}
    names = next((pair for pair in SIDES if set(pair) <= row.keys()), None)
    if names == CHOSEN and not any(key in row for key in PROMPTS):
        row = _with_prompt(row)
    prompt = next((row[key] for key in PROMPTS if key in row), None)
    if prompt is None or names is None:
        raise UsageError(
            f"{where} needs a prompt ({', '.join(PROMPTS)}) and two answers"
            f" ({', '.join(' and '.join(pair) for pair in SIDES)}). Without a prompt, chosen and"
            " rejected are conversations that differ in their last message, or texts that are equal"
            f" up to a last {TURN.strip()!r}."
        )
    a, b = (_answer_text(row[name]) for name in names)
    p = 1.0 if names == CHOSEN and not HUMAN & row.keys() else _human(row, where)
    if names == CHOSEN and place % 2:
        a, b, p = b, a, 1 - p
    return Preference(Prompt(f"pair/{place}", prompt), a, b, p)


def _with_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the prompt that its two answers begin with; unchanged where they do not."""
    one, other = row["chosen"], row["rejected"]
    if isinstance(one, list) and isinstance(other, list) and len(one) > 1:
        return {**row, "prompt": one[:-1]} if one[:-1] == other[:-1] else dict(row)
    if not isinstance(one, str) or not isinstance(other, str):
        return dict(row)
    end = commonprefix([one, other]).rfind(TURN) + len(TURN)
    if end < len(TURN):
        return dict(row)
    return {**row, "prompt": one[:end], "chosen": one[end:], "rejected": other[end:]}


def _answer_text(answer: Any) -> str:
    """Return the text of an answer: a string, or the last message of a conversation."""
    return str(answer[-1]["content"]) if isinstance(answer, list) and answer else str(answer)


def _human(row: Mapping[str, Any], where: str) -> float:
    """Return the share of humans who prefer the first answer."""
    value: Any = math.nan
    if "p" in row:
        value = row["p"]
    elif "winner" in row:
        value = WINNERS.get(str(row["winner"]).strip().lower(), math.nan)
    elif isinstance(row.get("preference"), int | float):
        value = 2 - row["preference"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(
            f"{where} does not say which answer humans prefer: winner (a, b or tie), preference (1"
            " or 2), or p in [0, 1]."
        )
    return float(value)


def unused(against: Path | None, kind: str) -> None:
    """Raise UsageError where `--against` and the kind of a plugin do not go together."""
    if (against is None) == (kind == "judges"):
        raise UsageError(
            "A judge is checked against preferences: --against FILE."
            if against is None
            else f"--against: only a judge is checked against preferences, not {kind}."
        )
