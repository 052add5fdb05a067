"""What a run says before it begins: its stages and about how long it takes."""

import dataclasses

import pytest

from harness.api.participants import participants
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.progress import PARTS
from harness.experiments.plan import duration, plan_of

from ..helpers.tools import put, record


def spec_of(method="ppo", suite="summarization", **fixed):
    return resolve(Request(method, suite, fixed=fixed), installed())


def plan_for(spec, results):
    return plan_of(spec, participants(spec, installed()), results)


def finished(method, seconds, stages, **more):
    """A record whose wall time is `seconds`, of them `stages` in the shared stages."""
    wall = dict.fromkeys(PARTS, 0.0) | {"method": seconds - stages, "stages": stages}
    made = record(method, suite="summarization", **more)
    return made | {"cost": made["cost"] | {"wall": wall}}


def test_plan_names_stages_steps_and_prompts(tmp_path):
    told = str(plan_for(spec_of(), tmp_path)).splitlines()
    assert told[0] == (
        "stages: sft, preferences, reward model, 50 steps of ppo, evaluation on 512 prompts"
    )


def test_plan_of_start_has_no_training(tmp_path):
    told = str(plan_for(spec_of("start"), tmp_path))
    assert "reward model, evaluation on 512 prompts" in told


@pytest.mark.parametrize(
    "method, shared",
    [("rlvr", ""), ("dpo", "preferences, "), ("ppo", "preferences, reward model, ")],
)
def test_plan_names_no_stage_that_the_run_does_not_need(method, shared, tmp_path):
    """The suite `instructions` has a verifier, and the evaluation needs no reward model."""
    told = str(plan_for(spec_of(method, "instructions"), tmp_path))
    first = told.splitlines()[0]
    assert first.startswith(f"stages: sft, {shared}") and first.count(",") == 2 + shared.count(",")


def test_plan_takes_times_from_finished_runs(tmp_path):
    put(tmp_path, finished("ppo", 100.0, 40.0), finished("dpo", 30.0, 0.0))
    plan = plan_for(spec_of(), tmp_path)
    assert (plan.seconds, plan.shared_seconds) == (60.0, 40.0)
    assert "time: about 60 s, and 40 s more if no stage is stored yet" in str(plan)


def test_plan_takes_shipped_times_where_no_run_has_finished(tmp_path):
    plan = plan_for(spec_of(), tmp_path)
    assert 30 < plan.seconds < 200 and 20 < plan.shared_seconds < 100
    assert plan_for(spec_of("dpo"), tmp_path).seconds < plan.seconds


@pytest.mark.parametrize("fixed", [{"quick": True}, {"model": "some/model"}])
def test_plan_says_that_a_time_is_unknown(tmp_path, fixed):
    spec = dataclasses.replace(spec_of(), **fixed)
    assert "time: unknown" in str(plan_for(spec, tmp_path))


def test_plan_is_made_beside_a_damaged_record(tmp_path):
    put(tmp_path, record("dpo"))
    next(tmp_path.rglob("result.json")).write_text("{")
    shipped = plan_for(spec_of(), tmp_path / "none")
    assert str(plan_for(spec_of(), tmp_path)) == str(shipped) and "time: about" in str(shipped)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (7800, "2 h 10 min")]
)
def test_duration_has_one_or_two_units(seconds, text):
    assert duration(seconds) == text
