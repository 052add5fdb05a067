"""Any procedural task of the package reasoning-gym, by name, with its own scorer.

# chain_sum.toml
suite = "reasoning_gym"
task = "chain_sum"
[task_options]
max_terms = 3
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec

from harness import SPLITS, Demonstration, Prompt, Suite, UsageError, hookimpl, make_verifier
from harness.core.data import Text

POOLS = {split: i for i, split in enumerate(SPLITS)}  # each split draws from a seed of its own
APART = 10**6  # problem i of seed s is problem i + 1 of seed s - 1: seeds are far apart


@dataclass
class ReasoningGym(Suite):
    """A procedural task of reasoning-gym: disjoint splits by seed, checked by its own scorer.

    It needs the package: pip install 'alignment-harness[reasoning]'.
    """

    name, version = "reasoning_gym", "1"
    judge_name, labeller_name = "verdict", "verdict"
    proxy = False  # gold is the verifier itself

    title: str = ""  # the suite's name; by default that of the suite file
    folder: str = "."  # the suite file's folder
    task: str = "chain_sum"  # a task of reasoning-gym
    task_options: dict = field(default_factory=dict)  # options of the task, as a table
    graded: bool = False  # give the scorer's grade; otherwise 1.0 for a full score and 0.0
    chat: bool = False  # render the question as a user's message
    prompt_template: str = "{question}\n"  # the text around a question
    problems: int = 1000  # problems to train on; each other split has a quarter of it
    max_prompt_tokens: int = 512  # longer prompts lose their beginning
    max_completion_tokens: int = 64  # longer answers are cut, and wrong

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        if find_spec("reasoning_gym") is None:
            raise ValueError("needs reasoning-gym: pip install 'alignment-harness[reasoning]'")
        if self.problems < 8 or min(self.max_prompt_tokens, self.max_completion_tokens) < 1:
            raise ValueError("problems is at least 8, and the token limits are above 0")
        if "{question}" not in self.prompt_template:
            raise ValueError("prompt_template must say where the {question} stands")

    def prompts(self, split):
        """Return the problems of a split; each prompt's answer names its problem."""
        return [demo.prompt for demo in self._splits[split]]

    def demonstrations(self, split="demonstrations"):
        """Return problems with the answers of the task."""
        return self._splits[split]

    def make_verifier(self):
        """Return the task's own scorer."""
        return make_verifier("reasoning_gym", {"graded": self.graded})

    @property
    def max_new_tokens(self) -> int:
        """How long an answer may be."""
        return self.max_completion_tokens

    @cached_property
    def _splits(self) -> dict[str, list[Demonstration]]:
        """Return the problems of all splits; a text of an earlier split is left out."""
        seen: set[str] = set()
        splits: dict[str, list[Demonstration]] = {}
        for split in ("test", "validation", "train", "preferences", "demonstrations"):
            splits[split] = []
            for demo, question in self._drawn(split):
                if question not in seen:
                    seen.add(question)
                    splits[split].append(demo)
            if len(splits[split]) < 2:
                raise UsageError(f"The task {self.task} has too few different problems: {split}.")
        return splits

    def _drawn(self, split: str):
        """Yield the problems of a split with their text."""
        seed = (self.shared_seed * len(POOLS) + POOLS[split]) * APART
        size = self.problems if split == "train" else max(2, self.problems // 4)
        problem = {"task": self.task, "options": self.task_options, "seed": seed, "size": size}
        for index, entry in enumerate(self._dataset(seed, size)):
            gold = json.dumps({**problem, "index": index}, sort_keys=True)
            posed = self.prompt_template.replace("{question}", entry["question"])
            text: Text = [{"role": "user", "content": posed}] if self.chat else posed
            answer = str(entry["answer"])
            completion: Text = [{"role": "assistant", "content": answer}] if self.chat else answer
            yield (
                Demonstration(Prompt(f"{split}/{index}", text, gold), completion),
                entry["question"],
            )

    def _dataset(self, seed: int, size: int):
        """Return the task's problems; UsageError for a task or an option that does not exist."""
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(
                self.task, seed=seed, size=size, **self.task_options
            )
        except (ValueError, TypeError, AssertionError) as error:
            raise UsageError(
                f"task = {self.task!r}: reasoning-gym cannot generate problems of it ({error})."
            ) from error


@hookimpl
def register_suites(register):
    register(ReasoningGym)
