"""`code`: the completion's program passes its unit tests, in isolation.

The program is the last fenced block of the completion, or the whole completion. If it does not
define the requested function, it is that function's body and follows the given head, as in
HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374). The program and its tests run in two
confined processes; see harness_plugins/isolation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness import Prompt, Verifier, hookimpl

from ..isolation.confine import Limits
from ..isolation.heads import head_alone
from ..isolation.pool import Container, Pool, close_pools
from .isolated import pool_of, refuse_without_isolation

BLOCK = re.compile(r"^ {0,3}```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^ {0,3}```|\Z)", re.M | re.S)
PYTHON = ("", "python", "python3", "py", "py3")
AFTER = ("class ", "def ", "async def ", "@", "#", "print(", "assert ", "import ", "from ", "if ")
LONGEST = 100_000  # characters of a completion


@dataclass
class Code(Verifier):
    """The program passes its unit tests, in isolation: 1.0 for all of them, else 0.0.

    A gold answer is a JSON object of the row's columns: the tests (a string that defines
    `check(candidate)` or asserts, or a list of such strings), the name of the function, and the
    head that is given; or `cases`, a list of {"input": str, "output": str}, for a whole program.
    """

    name, reads_prompt = "code", False

    tests_column: str = "test"  # the column with the tests
    entry_column: str = "entry_point"  # the column with the function's name; may be missing
    head_column: str = "prompt"  # the column with the code given before the body; may be missing
    cases_column: str = "cases"  # the column with inputs and outputs, in place of tests
    graded: bool = False  # give the share of tests that pass instead of 1.0 or 0.0
    seconds: float = 5.0  # time limit of a program and its tests
    memory_mb: int = 512  # memory limit of a program
    workers: int = 2  # programs that run at once
    container: str = ""  # an image with python3: run inside its container, as additional isolation
    runtime: str = "docker"  # the container runtime: docker or podman

    def check(self) -> None:
        """Raise ValueError for limits under which no program can run."""
        if min(self.seconds, self.memory_mb, self.workers) <= 0 or self.memory_mb < 64:
            raise ValueError("seconds and workers must be above 0, memory_mb at least 64")
        refuse_without_isolation(self.container)

    def identity(self) -> dict[str, object]:
        """Return the options except `workers`, which change no verdict."""
        return {k: v for k, v in super().identity().items() if k != "workers"}

    def read_gold(self, text: str) -> str:
        """Return the tests of a row as JSON; raise ValueError if they cannot be read."""
        row = _row(text)
        gold = {
            "head": str(row.get(self.head_column) or ""),
            "entry": str(row.get(self.entry_column) or ""),
            "tests": _tests(row.get(self.tests_column)),
            "cases": _cases(row.get(self.cases_column)),
        }
        if bool(gold["tests"]) == bool(gold["cases"]):
            raise ValueError(
                f"has neither tests ({self.tests_column!r}) nor cases ({self.cases_column!r}), or"
                f" both. Its columns: {', '.join(sorted(row)) or 'none'}"
            )
        if gold["entry"] and not all(p.isidentifier() for p in gold["entry"].split(".")):
            raise ValueError(f"names no function in {self.entry_column!r}: {gold['entry'][:60]!r}")
        for test in gold["tests"]:
            _compiles(test)
        return json.dumps(gold, sort_keys=True)

    def verify(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        golds: Sequence[str | None],
        ended: Sequence[bool],
    ) -> list[float | None]:
        """Return 1.0 where all tests pass; see `graded`. None for a prompt without tests."""
        jobs = [
            None if gold is None else _job(text, json.loads(gold))
            for text, gold in zip(completions, golds, strict=True)
        ]
        replies = iter(self._pool().run([job for job in jobs if job]))
        return [None if job is None else self._verdict(next(replies)) for job in jobs]

    def _verdict(self, reply: dict) -> float:
        share = reply["passed"] / reply["total"]
        return float(share) if self.graded else float(share == 1.0)

    def _pool(self) -> Pool:
        limits = Limits(seconds=self.seconds, memory_mb=self.memory_mb)
        box = Container(self.container, self.runtime) if self.container else None
        return pool_of(limits, self.workers, (), box)

    def examples(self) -> list[tuple[str, str]]:
        """Return a function's body, a fenced function, and a whole program."""
        head = 'def add(a, b):\n    """Return the sum."""\n'
        test = {"prompt": head, "entry_point": "add", "test": "assert add(2, 3) == 5"}
        cases = {"cases": [{"input": "2 3", "output": "5"}]}
        program = "```python\nprint(sum(map(int, input().split())))\n```"
        names = {
            "prompt": self.head_column,
            "entry_point": self.entry_column,
            "test": self.tests_column,
            "cases": self.cases_column,
        }
        test, cases = ({names[k]: v for k, v in row.items()} for row in (test, cases))
        block = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."
        return [
            (json.dumps(test), "    return a + b\n"),
            (json.dumps(test), block),
            (json.dumps(cases), program),
        ]

    def close(self) -> None:
        """End the workers of every `code` and `command` verifier."""
        close_pools()


# -- gold answers ----------------------------------------------------------------------------------


def _row(text: str) -> dict:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(
            "is no JSON object of columns. Name the columns in the suite file:"
            ' gold_columns = ["prompt", "entry_point", "test"]'
        )
    return row


def _tests(value: object) -> list[str]:
    if not value:
        return []
    tests = [value] if isinstance(value, str) else value
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"has tests that are neither a text nor a list of texts: {value!r:.60}")
    return tests


def _cases(value: object) -> list[dict[str, str]]:
    if not value:
        return []
    cases = value if isinstance(value, list) else [value]
    for case in cases:
        if not isinstance(case, dict) or {"input", "output"} - case.keys():
            raise ValueError(f"has a case without input and output: {case!r:.60}")
    return [{"input": str(case["input"]), "output": str(case["output"])} for case in cases]


def _compiles(test: str) -> None:
    try:
        compile(test, "test", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"has a test that is no Python: {error}") from error


# -- programs --------------------------------------------------------------------------------------


def _job(completion: str, gold: dict) -> dict:
    program = program_of(completion[:LONGEST], gold["head"], gold["entry"])
    if gold["cases"]:
        return {"kind": "program", "program": program, "cases": gold["cases"]}
    rest = {"head": gold["head"], "entry": gold["entry"], "tests": gold["tests"]}
    return {"kind": "functions", "program": program, **rest}


def program_of(completion: str, head: str, entry: str) -> str:
    """Return the program of a completion.

    Args:
        completion: the completion's text.
        head: code that was given before it; empty for none.
        entry: the name of the function that is asked for; empty for none.

    Returns:
        The last fenced block, or the whole text. If it does not define `entry` itself, it follows
            the head as its body.
    """
    blocks = [code for language, code in BLOCK.findall(completion) if language.lower() in PYTHON]
    text = blocks[-1] if blocks else completion
    first = re.escape(entry.split(".")[0])
    if not head or re.search(rf"^(?:async +def|def|class) +{first}\b", text, re.M):
        return f"{head_alone(head)}\n{text}"
    return head + _body(text)


def _body(text: str) -> str:
    """Return the lines of a function's body: up to the first statement outside it."""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith(AFTER) and any(known.strip() for known in lines):
            break
        lines.append(line)
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is not None and not lines[first].startswith((" ", "\t")):
        later = [line for line in lines[first + 1 :] if line.strip()]
        if later and all(line.startswith((" ", "\t")) for line in later):
            lines[first] = "    " + lines[first]  # chat models often drop the first line's indent
        else:
            lines = ["    " + line for line in lines]
    return "\n".join(lines) + "\n"


@hookimpl
def register_verifiers(register):
    register(Code)
