"""Sharded weights: two processes do what one does, and each holds half of every model."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from harness.check import Options
from harness.check.trials import Trials
from harness.check.two_processes import together
from harness.core.execution import SHARDED

from ..helpers.registries import sampled, small_registry
from ..helpers.tools import (
    ENV,
    ROOT,
    command,
    finished,
    fresh,
    launched,
    on_small,
    only_run,
    outputs,
    with_shared_stages,
)

# of models that are sharded, beside whole ones: see the helper
CHECKS = {
    "policy": False,
    "frozen": False,
    "checkpoint": False,
    "tied": True,  # slow
    "adapter": True,
    "critic": True,
    "export": True,
    "empty_part": True,
    "moved": True,
    "mixture": True,
    "bfloat16": True,
}


@cache
def checked(slow):
    """The output of two processes that compute the checks, all in one start."""
    names = [name for name, takes_long in CHECKS.items() if slow or not takes_long]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "sharded_models.py", *names],
        capture_output=True,
        text=True,
        env={**os.environ, **ENV, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        timeout=500,
        encoding="utf-8",
    )
    return done.stdout, done.stderr


def test_sharded_models_compute_what_whole_ones_do():
    """Steps, log-probabilities, draws, checkpoints and exports, on tiny models."""
    out, err = checked(False)
    for name, slow in CHECKS.items():
        assert slow or f"checked {name}\n" in out, err[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, slow in CHECKS.items() if slow])
def test_other_sharded_models_compute_what_whole_ones_do(name):
    out, err = checked(True)
    assert f"checked {name}\n" in out, err[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("method", sampled(of=("dpo",)))
def test_method_trains_sharded_as_one_process_does(method):
    """A training in two processes, their models sharded, has the metrics of one process."""
    registry, results = small_registry(), with_shared_stages("sharded")
    bench = Trials(method, "small", registry, Options(suite="small", results=results))
    try:
        if not bench.whole.rows:
            return
        options = Options(suite="small", results=results)
        rows = together([(method, "small")], registry, options, SHARDED)
        print(bench.two_processes(rows[method]))
    finally:
        bench.close()


VARIANTS = {
    "an adapter": ("dpo", "lora_rank=4"),
    "adapters of policy and critic": ("ppo", "lora_rank=4"),
    "a critic on the trunk of the policy": ("ppo", "shared_critic=true"),
    "two reward models that are trained on": ("grpo", "reward_members=2", "reward_refresh=1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_models_beside_the_policy_are_sharded_too(name):
    method, *settings = VARIANTS[name]
    registry, results = small_registry(), with_shared_stages("variants")
    options = Options(suite="small", settings=tuple(settings), results=results)
    bench = Trials(method, "small", registry, options)
    try:
        rows = together([(method, "small")], registry, options, SHARDED)
        print(bench.two_processes(rows[method]))
    finally:
        bench.close()


def rows(folder, name):
    text = (folder / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def sharded_run(results, err):
    """Start a sharded run in two processes; its messages go to a file."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    more = ["--shard", "full", "--set", "steps=12", "--checkpoint-every", "1steps"]
    asked = [sys.executable, *launcher, "-m", "harness", *on_small("dpo", *more, results=results)]
    with err.open("w", encoding="utf-8") as stream:
        return subprocess.Popen(
            [*map(str, asked)], env={**os.environ, **ENV}, stdout=stream, stderr=stream
        )


def process_of_rank(launcher, rank):
    """Return the process id of a rank that a launcher has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            names = (folder / "environ").read_bytes().split(b"\0")
            if int(parent) == launcher.pid and f"RANK={rank}".encode() in names:
                return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_run_ends_when_a_process_is_killed_and_resumes(rank, tmp_path):
    """Both processes end within a minute, in at most one message; the same command goes on, and
    ends in the bytes of an undisturbed run.
    """
    where, whole = with_shared_stages(f"killed{rank}"), with_shared_stages(f"whole{rank}")
    begun = sharded_run(where, tmp_path / "err")
    rows, until = [], time.monotonic() + 300
    while len(rows) < 4 and time.monotonic() < until and begun.poll() is None:
        time.sleep(0.02)
        files = list(where.glob("runs/small/dpo/*/metrics.jsonl"))
        rows = files[0].read_text("utf-8").splitlines() if files else []
    other = process_of_rank(begun, 1 - rank)
    os.kill(process_of_rank(begun, rank), signal.SIGKILL)
    killed = time.monotonic()
    assert begun.wait(60) != 0
    while Path(f"/proc/{other}").exists() and time.monotonic() - killed < 60:
        time.sleep(0.1)
    assert not Path(f"/proc/{other}").exists(), "the other process goes on"
    text = (tmp_path / "err").read_text("utf-8")
    assert text.count("harness: ") <= 1 and 4 <= len(rows) < 12
    for results in (where, whole):
        assert sharded_run(results, tmp_path / "err").wait(300) == 0, (tmp_path / "err").read_text()
    folders = [only_run(results, "small", "dpo") for results in (where, whole)]
    assert outputs(folders[0]) == outputs(folders[1]) and len(outputs(folders[0])) == 3
    record = json.loads((folders[0] / "result.json").read_text("utf-8"))
    assert record["runtime"]["resumed_after_turns"]


@pytest.mark.slow
def test_sharded_run_is_recorded_and_saved_as_that_of_one_process():
    results = with_shared_stages("sharded-run")
    done = launched("-m", "harness", *on_small("dpo", "--shard", "full", results=results))
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = only_run(results, "small", "dpo"), finished("dpo")
    for a, b in zip(rows(ours, "metrics.jsonl"), rows(theirs, "metrics.jsonl"), strict=True):
        assert a == {name: pytest.approx(v, rel=2e-2, abs=2e-3) for name, v in b.items()}
    records = [json.loads((f / "result.json").read_text(encoding="utf-8")) for f in (ours, theirs)]
    used = [record["execution"]["evaluation"]["shard"] for record in records]
    assert used == ["full", "none"] and ours.name == theirs.name  # in no name
    sizes = [(f / "policy" / "model.safetensors").stat().st_size for f in (ours, theirs)]
    assert sizes[0] == sizes[1]
    again = command(*on_small("dpo", results=results))  # the policy and the record are whole
    assert again.code == 0, again.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "this run has one. Start several: torchrun --standalone"),
        (("--weights", "bfloat16", "--shard", "half"), "'half' is not one of 'none', 'full'"),
    ],
)
def test_sharding_is_refused_where_it_cannot_be(options, message):
    done = command(*on_small("dpo", "--shard", "full", *options, results=fresh("refused")))
    assert done.code != 0 and message in done.text.replace("\n", " "), done.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "nf4"), "weights in nf4 are not sharded"),
        (("--engine", "cuda_graphs"), "cannot read sharded weights"),
    ],
)
def test_what_cannot_be_sharded_is_refused(options, message):
    from harness.api.resolve import Request, resolve
    from harness.core.errors import UsageError
    from harness.experiments.prepare import check_sharding

    names = {"--weights": "weights", "--engine": "engine"}
    fixed = {"shard": "full", "processes": 2, names[options[0]]: options[1]}
    adapters = ("sft.lora_rank=4", "reward_model.lora_rank=4") if options[1] == "nf4" else ()
    settings = ("lora_rank=4",) if adapters else ()
    request = Request("dpo", "small", settings, stage_settings=adapters, fixed=fixed)
    spec = resolve(request, small_registry())
    with pytest.raises(UsageError, match=message):
        check_sharding(spec)
