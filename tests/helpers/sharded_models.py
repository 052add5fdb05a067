"""Run by tests/training/test_sharding.py: sharded models beside whole ones, in two processes.

Each process computes everything twice: together with the other one on sharded weights, and by
itself on whole ones.
"""

from __future__ import annotations

import copy
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator

from harness.core.data import Prompt, Sampling
from harness.core.distributed import ALONE, DistributedContext, leave_process_group
from harness.core.meter import Meter
from harness.core.save_schedule import SaveInterval
from harness.core.settings import AdamWOptions
from harness.models.batches import Batch, PromptBatch
from harness.models.capabilities import find_out, inherit
from harness.models.generation import CachedEngine, Sampler
from harness.models.loading import (
    ScalarModel,
    hidden_size,
    learning,
    save_causal,
    scalar_beside,
    trunk_of,
    weights_digest,
)
from harness.models.logprobs import completion_logp, completion_values
from harness.models.lora import Lora, beside, learn, load_own, own_state
from harness.models.micro_batches import in_micro_batches, micro_batches
from harness.models.sharded_tensors import gathered, is_sharded, own_part
from harness.models.sharding import in_pass, shard
from harness.training.checkpoints import Checkpoints
from harness.training.trainer import Role, Term, Trainer
from tests.helpers.tiny_models import tiny


def become_two() -> None:
    """Fork two processes, which share the imports, and end as they do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    children = []
    for rank in range(2):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        child = os.fork()
        if child == 0:
            return
        children.append(child)
    codes = []
    while children:
        ended, status = os.wait()
        children.remove(ended)
        codes.append(os.waitstatus_to_exitcode(status))
        for other in children if codes[-1] else ():
            os.kill(other, signal.SIGKILL)  # it waits for the one that failed
    sys.exit(max(map(abs, codes)))


if "RANK" not in os.environ:
    become_two()
ACCELERATOR = Accelerator(cpu=True)
TEAM = DistributedContext(ACCELERATOR.process_index, ACCELERATOR.num_processes)
CPU = torch.device("cpu")
FEW = 60  # tokens of a micro-batch: several of them
OPTIONS = AdamWOptions(learning_rate=1e-3, max_grad_norm=0.05, warmup_ratio=0.0)


def batch_of(rows: int, seed: int = 0) -> Batch:
    """Return random pairs, so long that each takes a micro-batch of its own."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.randint(5, 60, (rows, 12), generator=draw)
    mask = (torch.arange(12) >= torch.randint(0, 6, (rows, 1), generator=draw)).long()
    ids = torch.randint(5, 60, (rows, 2, 10), generator=draw)
    lengths = torch.randint(1, 11, (rows, 2, 1), generator=draw)
    posed = PromptBatch([Prompt(str(i), "") for i in range(rows)], prompts * mask, mask)
    there = (torch.arange(10) < lengths).float()
    return Batch(posed, {"completion_ids": ids * there.long(), "mask": there})


def prepared(name: str, known: dict = {}) -> torch.nn.Module:  # noqa: B006
    """Return a tiny frozen model of an architecture, probed once."""
    model = tiny(name)
    if name not in known:
        find_out(model, True)
        known[name] = copy.deepcopy(model)
    inherit(model, known[name])
    return model


def trainer_of(team: DistributedContext) -> Trainer:
    return Trainer(OPTIONS, ACCELERATOR, Meter(peak=lambda reset: 0), FEW, team)


def stepped(trainer: Trainer, role: Role, batches: list[Batch]) -> list[dict[str, float]]:
    """Take an optimizer step on each batch."""

    def loss(values, part):
        return (values * part["mask"]).sum(-1).diff(dim=1)[:, 0].neg().exp().log1p()

    rows = []
    for batch in batches:
        with trainer.meter.phase("update"):
            rows.append(trainer.step([Term(loss, batch, role)], 0.5))
    return rows


def policy_role(model: torch.nn.Module) -> Role:
    return Role("policy", model, lambda batch: completion_logp(model, batch))


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: gathered(p).detach().clone() for name, p in own_state(model).items()}


def near(ours, theirs, allowed: float, what: str) -> None:
    """Check that numbers or tensors agree, relative to the largest of each, or to 1."""
    for name in theirs:
        a, b = (torch.as_tensor(side[name], dtype=torch.float64) for side in (ours, theirs))
        gap = float((a - b).abs().max() / b.abs().max().clamp(min=1))
        assert a.shape == b.shape and gap <= allowed, (what, name, gap)


# an odd number of micro-batches, one for two processes, and rows without a token
BATCHES = [batch_of(3), batch_of(1, 1), batch_of(4, 2)]
BATCHES[2].columns["mask"][1:] = 0


def same_steps(what: str, make, role, tolerance: float = 2e-6) -> tuple[Trainer, torch.nn.Module]:
    """Train a model sharded and whole: the same losses, norms and weights."""
    ours, theirs = make(True), make(False)
    trainers = trainer_of(TEAM), trainer_of(ALONE)
    for trainer, model in zip(trainers, (ours, theirs), strict=True):
        trainer.add("policy", model)
    rows = [stepped(t, role(m), BATCHES) for t, m in zip(trainers, (ours, theirs), strict=True)]
    for got, right in zip(*rows, strict=True):
        near(got, right, 2e-5, what)
    near(weights_of(ours), weights_of(theirs), tolerance, what)
    assert rows[1][0]["grad_norm"] > OPTIONS.max_grad_norm  # it was clipped
    return trainers[0], ours


def full(name: str):
    def make(sharded: bool) -> torch.nn.Module:
        model = learning(prepared(name))
        return shard(model, CPU) if sharded else model

    return make


def test_policy() -> None:
    """All weights of a policy are trained, and each process holds half of them."""
    trainer, model = same_steps("policy", full("llama"), policy_role)
    held = sum(own_part(p).numel() for p in model.parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert all(is_sharded(p) for p in model.parameters())
    assert 0.45 < held / whole < 0.55, (held, whole)
    state = trainer.optimizers["policy"].state.values()
    assert sum(s["exp_avg"].numel() for s in state) == held  # moments are sharded, too


def test_tied() -> None:
    """A model whose head is its embedding."""
    same_steps("tied", full("gpt2"), policy_role)


def test_mixture() -> None:
    """A mixture of experts."""
    same_steps("mixtral", full("mixtral"), policy_role)


def test_adapter() -> None:
    """An adapter over a sharded base; the base is the reference, and does not move."""

    def make(sharded: bool) -> torch.nn.Module:
        base = prepared("llama")
        return beside(shard(base, CPU) if sharded else base, Lora(2, 4.0, 3))

    _, model = same_steps("adapter", make, policy_role)
    batch = BATCHES[0]
    with torch.no_grad():
        reference = completion_logp(model.base, batch)
        assert torch.allclose(reference, completion_logp(prepared("llama"), batch), atol=1e-5)
        assert not torch.allclose(reference, completion_logp(model, batch), atol=1e-3)


def value_role(model: ScalarModel) -> Role:
    return Role("policy", model, lambda batch: completion_values(model, batch))


def test_critic() -> None:
    """A critic with weights of its own, and one that is an adapter on another sharded model."""

    def make(sharded: bool) -> torch.nn.Module:
        causal = prepared("llama")
        model = ScalarModel(trunk_of(causal), hidden_size(causal)).initialise(1, std=0.3)
        learn(model)
        return shard(model, CPU) if sharded else model

    same_steps("critic", make, value_role)

    def adapter(sharded: bool) -> torch.nn.Module:
        model = scalar_beside(make(sharded).requires_grad_(False), Lora(2, 4.0, 3, "value"))
        return learn(model.initialise(1, std=0.3))

    same_steps("adapter of a critic", adapter, value_role)


def test_bfloat16() -> None:
    """Weights in bfloat16 have float32 copies, of a process's own rows."""

    def make(sharded: bool) -> torch.nn.Module:
        model = prepared("llama").to(torch.bfloat16)
        model = learning(model)
        return shard(model, CPU) if sharded else model

    trainers, models = (trainer_of(TEAM), trainer_of(ALONE)), (make(True), make(False))
    rows = []
    for trainer, model in zip(trainers, models, strict=True):
        trainer.add("policy", model)
        rows.append(stepped(trainer, policy_role(model), BATCHES))
    for got, right in zip(*rows, strict=True):
        near(got, right, 2e-2, "bfloat16")
    copies = trainers[0].masters["policy"].parameters
    assert {p.dtype for p in copies} == {torch.float32}
    assert sum(p.numel() for p in copies) < 0.6 * sum(p.numel() for p in models[1].parameters())


def test_frozen() -> None:
    """A frozen model's log-probabilities, digest and completions; processes draw unlike numbers."""
    whole, model = prepared("llama"), shard(prepared("llama"), CPU)
    assert weights_digest(model) == weights_digest(whole)
    for batch in BATCHES:
        ours, theirs = (
            in_micro_batches(lambda part, m=m: completion_logp(m, part), batch, FEW, distributed=t)
            for m, t in ((model, TEAM), (whole, ALONE))
        )
        assert torch.allclose(ours, theirs, atol=1e-5)
    ends, drawn = {2, 7, 9, 11}, []
    for one, team in ((model, TEAM), (whole, ALONE)):
        for prompts in (BATCHES[0].prompts, BATCHES[1].prompts):  # one process has no prompt
            sampling = Sampling(max_new_tokens=12)
            meter = Meter(peak=lambda reset: 0)
            sampler = Sampler(CachedEngine(ends), sampling, meter, ends, ("draw",), team)
            drawn.append(sampler.draw(one, prompts, 3))
    for got, right in zip(drawn[:2], drawn[2:], strict=True):
        assert torch.equal(got["completion_ids"], right["completion_ids"])
        assert torch.allclose(got["logp"], right["logp"], atol=1e-5)
    assert all(is_sharded(p) for p in model.parameters())  # again


def test_checkpoint(folder: Path) -> None:
    """Two processes write a checkpoint; one reads it, and so do two, and they go on alike."""
    trainer, model = same_steps("before", full("llama"), policy_role)
    saves = Checkpoints(folder, SaveInterval(0.0), writes=TEAM.main)
    saves.save(3, trainer.tensors(), {})
    TEAM.barrier()
    more, results = [batch_of(3, 9)], [stepped(trainer, policy_role(model), [batch_of(3, 9)])]
    after = [weights_of(model)]
    for team, sharded in ((TEAM, True), (ALONE, False)):
        again = trainer_of(team)
        again.saved, _ = Checkpoints(folder, SaveInterval(0.0), writes=False).load()
        other = full("llama")(sharded)
        again.add("policy", other)
        results.append(stepped(again, policy_role(other), more))
        after.append(weights_of(other))
    for got, weights in zip(results[1:], after[1:], strict=True):
        near(got[0], results[0][0], 2e-5, "after the checkpoint")
        near(weights, after[0], 2e-6, "after the checkpoint")
    assert all(torch.equal(after[0][n], after[1][n]) for n in after[0])  # to the bit


def test_export(folder: Path) -> None:
    """The saved model holds whole weights, and only one process writes."""
    from transformers import AutoModelForCausalLM

    class Tokenizer:
        def save_pretrained(self, where: Path) -> None:
            pass

    model = shard(prepared("llama"), CPU)
    where = folder / f"model{TEAM.rank}"
    save_causal(model, Tokenizer(), where, writes=TEAM.main)
    assert where.exists() is TEAM.main
    TEAM.barrier()
    read = AutoModelForCausalLM.from_pretrained(folder / "model0")
    whole = prepared("llama").state_dict()
    assert all(torch.equal(t, whole[name]) for name, t in read.state_dict().items())
    assert read.config.architectures == ["LlamaForCausalLM"]


def test_moved() -> None:
    """A reference moves a share of the way to a policy, as `lab.move_reference` moves it."""
    for sharded in (True, False):
        reference, policy = full("llama")(sharded), full("llama")(sharded)
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(1.0)
        before, after = own_state(reference), own_state(policy)
        load_own(reference, {n: torch.lerp(before[n], t.detach(), 0.25) for n, t in after.items()})
        moved = weights_of(reference)
        start = prepared("llama").state_dict()
        near(moved, {name: tensor + 0.25 for name, tensor in start.items()}, 1e-6, "moved")


def test_empty_part() -> None:
    """A process whose micro-batch has no token takes part in every gather."""
    model = shard(learning(prepared("llama")), CPU)
    batch = batch_of(2)
    batch.columns["mask"][TEAM.rank] = 0
    part = batch.select([TEAM.rank])
    logp = completion_logp(model, part)
    assert not logp.any() and len(micro_batches(batch, FEW)) == 2
    in_pass(model, lambda: logp.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def main() -> None:
    """Run the checks that are named."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(TEAM.broadcast_from_main(own))
        for name in sys.argv[1:]:
            check = globals()[f"test_{name}"]
            where = folder / name
            where.mkdir(exist_ok=True)
            check(where) if check.__code__.co_argcount else check()
            TEAM.barrier()
            if TEAM.main:
                print("checked", name, flush=True)
    leave_process_group()


if __name__ == "__main__":
    main()
