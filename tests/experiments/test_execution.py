"""Execution settings: runs that were computed otherwise stand on the same artifacts and in one
table.
"""

import json
import shutil
from functools import cache

import pytest

from harness.core.execution import Execution, differing
from harness.experiments.recorded_execution import execution_plan_of

from ..helpers.tools import (
    command,
    finished,
    fresh,
    launched,
    on_small,
    only_run,
    results,
    small_suite,
)


def settings_of(folder):
    return json.loads((folder / "result.json").read_text())["execution"]


def pins_of(folder):
    return json.loads((folder / "result.json").read_text())["pins"]


@cache
def with_small_micro_batches():
    """A run of IPO in micro-batches of 512 tokens, beside `finished("dpo")`."""
    finished("dpo")
    done = command(*on_small("ipo", "--micro-batch-tokens", 512, results=results()))
    assert done.code == 0, done.text
    return only_run(results(), "small", "ipo")


def test_one_method_with_smaller_micro_batches_stands_on_the_same_artifacts():
    other, usual = with_small_micro_batches(), finished("dpo")
    shared = [
        {n: p for n, p in pins_of(f).items() if p["kind"] != "policy"} for f in (other, usual)
    ]
    assert shared[0] == shared[1] and len(shared[0]) == 4
    kinds = {pin["kind"] for pin in shared[0].values()}
    assert kinds == {"sft", "preferences", "reward_model", "baseline_answers"}
    for name, pin in shared[0].items():
        manifest = json.loads((results() / "artifacts" / name / "manifest.json").read_text())
        assert pin == {key: manifest[key] for key in ("kind", "content", "execution")}


def test_record_holds_how_training_evaluation_and_artifacts_were_computed():
    execution = settings_of(with_small_micro_batches())
    assert [s["micro_batch_tokens"] for s in execution["training"]] == [512]
    assert execution["evaluation"]["micro_batch_tokens"] == 512
    sizes = {
        pin["kind"]: [settings["micro_batch_tokens"] for settings in pin["execution"]]
        for pin in pins_of(with_small_micro_batches()).values()
    }
    assert sizes.pop("policy") == [512]
    assert all(size == [16384] for size in sizes.values()) and "sft" in sizes


def test_unlike_execution_stands_in_one_table_under_a_footnote(tmp_path):
    for folder in (with_small_micro_batches(), finished("dpo")):
        shutil.copytree(folder, tmp_path / folder.relative_to(results()))
    done = command("table", "--results", tmp_path, "--methods", "dpo,ipo", "--format", "md")
    assert done.code == 0, done.text
    assert "| ipo" in done.out and "| dpo" in done.out
    assert done.out.count("Computed with different execution settings") == 1
    assert "micro_batch_tokens 512, most runs 16384" in done.out or (
        "micro_batch_tokens 16384, most runs 512" in done.out
    )


def test_run_on_artifacts_that_were_computed_otherwise_is_reproduced_to_the_byte():
    """SFT, preferences and reward model in micro-batches of 16384 tokens, the rest in 512."""
    done = command("reproduce", with_small_micro_batches(), "-p", small_suite())
    assert done.code == 0, done.text
    assert done.out.splitlines()[-1].startswith("identical: all ")


@pytest.mark.slow
def test_run_of_two_processes_on_artifacts_of_one_is_reproduced_to_the_byte():
    folder = fresh("two")
    assert command(*on_small("start", results=folder)).code == 0  # made by one process: SFT
    done = launched("-m", "harness", *on_small("dpo", results=folder))
    assert done.returncode == 0, done.stderr
    run = only_run(folder, "small", "dpo")
    processes = {pin["kind"]: pin["execution"][0]["processes"] for pin in pins_of(run).values()}
    assert processes["sft"] == processes["reward_model"] == 1 and processes["policy"] == 2
    done = command("reproduce", run, "-p", small_suite())
    assert done.code == 0 and "in 2 processes, as recorded" in done.out, done.text
    assert done.out.splitlines()[-1].startswith("identical: all ")


# -- plans -----------------------------------------------------------------------------------------

USED = {"device": "cpu", "threads": 1, "processes": 1, "micro_batch_tokens": 64}
HERE = {**USED, "hardware": "this processor"}


def recorded(training=(HERE,), evaluation=HERE, **pins):
    return {
        "execution": {"training": list(training), "evaluation": evaluation},
        "pins": {
            name: {"kind": name.partition("_")[0], "content": "", "execution": list(used)}
            for name, used in pins.items()
        },
    }


def test_plan_has_the_settings_of_each_part():
    two = {**HERE, "processes": 2}
    plan = execution_plan_of(
        recorded((two,), HERE, sft_ab=[{**HERE, "threads": 3}]), "this processor"
    )
    assert plan.parts["training"] == Execution(**{**USED, "processes": 2})
    assert plan.parts["evaluation"] == Execution(**USED)
    assert plan.parts["sft_ab"] == plan.parts["sft"] == Execution(**{**USED, "threads": 3})
    assert plan.processes == 2 and plan.notes == ()


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({}, "the record holds no execution settings"),
        (recorded((HERE, {**HERE, "threads": 2})), "training was resumed with other"),
        (recorded(sft_ab=[HERE, {**HERE, "threads": 2}]), "sft_ab was resumed with other"),
        (recorded(({**HERE, "hardware": "another"},)), "computed on another; here is this"),
        (
            recorded(({**HERE, "processes": 4},), sft_ab=[{**HERE, "processes": 2}]),
            "made by 1, 2, 4 processes",
        ),
    ],
)
def test_plan_says_what_cannot_be_repeated(record, told):
    (note,) = execution_plan_of(record, "this processor").notes
    assert told in note


def test_settings_that_differ_from_those_asked_for():
    used = Execution("cuda", 1, 2, 64)
    assert differing(used, used) == {}
    assert differing(Execution("auto", 1, 2, 64), used) == {}
    assert differing(Execution("cuda:1", 1, 2, 64), used) == {}
    assert differing(Execution("cpu", 1, 2, 64), used) == {"device": ("cpu", "cuda")}
    assert differing(Execution("cuda", 1, 1, 32), used) == {
        "processes": (1, 2),
        "micro_batch_tokens": (32, 64),
    }
