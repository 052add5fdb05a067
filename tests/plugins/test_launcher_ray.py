"""The Ray launcher on a Ray of this file, whose tasks end as a test says.

A study on a real cluster is in tests/experiments/test_study_on_clusters.py.
"""

import os
import signal
import sys

import pytest
from harness_plugins import launcher_ray
from harness_plugins.launcher_ray import Ray, carry_out

from harness.core.errors import HarnessError
from harness.core.jobs import BEGUN, LOST, Job, Resources
from harness.experiments.study.work import last_line


class RayError(Exception):
    """As Ray's own."""


class FakeRay:
    """Ray, as far as the launcher calls it; `outcomes` are by the name of a job, in order."""

    exceptions = type("exceptions", (), {"RayError": RayError})

    def __init__(self, **outcomes):
        self.outcomes, self.submitted, self.cancelled = outcomes, [], []

    def remote(self, function):
        fake = self

        class Task:
            def options(self, **options):
                self.asked = options
                return self

            def remote(self, command, log, variables, minutes, *place):
                name = self.asked["name"]
                fake.submitted.append((name, self.asked, command, place))
                return (len(fake.submitted), name)

        return Task()

    def wait(self, refs, num_returns, timeout):
        return [ref for ref in refs if self.outcomes[ref[1]][0] != "runs"][:1], []

    def get(self, ref):
        outcome = self.outcomes[ref[1]].pop(0)
        if outcome == "lost":
            raise RayError("The node died.\nMore.")
        return {"status": outcome, "overdue": False}

    def cancel(self, ref, force):
        self.cancelled.append(ref[1])

    def shutdown(self):
        self.cancelled.append("shutdown")


def job(tmp_path, name, after=(), **resources):
    return Job(name, ("list",), tmp_path / f"{name}.log", 2, Resources(**resources), name, after)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs jobs on a fake Ray; returns how they ended."""
    monkeypatch.setattr(launcher_ray, "PAUSE", 0.001)

    def run(jobs, fake, **options):
        monkeypatch.setattr(launcher_ray, "connect", lambda address: fake)
        ended = []
        Ray(**options).run(jobs, lambda job: None, lambda job, code: ended.append((job.name, code)))
        assert len(dict(ended)) == len(ended)  # each ends once
        return dict(ended)

    return run


def test_lost_job_is_started_again_as_often_as_the_launcher_says(run, tmp_path):
    jobs = [job(tmp_path, name) for name in ("a", "b", "c")]
    fake = FakeRay(a=[0], b=["lost", "lost", 5], c=["lost"] * 3)
    assert run(jobs, fake, retries=2) == {"a": 0, "b": 5, "c": LOST}
    assert [name for name, *_ in fake.submitted].count("b") == 3
    assert last_line(jobs[2].log) == "RayError: The node died."


def test_interrupted_job_is_no_end(run, tmp_path):
    assert run([job(tmp_path, "a")], FakeRay(a=[143, -15, 0])) == {"a": 0}


def test_run_that_a_lost_machine_still_holds_is_tried_again(run, tmp_path):
    """Negative control: one that is refused at its first attempt is refused."""
    jobs = [job(tmp_path, "a"), job(tmp_path, "b")]
    assert run(jobs, FakeRay(a=["lost", 3, 0], b=[3])) == {"a": 0, "b": 3}


def test_jobs_wait_for_their_stages_and_are_not_begun_where_those_failed(run, tmp_path):
    good, bad = job(tmp_path, "good"), job(tmp_path, "bad")
    jobs = [good, bad, job(tmp_path, "a", (good,)), job(tmp_path, "b", (bad,))]
    fake = FakeRay(good=[0], bad=[1], a=[0], b=[0])
    assert run(jobs, fake) == {"good": 0, "bad": 1, "a": 0, "b": LOST}
    assert [name for name, *_ in fake.submitted] == ["good", "bad", "a"]


def test_what_a_job_asks_for_is_asked_of_ray(run, tmp_path):
    fake = FakeRay(a=[0])
    run([job(tmp_path, "a", gpus=4, memory=2)], fake, python="/there/python")
    _, asked, command, place = fake.submitted[0]
    assert (asked["num_gpus"], asked["num_cpus"], asked["memory"]) == (4, 8, 2 * 2**30)
    assert command[0] == "/there/python" and "torch.distributed.run" in command and place == ()
    assert asked["max_retries"] == 0  # the launcher counts them


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_whatever_ends_the_study_cancels_its_tasks(tmp_path, monkeypatch, error):
    fake = FakeRay(a=["runs"], b=["runs"])
    monkeypatch.setattr(launcher_ray, "connect", lambda address: fake)
    jobs = [job(tmp_path, "a"), job(tmp_path, "b")]
    jobs[0].log.touch()

    def wait(*args, **options):
        raise error

    fake.wait = wait
    with pytest.raises(error):
        Ray().run(jobs, print, print)
    assert fake.cancelled == ["a", "b", "shutdown"]


def test_sigterm_is_raised_after_ray_and_not_inside(run, tmp_path):
    """Ray's own code turns an exception of a signal handler into a SystemError."""
    fake, inside = FakeRay(a=[0]), []
    usual = fake.wait

    def wait(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        inside.append("went on")
        return usual(*args, **options)

    def terminate(number, frame):
        raise SystemExit(143)

    fake.wait, before = wait, signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(SystemExit):
            run([job(tmp_path, "a")], fake)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert inside == ["went on"] and fake.cancelled[-1] == "shutdown"


def test_task_fills_in_its_node_and_ends_over_its_minutes(tmp_path):
    log = tmp_path / "log"
    show = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "{node}", "{address}"]
    ended = carry_out(show, str(log), {}, 0, "1", ("10.0.0.1", "29500"))
    assert ended == {"status": 0, "overdue": False}
    assert last_line(log) == "['1', '10.0.0.1']" and log.read_text().startswith(BEGUN)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert carry_out(sleep, str(log), {}, 0.005) == {"status": -15, "overdue": True}
    assert last_line(log).startswith("ended after 0.005 min")


@pytest.mark.skipif("ray" in sys.modules, reason="Ray is imported")
def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HarnessError, match=r"pip install 'alignment-harness\[ray\]'"):
        launcher_ray.connect("auto")
