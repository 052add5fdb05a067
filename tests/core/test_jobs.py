"""Jobs: commands of one and of several processes, environment, what a log says of the last try."""

import pytest

from harness.core.errors import UsageError
from harness.core.jobs import BEGUN, Job, Resources, environment_of, last_attempt
from harness.experiments.study.work import last_line


def job(tmp_path, **resources):
    return Job("a", ("run", "--seed", "1"), tmp_path / "log", 2, Resources(**resources))


def test_job_of_one_process_is_the_command_itself(tmp_path):
    for resources in ({}, {"gpus": 0}, {"gpus": 1}, {"gpus": 4, "processes": 1}):
        command = job(tmp_path, **resources).command("python")
        assert command == ["python", "-m", "harness", "run", "--seed", "1"]


def test_several_processes_are_started_by_torchrun(tmp_path):
    command = job(tmp_path, gpus=4).command("python")
    assert command[:5] == [
        "python",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
    ]
    assert command[5:] == ["4", "-m", "harness", "run", "--seed", "1"]
    many = job(tmp_path, gpus=8, nodes=2).command("python", "1", "10.0.0.1", "29500")
    assert " ".join(many) == (
        "python -m torch.distributed.run --nnodes 2 --node-rank 1 --master-addr 10.0.0.1"
        " --master-port 29500 --nproc-per-node 8 -m harness run --seed 1"
    )


def test_job_wants_a_core_for_every_thread_unless_it_asks_for_others(tmp_path):
    assert [job(tmp_path, **r).cpus for r in ({}, {"gpus": 4}, {"cpus": 3})] == [2, 8, 3]


def test_variables_are_passed_by_name_and_a_missing_one_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setenv("MY_KEY", "hush")
    found = environment_of(["MY_KEY"], "s.toml")
    assert ("HF_HOME", "/models") in found and ("MY_KEY", "hush") in found
    assert "hush" not in repr(Job("a", (), tmp_path, environment=found))
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UsageError, match="MY_KEY.*not set here"):
        environment_of(["MY_KEY"], "s.toml")


def test_log_is_read_from_its_last_attempt_on(tmp_path):
    log = tmp_path / "log"
    assert last_attempt(log) == [] and last_line(log) == ""
    log.write_text("harness: an older message\n")
    assert last_line(log) == "an older message"
    log.write_text(f"harness: an older message\n{BEGUN}on a\n")
    assert last_line(log) == ""
    report = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\nRoot Cause\n===\n"
    log.write_text(f"x\n{BEGUN}on a\nharness: The loss is nan.\n{report}")
    assert last_line(log) == "The loss is nan."
