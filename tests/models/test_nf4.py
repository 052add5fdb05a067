"""Weights in nf4: what is converted, what is trained on it, and what is refused.

Tests that convert weights run where bitsandbytes is installed: the extra `nf4`.
"""

import json
from importlib.util import find_spec

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralForCausalLM
from transformers.models.gpt2 import GPT2Config
from transformers.models.mixtral import MixtralConfig

from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.errors import UsageError
from harness.core.spec import compute_dtype
from harness.experiments.requirements.moments import Machine, Models
from harness.models import nf4
from harness.models.capabilities import find_out
from harness.models.flops import ModelFlops
from harness.models.initial_checkpoint import InitialCheckpoint, learner, merged
from harness.models.loading import (
    Arithmetic,
    frozen,
    load_causal,
    scalar_beside,
    size_of,
    trunk_of,
    unfilled,
)
from harness.models.logprobs import completion_logp
from harness.models.lora import Lora, beside, own
from harness.models.nf4 import check_installed, convert, convertible, packed_bytes, packed_size

from ..helpers.chat_families import FAMILIES
from ..helpers.small_models import batch_of
from ..helpers.tools import ROOT, command, fresh, only_run

needs_package = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: the extra nf4"
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
NF4 = Arithmetic("float32", "nf4")
MACHINE = Machine(2**34)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("model")
    tokenizer = FAMILIES["chatml"].tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(tokenizer)))
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture
def low(folder):
    return load_causal(folder, NF4)


def moved(model):
    """Give an adapter something to say."""
    torch.manual_seed(1)
    for name, p in own(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    return model


def gradients(model, batch):
    model.zero_grad()
    completion_logp(model, batch).sum().backward()
    return {name: p.grad.clone() for name, p in own(model).items()}


# -- without the package ---------------------------------------------------------------------------


def test_missing_package_is_named_with_its_extra(monkeypatch, folder):
    monkeypatch.setattr(nf4, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package bitsandbytes: pip install .*\[nf4\]"):
        check_installed()
    with pytest.raises(UsageError, match="bitsandbytes"):
        load_causal(folder, NF4)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_run_without_the_package_ends_with_one_message(folder):
    done = command("run", "-m", "dpo", *on(folder), "--set", "lora_rank=2", *REWARD)
    assert done.code != 0 and "pip install 'alignment-harness[nf4]'" in done.text
    assert "Traceback" not in done.text


def test_nf4_computes_in_bfloat16_or_as_asked():
    assert compute_dtype(None, "nf4") == "bfloat16"
    assert compute_dtype("float32", "nf4") == "float32"
    with pytest.raises(UsageError, match="--weights nf5: expected one of float32, bfloat16, nf4"):
        compute_dtype(None, "nf5")


def on(folder):
    suite = str(ROOT / "examples" / "conversations.toml")
    return ["--model", str(folder), "--suite", suite, "--weights", "nf4", "--results", fresh("n")]


REWARD = ("--stage-set", "reward_model.lora_rank=2")


def spec_of(folder, method="dpo", settings=(), stages=(), start="model", weights="nf4"):
    fixed = {"model": str(folder), "start": start, "weights": weights}
    suite = str(ROOT / "examples" / "conversations.toml")
    return resolve(Request(method, suite, settings, stage_settings=stages, fixed=fixed), REGISTRY)


REGISTRY = installed()


def test_every_trained_model_needs_an_adapter_and_all_options_are_named_at_once(folder):
    with pytest.raises(UsageError, match="Add --set lora_rank=16 --stage-set reward_model.lora_"):
        spec_of(folder)
    with pytest.raises(UsageError, match="Add --stage-set sft.lora_rank=16, or"):
        spec_of(folder, "dpo", ("lora_rank=2",), REWARD[1:], "sft")
    assert spec_of(folder, "dpo", ("lora_rank=2",), REWARD[1:]).dtype == "bfloat16"
    assert spec_of(folder, "start", (), REWARD[1:]).weights == "nf4"  # it trains no policy
    assert spec_of(folder, weights="bfloat16")


def test_models_whose_weights_are_in_no_linear_layer_are_refused():
    shape = {**SHAPE, "vocab_size": 60, "num_local_experts": 4}
    experts = MixtralForCausalLM(MixtralConfig(**shape))
    with pytest.raises(
        UsageError, match="% of the weights in the layers of MixtralModel .*experts"
    ):
        convertible(trunk_of(experts))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60))
    with pytest.raises(UsageError, match="Use --weights bfloat16"):
        convertible(trunk_of(gpt2))


def test_dry_run_knows_the_bytes_of_nf4_without_the_package(folder):
    spec = spec_of(folder, "dpo", ("lora_rank=2",), REWARD[1:])
    models = Models(spec, folder, MACHINE)
    layers = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    rest = models.parameters - layers
    assert layers / 2 < models.bytes - 2 * rest < 0.55 * layers + 14 * nf4.TABLES
    assert models.restored == 64 * 128 * 2


# -- with the package ------------------------------------------------------------------------------


@needs_package
def test_matrices_of_the_layers_are_converted_and_nothing_else(folder, low):
    whole = load_causal(folder)
    layers = convertible(trunk_of(whole))
    assert len(layers) == 14
    for name, p in whole.named_parameters():
        there = low.get_parameter(name)
        if name.removeprefix("model.").removesuffix(".weight") in layers:
            values = nf4._restored(there)
            assert 0 < float((values - p).abs().mean()) < 0.1 * float(p.abs().mean())
        else:
            assert torch.equal(there, p)
    count, size = size_of(low)
    assert count == size_of(whole)[0] and size == packed_size(whole, trunk_of(whole))
    packed = [p for p in low.parameters() if nf4.is_packed(p)]
    for p in packed:  # what is counted is what is there
        state = p.quant_state
        parts = (p.data, state.absmax, state.code, state.offset, state.state2.absmax)
        assert packed_bytes(nf4.numbers_of(p)) == sum(t.nbytes for t in (*parts, state.state2.code))


@needs_package
def test_gradients_and_probabilities_are_those_of_the_restored_weights(folder, low):
    batch = batch_of()
    plain = nf4.restore(load_causal(folder, NF4))
    assert not any(map(nf4.is_packed, plain.parameters()))
    one, other = (moved(beside(frozen(m), Lora(4, 8.0, 3))) for m in (low, plain))
    assert one.eval() is one  # the package would give no gradients in evaluation mode
    with torch.no_grad():
        assert torch.allclose(completion_logp(one, batch), completion_logp(other, batch), atol=1e-5)
    for name, gradient in gradients(other, batch).items():
        there = gradients(one, batch)[name]
        assert float(gradient.abs().max()) > 0
        assert torch.allclose(there, gradient, rtol=1e-4, atol=1e-5), name


@needs_package
def test_flops_and_outlines_are_those_of_the_whole_model(folder, low):
    whole, batch = load_causal(folder), batch_of()
    for model in (low, unfilled(low, torch.device("meta"))):
        assert size_of(model) == size_of(low)
        assert ModelFlops(model).forward(batch) == ModelFlops(whole).forward(batch)
    adapters = [beside(m, Lora(2, 4.0, 0)) for m in (low, whole)]
    assert ModelFlops(adapters[0]).backward(batch) == ModelFlops(adapters[1]).backward(batch)


@needs_package
def test_merged_policy_computes_what_the_adapter_computes(folder, low):
    start = InitialCheckpoint(lambda: load_causal(folder, NF4), lambda m: find_out(m, True))
    policy = moved(learner(start, type("Options", (), {"lora_rank": 2})(), 0))
    batch = batch_of()
    whole = merged(policy, start)
    assert not any(map(nf4.is_packed, whole.parameters()))
    with torch.no_grad():
        gap = completion_logp(whole, batch) - completion_logp(policy, batch)
        assert float(gap.abs().max()) < 1e-4
        before = completion_logp(start.model(), batch)
        assert float((before - completion_logp(whole, batch)).abs().max()) > 1e-2
    assert start.changed() == ""


@needs_package
def test_critics_and_reward_models_share_the_base(low):
    before = size_of(low)
    policy, critic = beside(low, Lora(2, 4.0, 0)), scalar_beside(low, Lora(2, 4.0, 1, "value"))
    assert size_of(policy)[1] < 1.5 * before[1] and critic.trunk is trunk_of(low)


@needs_package
def test_matrix_that_the_package_does_not_restore_is_refused():
    config = LlamaConfig(**{**SHAPE, "hidden_size": 48}, vocab_size=60)
    with pytest.raises(UsageError, match="needs rows of a multiple of 64 weights"):
        convert(trunk_of(LlamaForCausalLM(config)), torch.float32)


@pytest.mark.slow  # 20 s: two runs
@needs_package
def test_run_with_nf4_saves_its_adapter_or_the_merged_policy(folder):
    arguments = [*on(folder), "--start", "model", "--set", "lora_rank=2", *REWARD]
    arguments += ["--set", "steps=2", "--set", "batch_size=4", "--set", "learning_rate=1e-3"]
    done = command("run", "-m", "dpo", *arguments)
    assert done.code == 0, done.text
    run = only_run(arguments[arguments.index("--results") + 1], "conversations", "dpo")
    record = json.loads((run / "result.json").read_text())
    assert record["policy"]["saved"] == "adapter"
    base = record["cost"]["models"]["base"]
    assert base["bytes"] < 0.8 * 2 * base["parameters"]
    assert "4 bits" in (run / "adapter" / "README.md").read_text()
    again = command("run", "-m", "dpo", *arguments, "--save", "policy")
    assert again.code == 0, again.text
    assert not any(map(nf4.is_packed, load_causal(run / "policy").parameters()))
