"""The local launcher: a GPU for each job, what a job asks for, logs, minutes, two processes."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness_plugins.launcher_local import Local, Machine, gpus_here

from harness.core.errors import UsageError
from harness.core.jobs import BEGUN, Job, Resources
from harness.experiments.study.work import last_line

from ..helpers.studies import processes_of, wait_for
from ..helpers.tools import ENV, plugin

# Waits until so many jobs run side by side, then prints the GPUs of this one.
TOGETHER = """
touch {folder}/$$
while [ $(ls {folder} | wc -l) -lt {jobs} ]; do sleep 0.05; done
echo "GPUs $CUDA_VISIBLE_DEVICES"
"""


@dataclass(frozen=True)
class Shell(Job):
    """A job that is a shell script."""

    def command(self, python, node="", address="", port=""):
        return ["sh", "-c", *self.arguments]


def shell(tmp_path, number, script, **resources):
    return Shell(
        str(number), (script,), tmp_path / f"{number}.log", resources=Resources(**resources)
    )


def run(launcher, jobs):
    ended = {}
    launcher.run(jobs, lambda job: None, lambda job, code: ended.update({job.name: code}))
    return ended


def test_eight_jobs_get_eight_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,GPU-7f")
    (tmp_path / "running").mkdir()
    script = TOGETHER.format(folder=tmp_path / "running", jobs=8)
    jobs = [shell(tmp_path, number, script) for number in range(8)]
    assert set(run(Local(jobs=8), jobs).values()) == {0}
    assert sorted(last_line(job.log) for job in jobs) == [
        f"GPUs {name}" for name in ("0", "1", "2", "3", "4", "5", "6", "GPU-7f")
    ]


def test_gpus_are_those_that_are_visible(monkeypatch):
    for visible, names in (("", []), ("-1", []), ("3, 5", ["3", "5"]), ("1,-1,2", ["1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus_here() == names
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(gpus_here()) == len(list(Path("/dev").glob("nvidia[0-9]*")))


def machine(gpus=4, jobs=0):
    return Machine([str(i) for i in range(gpus)], cores=16, memory=100.0, jobs=jobs)


def taken(place, jobs):
    return [job.name for job in jobs if place.take(job)]


def test_gpus_that_are_asked_for_are_a_job_s_own(tmp_path):
    place = machine()
    jobs = [shell(tmp_path, n, "", gpus=2) for n in range(3)]
    assert taken(place, jobs) == ["0", "1"]
    assert [place.gpus_of(job) for job in jobs[:2]] == [["0", "1"], ["2", "3"]]
    place.release(jobs[0])
    assert place.take(jobs[2]) and place.gpus_of(jobs[2]) == ["0", "1"]


def test_more_jobs_than_gpus_share_them_only_where_jobs_asks_for_it(tmp_path):
    jobs = [shell(tmp_path, n, "") for n in range(9)]
    assert len(taken(machine(), jobs)) == 4
    place = machine(jobs=8)
    assert len(taken(place, jobs)) == 8 and list(place.load.values()) == [2, 2, 2, 2]


def test_cores_and_memory_that_are_asked_for_are_kept(tmp_path):
    assert len(taken(machine(0), [shell(tmp_path, n, "") for n in range(20)])) == 16
    assert len(taken(machine(0), [shell(tmp_path, n, "", cpus=5) for n in range(20)])) == 3
    assert len(taken(machine(0, 9), [shell(tmp_path, n, "", memory=40) for n in range(20)])) == 2
    assert len(taken(machine(0), [shell(tmp_path, n, "", processes=4) for n in range(20)])) == 4


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"nodes": 2}, "asks for 2 nodes, and this machine has 1"),
        ({"gpus": 5}, "asks for 5 GPUs, and this machine has 4"),
        ({"cpus": 17}, "17 CPUs"),
        ({"memory": 101}, "101 GiB"),
    ],
)
def test_job_that_can_never_run_here_is_refused_before_any_is_started(tmp_path, resources, told):
    with pytest.raises(UsageError, match=told):
        machine().check(shell(tmp_path, 0, "", **resources))


def test_log_is_appended_to_and_a_job_over_its_minutes_is_ended(tmp_path):
    job = shell(tmp_path, 0, "echo first; exit 3")
    assert run(Local(), [job]) == {"0": 3} and last_line(job.log) == "first"
    long = shell(tmp_path, 0, "echo second; exec sleep 60", minutes=0.005)
    assert run(Local(), [long]) == {"0": -15}
    assert last_line(job.log) == "ended after 0.005 min, as [resources] asks for."
    assert job.log.read_text().count(BEGUN) == 2 and "first" in job.log.read_text()


SLEEPY = "import os, time\nprint('asleep', os.environ['RANK'], flush=True)\ntime.sleep(600)\n"
PAIR = """
import sys
from pathlib import Path
from harness import Job, Resources
from harness_plugins.launcher_local import Local
job = Job("a", ("list", "-p", sys.argv[1]), Path(sys.argv[2]), resources=Resources(processes=2))
Local(jobs=1).run([job], print, print)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and needs prctl")
def test_no_process_of_torchrun_outlives_a_killed_launcher(tmp_path):
    """The launcher is killed outright, so torchrun is as well, and neither can end the two."""
    file, log = plugin(tmp_path, "sleepy", SLEEPY), tmp_path / "log"
    child = subprocess.Popen([sys.executable, "-c", PAIR, file, log], env={**os.environ, **ENV})
    try:
        wait_for(lambda: log.exists() and log.read_text().count("asleep") == 2)
        assert len(processes_of(file)) >= 4  # the launcher, torchrun, and its two
    finally:
        child.kill()
        child.wait()
    wait_for(lambda: not processes_of(file))
