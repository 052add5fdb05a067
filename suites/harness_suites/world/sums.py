"""Running sums with a chain of thought: `start with 5 then add 3 then take 2 ?` -> `5 + 3 = 8 ; 8 -
2 = 6 .`
"""

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
        steps = " ".join(f"then {'add' if step > 0 else 'take'} {abs(step)}" for step in self.steps)
        return f"{w.QUESTION} start with {self.start} {steps} ? {w.ANSWER}"

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


def worked_answer(rng: Random, problem: Problem, slip: float = 0.0, misread: float = 0.0) -> str:
    """Write the chain of thought with two kinds of error, both of which propagate.

    A step has a wrong result with probability `slip`, and swaps addition and subtraction with
    probability `misread`. Values are clipped to their range, because others may have no word.
    """
    value, lines = problem.start, []
    for wanted in problem.steps:
        step = -wanted if misread and rng.random() < misread else wanted
        result = value + step + (rng.choice((-2, -1, 1, 2)) if rng.random() < slip else 0)
        result = min(MAX_VALUE, max(0, result))
        lines.append(f"{value} {'+' if step > 0 else '-'} {abs(step)} = {result}")
        value = result
    return " ; ".join(lines) + " ."


def final_answer(text: str) -> str | None:
    """Return the number after the last `=` of a finished answer, `... = 6 .`, or None. It reads
    three words.
    """
    words = text.rsplit(maxsplit=3)[-3:]
    return words[1] if len(words) == 3 and words[0] == "=" and words[2] == "." else None


def sound_steps(problem: Problem, text: str) -> float:
    """Return the share of correct steps, in [0, 1]; missing or additional steps lower it."""
    sound = [right for _, right in checked_steps(problem, text)]
    return sum(sound) / max(len(problem.steps), len(sound))


def checked_steps(problem: Problem, text: str) -> list[tuple[int, bool]]:
    """Return for each written step where it ends, in characters, and whether it is correct.

    A step is correct if it starts from the previous step's result, right or wrong, applies the
    problem's next operation, and computes it correctly. A step too many is not.
    """
    value, place, checked = str(problem.start), 0, []
    for number, part in enumerate(text.removesuffix(".").split(";")):
        line = part.split()
        right = number < len(problem.steps) and _follows(line, value, problem.steps[number])
        checked.append((place + len(part.rstrip()), right))
        value, place = line[-1] if line else "", place + len(part) + 1
    return checked


def _follows(line: list[str], value: str, step: int) -> bool:
    sign = "+" if step > 0 else "-"
    known = value in w.NUMBERS
    return known and line == [value, sign, str(abs(step)), "=", str(int(value) + step)]


def problem_in(prompt: str) -> Problem | None:
    """Return the problem that a prompt asks; None if it asks none."""
    words = prompt.split()
    numbers = [int(word) for word in words if word.isdigit()]
    signs = [1 if word == "add" else -1 for word in words if word in ("add", "take")]
    if not signs or len(numbers) != len(signs) + 1:
        return None
    steps = (sign * n for sign, n in zip(signs, numbers[1:], strict=True))
    return Problem(numbers[0], tuple(steps))
