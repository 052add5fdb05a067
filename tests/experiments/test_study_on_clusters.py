"""Studies on clusters end in the bytes of a serial study, whatever is killed on the way.

The one on programs that answer like Slurm's is in the default run. Those on a real Slurm and on a
real Ray are checks of their own: `.ci/slurm` and `.ci/ray`.
"""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest

from harness.core.jobs import BEGUN

from ..helpers import fake_slurm, real_slurm
from ..helpers.studies import FORKED, method, processes_of, results_of, wait_for, write
from ..helpers.tools import ENV, command, launched, on_small, plugin

# runs of many seconds: what kills a machine takes some
LONGER = "set = {steps = 150}"
TWELVE = "seeds = 3\n" + method("start")
TWELVE += "".join(method(name, LONGER) for name in ("sft_chosen", "dpo", "ipo"))
LONG = 3600  # seconds: a loaded machine is slow


def study(file, results, launcher, env=None, **options):
    """Start a study in a process of its own."""
    asked = [sys.executable, "-m", "harness", "study", str(file), "--results", str(results)]
    asked += ["--launcher", launcher]
    for name, value in options.items():
        asked += ["--launcher-set", f"{name}={value}"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(asked, env={**os.environ, **ENV, **(env or {})}, **streams)


def finished(results):
    return len(list(results.glob("runs/*/*/*/result.json")))


def busy(results, least, running):
    """Whether so many runs are finished, and so many are under way."""
    begun = len(list(results.glob("runs/*/*/*/spec.json")))
    done = finished(results)
    return done >= least and begun - done >= running


def training(results):
    """Whether a run that is under way has written a checkpoint."""
    return any(results.glob("runs/*/*/*/checkpoint/turn-*/state.json"))


def serial(tmp_path, file):
    """The records of the same study, one run after another on this machine."""
    done = command("study", file, "--results", tmp_path / "serial", "--launcher", "forked")
    assert done.code == 0, done.text
    return results_of(tmp_path / "serial")


def went_on(results):
    """{run: after how many turns it went on from a checkpoint} of the runs that did."""
    files = results.glob("runs/*/*/*/result.json")
    runtimes = {f.parent.name: json.loads(f.read_text())["runtime"] for f in files}
    turns = {name: runtime["resumed_after_turns"] for name, runtime in runtimes.items()}
    return {name: after for name, after in turns.items() if after}


def attempts(results):
    """{log: how often the job was begun} of the runs of a study."""
    logs = results.glob("studies/*/logs/*.log")
    return {log.name: log.read_text().count(BEGUN) for log in logs}


@pytest.mark.slow
def test_study_in_a_queue_outlives_its_process(tmp_path, monkeypatch):
    root = tmp_path / "fake"
    monkeypatch.setenv("PATH", f"{fake_slurm.install(root)}:{os.environ['PATH']}")
    file = write(
        tmp_path,
        "seeds = 2\n" + method("start"),
        "queued",
        plugins=[plugin(tmp_path, "forked", FORKED)],
    )
    queued, options = tmp_path / "queued", {"poll": 0.3, "patience": 2}
    first = study(file, queued, "slurm", **options)
    wait_for(lambda: list(queued.glob("studies/*/logs/start*.log")), 300)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 143 and "stay in the Slurm queue" in said, said
    assert {"PENDING", "RUNNING"}.intersection(fake_slurm.states(root).values())
    second = study(file, queued, "slurm", **options)
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 0 and "2 done" in said, said
    assert "in the Slurm queue already" in said and set(attempts(queued).values()) == {1}
    assert [log for log in attempts(queued) if log.startswith("stages-")]  # made first, in a job
    assert results_of(queued) == serial(tmp_path, file) and not processes_of(queued)


@pytest.mark.slow
@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("resources", ["{processes = 2}", "{nodes = 2}"])
def test_job_of_two_processes_gives_what_two_on_one_machine_give(tmp_path, monkeypatch, resources):
    """Two on one node by `local`, and one on each of two nodes by Slurm's srun."""
    monkeypatch.setenv("PATH", f"{fake_slurm.install(tmp_path / 'fake')}:{os.environ['PATH']}")
    nodes = "nodes" in resources
    file = write(tmp_path, method("dpo", f"resources = {resources}"), "pair")
    options = {"poll": 0.5, "patience": 2} if nodes else {}
    job = study(file, tmp_path / "job", "slurm" if nodes else "local", **options)
    said = job.communicate(timeout=LONG)[0]
    assert job.returncode == 0 and "1 done" in said, said
    by_hand = launched(
        "-m", "harness", *on_small("dpo", "--threads", "1", results=tmp_path / "two")
    )
    assert by_hand.returncode == 0, by_hand.stderr
    assert results_of(tmp_path / "job") == results_of(tmp_path / "two")
    (run,) = (tmp_path / "job" / "runs").glob("*/*/*")
    used = json.loads((run / "result.json").read_text())["execution"]
    assert used["evaluation"]["processes"] == 2


@pytest.mark.slurm
@pytest.mark.timeout(2 * LONG)
@pytest.mark.skipif(
    bool(real_slurm.missing()), reason=f"not installed: {', '.join(real_slurm.missing())}"
)
def test_study_on_slurm_is_preempted_left_and_given_again(tmp_path):
    file = write(tmp_path, TWELVE, "twelve", plugins=[plugin(tmp_path, "forked", FORKED)])
    results = tmp_path / "slurm"
    options = {"partition": "low", "poll": 1, "patience": 20}
    cluster = real_slurm.Slurm(tmp_path / "cluster")
    try:
        first = study(file, results, "slurm", cluster.env, **options)
        wait_for(lambda: busy(results, 2, 1), LONG)
        cluster.ask("sbatch", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
        wait_for(lambda: not cluster.queue("-t", "RUNNING", "-p", "low"), 120)
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=120)[0]
        assert first.returncode == 143 and "stay in the Slurm queue" in said, said
        left, done = len(cluster.queue()), finished(results)
        assert left > 2
        cluster.release()
        wait_for(lambda: finished(results) > done, LONG)  # without the study
        second = study(file, results, "slurm", cluster.env, **options)
        said = second.communicate(timeout=LONG)[0]
        assert second.returncode == 0 and "12 done" in said, said
        assert "in the Slurm queue already" in said, said
        assert not cluster.queue() and not processes_of(results)
    finally:
        cluster.stop()
    again = [log for log, count in attempts(results).items() if count > 1]
    assert again, attempts(results)  # what was preempted was begun again
    print("begun again:", again, "after turns:", went_on(results))
    assert results_of(results) == serial(tmp_path, file)


@pytest.mark.ray
@pytest.mark.timeout(2 * LONG)
@pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: see .ci/ray")
def test_study_on_ray_outlives_two_nodes_and_its_driver(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a loaded machine 15 stands still

    file = write(tmp_path, TWELVE, "twelve", plugins=[plugin(tmp_path, "forked", FORKED)])
    results, said = tmp_path / "ray", ""
    often = {"HARNESS_CHECKPOINT_EVERY": "1steps"}
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    try:
        driver = study(file, results, "ray", often, address=cluster.address)
        for least in (1, 3):
            wait_for(lambda least=least: busy(results, least, 2) and training(results), LONG)
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))
        wait_for(lambda: busy(results, 5, 1) and training(results), LONG)
        driver.kill()
        driver.communicate(timeout=60)
        wait_for(lambda: not processes_of(results), 120)  # its tasks end with it
        assert finished(results) < 12
        driver = study(file, results, "ray", often, address=cluster.address)
        said = driver.communicate(timeout=LONG)[0]
        assert driver.returncode == 0 and "12 done" in said, said
        assert not processes_of(results)
    finally:
        cluster.shutdown()
    again = {log: count for log, count in attempts(results).items() if count > 1}
    print("begun again:", again, "after turns:", went_on(results))
    assert len(again) >= 2 and not re.search("lost|killed", said), (again, said)
    assert went_on(results), attempts(results)  # a lost run went on from its checkpoint
    assert results_of(results) == serial(tmp_path, file)
