"""The engine `vllm` with vLLM itself, on a small random model: see `.ci/vllm`."""

import json
import time
from pathlib import Path

import pytest
import torch

from harness.core.data import Sampling
from harness.models.capabilities import find_out
from harness.models.generation import CachedEngine
from harness.models.loading import in_memory
from harness.models.logprobs import completion_logp
from harness.models.lora import Lora, beside, own

from ..helpers.tools import on_small, only_run, outputs, plugin, process

vllm = pytest.importorskip("vllm", reason="vLLM is not installed: see .ci/vllm")
pytestmark = pytest.mark.vllm

N, LONG = 4, 24
DYING = """
import os

from harness import hookimpl
from harness_plugins.engine_vllm import VLLM

COUNT = [0]


class Dying(VLLM):
    name = "dying"

    def generate(self, *args):
        COUNT[0] += 1
        if COUNT[0] == int(os.environ.get("DIES_AT", 0)):
            self._service().llm.llm_engine.step = None  # what vLLM calls for every token
        return super().generate(*args)


@hookimpl
def register_engines(register):
    register(Dying)
"""


@pytest.fixture(scope="module")
def model():
    """A random Llama whose heads are as wide as vLLM's kernels for CPUs need: 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    built = in_memory(LlamaForCausalLM(config).eval())
    find_out(built, True)
    return built


@pytest.fixture(scope="module")
def engine():
    from harness_plugins.engine_vllm import VLLM

    made = VLLM({2})
    yield made
    made.close()


@pytest.fixture
def prompts(tokens, make_prompts):
    return tokens.prompt_batch(make_prompts([3, 1, 5, 7]))


def drawn(engine, model, prompts, seed):
    noise = torch.rand(len(prompts) * N, LONG, generator=torch.Generator().manual_seed(seed))
    engine.start(model)
    engine.sync(model)
    return engine.generate(model, prompts, N, Sampling(0.8, LONG), noise)


def check_like_hf(engine, model, prompts, seed):
    """At least 85 % of the rows are those of `hf`; log-probabilities are the model's."""
    found = drawn(engine, model, prompts, seed)
    expected = drawn(CachedEngine({2}), model, prompts, seed)
    rows = [
        bool(m == n and torch.equal(a[:m], b[:n]))
        for a, b, m, n in zip(
            found["completion_ids"].flatten(0, 1),
            expected["completion_ids"].flatten(0, 1),
            found.lengths.flatten(),
            expected.lengths.flatten(),
            strict=True,
        )
    ]
    assert sum(rows) >= 0.85 * len(rows), f"{sum(rows)} of {len(rows)}"
    with torch.no_grad():
        gap = (completion_logp(model, found) - found["logp"]).abs() * found["mask"]
    assert float(gap.max()) < 1e-3
    return found


def test_draws_are_those_of_hf_as_the_weights_move(engine, model, prompts):
    torch.manual_seed(3)
    first = check_like_hf(engine, model, prompts, 0)
    for turn in range(1, 4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * p.std() * torch.randn_like(p))
        found = check_like_hf(engine, model, prompts, turn)
    assert engine.record()["syncs"] >= 4 and found.shape[:2] == first.shape[:2]
    assert torch.initial_seed() == 3  # vLLM sets a seed of its own
    torch.set_num_threads(2)  # on a CPU vLLM replaces this function
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_draws_of_an_adapter_are_those_of_hf(engine, model, prompts):
    base = model.requires_grad_(False)
    adapted = beside(base, Lora(4, 8.0, 3, "policy"))
    with torch.no_grad():
        for p in own(adapted).values():
            p.normal_(std=0.2)
    check_like_hf(engine, adapted, prompts, 0)


def test_draws_by_seed_repeat_and_have_their_own_log_probabilities(engine, model, prompts):
    engine.options.draw = "seed"
    try:
        found, again = (drawn(engine, model, prompts, 5) for _ in range(2))
    finally:
        engine.options.draw = "noise"
    assert torch.equal(found["completion_ids"], again["completion_ids"])
    with torch.no_grad():
        gap = (completion_logp(model, found) - found["logp"]).abs() * found["mask"]
    assert float(gap.max()) < 1e-3


@pytest.mark.timeout(3600)  # three runs, each of which starts vLLM
def test_run_whose_vllm_dies_goes_on_where_it_was(tmp_path, model):
    """It ends in one message; the same command goes on, and ends in the bytes of a whole run."""
    import harness_suites
    from transformers import AutoTokenizer

    base = tmp_path / "model"
    embedded = Path(harness_suites.__file__).parent / "base"
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    model.config.vocab_size = len(tokenizer)
    type(model)(model.config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    dying = plugin(tmp_path, "dying", DYING)

    def run(results, **env):
        more = ["--start", "model", "--model", base, "--set", "reward=verifier", "--check-rollouts"]
        more += ["--engine", "dying", "-p", dying, "--checkpoint-every", "1steps"]
        return process(*on_small("grpo", *more, results=results), env=env)

    begun = time.monotonic()
    died = run(tmp_path / "died", DIES_AT="3")
    assert died.code == 1 and died.text.count("vLLM failed when it drew completions") == 1
    assert "Traceback" not in died.text and time.monotonic() - begun < 600
    assert run(tmp_path / "died").code == run(tmp_path / "whole").code == 0
    died, whole = (only_run(tmp_path / name, "small", "grpo") for name in ("died", "whole"))
    assert outputs(died) == outputs(whole)
    runtime = json.loads((died / "result.json").read_text("utf-8"))["runtime"]
    assert runtime["resumed_after_turns"] in ([1], [2])  # of 2 turns, and the evaluation
    assert runtime["engine"]["version"] == vllm.__version__
