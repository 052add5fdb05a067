"""What the start checkpoint says is made once and shared: looked up or computed, found or made, all
numbers agree.
"""

import copy
import itertools
import json
import shutil
from collections import Counter
from dataclasses import asdict

import pytest
import torch

from harness.core.artifacts import Artifacts
from harness.core.data import Budget, LabelledPair, Prompt, Sampling
from harness.core.execution import Execution
from harness.core.meter import Meter
from harness.core.save_schedule import SaveInterval
from harness.models.batches import Batch
from harness.models.engine import Engine
from harness.models.generation import CachedEngine, Sampler
from harness.models.initial_checkpoint import InitialCheckpoint
from harness.training.checkpoints import Checkpoints
from harness.training.completion_cache import BLOCK, CompletionPool, steps_to
from harness.training.lab import Lab, MethodInputs
from harness.training.loop import Loop
from harness.training.reference_cache import ReferenceCache
from harness.training.stages.runtime import StageRuntime
from harness.training.trainer import Trainer

from ..helpers.plain_method import Killed, Plain
from ..helpers.registries import sampled
from ..helpers.tools import command, fresh, on_small, only_run, outputs, plugin

TEMPERATURE = 0.7
COUNTED = (
    "flops",
    "tokens_generated",
    "tokens_trained",
    "samples",
    "steps",
    "pairs",
    "reward_queries",
)


class Place:
    """A results folder, and labs over its artifacts; `make(reuse=False)` computes everything."""

    def __init__(self, folder, model, tokens, prompts, accelerator):
        self.folder, self.start, self.tokens, self.accelerator = (
            folder,
            copy.deepcopy(model),
            tokens,
            accelerator,
        )
        self.prompts, self.numbers = prompts, itertools.count()
        words = [[10 + i, 30 + i % 20, 2] for i in range(3 * len(prompts))]
        self.pairs = [  # three completions of a prompt: the first is better than either other one
            LabelledPair(p, words[3 * i], worse, 1.0)
            for i, p in enumerate(prompts)
            for worse in (words[3 * i + 1], words[3 * i + 2][1:])
        ]

    def reference_cache(self, seed=0):
        stage_runtime = StageRuntime(
            Artifacts(self.folder / "artifacts"),
            CachedEngine,
            self.accelerator,
            torch.device("cpu"),
            lambda *told: None,
            0.0,
            Execution("cpu", micro_batch_tokens=64),
            sampling=Sampling(TEMPERATURE, 6),
            eos={2},
        )
        return ReferenceCache(
            stage_runtime,
            {"shared_seed": seed},
            InitialCheckpoint.of(self.start),
            self.tokens,
            self.pairs,
            "content",
        )

    def make(self, reference_cache=True, die=0, budget=None, seed=0, folder=None, **options):
        reference_cache = (
            self.reference_cache() if reference_cache is True else reference_cache or None
        )
        meter = Meter(peak=lambda reset: 0)
        trainer = Trainer(Plain(**options), self.accelerator, meter, 64)

        def on_step(turn, total, row):
            if row["step"] == die:
                raise Killed

        folder = folder or self.folder / f"run{next(self.numbers)}"
        loop = Loop(trainer, Checkpoints(folder, SaveInterval(0.0)), meter, on_step, budget)
        method_inputs = MethodInputs(
            InitialCheckpoint.of(self.start),
            self.tokens,
            self.prompts,
            self.pairs,
            reference_cache=reference_cache,
        )
        stage_runtime = (reference_cache or self.reference_cache()).stage_runtime
        return Lab(Plain(**options), method_inputs, stage_runtime.runtime(meter, seed), loop)

    def sampler(self, pool, meter=None):
        runtime = self.reference_cache().stage_runtime.runtime(
            meter or Meter(peak=lambda reset: 0), 0
        )
        sampler = Sampler(runtime.engine, runtime.sampling, runtime.meter, runtime.eos, ("plain",))
        sampler.pool = pool
        return sampler

    def made(self, kind):
        return sorted((self.folder / "artifacts").glob(f"{kind}-*"))


@pytest.fixture
def place(tmp_path, tiny_model, tokens, make_prompts, accelerator):
    return Place(tmp_path, tiny_model, tokens, make_prompts([3, 1, 4, 2, 5, 3, 2]), accelerator)


def reference(lab, batches):
    """Log-probabilities of the reference on every batch of a stream, and whether all of them were
    looked up.
    """
    told = [lab.reference.logp(batch) for batch in batches]
    cost = lab._runtime.meter.phases["reference"]
    return told, cost.flops_reused / cost.flops


# -- log-probabilities -----------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("stream", ["pairs", "labelled"])
def test_looked_up_and_computed_log_probabilities_agree(place, stream, shuffle):
    streams = [getattr(place.make(reference_cache=r), stream) for r in (True, False)]
    (ours, reused), (theirs, computed) = (
        reference(s.__self__, s(epochs=1, batch_size=3, shuffle_labels=shuffle)) for s in streams
    )
    assert reused == pytest.approx(1) and computed == 0 and len(ours) == len(theirs) > 1
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.abs().sum() > 1
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_negative_control_a_table_of_wrong_places_is_seen(place):
    lab = place.make()
    (batch,) = lab.pairs(steps=1, batch_size=len(place.pairs))
    right = lab.reference.logp(batch)
    starts = lab._method_inputs.reference_cache._table.value["start"]
    shifted = dict(zip(starts, [*list(starts.values())[1:], 0], strict=True))
    lab._method_inputs.reference_cache._table.value["start"] = shifted
    assert (lab.reference.logp(batch) - right).abs().max() > 0.1


def test_batch_may_be_cut_picked_laid_flat_and_put_together(place):
    lab, plain = place.make(), place.make(reference_cache=False)
    (batch,) = lab.pairs(steps=1, batch_size=len(place.pairs))
    ways = [
        batch.select([3, 0, 2]),
        batch.flat(),
        batch.pick(torch.arange(len(place.pairs)) % 2),
        batch.with_columns(extra=batch["p"] * 2),
        Batch.concatenate([batch.select([1, 2]), batch.select([0])]),
    ]
    for way in ways:
        before = lab._runtime.meter.phases.get("reference")
        before = before.flops_reused if before else 0
        torch.testing.assert_close(
            lab.reference.logp(way), plain.reference.logp(way), atol=1e-5, rtol=0
        )
        assert lab._runtime.meter.phases["reference"].flops_reused > before


def test_what_is_not_the_data_is_computed(place):
    lab, plain = place.make(), place.make(reference_cache=False)
    (batch,) = lab.pairs(steps=1, batch_size=len(place.pairs))
    lab.reference.logp(batch)
    cost = lab._runtime.meter.phases["reference"]
    looked_up = cost.flops_reused
    other = batch.select(range(0, len(place.pairs), 1)).mismatched()
    warmer = Batch(batch.prompts, batch.columns, 1.0)
    changed = batch.with_columns(
        completion_ids=batch["completion_ids"].roll(1, 0), mask=batch["mask"].roll(1, 0)
    )
    for way in (other, warmer, changed):
        torch.testing.assert_close(
            lab.reference.logp(way), plain.reference.logp(way), atol=1e-5, rtol=0
        )
        assert cost.flops_reused == looked_up
    lab.policy.logp(batch)
    assert "flops_reused" in asdict(cost) and lab._runtime.meter.total().flops_reused == looked_up


def test_moved_reference_is_not_looked_up(place):
    lab = place.make()
    for batch in lab.pairs(epochs=1, batch_size=3):
        before = lab.reference.logp(batch)
        lab.step(lambda logp, _: -logp, batch)
        lab.move_reference()
        moved = lab.reference.logp(batch)
        torch.testing.assert_close(moved, lab.policy.logp(batch), atol=1e-5, rtol=0)
        assert lab.turn or (moved - before).abs().max() > 0.01
    assert len(place.made("reference_logp")) == 1


def test_move_reference_by_a_share_is_a_moving_average(place):
    lab = place.make()
    for batch in lab.pairs(steps=2, batch_size=3):
        old = [p.detach().clone() for p in lab.reference.model.parameters()]
        lab.step(lambda logp, _: -logp, batch)
        lab.move_reference(0.25)
        new, policy = lab.reference.model.parameters(), lab.policy.model.parameters()
        moved = 0.0
        for before, now, own in zip(old, new, policy, strict=True):
            torch.testing.assert_close(now, 0.75 * before + 0.25 * own.detach())
            moved += float((now - before).abs().sum())
        assert moved > 0
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share in"):
            lab.move_reference(share)


def test_reference_that_was_moved_before_a_restart_is_not_looked_up(place):
    def told(lab):
        for batch in lab.pairs(steps=3, batch_size=7):
            logp = lab.reference.logp(batch)
            lab.step(lambda logp, _: -logp, batch)
            lab.move_reference()
        return logp

    whole, folder = told(place.make()), place.folder / "killed"
    with pytest.raises(Killed):
        told(place.make(die=3, folder=folder))
    lab = place.make(folder=folder)
    assert torch.equal(told(lab), whole) and lab.turn == 3


def test_only_a_stream_that_goes_over_the_data_looks_up(place):
    assert place.reference_cache().prompts_of_pairs == 7
    for rows, budget, expected in ((6, None, 0), (7, Budget(steps=100), 0), (7, None, 1)):
        lab = place.make(budget=budget)
        _, share = reference(lab, lab.pairs(steps=1, batch_size=rows))
        assert share == expected
        assert len(place.made("reference_logp")) == expected
    lab = place.make()  # it is there now, which decides nothing
    assert reference(lab, lab.pairs(steps=1, batch_size=6))[1] == 0


def test_each_completion_is_computed_once_and_billed_each_time(place):
    bills = []
    for reference_cache in (False, True, True):  # computed, made, found
        lab = place.make(reference_cache=reference_cache)
        reference(lab, lab.pairs(epochs=2, batch_size=3))
        bills.append(
            (asdict(lab._runtime.meter.phases["reference"]), lab._method_inputs.reference_cache)
        )
    for name in COUNTED:
        assert len({bill[name] for bill, _ in bills}) == 1, name
    (_, _), (cold, made), (warm, found) = bills
    assert cold["flops_reused"] == warm["flops_reused"] == cold["flops"] > 0
    assert (
        made.report()["reference_logp"]["made"] == 1
        and made.report()["reference_logp"]["flops"] < cold["flops"] / 2
    )
    assert found.report()["reference_logp"] == {
        "made": 0,
        "found": 1,
        "seconds": 0,
        "cpu_seconds": 0,
        "flops": 0,
    }
    rate = json.loads((place.made("reference_logp")[0] / "manifest.json").read_text())["cost"][
        "phases"
    ]["reference"]
    due = (
        rate["seconds"] * warm["flops"] / rate["flops"]
    )  # as if it had been computed, at the rate that was measured
    assert due <= warm["seconds"] < due + 0.5


# -- pools -----------------------------------------------------------------------------------------


def test_few_samples_are_the_first_of_many_in_any_order(place):
    prompts = place.tokens.prompt_batch(place.prompts)
    key = ("here", 0)
    many = (
        CompletionPool(place.reference_cache(), key)
        .draw(place.start, prompts, 16, Sampling(TEMPERATURE, 6))
        .value
    )
    made = len(place.made("pool"))
    few = (
        CompletionPool(place.reference_cache(), key)
        .draw(place.start, prompts, 4, Sampling(TEMPERATURE, 6))
        .value
    )
    assert len(place.made("pool")) == made == len(steps_to(16))
    assert same(few, many, range(7), 4)
    order = [4, 2, 0]
    some = (
        CompletionPool(place.reference_cache(), key)
        .draw(place.start, prompts[order], 5, Sampling(TEMPERATURE, 6))
        .value
    )
    assert same(some, many, order, 5)
    assert len({tuple(c) for c in many["completion_ids"][4].tolist()}) > 4  # and they differ
    other = (
        CompletionPool(place.reference_cache(), ("there", 0))
        .draw(place.start, prompts, 4, Sampling(TEMPERATURE, 6))
        .value
    )
    assert not same(other, many, range(7), 4)


def same(batch, whole, rows, n):
    """Whether a batch holds the first n completions of some rows of another, with their
    log-probabilities.
    """
    width = max(batch.shape[2], whole.shape[2])

    def wide(x):
        return torch.nn.functional.pad(x, (0, width - x.shape[2]))

    index = list(rows)
    ids = torch.equal(
        wide(batch["completion_ids"])[:, :n], wide(whole["completion_ids"])[index, :n]
    )
    return ids and torch.allclose(
        wide(batch["logp"])[:, :n], wide(whole["logp"])[index, :n], atol=1e-5
    )


def test_steps_make_little_more_than_is_asked():
    assert (
        steps_to(1) == [(0, 1)] and steps_to(4) == [(0, 1), (1, 4)] and steps_to(9)[-1] == (8, 16)
    )
    for n in range(1, 70):
        assert steps_to(n) == steps_to(100)[: len(steps_to(n))] and n <= steps_to(n)[-1][1] < n + 8


def test_pooled_samples_have_the_start_checkpoints_distribution(place):
    """First tokens: frequencies against the exact probabilities."""
    prompt = place.prompts[0]
    pool = CompletionPool(place.reference_cache(), ("many", 0))
    drawn = pool.draw(
        place.start, place.tokens.prompt_batch([prompt]), 2000, Sampling(TEMPERATURE, 6)
    ).value
    counts = Counter(drawn["completion_ids"][0, :, 0].tolist())
    ids = torch.tensor([place.tokens.prompt_ids(prompt.text)])
    exact = (place.start(ids).logits[0, -1].float() / TEMPERATURE).softmax(-1)
    frequency = torch.tensor([counts[i] / 2000 for i in range(len(exact))])
    assert (frequency - exact).abs().max() < 0.04 and exact.max() > 0.1
    computed = place.make(reference_cache=False).start.logp(drawn)
    torch.testing.assert_close(drawn["logp"], computed, atol=1e-4, rtol=0)


def rolled(lab, steps, size, n=4, of_start=True, seen=None):
    """Completions of a stream, a step in each turn: {(prompt, turn): ids}."""
    found = {}
    for prompts in lab.prompts(steps, size):
        batch = lab.rollout(prompts, n, of=lab.start if of_start else None)
        for i, p in enumerate(prompts.prompts):
            found[p.id, prompts.places[i][1]] = batch["completion_ids"][i].tolist()
        lab.step(lambda logp, _: -logp, batch)
    return found


def stripped(found):
    return {key: [[t for t in c if t] for c in group] for key, group in found.items()}


def test_methods_seeds_and_batch_sizes_share_what_the_start_says(place):
    one = stripped(rolled(place.make(seed=0), 7, 2))  # two epochs
    made = len(place.made("pool"))
    assert made == 2 * len(steps_to(4))  # one block of the split, two visits
    again = stripped(rolled(place.make(seed=1), 5, 3))
    assert len(place.made("pool")) == made + (
        len(steps_to(4)) if any(v == 2 for _, v in again) else 0
    )
    assert {k: again[k] for k in one if k in again} == {k: one[k] for k in one if k in again}
    assert all(
        one[p, 0] != one[p, 1] for p, _ in one
    )  # the second time around it says something else
    more = stripped(rolled(place.make(seed=2), 4, 2, n=8))
    assert all(more[k][:4] == one[k] for k in more if k in one)


def test_stream_over_few_prompts_draws_for_these_alone(place, make_prompts):
    place.prompts = make_prompts([2] * (3 * BLOCK))
    lab = place.make()
    rolled(lab, 2, 4, n=1)
    manifests = [json.loads((f / "manifest.json").read_text()) for f in place.made("pool")]
    assert [m["info"]["prompts"] for m in manifests] == [4, 4]


def test_policy_draws_from_the_pool_until_its_first_step(place):
    lab = place.make()
    shares = []
    for prompts in lab.prompts(3, 4):
        before = asdict(lab._runtime.meter.total())
        batch = lab.rollout(prompts, 4)
        after = asdict(lab._runtime.meter.total())
        shares.append(
            (after["flops_reused"] - before["flops_reused"]) / (after["flops"] - before["flops"])
        )
        torch.testing.assert_close(batch["logp"], lab.policy.logp(batch), atol=1e-4, rtol=0)
        lab.step(lambda logp, _: -logp, batch)
    assert shares == [1, 0, 0]


def test_policy_whose_weights_were_changed_by_hand_does_not(place):
    lab = place.make()
    with torch.no_grad():
        next(lab.policy.model.parameters()).add_(0.5)
    for prompts in lab.prompts(1, 4):
        batch = lab.rollout(prompts, 4)
    assert lab._runtime.meter.total().flops_reused == 0
    torch.testing.assert_close(batch["logp"], lab.policy.logp(batch), atol=1e-4, rtol=0)


def test_what_is_drawn_twice_in_a_turn_or_otherwise_differs(place):
    lab = place.make()
    for prompts in lab.prompts(1, 4):
        one, two = lab.rollout(prompts, 4, of=lab.start), lab.rollout(prompts, 4, of=lab.start)
    assert one["completion_ids"].tolist() != two["completion_ids"].tolist()
    lab, kept, drawn = place.make(), None, []
    for prompts in lab.prompts(2, 3):
        kept = kept or prompts
        drawn.append(
            lab.rollout(kept, 4, of=lab.start)["completion_ids"].tolist()
        )  # in the next turn, again
    assert drawn[0] != drawn[1]
    lab = place.make()
    for prompts in lab.prompts(1, 4):
        lab.rollout(prompts, 4, temperature=1.0, of=lab.start)
    assert lab._runtime.meter.total().flops_reused == 0


def test_prompts_that_come_twice_are_given_other_completions(place):
    twice = place.tokens.prompt_batch([place.prompts[4]] * 2)
    batch = place.sampler(CompletionPool(place.reference_cache(), ("here", 0))).draw(
        place.start, twice, 4
    )
    assert batch["completion_ids"][0].tolist() != batch["completion_ids"][1].tolist()


def test_prompts_of_one_text_are_given_other_completions(place):
    texts = [Prompt(name, place.prompts[4].text) for name in ("one", "two")]
    batch = place.sampler(CompletionPool(place.reference_cache(), ("here", 0))).draw(
        place.start, place.tokens.prompt_batch(texts), 4
    )
    assert (
        place.made("pool")
        and batch["completion_ids"][0].tolist() != batch["completion_ids"][1].tolist()
    )


def test_prompts_changed_on_the_way_are_not_mistaken(place):
    lab = place.make()
    for prompts in lab.prompts(4, 4):  # covers the split
        prompts.ids = prompts.ids.clone()
        prompts.ids[:, -1] = 20
        batch = lab.rollout(prompts, 2, of=lab.start)
        torch.testing.assert_close(batch["logp"], lab.start.logp(batch), atol=1e-4, rtol=0)
    assert not place.made("pool")


def test_bill_is_the_same_made_or_found_and_what_a_rollout_costs(place):
    bills = []
    for _ in range(2):
        lab = place.make()
        rolled(lab, 4, 4)
        bills.append(
            {
                name: value
                for name, value in asdict(lab._runtime.meter.total()).items()
                if "seconds" not in name
            }
        )
    assert bills[0] == bills[1]
    meter = Meter(peak=lambda reset: 0)
    prompts = place.tokens.prompt_batch(place.prompts)
    batch = place.sampler(CompletionPool(place.reference_cache(), ("here", 0)), meter).draw(
        place.start, prompts, 4
    )
    again = Meter(peak=lambda reset: 0)
    plain = place.sampler(None, again)
    plain.engine = type(
        "Told",
        (Engine,),
        {"generate": lambda self, *asked: Batch(prompts, batch.columns, TEMPERATURE)},
    )()
    plain.draw(place.start, prompts, 4)
    for name in COUNTED:
        assert getattr(meter.total(), name) == getattr(again.total(), name), name


@pytest.mark.parametrize("die", [1, 2, 3])
def test_killed_and_resumed_over_a_cold_or_a_warm_store(place, die):
    def weights(lab):
        rolled(lab, 4, 4)
        lab._loop.finish()
        return torch.nn.utils.parameters_to_vector(lab.policy.model.parameters()).detach()

    whole = weights(place.make())
    for cold in (True, False):
        if cold:
            shutil.rmtree(place.folder / "artifacts")
        folder = place.folder / f"killed{die}{cold}"
        with pytest.raises(Killed):
            weights(place.make(die=die, folder=folder))
        assert torch.equal(weights(place.make(folder=folder)), whole)


# -- whole runs ------------------------------------------------------------------------------------

LONG = ("--set", "steps=8", "--set", "batch_size=12")  # 96 pairs of 60 prompts or fewer
CASES: dict[str, tuple[str, ...]] = {
    "dpo": LONG,
    "kto": LONG,
    "rrhf": (),
    "raft": (),
    "best_of_n": ("--set", "n=4"),
}
TIMES = {
    "seconds",
    "cpu_seconds",
    "peak_memory",
    "spent_seconds",
    "wall",
    "stages_made",
    "reused_stages",
    "finished_at",
    "runtime",
    "seal",  # of the times, too
}


def forget(folder, *kinds):
    """Remove artifacts."""
    for kind in kinds:
        for made in (folder / "artifacts").glob(f"{kind}-*"):
            shutil.rmtree(made)


def without_times(value):
    if isinstance(value, dict) and value.get("kind") == "policy":  # its artifact holds its costs
        value = {k: v for k, v in value.items() if k != "content"}
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def folder():
    return fresh("reuse")


def run(method, results, *more):
    """Train and evaluate; a policy that was trained before is not taken."""
    forget(results, "policy")
    done = command(*on_small(method, *more, results=results))
    assert done.code == 0, done.text
    found = only_run(results, "small", method)
    return found, json.loads((found / "result.json").read_text())


@pytest.mark.parametrize("method", sampled(CASES, of=("dpo", "raft")))
def test_record_is_the_same_over_a_cold_and_a_warm_store(method, folder):
    forget(folder, "reference_logp", "pool")
    found, cold = run(method, folder, *CASES[method])
    kept = outputs(found)
    shutil.rmtree(found)
    found, warm = run(method, folder, *CASES[method])
    assert outputs(found) == kept
    assert without_times(cold) == without_times(warm)
    first, second = cold["runtime"]["reuse"], warm["runtime"]["reuse"]
    assert first and set(first) == set(second)
    assert all(kind["made"] and kind["flops"] for kind in first.values())
    assert not any(kind["made"] or kind["flops"] for kind in second.values())
    phases = warm["cost"]["phases"].values()
    assert sum(phase["flops_reused"] for phase in phases) > 0


def test_seeds_of_best_of_n_answer_otherwise_and_its_few_are_the_first_of_its_many(folder):
    def answers(results, *more):
        found, result = run("best_of_n", results, *more)
        rows = [json.loads(line) for line in (found / "samples.jsonl").read_text().splitlines()]
        told = result["runtime"]["reuse"]["pool"]
        shutil.rmtree(found)
        return [row["answer"] for row in rows], [row["baseline"] for row in rows], told

    shutil.rmtree(folder / "runs" / "small" / "best_of_n", ignore_errors=True)
    one, sft, _ = answers(folder, "--set", "n=1", "--seed", 5)
    other, _, _ = answers(folder, "--set", "n=1", "--seed", 6)
    assert (
        differ(one, sft) > 0.8 and differ(one, other) > 0.8
    )  # neither the reference's answers, nor another seed's
    _, _, told = answers(folder, "--set", "n=4", "--seed", 5)
    assert (told["found"], told["made"]) == (1, 1)  # the first sample is that of n = 1


def differ(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True)) / len(a)


KILLER = """
import os
from harness import hookimpl
from harness.training import completion_cache

@hookimpl
def run_started():
    usual = completion_cache.save_tensors
    def dying(tensors, path):
        usual(tensors, path)
        work.append(path)
        if len(work) == 2:
            os.kill(os.getpid(), 9)
    work = []
    completion_cache.save_tensors = dying
"""


def test_killed_while_a_pool_is_made(folder):
    shutil.rmtree(folder / "runs" / "small" / "rrhf", ignore_errors=True)
    found, _ = run("rrhf", folder, "--seed", 3)
    whole = outputs(found)
    shutil.rmtree(found)
    forget(folder, "pool", "policy")
    killer = plugin(folder, "killer", KILLER)
    done = command(*on_small("rrhf", "--seed", 3, "-p", killer, results=folder))
    assert done.code == -9
    found, result = run("rrhf", folder, "--seed", 3)
    assert outputs(found) == whole and result["runtime"]["reuse"]["pool"]["found"] >= 1
