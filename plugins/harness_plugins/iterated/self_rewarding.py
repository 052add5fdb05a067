"""Self-rewarding language models: the policy grades its own samples (Yuan et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import UsageError, hookimpl, logprobs, torch

from .base import Rounds

if TYPE_CHECKING:
    from torch import Tensor

    from harness import Batch, Lab

# After the additive scale of the paper's figure 2, in our own words.
QUESTION = """Grade the response to a user's question on a scale of five points that add up.
- One point if the response is relevant, even if it is incomplete.
- One more if it answers a substantial part of the question.
- A third if it answers the basic elements of the question in a useful way.
- A fourth if it is clear, complete, well organised and helpful.
- A fifth if it fits the question perfectly, without anything that does not belong to it.

User: {prompt}
Response: {completion}

Give your reasons in at most 100 words. End with the line "Score: N", where N is the sum.
"""
# Asks for the grade alone, whose probabilities are read
SHORT = QUESTION.partition("\nGive")[0] + "\nScore:"
PATIENCE = 64  # completions graded before a judge without a single grade ends the run


@dataclass
class SelfRewarding(Rounds):
    """Each round samples from its first policy, lets that policy grade the samples as an LLM judge,
    and takes DPO steps on the best and the worst sample of each prompt.

    No labels and no reward come from outside. A prompt whose samples have equal grades is left out.
    """

    name, kind, paper = "self_rewarding", "iterated", "https://arxiv.org/abs/2401.10020"
    needs = frozenset({"prompts"})
    tuning_space = Rounds.tuning_space | {"beta": {"times": [0.2, 5.0]}}

    steps: int = 150  # turns of all rounds
    rounds: int = 2  # the paper's M2 and M3; after the first the reference moves to the policy
    num_generations: int = 4  # completions per prompt, of which the best and the worst are a pair
    beta: float = 0.1  # strength of the KL constraint to the round's first policy
    temperature: float | None = None  # of completions; none: the suite's (the paper: 0.7)
    max_new_tokens: int | None = None  # of completions; none: the suite's
    judge_draws: int = 3  # replies of the judge that are averaged; 0 reads its probabilities
    judge_tokens: int = 256  # longest reply of the judge in tokens
    question: str = ""  # a file with {prompt} and {completion}; empty: a scale of five points
    grades: str = "0,1,2,3,4,5"  # the scale, as the judge writes it

    def check(self) -> None:
        super().check()
        if self.steps < 1 or self.num_generations < 2:
            raise ValueError("steps must be at least 1, and num_generations at least 2")
        if self.beta <= 0 or self.judge_draws < 0 or self.judge_tokens < 1:
            raise ValueError(
                "beta must be above 0, judge_draws not negative, and judge_tokens at least 1"
            )
        if self.question and not Path(self.question).is_file():
            raise ValueError(f"question={self.question}: there is no such file")

    def data_files(self) -> list[Path]:
        return [Path(self.question)] if self.question else []

    def asked(self) -> str:
        """Return the question to the judge."""
        if self.question:
            return Path(self.question).read_text(encoding="utf-8")
        return QUESTION if self.judge_draws else SHORT

    def scale(self) -> tuple[str, ...]:
        """Return the grades, as they are written."""
        return tuple(grade.strip() for grade in self.grades.split(","))

    def best_and_worst(self, grade: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the positions (B,) of the best and the worst grade (B, K), and whether they
        differ; NaN is no grade.
        """
        best = grade.nan_to_num(-torch.inf).argmax(-1)
        worst = grade.nan_to_num(torch.inf).argmin(-1)
        gap = (grade.gather(1, best[:, None]) - grade.gather(1, worst[:, None]))[:, 0]
        return best, worst, gap > logprobs.TIE  # false for NaN

    def loss(self, logp, batch):
        """DPO: -log sigma(beta (s_w - s_l)), s = log pi / pi_t, token sums; (B,)."""
        s = (logp - batch["ref_logp"]).sum(-1)
        h = self.beta * (s[:, 0] - s[:, 1])
        return torch.nn.functional.softplus(-h), {"accuracy": logprobs.ordered_right(h)}

    def train(self, lab: Lab):
        """Rounds; samples and grades are of the round's first policy."""
        for prompts in self.in_rounds(lab, lab.prompts):
            batch = lab.rollout(
                prompts,
                self.num_generations,
                self.temperature,
                self.max_new_tokens,
                of=lab.reference,
            )
            pairs = self.pairs(lab, batch)
            if pairs is not None:
                lab.step(self.loss, pairs.with_columns(ref_logp=pairs["logp"]))
        if not lab.state.get("pairs"):
            raise UsageError(f"{self.name}: no two samples of a prompt had different grades.")
        return lab.policy

    def pairs(self, lab: Lab, batch: Batch) -> Batch | None:
        """Return the best and the worst completion of each prompt, (B', 2, T); None where no prompt
        has two different grades.
        """
        grade = lab.grades(
            batch, self.asked(), self.scale(), lab.reference, self.judge_draws, self.judge_tokens
        )
        self.count(lab, grade)
        best, worst, differ = self.best_and_worst(grade)
        lab.log(pairs_used=differ.float().mean())
        rows = differ.nonzero()[:, 0].tolist()
        lab.state["pairs"] = lab.state.get("pairs", 0) + len(rows)
        return batch.pick(torch.stack([best, worst], 1)).select(rows) if rows else None

    def count(self, lab: Lab, grade: Tensor) -> None:
        """Log what the grades were like; UsageError for a judge that gives none."""
        known, state = ~grade.isnan(), lab.state
        state["asked"] = state.get("asked", 0) + known.numel()
        state["graded"] = state.get("graded", 0) + int(known.sum())
        lab.log(graded=known.float().mean())
        if known.any():
            lab.log(grade=grade.nanmean())
        if not state["graded"] and state["asked"] >= PATIENCE:
            raise UsageError(
                f"{self.name}: no reply of the judge to {state['asked']} completions has a grade,"
                ' such as "Score: 3". This model cannot follow the question. Try'
                " --set judge_draws=0, which reads its probabilities of the grades."
            )


@hookimpl
def register_methods(register):
    register(SelfRewarding)
