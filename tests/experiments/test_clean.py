"""harness clean: what lies in a results folder, what needs it, and what goes."""

import json
import os
import shutil
import time

import filelock
import pytest

from harness.core.run_folder import read_result
from harness.experiments import clean as cleaning

from ..helpers.tools import command, finished, fresh, results, small_suite


@pytest.fixture
def place():
    """A results folder with one finished run and what it stands on, and an artifact of no run."""
    first, where = finished("dpo"), fresh("clean")
    pins = read_result(first)["pins"]
    folder = where / first.relative_to(results())
    shutil.copytree(first, folder)
    for name in pins:
        shutil.copytree(results() / "artifacts" / name, where / "artifacts" / name)
    (some,) = (where / "artifacts").glob("sft-*")
    shutil.copytree(some, where / "artifacts" / "sft-0000000000000000")
    (folder / "checkpoint" / "turn-00000001").mkdir(parents=True)
    (folder / "checkpoint" / "turn-00000001" / "tensors.safetensors").write_bytes(b"x" * 4096)
    return where, folder


def names(where):
    """What lies there."""
    return {str(f.relative_to(where)) for f in where.rglob("*") if f.is_file()}


def marked(where, **more):
    """The names of what may go."""
    return {i.path.name for i in cleaning.survey(where, **more) if i.deletable}


def test_clean_lists_and_deletes_nothing_without_delete(place):
    where, folder = place
    before = names(where)
    done = command("clean", "--results", where)
    assert done.code == 0 and "Nothing was deleted" in done.out, done.text
    line = next(x for x in done.out.splitlines() if "/artifacts/sft-" in x and "delete" not in x)
    assert f"needed by small/dpo/{folder.name}" in line
    assert "needed by no run" in next(x for x in done.out.splitlines() if "sft-00000" in x)
    assert {n for n in names(where) if ".lock" not in n} == {n for n in before if ".lock" not in n}


def test_clean_deletes_what_no_run_needs_and_the_run_can_be_evaluated_again(place):
    where, folder = place
    assert marked(where) == {"sft-0000000000000000", "checkpoint"}
    done = command("clean", "--results", where, "--delete")
    assert done.code == 0 and marked(where) == set(), done.text
    assert not (where / "artifacts" / "sft-0000000000000000").exists()
    for name in read_result(folder)["pins"]:
        assert (where / "artifacts" / name).is_dir()
    done = command("evaluate", folder, "-p", small_suite(), "--stage-set", "evaluation.prompts=20")
    assert done.code == 0, done.text


def test_run_without_its_record_would_lose_what_it_stands_on(place):
    """Negative control: it is the record that protects."""
    where, folder = place
    shutil.rmtree(folder)
    assert {f.name for f in (where / "artifacts").glob("*-*")} == marked(where)


def test_policy_of_a_run_goes_by_name_only(place):
    where, folder = place
    policy = read_result(folder)["policy"]["artifact"]
    assert not {policy, "policy"} & marked(where)
    assert {policy, "policy"} <= marked(where, policies=[folder])
    done = command("clean", "--results", where, "--delete", "--policy-of", folder)
    assert done.code == 0, done.text
    assert not (folder / "policy").exists() and not (where / "artifacts" / policy).exists()
    assert read_result(folder)["policy"]["reason"] == "deleted by harness clean"
    done = command("clean", "--results", where, "--policy-of", where)
    assert done.code == 2 and "no run of" in done.err


def test_failed_run_keeps_its_policy_until_its_folder_may_go(place):
    """The judge failed after training: the same command goes on from the policy."""
    where, folder = place
    policy = read_result(folder)["policy"]["artifact"]
    (folder / "result.json").rename(folder / "failure.json")
    assert policy not in marked(where) and not any(n.startswith("sft-6") for n in marked(where))
    assert {policy, folder.name} <= marked(where, failed=True)
    (folder / "failure.json").unlink()  # neither finished nor failed: interrupted
    assert policy not in marked(where) and folder.name not in marked(where, failed=True)
    assert "checkpoint" not in marked(where)


def test_two_runs_share_an_artifact_until_both_are_named(place):
    where, folder = place
    other = folder.with_name("seed0-ffffffffffff")
    shutil.copytree(folder, other)
    policy = read_result(folder)["policy"]["artifact"]
    assert policy not in marked(where, policies=[folder])
    assert policy in marked(where, policies=[folder, other])


def test_older_than_marks_only_what_is_old(place):
    where, _ = place
    old = where / "artifacts" / "sft-0000000000000000"
    os.utime(old, (time.time() - 10 * 86400,) * 2)
    done = command("clean", "--results", where, "--delete", "--older-than", "7")
    assert done.code == 0 and not old.exists() and "1 marked" in done.out, done.text


def test_clean_deletes_nothing_while_a_run_is_going_on(place):
    where, folder = place
    with filelock.FileLock(folder / ".lock"):
        done = command("clean", "--results", where, "--delete")
    assert done.code == 3 and "is in use: nothing was deleted" in done.err
    assert (where / "artifacts" / "sft-0000000000000000").exists()


def test_clean_counts_a_file_with_two_links_once(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a", tmp_path / "b")
    assert cleaning.size_of([tmp_path]) == 1000


def test_clean_refuses_a_folder_that_is_not_there(tmp_path):
    done = command("clean", "--results", tmp_path / "none")
    assert done.code == 2 and "there is no such folder" in done.err
    assert json.dumps(done.out) == '""'
