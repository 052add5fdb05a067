"""Batches are halved when memory runs out: injected errors at any forward or backward pass."""

import json
import shutil
from functools import wraps

import pytest
import torch

from harness.check import Options
from harness.check.trials import Trials
from harness.core.data import Sampling
from harness.core.errors import UsageError
from harness.core.execution import Execution
from harness.models.footprint import cache_bytes, decoding_tokens
from harness.models.generation import CachedEngine, groups
from harness.models.logprobs import completion_logp
from harness.models.memory import BatchSizes, MemoryRanOut, ran_out_of_memory, total_memory
from harness.models.micro_batches import in_micro_batches, smallest_row
from harness.training.stages.runtime import StageRuntime

from ..helpers.registries import small_registry
from ..helpers.tools import (
    command,
    finished,
    fresh,
    on_small,
    only_run,
    plugin,
    with_shared_stages,
)

# a device on which a forward pass of more than SMALL tokens runs out of memory
SMALL_DEVICE = """
from functools import wraps

import torch
from transformers import LlamaModel

from harness import hookimpl

whole = LlamaModel.forward


@wraps(whole)  # the harness asks for its arguments
def forward(self, input_ids=None, **more):
    if input_ids.numel() > {most}:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")
    return whole(self, input_ids=input_ids, **more)


@hookimpl
def run_started():
    LlamaModel.forward = forward
"""


class Faulty:
    """Raises at the n-th call of a module's forward pass."""

    def __init__(self, module, n, error=None):
        self.calls, self.n = 0, n
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")
        self.hook = module.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1
        if self.calls == self.n:
            raise self.error


# -- what is an error of memory --------------------------------------------------------------------


def test_errors_of_both_allocators_are_recognised():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**46, dtype=torch.uint8)  # 64 TiB: the CPU's own allocator refuses it
    assert ran_out_of_memory(cpu.value)
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert ran_out_of_memory(MemoryError())
    assert not ran_out_of_memory(RuntimeError("shapes do not match"))
    assert not ran_out_of_memory(ValueError("out of memory"))


def test_batch_sizes_are_halved_until_they_fit_and_stay_so():
    told, tried, sizes = [], [], BatchSizes()
    sizes.tell = told.append

    def compute(tokens):
        tried.append(tokens)
        if tokens > 30:
            raise torch.OutOfMemoryError
        return "done"

    assert sizes.attempt("decoding", 100, 1, compute) == "done"
    assert sizes.attempt("decoding", 100, 1, compute) == "done"
    assert tried == [100, 50, 25, 25] and sizes.halved == {"decoding": 25}
    assert sizes.tokens("scoring", 100) == 100  # another kind
    (message,) = told  # once
    assert "Memory ran out while decoding batches of 100 tokens" in message
    assert "--decode-batch-tokens 50" in message


def test_batch_of_one_row_is_not_halved_for_ever():
    tried = []

    def compute(tokens):
        tried.append(tokens)
        raise torch.OutOfMemoryError

    with pytest.raises(MemoryRanOut, match="a batch of one row, of 20 tokens"):
        BatchSizes().attempt("training", 64, 20, compute)
    assert tried == [64, 32, 16]


def test_other_errors_are_not_tried_again():
    with pytest.raises(ZeroDivisionError):
        BatchSizes().attempt("training", 64, 1, lambda tokens: 1 // 0)


# -- passes without gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", range(1, 5))
def test_scores_are_the_same_when_memory_runs_out(fault, tiny_model, tokens, make_batch):
    batch, limit = make_batch(tokens), 40
    counted, sizes = [], BatchSizes()
    expected = in_micro_batches(
        lambda part: completion_logp(tiny_model, part), batch, limit, count=counted.append
    )
    again = []
    faulty = Faulty(tiny_model.model, fault)
    try:
        found = in_micro_batches(
            lambda part: completion_logp(tiny_model, part),
            batch,
            limit,
            count=again.append,
            sizes=sizes,
        )
    finally:
        faulty.hook.remove()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert bool(sizes.halved) is (fault <= faulty.calls)
    assert [b.shape for b in again] == [b.shape for b in counted]  # the bill is the same


def test_without_batch_sizes_the_error_is_raised(tiny_model, tokens, make_batch):
    faulty = Faulty(tiny_model.model, 1)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            in_micro_batches(lambda part: completion_logp(tiny_model, part), make_batch(tokens), 40)
    finally:
        faulty.hook.remove()


def test_row_that_no_process_of_a_sharded_run_holds_is_refused_with_its_tokens():
    def compute(tokens):
        raise MemoryError

    sizes = BatchSizes(halves=False)
    with pytest.raises(MemoryRanOut, match="one row, of 4096 tokens.*no sequence over processes"):
        sizes.attempt("training", 1024, 4096, compute)
    with pytest.raises(MemoryRanOut, match="not halved.*--micro-batch-tokens 4096"):
        sizes.attempt("training", 8192, 4096, compute)
    with pytest.raises(MemoryRanOut) as told:
        BatchSizes().attempt("training", 1024, 4096, compute)
    assert "--shard" not in str(told.value)


def test_smallest_row_counts_the_prompt_for_each_completion(tokens, make_batch):
    batch = make_batch(tokens, words=(3, 1), lengths=((2, 4), (1, 3)))
    prompt = int(batch.prompts.mask.sum(1).min())
    assert smallest_row(batch) == 2 * (prompt + 3)


# -- decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 100])
def test_groups_hold_every_row_once_and_in_order(rows, tokens, make_prompts):
    prompts = tokens.prompt_batch(make_prompts([3, 1, 5]))
    found = list(groups(prompts, 3, rows))
    order = [
        (p.id, row)
        for some, count, where in found
        for p, row in zip(
            [p for p in some.prompts for _ in range(count)],
            range(where.start, where.stop),
            strict=True,
        )
    ]
    assert order == [(f"p{i}", 3 * i + j) for i in range(3) for j in range(3)]
    assert max(len(some) * count for some, count, _ in found) <= rows


@pytest.mark.parametrize("fault", [1, 2, 5, 9])
def test_completions_are_the_same_when_memory_runs_out(fault, tiny_model, tokens, make_prompts):
    prompts = tokens.prompt_batch(make_prompts([3, 1, 5, 2]))
    noise = torch.rand(len(prompts) * 4, 9, generator=torch.Generator().manual_seed(3))
    args = (tiny_model, prompts, 4, Sampling(1.0, 9), noise)
    expected, engine = CachedEngine({2}).generate(*args), CachedEngine({2})
    engine.sizes, engine.batch_tokens = BatchSizes(), 200
    faulty = Faulty(tiny_model.model, fault)
    try:
        found = engine.generate(*args)
    finally:
        faulty.hook.remove()
    assert engine.sizes.halved == {"decoding": 100}
    assert torch.equal(found["completion_ids"], expected["completion_ids"])
    torch.testing.assert_close(found["logp"], expected["logp"], atol=1e-5, rtol=0)


def test_completions_of_one_prompt_are_split_where_they_do_not_fit(
    tiny_model, tokens, make_prompts
):
    prompts = tokens.prompt_batch(make_prompts([3, 1]))
    noise = torch.rand(len(prompts) * 5, 9, generator=torch.Generator().manual_seed(3))
    args = (tiny_model, prompts, 5, Sampling(1.0, 9), noise)
    expected, engine, widths = CachedEngine({2}).generate(*args), CachedEngine({2}), []
    engine.batch_tokens = 2 * (prompts.ids.shape[1] + 9)
    hook = tiny_model.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        found = engine.generate(*args)
    finally:
        hook.remove()
    assert max(widths) == 2
    assert torch.equal(found["completion_ids"], expected["completion_ids"])


def test_decoding_takes_a_quarter_of_the_memory_at_most(tiny_model):
    config = tiny_model.config
    token = cache_bytes(config, 4)
    assert token == 2 * 2 * 2 * 8 * 4  # keys and values, 2 layers, 2 heads of width 8, float32
    width, memory = 50, 2**24
    tokens = decoding_tokens(tiny_model, width, memory)
    taken = tokens * token + tokens / width * 5 * 4 * config.vocab_size
    assert memory / 8 < taken <= memory / 4
    assert total_memory(torch.device("cpu")) > 2**28


def test_engine_that_ignores_the_size_of_batches_is_refused():
    class Own:
        name, takes_batch_tokens = "own", False

    runtime = StageRuntime(None, lambda eos: Own(), None, None, None, 0.0, Execution())
    assert runtime._engine().sizes is runtime.sizes
    runtime.execution = Execution(decode_batch_tokens=5)
    with pytest.raises(UsageError, match="--decode-batch-tokens: the engine own decides by itself"):
        runtime._engine()


# -- training, and a whole run ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    options = Options(suite="small", results=with_shared_stages("memory"))
    trials = Trials("ppo", "small", small_registry(), options)
    yield trials
    trials.close()


def passes(module_class, number=0, sizes=None):
    """Count the calls of a class's forward pass; the one of that number runs out of memory."""
    whole, state = module_class.forward, {"calls": 0}

    @wraps(whole)  # the harness asks for its arguments
    def forward(self, *args, **kwargs):
        state["calls"] += 1
        if state["calls"] == number:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, *args, **kwargs)

    return forward, state


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_training_is_the_same_when_memory_runs_out_at_any_pass(share, bench, monkeypatch):
    from transformers import LlamaModel

    if not hasattr(bench, "calls"):
        forward, state = passes(LlamaModel)
        bench.runs()  # makes what is looked up from then on
        with monkeypatch.context() as patched:
            patched.setattr(LlamaModel, "forward", forward)
            bench.expected = bench.train(sizes=BatchSizes())
        bench.calls = state["calls"]
    forward, state = passes(LlamaModel, int(share * bench.calls))
    sizes = BatchSizes()
    monkeypatch.setattr(LlamaModel, "forward", forward)
    found = bench.train(sizes=sizes)
    assert sizes.halved and found.used == bench.expected.used
    check_rows(found.rows, bench.expected.rows)


def test_step_is_done_again_from_its_beginning(bench, monkeypatch):
    """Memory runs out in a backward pass, when part of the gradients is there."""
    from harness.training.trainer import Trainer

    whole, state = Trainer._backward, {"calls": 0}

    def backward(self, term, part, sums):
        whole(self, term, part, sums)
        state["calls"] += 1
        if state["calls"] in (2, 7):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    expected = bench.train(sizes=BatchSizes(), micro_batch_tokens=800)
    monkeypatch.setattr(Trainer, "_backward", backward)
    sizes = BatchSizes()
    found = bench.train(sizes=sizes, micro_batch_tokens=800)
    assert sizes.halved == {"training": 200} and found.used == expected.used
    check_rows(found.rows, expected.rows)
    # the negative control: gradients that are not cleared are counted twice
    state["calls"] = 0
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self, set_to_none=True: None)
    with pytest.raises(AssertionError):
        check_rows(bench.train(sizes=BatchSizes(), micro_batch_tokens=800).rows, expected.rows)


def check_rows(found, expected):
    """Assert that the metrics of two trainings differ by rounding error at most."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name


def test_run_on_a_small_device_finds_the_same_figures():
    """The shared stages are there, so that rounding in them does not move a sampled token."""
    usual, folder = finished("grpo"), fresh("device")
    shutil.copytree(usual.parents[3] / "artifacts", folder / "artifacts")
    for made in ("policy", "pool", "reference_answers"):
        for artifact in (folder / "artifacts").glob(f"{made}-*"):
            shutil.rmtree(artifact)
    small = plugin(folder, "small_device", SMALL_DEVICE.format(most=400))
    done = command(*on_small("grpo", "-p", small, results=folder))
    assert done.code == 0, done.text
    usual, halved = (
        json.loads((run / "result.json").read_text())
        for run in (usual, only_run(folder, "small", "grpo"))
    )
    first, last = usual["execution"]["evaluation"], halved["execution"]["evaluation"]
    assert first["micro_batch_tokens"] == 16384 and first["decode_batch_tokens"] == 131072
    assert last["micro_batch_tokens"] < 2048 and last["decode_batch_tokens"] < 2048
    assert halved["execution"]["training"][-1]["micro_batch_tokens"] < 2048
    assert done.text.count("Memory ran out while") == 3  # once for each kind
    for name in ("win_rate", "gold", "kl", "length", "proxy"):
        assert halved["evaluation"][name]["mean"] == pytest.approx(
            usual["evaluation"][name]["mean"], abs=1e-4
        )
    for what in ("flops", "tokens_generated", "tokens_trained"):
        assert halved["cost"]["method"][what] == usual["cost"]["method"][what]
