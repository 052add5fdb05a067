"""The Slurm launcher, on programs that answer like Slurm's: see tests/helpers/fake_slurm.py."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness_plugins.launcher_slurm import Slurm

from harness.core.errors import HarnessError
from harness.core.jobs import BEGUN, LOST, Job, Resources
from harness.experiments.study.work import last_line

from ..helpers import fake_slurm
from ..helpers.studies import wait_for


@dataclass(frozen=True)
class Shell(Job):
    """A job that is a shell script."""

    def command(self, python, node="", address="", port=""):
        place = [node, address, port] if node else []
        return ["sh", "-c", *self.arguments, *place]


class Terminated(BaseException):
    """As SIGTERM to the study."""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with a fake Slurm, whose jobs are ended with the test."""
    root = tmp_path / "fake"
    monkeypatch.setenv("PATH", f"{fake_slurm.install(root)}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    yield root
    for name in fake_slurm.states(root):
        (root / "cancel" / name).touch()
    wait_for(lambda: not {"PENDING", "RUNNING"}.intersection(fake_slurm.states(root).values()))


def shell(tmp_path, name, script, after=(), **more):
    return Shell(name, (script,), tmp_path / "logs" / f"{name}.log", key=name, after=after, **more)


def run(jobs, started=lambda job: None, **options):
    ended = []
    launcher = Slurm(**{"poll": 0.2, "patience": 1.0, **options})
    launcher.run(jobs, started, lambda job, code: ended.append((job.name, code)))
    return dict(ended)


def scripts(root):
    return [file.read_text() for file in sorted((root / "calls").iterdir())]


def test_alike_jobs_are_one_array_and_their_statuses_come_back(slurm, tmp_path):
    begun = []
    jobs = [shell(tmp_path, f"j{code}", f"echo out; exit {code}") for code in (0, 3, 137)]
    assert run(jobs, lambda job: begun.append(job.name)) == {"j0": 0, "j3": 3, "j137": -9}
    assert sorted(begun) == ["j0", "j137", "j3"] and len(scripts(slurm)) == 1
    assert last_line(jobs[0].log) == "out" and BEGUN in jobs[0].log.read_text()


def test_what_a_job_asks_for_is_asked_of_sbatch_and_no_secret_is_written(slurm, tmp_path):
    resources = Resources(gpus=2, cpus=3, memory=1.5, minutes=7)
    asked = {"resources": resources, "environment": (("MY_KEY", "hush-hush"),)}
    options = {"partition": "low", "account": "lab", "qos": "q", "options": ["--nice=5"]}
    job = shell(tmp_path, "a", "echo $OMP_NUM_THREADS $READY", threads=2, **asked)
    assert run([job], at_once=4, setup="export READY=yes", **options) == {"a": 0}
    (script,) = scripts(slurm)
    for line in (
        "gpus-per-node=2",
        "cpus-per-task=3",
        "mem=1536M",
        "time=7",
        "nodes=1",
        "partition=low",
        "account=lab",
        "qos=q",
        "nice=5",
        "array=0-0%4",
        "requeue",
    ):
        assert f"#SBATCH --{line}\n" in script, script
    assert last_line(job.log) == "2 yes"
    assert not any(b"hush-hush" in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())


def test_job_begins_after_those_it_waits_for_and_not_where_one_failed(slurm, tmp_path):
    stages = shell(tmp_path, "stages", "sleep 0.5; echo made > made")
    good = shell(tmp_path, "good", "cat made", (stages,))
    broken = shell(tmp_path, "broken", "exit 1")
    blocked = shell(tmp_path, "blocked", "echo never", (broken,))
    ended = run([stages, broken, good, blocked])
    assert ended == {"stages": 0, "good": 0, "broken": 1, "blocked": LOST}
    assert last_line(good.log) == "made" and not blocked.log.exists()


def test_preempted_job_is_no_end_and_goes_on(slurm, tmp_path):
    job = shell(tmp_path, "a", "if [ -e half ]; then exit 0; fi; touch half; exec sleep 60")

    def preempt(job):
        wait_for((Path.cwd() / "half").exists)
        (name,) = fake_slurm.states(slurm)
        (slurm / "preempt" / name).touch()

    assert run([job], preempt) == {"a": 0}
    assert job.log.read_text().count(BEGUN) == 2  # and its log was appended to


def test_ctrl_c_cancels_and_leaves_nothing(slurm, tmp_path):
    jobs = [shell(tmp_path, f"j{i}", "exec sleep 60") for i in range(4)]

    def interrupt(job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(jobs, interrupt)
    assert set(fake_slurm.states(slurm).values()) == {"CANCELLED"}


def test_sigterm_leaves_the_jobs_and_the_same_call_finds_them(slurm, tmp_path, capsys):
    stages = shell(tmp_path, "stages", "exit 0")
    jobs = [shell(tmp_path, f"j{i}", "sleep 2; echo done", (stages,)) for i in range(3)]

    def terminate(job):
        if job in jobs:
            raise Terminated

    with pytest.raises(Terminated):
        run([stages, *jobs], terminate)
    assert "stay in the Slurm queue" in capsys.readouterr().err
    assert run([stages, *jobs]) == {"j0": 0, "j1": 0, "j2": 0}
    assert len(scripts(slurm)) == 2  # one of the stages and one of the others: none twice
    assert all(job.log.read_text().count(BEGUN) == 1 for job in jobs)
    assert run(jobs[:1]) == {"j0": 0} and len(scripts(slurm)) == 3  # control: it is over


def test_study_that_was_killed_between_sbatch_and_its_answer_finds_its_job(
    slurm, tmp_path, monkeypatch
):
    """What is submitted is written down before."""
    job = shell(tmp_path, "a", "sleep 2")
    monkeypatch.setattr("harness_plugins.launcher_slurm.Place", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run([job])
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{slurm / 'bin'}:{os.environ['PATH']}")
    assert run([job]) == {"a": 0} and len(scripts(slurm)) == 1


def test_job_that_somebody_cancels_is_lost(slurm, tmp_path):
    def cancel(job):
        (name,) = fake_slurm.states(slurm)
        (slurm / "cancel" / name).touch()

    assert run([shell(tmp_path, "a", "exec sleep 60")], cancel) == {"a": LOST}


def test_controller_that_is_away_costs_no_job(slurm, tmp_path, capsys):
    job = shell(tmp_path, "a", f"touch {slurm}/down; sleep 1; rm {slurm}/down; sleep 1")
    assert run([job], patience=0.3) == {"a": 0}
    assert "Unable to contact controller" in capsys.readouterr().err


def test_errors_of_slurm_are_one_message(slurm, tmp_path, monkeypatch):
    job = shell(tmp_path, "a", "exit 0")
    (slurm / "full").touch()
    with pytest.raises(HarnessError, match="sbatch failed.*QOSMaxSubmitJobPerUserLimit"):
        run([job])
    (slurm / "down").touch()
    with pytest.raises(HarnessError, match="squeue does not answer"):
        run([job])
    monkeypatch.setenv("PATH", "/usr/bin-of-none")
    with pytest.raises(HarnessError, match="squeue"):
        run([job])


def test_job_of_two_nodes_starts_its_part_on_each(slurm, tmp_path):
    job = shell(tmp_path, "a", "echo node $0 of $1 port $2", resources=Resources(nodes=2))
    assert run([job]) == {"a": 0}
    lines = sorted(job.log.read_text().splitlines())
    assert [line.rpartition(" ")[0] for line in lines if line.startswith("node")] == [
        "node 0 of 127.0.0.1 port",
        "node 1 of 127.0.0.1 port",
    ]


def test_locks_are_tried_on_a_node_where_one_is_free(slurm, tmp_path):
    launcher = Slurm(partition="low")
    assert launcher.elsewhere(["-c", "raise SystemExit(11)"]) == 11
    (slurm / "bin" / "srun").write_text("#!/bin/sh\nexit 1\n")  # no node within the time
    assert launcher.elsewhere(["-c", ""]) is None
