"""The verifier `reasoning_gym`: the scorers of the package reasoning-gym's procedural tasks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec

from harness import hookimpl

from .answer_verifier import AnswerVerifier

LONGEST = 5_000  # characters of an answer


@dataclass
class ReasoningGym(AnswerVerifier):
    """The score of reasoning-gym's own scorer for an answer to one of its tasks.

    The answer is the text between <answer> and </answer>, or else the last line. A gold answer
    names the problem: a JSON object with task, options, seed, size and index. It needs the package
    reasoning-gym: pip install 'alignment-harness[reasoning]'.
    """

    name = "reasoning_gym"

    graded: bool = False  # give the scorer's grade; otherwise 1.0 for a full score and 0.0
    time_limit: float = 5.0  # seconds of processor time for one answer

    def check(self):
        """Raise ValueError if the package is missing."""
        if find_spec("reasoning_gym") is None:
            raise ValueError("needs reasoning-gym: pip install 'alignment-harness[reasoning]'")
        if self.time_limit <= 0:
            raise ValueError("time_limit must be above 0")

    def read_gold(self, text):
        """Return the name of a problem unchanged; raise ValueError for text that names none."""
        try:
            known = set(json.loads(text)) == {"task", "options", "seed", "size", "index"}
        except (ValueError, TypeError):
            known = False
        if not known:
            raise ValueError(f"names no problem of reasoning-gym: {text[:40]!r}")
        return text

    def grade(self, text, gold):
        """Return the score of an answer; 0.0 if the scorer fails or takes too long."""
        answer = answer_of(text)
        if not answer or len(answer) > LONGEST:
            return 0.0
        (reply,) = self._worker().ask([[gold, answer]])
        score = min(1.0, max(0.0, float(reply.get("value") or 0.0)))
        return score if self.graded else float(score == 1.0)

    def examples(self):
        problem = {"task": "chain_sum", "options": {}, "seed": 1, "size": 3, "index": 0}
        return [(json.dumps(problem), "-4"), (json.dumps(problem), "So <answer>-4</answer>")]

    def close(self):
        """End the child process."""
        self._worker().close()

    def _worker(self):
        from .timed_worker import worker_for  # imported late: `harness list` starts no child

        return worker_for("harness_plugins.verifiers.reasoning_gym_child:scored", self.time_limit)


def answer_of(text: str) -> str:
    """Return the content of the last <answer> of a text, or its last line."""
    tagged = re.findall(r"(?s)<answer>(.*?)</answer>", text[-2 * LONGEST :])
    if tagged:
        return tagged[-1].strip()
    lines = text[-2 * LONGEST :].strip().splitlines()
    return lines[-1].strip() if lines else ""


@hookimpl
def register_verifiers(register):
    register(ReasoningGym)
