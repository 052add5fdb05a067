"""The trained policy is an artifact: another evaluation trains nothing."""

import json
import shutil

import pytest

from ..helpers.tools import command, finished, fresh, on_small, outputs, results, small_suite


def evaluated(folder, *more):
    return command("evaluate", folder, "-p", small_suite(), *more)


def others(folder):
    return [run for run in folder.parent.iterdir() if run != folder]


@pytest.fixture(scope="module", params=["dpo", "ppo", "best_of_n"])
def again(request):
    """A finished run, and the run that evaluates its policy on 40 prompts."""
    where = fresh(f"evaluate-{request.param}")
    first = finished(request.param)
    folder = where / first.relative_to(results())
    folder.parent.mkdir(parents=True)
    shutil.copytree(first, folder)
    shutil.copytree(results() / "artifacts", where / "artifacts")
    done = evaluated(folder, "--stage-set", "evaluation.prompts=40")
    assert done.code == 0, done.text
    (other,) = others(folder)
    return folder, other


def test_evaluate_trains_nothing(again):
    folder, other = again
    first, second = (json.loads((f / "result.json").read_text()) for f in (folder, other))
    assert second["evaluation"]["prompts"] == 40 != first["evaluation"]["prompts"]
    if "best_of_n" not in folder.parts:
        assert "policy" in second["cost"]["reused_stages"]
    assert second["cost"]["method"]["flops"] == first["cost"]["method"]["flops"]
    assert second["cost"]["method"]["steps"] == first["cost"]["method"]["steps"]
    before, after = outputs(folder), outputs(other)
    before.pop("samples.jsonl"), after.pop("samples.jsonl")
    assert before == after


def test_evaluate_with_nothing_changed_finds_the_run(again):
    folder, _ = again
    done = evaluated(folder)
    assert done.code == 0 and len(others(folder)) == 1


def test_evaluate_refuses_where_the_policy_is_gone():
    first, where = finished("dpo"), fresh("evaluate-gone")
    folder = where / first.relative_to(results())
    folder.parent.mkdir(parents=True)
    shutil.copytree(first, folder)
    done = evaluated(folder, "--stage-set", "evaluation.prompts=40")
    assert done.code == 3 and "The trained policy of small/dpo is not in" in done.text
    assert others(folder) == []


def test_same_training_with_another_evaluation_is_not_repeated():
    """`harness run` finds the policy too."""
    where = fresh("evaluate-run")
    more = ("--stage-set", "evaluation.prompts=40")
    finished("dpo")
    shutil.copytree(results() / "artifacts", where / "artifacts")
    done = command(*on_small("dpo", *more, results=where))
    assert done.code == 0, done.text
    (run,) = (where / "runs" / "small" / "dpo").iterdir()
    assert "policy" in json.loads((run / "result.json").read_text())["cost"]["reused_stages"]


def test_evaluate_names_what_is_no_run(tmp_path):
    done = command("evaluate", tmp_path)
    assert done.code == 2 and "is not the folder of a run" in done.text
