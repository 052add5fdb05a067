"""Commands, suite files, study files and records of any shape: the right end, and no traceback.

By default few examples are tried. The mark `slow` has the full number.
"""

import copy
import json
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
from harness_suites.preference_file import PreferenceFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.api.registry import installed
from harness.core.records import write_sealed

from ..helpers.in_process import call
from ..helpers.tools import put, record

FEW, MANY = 6, 500  # examples of each of the four
SUITES = ("exact", "arithmetic", "summarization", "helpfulness")
# every suite above can serve these
METHODS = ("dpo", "ipo", "kto", "ppo", "grpo", "rloo", "simpo", "orpo", "sft_chosen", "start")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


def fuzz(examples):
    """Settings of a fuzzer: the same examples each time, and none of its own files."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def ends_well(ended, valid=None):
    """Require the exit status of a valid input, or one message and the status of a wrong one."""
    assert "Traceback" not in ended.out + ended.err, ended
    if valid is True:
        assert ended.code == 0, ended
    elif valid is False:
        assert ended.code == 2, ended
    assert ended.code in (0, 2), ended
    if ended.code:
        assert len(ended.messages) == 1 and not ended.out, ended


# -- commands --------------------------------------------------------------------------------------


def options_of(method):
    """The options of a method that hold numbers, with their defaults."""
    found = {field.name: field.default for field in fields(installed().get("methods", method))}
    return {name: value for name, value in found.items() if type(value) in (int, float)}


@st.composite
def commands(draw):
    """Draw the arguments of a run, and whether they are valid (None: not known)."""
    method, suite = draw(st.sampled_from(METHODS)), draw(st.sampled_from(SUITES))
    seed, valid = draw(st.integers(0, 2**31)), True
    arguments = ["run", "--seed", str(seed), "--quick", "--dry-run"]
    own = options_of(method)
    if own and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(own)))
        arguments += ["--set", f"{name}={own[name]}"]
    if draw(st.booleans()):
        arguments += ["--budget", f"steps={draw(st.integers(1, 10**9))}"]
    fault = draw(st.sampled_from(("", "", "method", "suite", "option", "value", "stage", "budget")))
    if fault == "method":
        method, valid = f"{method}x", False
    elif fault == "suite":
        suite, valid = f"{suite}x", False
    elif fault == "option":
        arguments, valid = [*arguments, "--set", f"x{draw(TEXT)}=1"], False
    elif fault == "stage":
        arguments, valid = [*arguments, "--stage-set", draw(TEXT)], False
    elif fault == "budget":
        arguments, valid = [*arguments, "--budget", f"x{draw(TEXT)}"], False
    elif fault == "value" and own:
        name = draw(st.sampled_from(sorted(own)))
        arguments, valid = [*arguments, "--set", f"{name}={draw(SCALARS)}"], None
    return [*arguments, "-m", method, "-s", suite], valid


def commands_end_well(case):
    arguments, valid = case
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        ends_well(call(*arguments, "--results", results), valid)
        assert not results.exists()


# -- files -----------------------------------------------------------------------------------------


def toml(value):
    """Write a value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("e+", "e")
    return "{}" if value is None else str(value) if isinstance(value, int) else quoted(value)


def quoted(text):
    """Write a TOML string: JSON's, with the characters beyond the first plane as they are."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def file_of(content):
    """Write a TOML file."""
    return "".join(f"{quoted(key)} = {toml(value)}\n" for key, value in content.items())


@st.composite
def mutated(draw, value, names):
    """Draw a copy of a value in which one place has another value, is missing, or is new."""
    value = copy.deepcopy(value)
    place = value
    while True:
        inner = [v for v in (place.values() if isinstance(place, dict) else place) if branches(v)]
        if not inner or draw(st.booleans()):
            break
        place = draw(st.sampled_from(inner))
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    how = draw(st.sampled_from(("replace", "remove", "add")))
    if how == "add" and isinstance(place, dict):
        place[draw(st.sampled_from(names) | TEXT)] = draw(VALUES)
    elif how == "remove":
        del place[draw(st.sampled_from(keys))]
    else:
        place[draw(st.sampled_from(keys))] = draw(VALUES)
    return value


def branches(value):
    return isinstance(value, (dict, list)) and bool(value)


STUDY = {
    "suites": ["exact"],
    "quick": True,
    "seeds": 2,
    "set": {"stage.evaluation.prompts": 16},
    "tune": {"trials": 2, "leave": ["ppo"], "space": {"dpo": {"beta": [0.1, 0.2]}}},
    "resources": {"gpus": 0},
    "methods": [{"name": "dpo", "set": {"beta": 0.2}}, {"name": "ppo", "sweep": {"beta": [0.1]}}],
}
STUDY_KEYS = [*STUDY, "name", "plugins", "environment", "threads", "label", "launcher", "budget"]


def study_files_end_well(content):
    with tempfile.TemporaryDirectory() as folder:
        file, results = Path(folder) / "study.toml", Path(folder) / "results"
        file.write_text(file_of(content), encoding="utf-8")
        ends_well(call("study", file, "--dry-run", "--results", results))
        assert not results.exists()


ROWS = [{"prompt": f"p {i}", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(60)]
SUITE = {
    "title": "mine",
    "data": "data.jsonl",
    "bad_rows": "fail",
    "max_prompt_tokens": 64,
    "settings": {"dpo": {"beta": 0.2}},
    "stages": {"evaluation": {"prompts": 8}},
}
SUITE_KEYS = [*SUITE, *(field.name for field in fields(PreferenceFile))]


def suite_files_end_well(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "suite.toml"
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        file.with_name("data.jsonl").write_text(lines, encoding="utf-8")
        file.write_text(file_of(content), encoding="utf-8")
        ends_well(call("show", file))


# -- records ---------------------------------------------------------------------------------------


def records_end_well(made):
    """A record of any shape that is sealed: the table names it or shows it, and shows the other, or
    says in what the two differ, or which one a newer harness wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = put(Path(folder), record("dpo"), record("ppo"))
        file = next(results.glob("runs/*/dpo/*/result.json"))
        made = {k: v for k, v in made.items() if k != "seal"}
        try:
            write_sealed(file, made)
        except ValueError:  # Infinity, which JSON has not and another writer may write
            file.write_text(json.dumps(made), encoding="utf-8")
        ended = call("table", "--results", results)
        assert "Traceback" not in ended.out + ended.err and ended.code in (0, 1, 2), ended
        refused = "These runs differ in" in ended.err or "Upgrade to read it" in ended.err
        assert refused or "ppo" in ended.out, ended


RECORD = record("dpo")
CASES = {
    "commands": (commands_end_well, commands()),
    "study files": (study_files_end_well, mutated(STUDY, STUDY_KEYS)),
    "suite files": (suite_files_end_well, mutated(SUITE, SUITE_KEYS)),
    "records": (records_end_well, mutated(RECORD, sorted(RECORD))),
}


def try_all(name, examples):
    check, strategy = CASES[name]
    fuzz(examples)(given(strategy)(check))()


@pytest.mark.parametrize("name", CASES)
def test_few_inputs_of_any_shape_end_well(name):
    try_all(name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_inputs_of_any_shape_end_well(name):
    try_all(name, MANY)


def test_files_that_are_changed_are_valid():
    study_files_end_well(STUDY)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.toml"
        file.write_text(file_of(STUDY), encoding="utf-8")
        assert call("study", file, "--dry-run", "--results", Path(folder) / "r").code == 0
