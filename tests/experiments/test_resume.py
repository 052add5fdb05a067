"""Killed anywhere, a run goes on and ends in the same bytes; budgets, interruption, damaged
checkpoints.
"""

import json
import os
import re
import signal
import time

import pytest

from harness.core.digests import digest_of

from ..helpers.tools import (
    command,
    finished,
    on_small,
    only_run,
    outputs,
    plugin,
    results,
    start,
)
from ..helpers.watched_runs import Watched

# A method that logs and draws before its stream, between two streams, and inside them.
TWO_STREAMS = """
from dataclasses import dataclass

from harness import GradientMethod, hookimpl


@dataclass
class TwoStreams(GradientMethod):
    name = "two_streams"
    needs = frozenset({"pairs", "prompts"})

    outside: bool = False  # log outside of turns

    def train(self, lab):
        lab.state.setdefault("seen", 0)
        if self.outside:
            lab.log(before=1.0)
        lab.generator("noise")
        for pairs in lab.pairs(steps=3, batch_size=4):
            lab.state["seen"] += 1
            lab.step(lambda logp, batch: -logp[:, 0].sum(-1), pairs)
        if self.outside:
            lab.log(between=2.0)
        for prompts in lab.prompts(3, batch_size=4):
            batch = lab.rollout(prompts)
            lab.log(seen=lab.state["seen"], length=batch.lengths.float().mean())
            lab.step(lambda logp, batch: logp.sum((1, 2)) * 0.01, batch)
        return lab.policy


@hookimpl
def register_methods(register):
    register(TwoStreams)
"""


def resumed(run):
    """After how many turns a run went on from its checkpoint, one number per restart."""
    return json.loads((run / "result.json").read_text())["runtime"]["resumed_after_turns"]


@pytest.fixture(scope="module")
def watched():
    return Watched()


def test_ppo_killed_in_every_phase_ends_in_the_same_bytes(watched):
    done, seen = watched.run("ppo", "sft 7")
    assert done.code == -signal.SIGKILL and seen == {"sft": [1, 2, 3, 4, 5, 6, 7]}

    done, seen = watched.run("ppo", "reward_model 5")  # step 7 had been logged but not yet saved
    assert done.code == -signal.SIGKILL and seen == {
        "sft": [7, 8, 9, 10, 11, 12],
        "reward_model": [1, 2, 3, 4, 5],
    }

    done, seen = watched.run("ppo", "ppo 3")
    assert done.code == -signal.SIGKILL and seen["ppo"] == [1, 2, 3]
    assert "sft" not in seen and seen["reward_model"][0] == 5
    # what was trained is on disk already, the turn in which it was killed included
    folder = only_run(watched.folder, "small", "ppo")
    for name, key in (("metrics.jsonl", "step"), ("rollouts.jsonl", "step")):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert {row[key] for row in rows} == {1, 2, 3}, name
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')  # as a crash of the machine may leave it

    done = watched.rest("ppo")
    assert done.code == 0, done.text
    first = re.search(r"^ +ppo +(\d+)/4", done.err, re.M)
    assert first and first[1] == "3" and not re.search(r"^ +(sft|reward_model) ", done.err, re.M)
    assert outputs(only_run(watched.folder, "small", "ppo")) == outputs(finished("ppo"))
    assert len(outputs(finished("ppo"))) == 4
    assert resumed(only_run(watched.folder, "small", "ppo")) == [2]
    assert resumed(finished("ppo")) == []
    assert "2 of 4 turns were not repeated" in done.text.replace("\n", " ")


def test_bill_of_a_killed_run_is_that_of_a_whole_one(watched):
    killed, whole = (
        json.loads((f / "result.json").read_text())["cost"]
        for f in (only_run(watched.folder, "small", "ppo"), finished("ppo"))
    )
    for name in (
        "flops",
        "tokens_generated",
        "tokens_trained",
        "samples",
        "steps",
        "reward_queries",
    ):
        assert killed["method"][name] == whole["method"][name], name
    assert killed["budget_used"] == whole["budget_used"] and killed["labels"] == whole["labels"]
    assert killed["shared_total"]["flops"] == whole["shared_total"]["flops"]


def test_finished_run_leaves_no_checkpoint(watched):
    names = {f.name for f in only_run(watched.folder, "small", "ppo").iterdir()}
    assert names <= {
        "spec.json",
        "provenance.json",
        "result.json",
        "metrics.jsonl",
        "rollouts.jsonl",
        "samples.jsonl",
        "policy",
        ".lock",
    }


def test_dpo_killed_and_its_newest_checkpoint_damaged(watched):
    done, seen = watched.run("dpo", "dpo 5")
    assert done.code == -signal.SIGKILL and seen["dpo"] == [1, 2, 3, 4, 5]
    checkpoints = sorted((only_run(watched.folder, "small", "dpo") / "checkpoint").glob("turn-*"))
    assert [c.name for c in checkpoints] == ["turn-00000003", "turn-00000004"]
    file = checkpoints[-1] / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    done, seen = watched.run("dpo")
    assert done.code == 0 and seen["dpo"] == [4, 5, 6], done.text
    assert "The checkpoint turn-00000004 was damaged; the one before it was used." in done.err
    assert outputs(only_run(watched.folder, "small", "dpo")) == outputs(finished("dpo"))


@pytest.mark.parametrize(
    ("outside", "kill"),
    [
        ("false", 3),
        pytest.param("false", 5, marks=pytest.mark.slow),
        pytest.param("true", 5, marks=pytest.mark.slow),
    ],
)
def test_method_of_two_streams(watched, outside, kill):
    finished("ppo")  # its artifacts
    seed = kill + (outside == "true")
    more = (
        "-p",
        plugin(watched.folder, "two", TWO_STREAMS),
        "--set",
        f"outside={outside}",
        "--seed",
        seed,
    )
    done = command(*on_small("two_streams", *more, results=results()))
    assert done.code == 0, done.text
    done, seen = watched.run("two_streams", f"two_streams {kill}", *more)
    assert done.code == -signal.SIGKILL and seen["two_streams"] == [1, 2, 3, 1, 2][:kill]
    assert watched.rest("two_streams", *more).code == 0
    folders = sorted((results() / "runs" / "small" / "two_streams").glob(f"seed{seed}-*"))
    assert len(folders) == 1
    assert outputs(folders[0]) == outputs(
        watched.folder / "runs" / "small" / "two_streams" / folders[0].name
    )


def test_interrupted_run_says_how_to_go_on(watched):
    log = watched.folder / "watched"
    log.write_text("")
    more = ["--seed", 1, "--set", "steps=100000", "-p", watched.watcher]
    begun = start(*on_small("dpo", *more, results=watched.folder), env={"WATCHED": str(log)})
    for _ in range(600):
        if "dpo 2\n" in log.read_text():
            break
        time.sleep(0.1)
    os.kill(begun.pid, signal.SIGINT)
    done = begun.finish()
    assert done.code == 130 and "Interrupted. Run the same command again to go on." in done.err
    assert "Traceback" not in done.text


def test_run_resumed_with_other_execution_settings_goes_on_and_records_both(watched):
    seed = ("--seed", 7)
    done, seen = watched.run("dpo", "dpo 3", *seed)
    assert done.code == -signal.SIGKILL and seen["dpo"] == [1, 2, 3]
    done = watched.rest("dpo", *seed, "--micro-batch-tokens", 512)
    assert done.code == 0, done.text
    (folder,) = (watched.folder / "runs/small/dpo").glob("seed7-*")
    result = json.loads((folder / "result.json").read_text())
    execution, pins = result["execution"], result["pins"].values()
    sizes = [settings["micro_batch_tokens"] for settings in execution["training"]]
    assert sizes == [16384, 512] and execution["evaluation"]["micro_batch_tokens"] == 512
    made = {pin["kind"]: pin["execution"] for pin in pins}
    assert made["policy"] == execution["training"]
    assert [s["micro_batch_tokens"] for s in made["sft"]] == [16384]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    again = watched.rest("dpo", *seed, "--threads", 3)  # finished: only told
    told = "computed with threads 1, not 3, micro_batch_tokens 512, not 16384"
    assert again.code == 0 and told in again.err


def test_checkpoint_of_other_shared_stages_is_not_resumed(watched):
    seed = ("--seed", 8)
    done, seen = watched.run("dpo", "dpo 3", *seed)
    assert done.code == -signal.SIGKILL and seen["dpo"] == [1, 2, 3]
    (state,) = (watched.folder / "runs/small/dpo").glob("seed8-*/checkpoint/turn-00000002/*.json")
    told = json.loads(state.read_text())
    told["stages"]["sft"] = "0" * 64  # as if the artifact had been made again with other bytes
    told.pop("seal")
    state.write_text(json.dumps(told | {"seal": digest_of(told)}))
    done, seen = watched.run("dpo", "", *seed)
    assert done.code == 0 and "training began anew" in done.err, done.text
    assert seen["dpo"][:2] == [2, 3]  # from the checkpoint before, which is of these stages


def test_budget_of_steps_is_kept_and_recorded(watched):
    done, seen = watched.run("dpo", "", "--budget", "steps=2")
    assert done.code == 0 and seen["dpo"] == [1, 2], done.text
    (result,) = [
        r
        for r in (
            json.loads(f.read_text()) for f in watched.folder.glob("runs/small/dpo/*/result.json")
        )
        if r["cost"]["budget_used"]["steps"] == 2
    ]
    assert result["cost"]["method"]["steps"] == 2
