"""The child process of `reasoning_gym`: generates the problem again and scores an answer to it."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

import reasoning_gym


def scored(question: list[str]) -> float:
    """Return the score of an answer: `question` is the name of a problem, and the answer."""
    gold, answer = question
    problem = json.loads(gold)
    index = problem.pop("index")
    dataset = _dataset(json.dumps(problem, sort_keys=True))
    random.seed(f"{problem['seed']}/{index}")  # as the suite: some tasks draw from it
    return float(dataset.score_answer(answer, dataset[index]))


@lru_cache(maxsize=20)
def _dataset(name: str) -> Any:
    problem = json.loads(name)
    return reasoning_gym.create_dataset(
        problem["task"], seed=problem["seed"], size=problem["size"], **problem["options"]
    )
