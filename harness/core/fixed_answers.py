"""Fixed answers that policies are compared with: of a file, of a data column, or of another run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .data import Prompt, prompt_text
from .errors import UsageError

REFERENCES = "references"  # names the reference answers of the suite's data
SAMPLES = "samples.jsonl"
KEYS = ("prompt_id", "id", "prompt", "instruction", "question")  # what names a prompt, in order
TEXTS = ("answer", "output", "response", "completion")


class HasReferences(Protocol):
    """What may have reference answers: a suite."""

    def references(self, split: str) -> dict[str, str]:
        """Return reference answers by prompt id."""


def answer_files(against: str) -> list[Path]:
    """Return the files behind `--against`; none for the data's references or without one.

    Raises:
        UsageError: There is no such file or run.
    """
    if not against or against == REFERENCES:
        return []
    path = Path(against)
    file = path / SAMPLES if path.is_dir() else path
    if not file.is_file():
        what = f"the folder has no {SAMPLES}" if path.is_dir() else "there is no such file"
        raise UsageError(
            f"--against {against}: {what}. Name a JSON-lines file of answers, the folder of a"
            f" finished run, or `{REFERENCES}` for the reference answers of the data."
        )
    return [file]


def fixed_answers(
    against: str, suite: HasReferences, prompts: Sequence[Prompt], split: str
) -> list[str]:
    """Return one fixed answer for each prompt.

    Args:
        against: A JSON-lines file, the folder of a run, or REFERENCES.
        suite: The suite of the run.
        prompts: The evaluation prompts.
        split: Their split.

    Raises:
        UsageError: A prompt has no answer.
    """
    files = answer_files(against)
    answers = _read(files[0]) if files else suite.references(split)
    texts = [_answer_to(prompt, answers) for prompt in prompts]
    missing = [prompt.id for prompt, text in zip(prompts, texts, strict=True) if text is None]
    if missing:
        raise UsageError(
            f"--against {against}: {len(missing)} of {len(prompts)} evaluation prompts have no"
            f" answer there, the first is {missing[0]}. Answers are found by prompt id or by the"
            " text of the prompt."
        )
    return [text for text in texts if text is not None]


def _answer_to(prompt: Prompt, answers: Mapping[str, str]) -> str | None:
    return answers.get(prompt.id, answers.get(prompt_text(prompt.text).strip()))


def _read(file: Path) -> dict[str, str]:
    """Return the answers of a file by what names their prompts."""
    answers: dict[str, str] = {}
    for number, row in enumerate(_rows(file), 1):
        keys = [row[key] for key in KEYS if isinstance(row.get(key), str)]
        text = next((row[key] for key in TEXTS if isinstance(row.get(key), str)), None)
        if not keys or text is None:
            raise UsageError(
                f"--against {file}: row {number} needs a prompt ({', '.join(KEYS)}) and an answer"
                f" ({', '.join(TEXTS)}); it has {', '.join(sorted(row)) or 'nothing'}."
            )
        answers.update({key.strip(): text for key in keys})
    return answers


def _rows(file: Path) -> Iterable[Mapping[str, Any]]:
    content = file.read_text(encoding="utf-8")
    try:
        whole = content.lstrip().startswith("[")
        rows = json.loads(content) if whole else map(json.loads, filter(str.strip, lines(content)))
        rows = list(rows)
    except ValueError as error:
        raise UsageError(f"--against {file} is not JSON lines: {error}.") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"--against {file}: every row is an object with a prompt and an answer.")
    return rows


def lines(content: str) -> list[str]:
    """Return the lines of a JSON lines file: strings may hold other line separators."""
    return content.split("\n")
