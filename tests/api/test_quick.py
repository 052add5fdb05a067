"""`--quick` lowers what a suite says, and raises nothing."""

import json
from dataclasses import dataclass

import pytest

from harness.api.quick import lowered
from harness.api.registry import installed
from harness.api.resolve import Request, resolve

from ..helpers.registries import METHODS


@dataclass
class Options:
    steps: int = 0
    epochs: float = 1.0
    batch_size: int | None = None
    n: int = 16
    learning_rate: float = 1e-3


@pytest.mark.parametrize(
    ("values", "quick", "expected"),
    [
        ({}, {"steps": 4, "n": 4}, {"steps": 4, "n": 4}),
        ({"steps": 3, "n": 2}, {"steps": 4, "n": 4}, {}),
        ({"steps": 9}, {"steps": 4}, {"steps": 4}),
        ({}, {"epochs": 0.5}, {"epochs": 0.5}),
        ({"epochs": 0.2}, {"epochs": 0.5}, {}),
        ({}, {"batch_size": 4}, {"batch_size": 4}),
        ({"n": 0}, {"n": 4}, {}),
        ({"n": "many"}, {"n": 4}, {}),
        ({}, {"nosuch": 4}, {}),
    ],
)
def test_only_lower_values_are_taken(values, quick, expected):
    assert lowered(values, quick, Options) == expected


@pytest.fixture
def mine(tmp_path):
    """A suite file over rows of its own: `mine(text)` returns its path."""
    rows = [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(300)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(text=""):
        (tmp_path / "mine.toml").write_text('data = "d.jsonl"\n' + text)
        return str(tmp_path / "mine.toml")

    return write


def quick(method, suite, quick=True, **more):
    return resolve(Request(method, suite, fixed={"quick": quick}, **more), installed())


def test_quick_lowers_a_run_on_a_users_data(mine):
    text = "max_prompt_tokens = 192\n[stages.sft]\nepochs = 3\nbatch_size = 16\n"
    spec = quick("dpo", mine(text))
    assert spec.quick and spec.fingerprint() != quick("dpo", mine(text), False).fingerprint()
    assert spec.suite_options["rows_per_part"] == 48 and spec.suite_options["max_rows"] == 0
    assert spec.suite_options["max_prompt_tokens"] < 192
    assert spec.options["steps"] == 2 and spec.options["batch_size"] == 4
    assert spec.stages["sft"]["steps"] == 2 and spec.stages["sft"]["batch_size"] == 4
    assert spec.stages["preferences"]["labels"] == 16
    assert spec.stages["evaluation"]["prompts"] == 8


def test_quick_raises_nothing_that_is_lower(mine):
    text = (
        "max_completion_tokens = 3\nrows_per_part = 20\n[stages.sft]\nsteps = 1\n[settings.dpo]\n"
    )
    spec = quick("dpo", mine(text + "steps = 1\nbatch_size = 2\n"))
    assert spec.suite_options["max_completion_tokens"] == 3
    assert spec.suite_options["rows_per_part"] == 20
    assert spec.stages["sft"]["steps"] == 1
    assert (spec.options["steps"], spec.options["batch_size"]) == (1, 2)


def test_what_is_asked_for_stands_over_quick(mine):
    spec = quick(
        "dpo",
        mine(),
        settings=("steps=50",),
        suite_settings=("rows_per_part=250",),
        stage_settings=("evaluation.prompts=99",),
    )
    assert spec.options["steps"] == 50 and spec.suite_options["rows_per_part"] == 250
    assert spec.stages["evaluation"]["prompts"] == 99


@pytest.mark.parametrize("method", METHODS)
def test_quick_settings_are_valid_for_every_method(mine, method):
    assert quick(method, mine()).quick


def test_run_in_which_nothing_is_lowered_is_not_quick(mine, monkeypatch):
    from harness_suites.preference_file import PreferenceFile

    monkeypatch.setattr(PreferenceFile, "quick", {})
    spec, full = quick("dpo", mine()), quick("dpo", mine(), False)
    assert not spec.quick and spec.fingerprint() == full.fingerprint()


@pytest.mark.parametrize("suite", ["summarization", "arithmetic", "helpfulness", "exact"])
def test_embedded_suites_are_quick(suite):
    spec, full = quick("sft_chosen", suite), quick("sft_chosen", suite, False)
    assert spec.quick and spec.stages["sft"]["steps"] == 20
    assert spec.stages["evaluation"]["prompts"] == 64 <= full.stages["evaluation"]["prompts"]
