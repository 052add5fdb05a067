"""Two processes do what one does: the same samples, the same metrics, one record; through
`torchrun`.
"""

import json

import pytest
import torch

from harness.api.registry import installed
from harness.core.distributed import ALONE, DistributedContext, merged

from ..helpers.tools import finished, fresh, launched, on_small, only_run

METHODS = [
    "ppo",
    "best_of_n",
]  # through the whole command; test_every_method.py trains them all in two processes


@pytest.fixture(scope="module")
def folder():
    return fresh("team")


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_do_what_one_does(method, folder):
    done = launched("-m", "harness", *on_small(method, results=folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"{method} on small, seed 0") == 1  # one of them speaks
    together, alone = only_run(folder, "small", method), finished(method)
    for ours, theirs in zip(
        rows(together, "metrics.jsonl"), rows(alone, "metrics.jsonl"), strict=True
    ):
        assert ours == {
            name: pytest.approx(value, rel=2e-2, abs=2e-3) for name, value in theirs.items()
        }
    ours, theirs = rows(together, "samples.jsonl"), rows(alone, "samples.jsonl")
    same = [a["answer"] == b["answer"] for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) / len(same) > 0.9  # rounding may turn a draw that lies on an edge
    assert [
        json.loads((f / "result.json").read_text())["runtime"]["processes"]
        for f in (together, alone)
    ] == [2, 1]
    bills = [
        json.loads((f / "result.json").read_text())["cost"]["method"] for f in (together, alone)
    ]
    for name in ("flops", "steps", "samples", "reward_queries", "tokens_trained"):
        assert bills[0][name] == pytest.approx(bills[1][name], rel=0.02), name


def test_every_row_is_somebodys_and_only_once():
    teams = [DistributedContext(rank, 3) for rank in range(3)]
    for n in (0, 1, 2, 3, 7, 10):
        assert sorted(i for distributed in teams for i in range(n)[distributed.shard(n)]) == list(
            range(n)
        )
        assert [sum(distributed.has(i) for distributed in teams) for i in range(n)] == [1] * n


def test_alone_nothing_is_summed():
    x = torch.tensor([1.0, 2.0])
    ALONE.all_reduce(x)
    assert (
        x.tolist() == [1.0, 2.0]
        and ALONE.gather("a") == ["a"]
        and ALONE.broadcast_from_main(3) == 3
        and ALONE.main
    )
    assert merged([{"a": 1.0, "b": 2.0}, {"a": 0.5}]) == {"a": 1.5, "b": 2.0}


GRADIENTS = """
import torch
from accelerate import Accelerator
from harness.core.distributed import DistributedContext as Team
accelerator = Accelerator(cpu=True)
team = Team(accelerator.process_index, accelerator.num_processes)
a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
if team.rank == 0:
    a.grad = torch.tensor([1.0, 2.0])
else:
    b.grad = torch.ones(3)
team.all_reduce_gradients([a, b])
assert a.grad.tolist() == [1, 2] and b.grad.tolist() == [1, 1, 1]
c = torch.nn.Parameter(torch.zeros(1))
team.all_reduce_gradients([c])
assert c.grad is None
x = torch.tensor([float(team.rank + 1)])
team.all_reduce(x)
assert x.item() == 3 and team.gather(team.rank) == [0, 1]
assert team.broadcast_from_main(team.rank) == 0
torch.distributed.destroy_process_group()  # else its threads may abort the interpreter
"""


def test_gradients_add_up_even_where_a_process_has_none():
    script = fresh("script") / "gradients.py"
    script.write_text(GRADIENTS)
    done = launched(script)
    assert done.returncode == 0, done.stderr


def test_methods_named_here_are_there():
    assert set(METHODS) <= set(installed().classes["methods"])
