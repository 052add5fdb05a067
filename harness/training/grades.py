"""Grades: a model in the lab is asked for a number for each completion, as an LLM judge is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.data import Prompt, prompt_text
from ..core.errors import UsageError
from ..models.batches import Batch, PromptBatch
from ..models.generation import Sampler
from ..models.tokens import Tokens
from .roles import LanguageModel
from .runtime import Runtime, metered

PLACES = re.compile(r"\{(prompt|completion)\}")
NUMBER = r"(-?\d+(?:\.\d+)?)"


@dataclass(frozen=True)
class Scale:
    """A question with {prompt} and {completion}, and the grades that answer it, as text."""

    question: str
    grades: tuple[str, ...]

    def check(self) -> None:
        """Raise ValueError for a question or grades that make no sense."""
        missing = {"prompt", "completion"} - set(PLACES.findall(self.question))
        if missing:
            raise ValueError(f"the question to a judge lacks {{{'} and {'.join(sorted(missing))}}}")
        if len(set(self.grades)) < 2 or not all(re.fullmatch(NUMBER, g) for g in self.grades):
            raise ValueError(f"grades are two numbers or more, not {','.join(self.grades)!r}")

    @property
    def values(self) -> list[float]:
        """The grades as numbers."""
        return [float(grade) for grade in self.grades]

    def posed(self, prompt: Prompt, completion: str) -> str:
        """Return the question about a completion. Braces inside the texts stay as they are."""
        texts = {"prompt": prompt_text(prompt.text), "completion": completion}
        return PLACES.sub(lambda match: texts[match.group(1)], self.question)

    def read(self, reply: str) -> float:
        """Return the number behind the last "score:" of a reply; NaN if it is no grade."""
        found = re.findall(rf"score\W*?\s*{NUMBER}", reply, re.IGNORECASE)
        value = float(found[-1]) if found else math.nan
        return value if value in self.values else math.nan


def questions(scale: Scale, batch: Batch, tokens: Tokens) -> PromptBatch:
    """Return the question about each completion (B, K, T), B * K prompts."""
    texts, prompts = tokens.texts(batch), batch.prompts.prompts
    posed = [
        Prompt(f"{prompt.id}/graded/{k}", scale.posed(prompt, text))
        for prompt, row in zip(prompts, texts, strict=True)
        for k, text in enumerate(row)
    ]
    return tokens.prompt_batch(posed, batch["mask"].device)


def replied(
    scale: Scale, asked: PromptBatch, model: LanguageModel, sampler: Sampler, draws: int, t: Tokens
) -> Tensor:
    """Return (N,) means of the grades in `draws` sampled replies to N questions.

    Replies without a grade are left out; NaN if none of a question's replies has one.
    """
    replies = t.texts(sampler.draw(model.model, asked, draws))
    grades = [[scale.read(reply) for reply in row] for row in replies]
    return torch.tensor(grades, device=asked.ids.device).nanmean(-1)


def expected(
    scale: Scale, asked: PromptBatch, model: LanguageModel, tokens: Tokens, runtime: Runtime
) -> Tensor:
    """Return (N,) mean grades of N questions under the model's probabilities of the grades.

    Raises:
        UsageError: Two grades are the same tokens.
    """
    forms = [grade_forms(tokens, grade) for grade in scale.grades]
    ids = [form for two in forms for form in two]
    if len(set(map(tuple, ids))) < len(ids):
        raise UsageError(
            f"The grades {', '.join(scale.grades)} are not different tokens of this model, so it"
            " cannot tell them apart. Name others: --set grades=1,2."
        )
    batch = tokens.batch(asked.prompts, [ids] * len(asked), runtime.device)
    with runtime.meter.aside():
        _ = model.model  # loading it is no cost of the method
    with runtime.meter.phase("score"):
        logp = metered(model.role, batch, runtime).double().sum(-1)
    values = [value for value, two in zip(scale.values, forms, strict=True) for _ in two]
    return (logp.softmax(-1) * torch.tensor(values).to(logp)).sum(-1)


def grade_forms(tokens: Tokens, grade: str) -> list[list[int]]:
    """Return the ids of a grade as a reply, with and without a leading space, without an end."""
    forms: list[list[int]] = []
    for text in (grade, f" {grade}"):
        ids = tokens.answer_ids("", text)
        ids = ids[:-1] if len(ids) > 1 and ids[-1] in tokens.ends else ids
        forms += [ids] * (ids not in forms)
    return forms
