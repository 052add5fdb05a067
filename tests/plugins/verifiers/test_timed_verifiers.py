"""The verifiers that work in a timed child process, and that process itself."""

import json
import os
import time
from pathlib import Path

import pytest
from harness_plugins.verifiers import timed_worker
from harness_plugins.verifiers.function import Function
from harness_plugins.verifiers.json_schema import JsonSchema
from harness_plugins.verifiers.math_verify import MathVerify
from harness_plugins.verifiers.regex import Regex
from harness_plugins.verifiers.timed_worker import TimedWorker

from harness.api.verifiers import make_verifier
from harness.core.data import Prompt
from harness.core.errors import HarnessError, UsageError
from harness.core.options import build

FOLDER = Path(__file__).parent
FORMATS = [
    json.loads(line)
    for line in (FOLDER / "answer_formats.jsonl").read_text(encoding="utf-8").splitlines()
]
CHECKS = """
import os, time

def long(completion, gold):
    return len(completion) > len(gold)

def grade(completion, prompt, ended):
    return 0.25 if ended and prompt == "q" else None

def slow(completion):
    time.sleep(60)

def nap(completion):
    time.sleep(0.4)
    return 1.0

def busy(completion):
    while True:
        pass

def deaf(completion):
    while completion == "deaf":
        try:
            time.sleep(60)
        except BaseException:
            pass
    return os.getpid()

def greedy(completion):
    return len(bytearray(8 << 30)) > 0

def broken(completion):
    print("noise")
    raise KeyError(completion)

def wordy(completion):
    return "yes"

def asks(completion, color):
    return 1.0
"""


@pytest.fixture
def checks(tmp_path):
    """A file with functions of a user, as a target."""
    file = tmp_path / "checks.py"
    file.write_text(CHECKS)
    return lambda name: f"{file}:{name}"


@pytest.fixture
def worker():
    """A factory of workers that are closed at the end."""
    made = []

    def make(target, limit):
        made.append(TimedWorker(target, limit))
        return made[-1]

    yield make
    for one in made:
        one.close()


def judged(verifier, text, gold="", ended=True, prompt="q"):
    return verifier.verify([Prompt("p", prompt, gold)], [text], [gold], [ended])[0]


# -- the worker ------------------------------------------------------------------------------------


def test_worker_stays_warm_after_an_answer_that_took_too_long(worker, checks):
    one = worker(checks("deaf"), 0.5)
    (first,) = one.ask(["x"])
    assert one.ask(["x"]) == [first]
    slow = worker(checks("slow"), 0.2)
    assert slow.ask(["x", "y"]) == [{"error": "overtime"}] * 2 and slow.kills == 0


def test_limit_is_processor_time_so_that_a_loaded_machine_changes_no_verdict(worker, checks):
    assert worker(checks("nap"), 0.1).ask(["x"]) == [{"value": 1.0}]
    busy = worker(checks("busy"), 0.1)
    assert busy.ask(["x"]) == [{"error": "overtime"}] and busy.kills == 0


def test_child_that_cannot_be_interrupted_is_killed_and_another_goes_on(worker, checks):
    one = worker(checks("deaf"), 0.2)
    before, stuck, after = one.ask(["x", "deaf", "x"])
    assert stuck == {"error": "overtime"} and one.kills == 1
    assert before["value"] != after["value"]
    with pytest.raises(ProcessLookupError):
        os.kill(before["value"], 0)


def test_memory_of_a_child_is_limited(worker, checks):
    assert worker(checks("greedy"), 10).ask(["x"]) == [{"error": "memory"}]


def test_errors_and_prints_of_the_function_are_no_answers(worker, checks):
    (answer,) = worker(checks("broken"), 5).ask(["x"])
    assert answer == {"error": "KeyError: 'x'"}


def test_function_that_cannot_be_loaded_is_an_error(worker, checks):
    with pytest.raises(HarnessError, match="cannot use .*nosuch: AttributeError"):
        worker(checks("nosuch"), 5).ask(["x"])
    with pytest.raises(HarnessError, match="no.such:f: ModuleNotFoundError"):
        worker("no.such:f", 5).ask(["x"])


def test_closed_worker_leaves_no_child_and_starts_again(worker, checks):
    one = worker(checks("deaf"), 5)
    (pid,) = one.ask(["x"])
    one.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid["value"], 0)
    assert one.ask(["x"]) != [pid]


# -- regex -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, text, gold, right",
    [
        ({"pattern": r"<think>.*</think>"}, "<think>so</think> 72", "", 1.0),
        ({"pattern": r"<think>.*</think>"}, "72", "", 0.0),
        ({"pattern": r"\d+", "mode": "full"}, "72", "", 1.0),
        ({"pattern": r"\d+", "mode": "full"}, "72 clips", "", 0.0),
        ({"pattern": r"<answer>(.*?)</answer>", "group": 1}, "<answer> 72 </answer>", "72", 1.0),
        ({"pattern": r"<answer>(.*?)</answer>", "group": 1}, "<answer>7</answer>", "72", 0.0),
        ({"pattern": r"a(b)?", "group": 1}, "a", "", 1.0),
        ({}, "so 72 clips", r"\b72\b", 1.0),
        ({}, "so 172 clips", r"\b72\b", 0.0),
    ],
)
def test_regex(options, text, gold, right):
    assert judged(build(Regex, options, "verifier"), text, gold) == right


def test_regex_stops_a_pattern_that_takes_too_long():
    verifier = Regex(pattern=r"(a+)+$", time_limit=0.2)
    began = time.perf_counter()
    assert judged(verifier, "a" * 40 + "b") == 0.0
    assert judged(verifier, "aaa") == 1.0 and judged(verifier, "aaa", ended=False) == 0.0
    assert time.perf_counter() - began < 20


def test_regex_needs_a_gold_answer_only_where_it_compares_with_one():
    assert Regex(pattern="a").verify([None], ["a"], [None], [True]) == [1.0]
    assert Regex(pattern="(a)", group=1).verify([None], ["a"], [None], [True]) == [None]
    assert Regex().verify([None], ["a"], [None], [True]) == [None]


def test_regex_refuses_what_is_no_pattern():
    for options, why in (
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "a", "group": 1}, "the pattern has 0 groups"),
        ({"mode": "match"}, "mode is search or full"),
        ({"time_limit": 0}, "above 0"),
    ):
        with pytest.raises(UsageError, match=why):
            build(Regex, options, "verifier regex")
    with pytest.raises(ValueError, match="no regular expression"):
        Regex().read_gold("(")


# -- json_schema -----------------------------------------------------------------------------------

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    "text, right",
    [
        ('{"n": 72}', 1.0),
        ('Here it is:\n```json\n{"n": 72}\n```\nThat is all.', 1.0),
        ('```\n{"n": 72}\n```\n```\n{"m": 1}\n```', 0.0),
        ('{"n": "72"}', 0.0),
        ('{"m": 72}', 0.0),
        ("72", 0.0),
        ("", 0.0),
        ('{"n": 72', 0.0),
        ("[" * 10**5, 0.0),
        ("[" * 10**4 + "]" * 10**4, 0.0),
        ('{"n": ' + "9" * 10**4 + "}", 0.0),
        ('{"n": NaN}', 0.0),
        ('{"n": 72, "m": NaN}', 0.0),  # Python reads it, but it is no JSON
        ('<think>{"m": 1}</think>\n{"n": 72}', 1.0),
        ('<think>{"n": 72}', 0.0),
    ],
    ids=lambda t: str(t)[:20],
)
def test_json_schema(text, right):
    assert judged(JsonSchema(schema=SCHEMA), text) == right


def test_json_schema_from_a_file_or_from_each_row(tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    verifier = make_verifier("json_schema", {"schema_file": "schema.json"}, folder=tmp_path)
    assert judged(verifier, '{"n": 1}', None) == 1.0 and judged(verifier, "{}", None) == 0.0
    assert verifier.data_files() == [tmp_path / "schema.json"]
    rows = JsonSchema()
    assert judged(rows, '{"n": 1}', rows.read_gold(json.dumps(SCHEMA))) == 1.0
    assert judged(rows, '{"n": 1}', None) is None
    for text, why in (("{", "is no JSON"), ('{"type": 3}', "no JSON Schema"), ("3", "an object")):
        with pytest.raises(ValueError, match=why):
            rows.read_gold(text)


def test_json_schema_refuses_what_is_no_schema(tmp_path):
    for options, why in (
        ({"schema": {"type": 3}}, "is no JSON Schema"),
        ({"schema": SCHEMA, "schema_file": "x"}, "either schema or schema_file"),
    ):
        with pytest.raises(UsageError, match=why):
            build(JsonSchema, options, "verifier json_schema")
    with pytest.raises(UsageError, match="schema_file .*nosuch.json"):
        missing = make_verifier("json_schema", {"schema_file": "nosuch.json"}, folder=tmp_path)
        judged(missing, "{}")


# -- module:function -------------------------------------------------------------------------------


def test_function_gets_the_arguments_that_it_names(tmp_path, checks):
    checks("long")
    assert judged(make_verifier("checks.py:long", folder=tmp_path), "three", "one") == 1.0
    grade = make_verifier("checks.py:grade", folder=tmp_path)
    assert judged(grade, "x") == 0.25 and judged(grade, "x", ended=False) is None
    assert grade.data_files() == [tmp_path / "checks.py"]


def test_function_of_a_module_is_called():
    verifier = make_verifier("posixpath:isabs")
    with pytest.raises(HarnessError, match="it has an argument 's'; there are completion, gold"):
        judged(verifier, "x")


def test_function_that_takes_too_long_or_too_much_memory_gives_a_wrong_answer(tmp_path, checks):
    checks("slow")
    for name in ("slow", "greedy"):
        verifier = make_verifier(f"checks.py:{name}", {"time_limit": 0.2}, folder=tmp_path)
        assert judged(verifier, "x") == 0.0


def test_function_that_fails_ends_the_run(tmp_path, checks):
    checks("broken")
    for name, why in (
        ("broken", "KeyError: 'x'"),
        ("wordy", "it returned 'yes', and no number"),
        ("asks", "it has an argument 'color'"),
        ("nosuch", "AttributeError"),
    ):
        with pytest.raises(HarnessError, match=why):
            judged(make_verifier(f"checks.py:{name}", folder=tmp_path), "x")


def test_function_that_does_not_exist_is_refused(tmp_path):
    for name, why in (
        ("nosuch.py:f", "there is no file"),
        ("no_such_module:f", "there is no module no_such_module"),
        ("checks.py:", "expected module:function"),
    ):
        with pytest.raises(UsageError, match=why):
            make_verifier(name, folder=tmp_path).data_files()
    with pytest.raises(UsageError, match="expected module:function"):
        build(Function, {}, "verifier function")


# -- math_verify -----------------------------------------------------------------------------------


def mathematical(text, gold, ended=True):
    verifier = MathVerify()
    return judged(verifier, text, verifier.read_gold(gold), ended)


@pytest.mark.parametrize(
    "text, gold, right",
    [
        (r"so \boxed{\sqrt{12}}", r"2\sqrt{3}", 1.0),
        ("The answer is $1 + x^2$.", "x^2 + 1", 1.0),
        (r"\boxed{[0,5)}", "$[0, 5)$", 1.0),
        (r"\boxed{(1, 2)}", "(1,2)", 1.0),
        (r"\boxed{\frac{x}{2}}", "x/2", 1.0),
        (r"\boxed{2\sqrt{9}}", "6", 1.0),
        ("#### 72", "72", 1.0),
        (r"\boxed{\sqrt{13}}", r"2\sqrt{3}", 0.0),
        (r"\boxed{(2, 1)}", "(1,2)", 0.0),
        (r"\boxed{[0,5]}", "[0, 5)", 0.0),
        (r"\boxed{}", "x", 0.0),
        ("", "x", 0.0),
        ("1. Let us think", "1", 0.0),
        ("between 70 and 72", "72", 0.0),
    ],
)
def test_math_verify(text, gold, right):
    assert mathematical(text, gold) == right


def test_math_verify_counts_a_cut_answer_as_wrong():
    assert mathematical(r"\boxed{\sqrt{12}}", r"2\sqrt{3}", ended=False) == 0.0


@pytest.mark.parametrize("gold", ["many", "", "x" * 400, "$", "no solution"])
def test_math_verify_refuses_gold_answers_without_mathematics(gold):
    with pytest.raises(ValueError, match="holds no mathematics"):
        MathVerify().read_gold(gold)


def test_math_verify_judges_the_formats_at_least_as_well_as_final_number():
    errors = [
        row for row in FORMATS if mathematical(row["answer"], row["gold"]) != float(row["right"])
    ]
    assert len(errors) <= 5 and not [row for row in errors if not row["right"]]


HOSTILE = [
    "$" + "(" * 3000 + "$",
    "$" + "9" * 100_000 + "$",
    "$9^{9^{9^9}}$",
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{100000!}",
    r"\boxed{\int_0^1 x^{x^x} dx}",
    r"\boxed{\sum_{n=1}^{1000000} n^n}",
    r"\boxed{" + "{" * 250,
    r"\boxed{" + "x+" * 120 + "x}",
    r"\boxed{\binom{10^6}{10^5}}",
    "x" * 10**6,
    "$" * 10**5,
]


def test_math_verify_is_hardly_slowed_down_by_hostile_answers():
    """20 % hostile answers: measured 1.0 to 1.2 times the time, here with room for noise."""
    verifier, gold = MathVerify(), "x^2+1"
    assert mathematical("$x$", gold) == 0.0  # the child is warm
    clean = [f"so it is $x^2 + {i}$." for i in range(60)]
    mixed = [HOSTILE[i % len(HOSTILE)] if i % 5 == 0 else text for i, text in enumerate(clean)]

    def seconds(texts):
        began = time.perf_counter()
        verdicts = verifier.verify([None] * 60, texts, [gold] * 60, [True] * 60)
        assert sum(verdicts) == texts.count("so it is $x^2 + 1$.")
        return time.perf_counter() - began

    assert seconds(mixed) < 3 * seconds(clean) + 1
    assert (
        timed_worker.worker_for(
            "harness_plugins.verifiers.math_child:judge", verifier.time_limit
        ).kills
        == 0
    )
