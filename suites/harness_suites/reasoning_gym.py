"""Any procedural task of the package reasoning-gym, by name, with its own scorer.

# chain_sum.toml
suite = "reasoning_gym"
task = "chain_sum"
[task_options]
max_terms = 3
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec

from harness import SPLITS, Demonstration, Prompt, Suite, UsageError, hookimpl, make_verifier
from harness.core.data import Text

POOLS = {split: i for i, split in enumerate(SPLITS)}  # each split draws from a seed of its own
APART = 10**6  # problem i of seed s is problem i + 1 of seed s - 1: seeds are far apart
# Some tasks go through sets of texts, whose order is another one in every process, or draw from the
# random numbers of the process. So problems are made in a process with a fixed order.
GENERATOR = """
import json, random, sys
import reasoning_gym
made = []
for problem in json.load(sys.stdin):
    dataset = reasoning_gym.create_dataset(
        problem["task"], seed=problem["seed"], size=problem["size"], **problem["options"]
    )
    made.append([])
    for index in range(problem["size"]):
        random.seed(f"{problem['seed']}/{index}")
        entry = dataset[index]
        made[-1].append((entry["question"], str(entry["answer"])))
json.dump(made, sys.stdout)
"""


@dataclass
class ReasoningGym(Suite):
    """A procedural task of reasoning-gym: disjoint splits by seed, checked by its own scorer.

    It needs the package: pip install 'alignment-harness[reasoning]'.
    """

    name, version = "reasoning_gym", "2"
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
        order = ("test", "validation", "train", "preferences", "demonstrations")
        wanted = [self._problem(split) for split in order]
        for split, problem, made in zip(order, wanted, self._made(wanted), strict=True):
            splits[split] = []
            for demo, question in self._posed(split, problem, made):
                if question not in seen:
                    seen.add(question)
                    splits[split].append(demo)
            if len(splits[split]) < 2:
                raise UsageError(f"The task {self.task} has too few different problems: {split}.")
        return splits

    def _problem(self, split: str) -> dict:
        """Return what names the problems of a split."""
        seed = (self.shared_seed * len(POOLS) + POOLS[split]) * APART
        size = self.problems if split == "train" else max(2, self.problems // 4)
        return {"task": self.task, "options": self.task_options, "seed": seed, "size": size}

    def _posed(self, split: str, problem: dict, made: list):
        """Yield the problems of a split with their text."""
        for index, (question, answer) in enumerate(made):
            gold = json.dumps({**problem, "index": index}, sort_keys=True)
            posed = self.prompt_template.replace("{question}", question)
            text: Text = [{"role": "user", "content": posed}] if self.chat else posed
            completion: Text = [{"role": "assistant", "content": answer}] if self.chat else answer
            yield Demonstration(Prompt(f"{split}/{index}", text, gold), completion), question

    def _made(self, wanted: list[dict]) -> list:
        """Return [(question, answer), ...] of each; UsageError for a task or an option that does
        not exist.
        """
        done = subprocess.run(
            [sys.executable, "-c", GENERATOR],
            input=json.dumps(wanted),
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"},
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
            raise UsageError(
                f"task = {self.task!r}: reasoning-gym cannot generate problems of it ({why})."
            )
        return json.loads(done.stdout)


@hookimpl
def register_suites(register):
    register(ReasoningGym)
