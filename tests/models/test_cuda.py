"""What only a GPU can show: the same paths there, recorded decoding, and runs that are the same
bytes twice.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.data import Prompt, Sampling
from harness.core.errors import UsageError
from harness.models.batches import PromptBatch
from harness.models.capabilities import enable_shared_cache, enable_sharing
from harness.models.cuda_graphs import GraphedDecoding, GraphEngine
from harness.models.generation import CachedEngine
from harness.models.loading import trunk_of
from harness.models.logprobs import completion_logp, padded

from ..helpers.tools import command, fresh

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
ENDS = {0, 7, 9}


def model_on(device, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=60,
        intermediate_size=64,
        initializer_range=0.3,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).eval().to(device)
    trunk_of(model).compute_dtype = dtype
    assert enable_shared_cache(model) and enable_sharing(model)
    return model


def prompts_on(device, b=6, q=11):
    mask = torch.ones(b, q, dtype=torch.long)
    for i in range(b):
        mask[i, :i] = 0
    ids = torch.randint(1, 60, (b, q), generator=torch.Generator().manual_seed(1))
    return PromptBatch([Prompt(str(i), "") for i in range(b)], ids.to(device), mask.to(device))


def drawn(engine, model, device, n=4, limit=30):
    noise = torch.rand(6 * n, limit, generator=torch.Generator().manual_seed(2)).to(device)
    return engine.generate(model, prompts_on(device), n, Sampling(0.8, limit), noise)


class Unrecorded(GraphedDecoding):
    """The recording cache, its pass run and not recorded: what a CPU can do."""

    def _record(self, model, tokens):
        self.graph, self.model = self, model
        self.tokens = tokens[:, None].clone()

    def replay(self):
        self.logits = self._forward(self.model)
        self.cache.advance()
        self.positions = self.positions + 1


@pytest.mark.parametrize("fault", [None, "unwritten is seen", "one place late"])
def test_static_storage_gives_the_numbers_of_the_growing_one(fault, monkeypatch):
    model = model_on("cpu")

    class Engine(CachedEngine):
        cached = staticmethod(lambda model, *told: Unrecorded(*told))

    plain = drawn(CachedEngine(ENDS), model, "cpu")
    if fault == "unwritten is seen":
        honest = GraphedDecoding.cache_class.visible
        monkeypatch.setattr(
            GraphedDecoding.cache_class, "visible", lambda self, *a: honest(self, *a) - self.hidden
        )
    elif fault == "one place late":
        monkeypatch.setattr(GraphedDecoding.cache_class, "advance", lambda self: None)
    static = drawn(Engine(ENDS), model, "cpu")
    same = torch.equal(static["completion_ids"], plain["completion_ids"])
    assert same == (fault is None)
    if same:
        torch.testing.assert_close(static["logp"], plain["logp"], atol=2e-5, rtol=0)
        assert len(set(plain.lengths.flatten().tolist())) > 3


def test_recording_is_refused_where_it_cannot_be():
    with pytest.raises(UsageError, match="this run has no GPU"):
        drawn(GraphEngine(ENDS), model_on("cpu"), "cpu")
    results = fresh("graphs")
    done = command(
        "run",
        "-m",
        "start",
        "-s",
        "exact",
        "--quick",
        "--engine",
        "cuda_graphs",
        "--device",
        "cpu",
        "--results",
        results,
    )
    assert done.code == 2 and "Use --engine hf" in done.text and "Traceback" not in done.text
    assert (
        not list(results.glob("runs/*/*/*")) and not (results / "artifacts").exists()
    )  # before anything is made


@NEEDS_GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_decoding_says_what_the_plain_one_says(dtype):
    model = model_on("cuda", dtype)
    plain, recorded = (
        drawn(CachedEngine(ENDS), model, "cuda"),
        drawn(GraphEngine(ENDS), model, "cuda"),
    )
    told = completion_logp(model, recorded)
    off = (told - recorded["logp"]).abs().max()
    assert off < (1e-4 if dtype == torch.float32 else 0.3)
    if dtype == torch.float32:
        assert torch.equal(plain["completion_ids"], recorded["completion_ids"])
        torch.testing.assert_close(plain["logp"], recorded["logp"], atol=1e-4, rtol=0)
    again = drawn(GraphEngine(ENDS), model, "cuda")
    assert torch.equal(recorded["logp"], again["logp"])


@NEEDS_GPU
def test_packed_layout_agrees_on_a_gpu():
    model = model_on("cuda").requires_grad_(True)
    batch, grads = drawn(CachedEngine(ENDS), model, "cuda"), []
    for layout in ("packed", "padded"):
        with padded([model] if layout == "padded" else []):
            logp = completion_logp(model, batch)
        (gradient,) = torch.autograd.grad(
            (logp * batch["mask"]).sum(), [model.model.layers[0].mlp.up_proj.weight]
        )
        grads.append((logp.detach(), gradient))
    torch.testing.assert_close(grads[0][0], grads[1][0], atol=1e-4, rtol=0)
    assert (grads[0][1] - grads[1][1]).norm() / grads[1][1].norm() < 1e-4


@NEEDS_GPU
@pytest.mark.parametrize("engine", ["hf", "cuda_graphs"])
@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_run_on_a_gpu_is_the_same_bytes_twice(method, engine):
    found = []
    for turn in range(2):
        where = fresh(f"cuda{turn}")
        done = command(
            "run",
            "-m",
            method,
            "-s",
            "summarization",
            "--quick",
            "--device",
            "cuda",
            "--engine",
            engine,
            "--results",
            where,
        )
        assert done.code == 0, done.text
        (result,) = Path(where).rglob("result.json")
        found.append(json.loads(result.read_text())["evaluation"])
    assert found[0] == found[1]


@NEEDS_GPU
def test_bf16_runs_on_a_gpu():
    done = command(
        "run",
        "-m",
        "ppo",
        "-s",
        "summarization",
        "--quick",
        "--device",
        "cuda",
        "--dtype",
        "bfloat16",
        "--results",
        fresh("bf16"),
    )
    assert done.code == 0, done.text
