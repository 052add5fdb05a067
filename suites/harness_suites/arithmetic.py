"""Arithmetic: running sums with a chain of thought, checked by a verifier.

The embedded base model was pretrained on correct sums and answers nearly all of them. The
demonstrations here contain errors: wrong results, and additions in place of subtractions.
Fine-tuning on them teaches the model to make errors as often. So the start checkpoint could do
better. A method gains mainly by making fewer errors: its sampled answers reach the accuracy of
greedy decoding. This tests optimisation against a verifier, not learning to reason. A reward model
of this size detects a wrong operation better than a wrong result, so a learned reward is less
accurate here than the verifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from harness import SPLITS, Demonstration, Judge, Principle, Prompt, UsageError, Verifier, hookimpl

from .embedded import GROUPS, PPO, RECOMMENDED, SAMPLES, SHORT, Embedded
from .world import sums
from .world.sums import Problem

SIZES = {
    "demonstrations": 4000,
    "preferences": 2000,
    "train": 4000,
    "validation": 1024,
    "test": 2048,
}
SLIP, MISREAD = (
    0.08,
    0.08,
)  # of each step of a demonstration; an error carries over to all later steps


@cache
def problems_of(seed: int) -> dict[str, tuple[Problem, ...]]:
    """Return the problems by split. All are distinct; random short sums would repeat."""
    rng, seen = Random(f"arithmetic/{seed}"), set()
    drawn: dict[str, tuple[Problem, ...]] = {}
    for split in SPLITS:
        problems: list[Problem] = []
        while len(problems) < SIZES[split]:
            problem = sums.write_problem(rng)
            if problem not in seen:
                seen.add(problem)
                problems.append(problem)
        drawn[split] = tuple(problems)
    return drawn


@dataclass
class SumVerifier(Verifier):
    """Right if the answer is finished and its last number is the sum. It compares three words and
    computes nothing.
    """

    name, reads_prompt, has_steps = "running_sum", False, True

    def verify(self, prompts, completions, golds, ended):
        """Return 1.0 or 0.0 per completion; None where there is no gold answer."""
        return [
            None if gold is None else float(sums.final_answer(text) == gold)
            for text, gold in zip(completions, golds, strict=True)
        ]

    def steps(self, prompt, completion, gold, ended):
        """Return 1.0 for each correct step and 0.0 for a wrong one, at its result."""
        problem = sums.problem_in(prompt.text)
        if gold is None or problem is None:
            return None
        checked = sums.checked_steps(problem, completion)
        return [(end, float(right)) for end, right in checked if end]

    def reading(self, completion, ended):
        """Return the number that the answer ends with; None if it is not finished."""
        return sums.final_answer(completion)

    def examples(self):
        return [("6", "5 + 3 = 8 ; 8 - 2 = 6 .")]


@dataclass
class Arithmetic(Embedded):
    """Work a sum of 3 to 5 steps out, step by step, and finish with the result."""

    name, version = "arithmetic", "1"
    judge_name, usual_length = "arithmetic_gold", 25

    labeller_temperature: float = 0.25  # label noise: P(a > b) = sigma((u_a - u_b) / T)

    # chosen on the validation split: a few trials of PPO and RLVR, one or two of the others
    settings = {
        **RECOMMENDED,
        "stage.sft": {"steps": 120, "batch_size": 32, "learning_rate": 2e-3},
        "stage.preferences": {"prompts": 2000, "completions": 4},
        "stage.reward_model": {
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "pooling": "sum",
        },
        # The verifier is the reward unless the user sets another, such as `--set reward=model`:
        # beyond the best of 4 the reward model prefers sums that are wrong.
        "*": RECOMMENDED["*"] | {"reward": "verifier"},
        "best_of_n": {"reward": "model", "n": 4},
        "slic": RECOMMENDED["slic"] | {"reward": "model"},  # pairs do not need it
        **dict.fromkeys(("grpo", "rloo", *GROUPS), SAMPLES | {"learning_rate": 5e-4, "beta": 0.05}),
        "gdpo": RECOMMENDED["gdpo"] | {"learning_rate": 5e-4},
        "maxrl": RECOMMENDED["maxrl"] | {"learning_rate": 5e-4},
        "reinforce_pp": SAMPLES | {"learning_rate": 5e-4, "beta": 0.05, "minibatch_size": 16},
        "ppo": PPO | {"steps": 40, "learning_rate": 5e-4, "beta": 0.05},
        "rlaif": PPO | {"reward": "model", "steps": 30, "learning_rate": 5e-4, "beta": 0.2},
        "rlaif:optimiser=dpo": RECOMMENDED["rlaif:optimiser=dpo"] | {"reward": "model"},
        "rlvr": SAMPLES | {"num_generations": 8, "learning_rate": 5e-4, "beta": 0.0},
    }
    quick = SHORT

    def prompts(self, split: str) -> list[Prompt]:
        """Return the prompts of a split with their answers."""
        problems = problems_of(self.shared_seed)[split]
        return [Prompt(f"{split}/{i}", p.prompt, str(p.answer)) for i, p in enumerate(problems)]

    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return worked answers with errors."""
        return [
            Demonstration(prompt, self._worked(prompt, SLIP, MISREAD))
            for prompt in self.prompts(split)
        ]

    def references(self, split: str) -> dict[str, str]:
        """Return the correct worked answers, for ROUGE."""
        return {prompt.id: self._worked(prompt) for prompt in self.prompts(split)}

    def make_verifier(self) -> Verifier:
        """Return the check of a final number."""
        return SumVerifier()

    def principles(self) -> list[Principle]:
        """Return the constitution. Each sentence concerns one aspect of an answer; none says
        whether it is right.
        """
        return [
            Principle(
                "sound",
                "A good answer works every step out rightly.",
                lambda prompt, text: sums.sound_steps(self.problem(prompt.id), text),
            ),
            Principle(
                "complete",
                "A good answer has one step for each that is asked, no more and no fewer.",
                lambda prompt, text: (
                    -abs(len(text.split(";")) - len(self.problem(prompt.id).steps))
                ),
            ),
            Principle(
                "finished",
                "A good answer ends with its result and a full stop.",
                lambda prompt, text: float(sums.final_answer(text) is not None),
            ),
        ]

    @property
    def max_new_tokens(self) -> int:
        """Five steps of five words, their separators, the full stop and the end are 31 tokens; one
        more is allowed.
        """
        return 32

    def problem(self, prompt_id: str) -> Problem:
        """Return the problem behind a prompt."""
        split, _, index = prompt_id.partition("/")
        return problems_of(self.shared_seed)[split][int(index)]

    def _worked(self, prompt: Prompt, slip: float = 0.0, misread: float = 0.0) -> str:
        rng = Random(f"worked/{self.shared_seed}/{prompt.id}")
        return sums.worked_answer(rng, self.problem(prompt.id), slip, misread)


class ArithmeticGold(Judge):
    """One point for a right and finished answer, and up to one point for the share of correct
    steps.
    """

    name = "arithmetic_gold"
    length_bias = False

    def prepare(self, suite, stages):
        """Take the problems of the suite."""
        if not isinstance(suite, Arithmetic):
            raise UsageError(
                f"The judge arithmetic_gold knows the suite arithmetic only, not {suite.name}."
            )
        self.problem = suite.problem

    def score(self, prompts, completions):
        """Return a score in [0, 2] per answer."""
        return [
            self._score(self.problem(p.id), text)
            for p, text in zip(prompts, completions, strict=True)
        ]

    def _score(self, problem: Problem, text: str) -> float:
        right = sums.final_answer(text) == str(problem.answer)
        return float(right) + sums.sound_steps(problem, text)


@hookimpl
def register_suites(register):
    register(Arithmetic)


@hookimpl
def register_judges(register):
    register(ArithmeticGold)


@hookimpl
def register_verifiers(register):
    register(SumVerifier)
