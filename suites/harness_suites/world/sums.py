"""Running sums with a chain of thought: `start with 5 then add 3 then take 2 ?` -> `5 + 3 = 8 ; 8 - 2 = 6 .`"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from . import words as w

MAX_VALUE = 49


@dataclass(frozen=True)
class Problem:
    start: int
    steps: tuple[int, ...]  # signed

    @property
    def prompt(self) -> str:
        told = " ".join(f"then {'add' if step > 0 else 'take'} {abs(step)}" for step in self.steps)
        return f"{w.QUESTION} start with {self.start} {told} ? {w.ANSWER}"

    @property
    def answer(self) -> int:
        return self.start + sum(self.steps)


def write_problem(rng: Random, steps: int | None = None) -> Problem:
    """Draw a sum of 3 to 5 steps of 1 to 9 whose running value stays within 0 to 49."""
    value = start = rng.randint(1, 20)
    signed: list[int] = []
    for _ in range(steps or rng.randint(3, 5)):
        options = [s for s in range(-9, 10) if s and 0 <= value + s <= MAX_VALUE]
        signed.append(rng.choice(options))
        value += signed[-1]
    return Problem(start, tuple(signed))


def worked_answer(rng: Random, problem: Problem, slip: float = 0.0) -> str:
    """Write the chain of thought; each step slips with probability `slip`, and the error propagates."""
    value, lines = problem.start, []
    for step in problem.steps:
        result = value + step
        if rng.random() < slip:
            result = min(MAX_VALUE, max(0, result + rng.choice((-2, -1, 1, 2))))
        lines.append(f"{value} {'+' if step > 0 else '-'} {abs(step)} = {result}")
        value = result
    return " ; ".join(lines) + " ."
