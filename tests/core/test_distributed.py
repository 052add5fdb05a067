"""Two processes do what one does: the same samples, the same metrics, one record; through
`torchrun`.
"""

import json

import pytest
import torch

from harness.api.registry import installed
from harness.core.distributed import ALONE, DistributedContext, merged

from ..helpers.registries import sampled
from ..helpers.tools import (
    finished,
    fresh,
    launched,
    on_small,
    only_run,
    small_suite,
    with_shared_stages,
)

METHODS = [
    "ppo",
    "best_of_n",
]  # through the whole command; test_every_method.py trains them all in two processes


@pytest.fixture(scope="module")
def folder():
    return with_shared_stages("team")


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("method", sampled(METHODS, of=("ppo",)))
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
        rounds = [list(team.rounds(range(n))) for team in teams]
        assert sorted(part for own in rounds for part, mine in own if mine) == list(range(n))


@pytest.mark.parametrize(("size", "parts"), [(1, 4), (2, 3), (3, 7), (4, 1), (2, 0)])
def test_every_process_takes_equally_many_rounds(size, parts):
    rounds = [list(DistributedContext(rank, size).rounds(range(parts))) for rank in range(size)]
    assert {len(own) for own in rounds} == {-(-parts // size)}
    spare = [part for own in rounds for part, mine in own if not mine]
    assert all(part == parts - 1 for part in spare) and len(spare) == -parts % size


def test_alone_every_part_is_computed_and_one_process_writes():
    for rank in range(2):
        context = DistributedContext(rank, 2).alone()
        assert list(context.rounds("abc")) == [("a", True), ("b", True), ("c", True)]
        assert context.size == 1 and context.main is (rank == 0)
        assert context.shard(5) == slice(0, 5)


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
# buckets of 4 numbers: several small ones, one larger than a bucket, one not contiguous, one bf16
torch.manual_seed(team.rank)
shapes = [(2,), (1,), (3,), (7,), (2, 2), (2,)]
ours = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
ours[-1] = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
for p in ours:
    p.grad = torch.randn(p.shape).to(p.dtype)
ours[4].grad = ours[4].grad.t()
places, largest = [p.grad.data_ptr() for p in ours], []
both = team.gather([p.grad.clone() for p in ours])
usual = team.all_reduce
team.all_reduce = lambda *tensors: (largest.extend(t.numel() for t in tensors), usual(*tensors))
team.all_reduce_gradients(ours, bucket=4)
team.all_reduce = usual
assert all(torch.equal(p.grad, a + b) for p, a, b in zip(ours, *both))
assert [p.grad.data_ptr() for p in ours] == places  # summed where they are
assert largest == [1, 3, 3, 7, 4, 2], largest  # the first says whether there are any
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
    assert done.returncode == 0, done.stderr[:3000]


UNEVEN = """
import torch
from accelerate import Accelerator
from harness.core.distributed import DistributedContext, leave_process_group
from harness.core.meter import Meter
from harness.core.settings import AdamWOptions
from harness.models.micro_batches import in_micro_batches, micro_batches
from harness.models.batches import Batch, PromptBatch
from harness.training.trainer import Role, Term, Trainer

accelerator = Accelerator(cpu=True)
team = DistributedContext(accelerator.process_index, accelerator.num_processes)
calls = []


class Collective(torch.autograd.Function):  # as a sharded layer: all processes, both ways

    @staticmethod
    def forward(ctx, x):
        calls.append("forward")
        team.barrier()
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        calls.append("backward")
        team.barrier()
        return gradient


def batch_of(rows):
    mask = torch.ones(rows, 1, 4)
    prompts = PromptBatch([], torch.zeros(rows, 2).long(), torch.ones(rows, 2).long())
    prompts.prompts = [None] * rows
    return Batch(prompts, {"completion_ids": torch.arange(rows * 4).view(rows, 1, 4), "mask": mask})


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))

    def compute(self, batch):
        return Collective.apply(self.w * batch["completion_ids"].float())


class Counted(Role):
    def update_flops(self, batch):
        return 1.0


for rows in (3, 1, 4):  # micro-batches of one row each
    batch, model, meter = batch_of(rows), Model(), Meter(peak=lambda reset: 0)
    assert len(micro_batches(batch, 1)) == rows
    found = in_micro_batches(model.compute, batch, 1, distributed=team)
    assert torch.equal(found, batch["completion_ids"].float()), found
    rounds = -(-rows // 2)
    assert calls == ["forward"] * rounds, calls
    calls.clear()
    options = AdamWOptions(max_grad_norm=0.0)
    trainer = Trainer(options, accelerator, meter, 1, team)
    trainer.add("policy", model)
    with meter.phase("update"):
        role = Counted("policy", model, model.compute)
        told = trainer.step([Term(lambda x, b: x, batch, role)], 0.5)
    mean = sum(range(rows * 4)) / (rows * 4)
    assert abs(told["loss"] - mean) + abs(told["grad_norm"] - mean) < 1e-5, (told, mean)
    assert calls == ["forward", "backward"] * rounds, calls
    calls.clear()
leave_process_group()
"""


def test_uneven_number_of_micro_batches_does_not_hang():
    """Forward and backward passes are collective here, as those of sharded weights are."""
    script = fresh("script") / "uneven.py"
    script.write_text(UNEVEN)
    done = launched(script)
    assert done.returncode == 0, done.stderr[:3000]


OWN_DEVICE = """
import sys
from pathlib import Path
import torch
from harness.api.registry import installed, load_file
from harness.api.participants import participants
from harness.api.resolve import Request, resolve
from harness.core.distributed import leave_process_group
from harness.experiments.observers import Observers
from harness.experiments.prepare import RunOptions, open_stage_runtime, prepare

registry = installed()
load_file(registry, sys.argv[1])
spec = resolve(Request("ppo", "small", fixed={"quick": True, "device": "cpu"}), registry)
settings = RunOptions(Path(sys.argv[2]), warn=lambda message: None)
runtime = open_stage_runtime(spec, registry, settings, Observers(registry, spec, settings.warn))
team = runtime.distributed
runtime.device = torch.device("cpu", team.rank)
assert str(runtime.device) == f"cpu:{team.rank}"
inputs, shared = prepare(spec, participants(spec, registry), registry.files, runtime)
names = team.gather([(a.folder.name, a.content) for a in shared.values()])
assert len(names) == 2 and names[0] == names[1] and len(names[0]) == 3, names
assert {a.execution[0]["device"] for a in shared.values()} == {"cpu"}  # without an index
leave_process_group()
"""


def test_processes_with_a_device_each_find_the_same_artifacts():
    script = fresh("script") / "own_device.py"
    script.write_text(OWN_DEVICE)
    done = launched(script, small_suite(), fresh("devices"))
    assert done.returncode == 0, done.stderr[:3000]


def test_methods_named_here_are_there():
    assert set(METHODS) <= set(installed().classes["methods"])
