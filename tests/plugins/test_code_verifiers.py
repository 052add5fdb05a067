"""The verifiers `code` and `command`: what counts as right, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import runpy
import shutil
from pathlib import Path

import pytest
from harness_plugins.isolation import confine
from harness_plugins.isolation.pool import close_pools
from harness_plugins.verifiers.code import program_of

from harness import HarnessError, UsageError, make_verifier

from ..helpers.tools import command

isolated = pytest.mark.skipif(bool(confine.missing()), reason=confine.missing() or "")
EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = 'import math\n\n\ndef root(x: float) -> float:\n    """Return the square root."""\n'
ROW = {
    "prompt": HEAD,
    "entry_point": "root",
    "test": "def check(candidate):\n    assert candidate(9) == 3\n    assert candidate(0) == 0\n",
}


@pytest.fixture(scope="module", autouse=True)
def _no_worker_stays():
    yield
    close_pools()


def verify(verifier, gold, completions, ended=True):
    """Return the verdicts of completions for one gold answer."""
    n = len(completions)
    read = verifier.read_gold(gold)
    return verifier.verify([None] * n, completions, [read] * n, [ended] * n)


BODY = "    return math.sqrt(x)\n"
FULL = "def root(x):\n    return x ** 0.5\n"
RIGHT = {
    "a body": BODY,
    "a body and what follows it": BODY + "\n\ndef other():\n    pass\n\nprint(root(2)",
    "a body whose first line lost its indent": "return math.sqrt(x)\n",
    "the same, with more lines": "y = math.sqrt(x)\n    return y\n",
    "a body without any indent": "y = math.sqrt(x)\nreturn y\n",
    "a function": FULL,
    "a fenced function": f"Sure:\n```python\n{FULL}```\nIt uses a power.",
    "a fence that does not end": f"```python\n{FULL}",
    "a fence without a language": f"```\n{FULL}```",
    "a fenced body": f"```python\n{BODY}```",
    "the last of two blocks": f"```python\nroot = None\n```\nBetter:\n```python\n{FULL}```",
    "a block in another language after it": f"```python\n{FULL}```\n```text\n3\n```",
    "the head and the body again": f"```python\n{HEAD}{BODY}```",
    "a helper beside it": "def half(x):\n    return x / 2\n\n" + FULL.replace("0.5", "half(1)"),
}
WRONG = {
    "an empty answer": "",
    "no body": "    pass\n",
    "prose": "The square root is computed by Newton's method.",
    "a constant": "    return 3\n",
    "an error": "    return 1 / 0\n",
    "a fenced example that calls it": "```python\nprint(root(9))\n```",
    "half a line": "    return math.sq",
}


@isolated
def test_code_reads_the_program_of_an_answer():
    verifier, gold = make_verifier("code", {"seconds": 2.0}), json.dumps(ROW)
    texts = {**RIGHT, **WRONG}
    found = dict(zip(texts, verify(verifier, gold, list(texts.values())), strict=True))
    assert {name for name, verdict in found.items() if verdict == 1.0} == set(RIGHT)
    assert set(found.values()) == {0.0, 1.0}


def test_program_of_keeps_an_answer_without_a_head():
    assert program_of("x = 1", "", "").strip() == "x = 1"


@isolated
def test_code_grades_the_share_of_tests():
    tests = ["assert double(1) == 2", "assert double(2) == 4", "assert double(0) == 1"]
    gold = json.dumps({"tests": tests})
    options = {"tests_column": "tests", "graded": True}
    answer = "def double(x):\n    return 2 * x\n"
    assert verify(make_verifier("code", options), gold, [answer]) == [pytest.approx(2 / 3)]
    del options["graded"]
    assert verify(make_verifier("code", options), gold, [answer]) == [0.0]


@isolated
def test_code_compares_the_output_of_a_program():
    gold = json.dumps({"cases": [{"input": "2 3", "output": "5"}, {"input": "1 1", "output": "2"}]})
    answers = ["print(sum(map(int, input().split())))", "print(5)", "while True: pass"]
    verifier = make_verifier("code", {"seconds": 1.0})
    assert verify(verifier, gold, answers) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("def check(c): pass", "no JSON object of columns"),
        (json.dumps({"entry_point": "f"}), "neither tests"),
        (json.dumps({**ROW, "cases": [{"input": "", "output": ""}]}), "or both"),
        (json.dumps({**ROW, "test": "def check(:"}), "no Python"),
        (json.dumps({**ROW, "test": [1]}), "neither a text nor"),
        (json.dumps({**ROW, "entry_point": "a b"}), "names no function"),
        (json.dumps({"cases": [{"input": "1"}]}), "without input and output"),
    ],
)
def test_code_refuses_a_gold_answer_it_cannot_read(row, message):
    with pytest.raises(ValueError, match=message):
        make_verifier("code").read_gold(row)


def test_code_refuses_without_isolation(monkeypatch):
    monkeypatch.setattr(confine, "landlock_version", lambda: 0)
    with pytest.raises(UsageError, match="Landlock.*container"):
        make_verifier("code")


@isolated
def test_code_passes_human_eval():
    """The data are named by HARNESS_HUMAN_EVAL: HumanEval.jsonl.gz."""
    path = os.environ.get("HARNESS_HUMAN_EVAL", "")
    if not path:
        pytest.skip("HARNESS_HUMAN_EVAL names no file")
    rows = [json.loads(line) for line in gzip.open(path)]
    verifier = make_verifier("code", {"seconds": 20.0})
    golds = [verifier.read_gold(json.dumps(row)) for row in rows]
    for answers, right in (
        ([row["canonical_solution"] for row in rows], 1.0),
        ([""] * len(rows), 0.0),
        (["    pass\n"] * len(rows), 0.0),
    ):
        nothing = [None] * len(rows)
        assert verifier.verify(nothing, answers, golds, [True] * len(rows)) == [right] * len(rows)


# -- command ---------------------------------------------------------------------------------------


def shell(script, **options):
    """Return a verifier that runs a shell script on the answer in `answer.txt`."""
    return make_verifier("command", {"command": f"sh -c '{script}'", "seconds": 5.0, **options})


@isolated
def test_command_takes_the_exit_status():
    verifier = shell('[ "$(cat answer.txt)" = "$(cat gold)" ]')
    assert verify(verifier, "yes", ["yes", "no", "```\nyes\n```", "exit"]) == [1.0, 0.0, 1.0, 0.0]
    assert verify(shell("exit 127"), "", ["x"]) == [0.0]


@isolated
def test_command_takes_conditions_on_answer_and_output():
    verifier = shell("cat answer.txt", output="^proved$", forbidden="axiom")
    assert verify(verifier, "", ["proved", "proved not", "proved\naxiom"]) == [1.0, 0.0, 0.0]


@isolated
def test_command_puts_answer_and_gold_into_a_template(tmp_path):
    (tmp_path / "around").write_text("<{gold}|{answer}>")
    verifier = make_verifier(
        "command",
        {"command": "grep -Fx <g|{gold}> {file}", "template": "around"},
        folder=tmp_path,
    )
    assert verifier.data_files() == [tmp_path / "around"]
    assert verify(verifier, "g", ["{gold}", "x"]) == [1.0, 0.0]  # text of an answer stays text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "command is empty"),
        ({"command": "x", "output": "("}, "output is no regular expression"),
        ({"command": "x", "seconds": 0.0}, "must be above 0"),
        ({"command": "x", "file_name": "../x"}, "no plain name"),
    ],
)
def test_command_refuses_options(options, message):
    with pytest.raises(UsageError, match=message):
        make_verifier("command", options)


def test_command_names_a_program_that_is_missing():
    with pytest.raises(HarnessError, match="no-such-prover.*not installed"):
        verify(make_verifier("command", {"command": "no-such-prover {file}"}), "", ["x"])


@isolated
@pytest.mark.skipif(not shutil.which("coqc"), reason="coqc is not installed (Debian: coq)")
def test_command_accepts_proofs_of_coq():
    """A dozen theorems: right proofs, proofs of other theorems, and ways to cheat."""
    from harness.core.suite_file import read_toml

    options = read_toml(EXAMPLES / "proofs.toml", "test")["verifier_options"]
    verifier = make_verifier("command", options, folder=EXAMPLES)
    lines = (EXAMPLES / "proofs" / "theorems.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    golds, proofs = [row["theorem"] for row in rows], [row["proof"] for row in rows]
    n = len(rows)
    assert n == 12
    assert verifier.verify([None] * n, proofs, golds, [True] * n) == [1.0] * n
    others = ["exact I.", "reflexivity.", "auto. auto.", "", "I think it is true."]
    tried = [(golds[0], text) for text in others] + [(golds[5], proofs[6]), (golds[10], proofs[0])]
    cheats = [
        "Admitted. Theorem other : True. Proof. exact I.",
        "Abort. Theorem goal : True. Proof. exact I.",
        "admit.",
        "intros. give_up.",
        "Abort. Axiom a : forall n : nat, n + 0 = n. Theorem goal : forall n : nat, n + 0 = n."
        " Proof. exact a.",
        'Abort.\nNotation "x = y" := True.\nTheorem goal : 1 = 2. Proof. exact I.',
        'Redirect "x" Print nat.',
    ]
    tried += [(golds[0], text) for text in cheats]
    wrong = verifier.verify(
        [None] * len(tried), [t for _, t in tried], [g for g, _ in tried], [True] * len(tried)
    )
    assert wrong == [0.0] * len(tried)
    unguarded = make_verifier("command", {**options, "forbidden": ""}, folder=EXAMPLES)
    assert unguarded.verify([None], [cheats[1]], ["True"], [True]) == [1.0]  # why `forbidden` is


# -- the examples, at toy size ---------------------------------------------------------------------


def small_model(data, folder):
    """Make a small untrained model with a tokenizer of the data's text."""
    runpy.run_path(str(EXAMPLES / "small_model.py"))["main"](str(data), str(folder))


def run_example(example, data, folder, *more):
    """Run one method on an example's suite file with data of its own; return the result."""
    small_model(data, folder / "model")
    options = ["--suite-set", "max_completion_tokens=8", "--set", "steps=1", *more]
    done = command(
        *("run", "--method", "rlvr", "--suite", EXAMPLES / example, "--quick"),
        *("--model", folder / "model", "--results", folder / "results", *options),
        *("--set", "batch_size=2", "--set", "num_generations=2"),
        *("--stage-set", "sft.steps=1", "--stage-set", "evaluation.prompts=4"),
    )
    assert done.code == 0, done.text
    (file,) = (folder / "results").glob("runs/*/rlvr/*/result.json")
    return json.loads(file.read_text())


@isolated
def test_example_humaneval_runs_at_toy_size(tmp_path):
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for n in range(40):
            row = {
                "prompt": f'def add{n}(x):\n    """Add {n}."""\n',
                "canonical_solution": f"    return x + {n}\n",
                "entry_point": f"add{n}",
                "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
            }
            file.write(json.dumps(row) + "\n")
    source = ("dataset=", "train=", f"data={rows}")
    result = run_example(
        "humaneval.toml", rows, tmp_path, *(word for s in source for word in ("--suite-set", s))
    )
    assert result["evaluation"]["accuracy"]["n"] == 4
    from harness_suites.question_file import QuestionFile

    from harness.core.suite_file import read_toml

    settings = read_toml(EXAMPLES / "humaneval.toml", "test")
    options = {k: v for k, v in settings.items() if k not in ("suite", "dataset", "train")}
    suite = QuestionFile(data=str(rows), **options)
    for part in ("demonstrations", "test"):  # the data's own answers are right, unchanged
        for shown in suite.demonstrations(part):
            assert shown.completion.startswith("    return x + ")
            gold, verifier = shown.prompt.answer, suite.make_verifier()
            assert verifier.verify([shown.prompt], [shown.completion], [gold], [True]) == [1.0]


@isolated
@pytest.mark.skipif(not shutil.which("coqc"), reason="coqc is not installed (Debian: coq)")
def test_example_proofs_runs_at_toy_size(tmp_path):
    data = EXAMPLES / "proofs" / "theorems.jsonl"
    result = run_example("proofs.toml", data, tmp_path)
    assert result["evaluation"]["accuracy"]["n"] >= 2
