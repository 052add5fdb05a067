"""Weights in bfloat16: half the bytes, one arithmetic for policy and reference, float32 probes."""

import copy
import json

import pytest
import torch
from safetensors import safe_open

from harness.core.errors import UsageError
from harness.core.spec import compute_dtype
from harness.evaluation.kl import sampled_kl
from harness.models.attention_scores import Scoring, attention
from harness.models.capabilities import FOUND_BY_TRYING, find_out, find_rounding, made_up
from harness.models.loading import (
    Arithmetic,
    frozen,
    learning,
    load_causal,
    scalar_from,
    size_of,
    trunk_of,
    weights_digest,
)
from harness.models.logprobs import completion_logp, completion_states
from harness.models.lora import Lora, beside
from harness.models.precision import in_float32, note_on_rounding

from ..helpers.tools import command, fresh, on_small, only_run

BFLOAT16 = Arithmetic("bfloat16", "bfloat16")


@pytest.fixture(scope="module")
def folder(tiny_model, tiny_tokenizer):
    """The tiny model in hub format."""
    path = fresh("model")
    tiny_model.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def low(folder):
    """The tiny model with weights in bfloat16."""
    model = load_causal(folder, BFLOAT16)
    find_out(model, sharing=True)
    return model


def raised(low):
    """The model in float32 that has the same values as one in bfloat16."""
    return copy.deepcopy(low).float()


def test_weights_take_half_the_bytes_and_buffers_stay_float32(folder, low):
    whole = load_causal(folder)
    assert size_of(low) == (size_of(whole)[0], size_of(whole)[1] // 2)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in low.buffers()} == {b.dtype for b in whole.buffers()}
    assert weights_digest(low) != weights_digest(whole)


def test_in_float32_a_model_computes_with_the_same_values(low):
    batch = made_up(low)
    expected = raised(low)
    trunk_of(expected).compute_dtype = torch.float32
    before = {name: p.clone() for name, p in low.named_parameters()}
    with torch.no_grad(), in_float32(low):
        found = completion_logp(low, batch)
    with torch.no_grad():
        assert torch.equal(found, completion_logp(expected, batch))
        assert not torch.equal(found, completion_logp(low, batch))
    for name, p in low.named_parameters():
        assert p.dtype == torch.bfloat16 and torch.equal(p, before[name])


def test_weights_are_as_they_were_after_an_error(low):
    layer = trunk_of(low).layers[1]
    layer.mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad(), in_float32(low):
        completion_logp(low, made_up(low))
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert trunk_of(low).compute_dtype == torch.bfloat16


def test_capabilities_are_those_of_the_model_in_float32(folder, low):
    whole = load_causal(folder)
    find_out(whole, sharing=True)
    names = [name for name in FOUND_BY_TRYING if name != "rounding"]
    assert [getattr(trunk_of(low), n) for n in names] == [
        getattr(trunk_of(whole), n) for n in names
    ]
    assert trunk_of(low).share_prompt and trunk_of(low).last_parts


def test_policy_that_has_not_moved_says_exactly_what_the_start_says(
    low, tokens, make_batch, runtime
):
    batch = make_batch(tokens)
    for policy in (learning(copy.deepcopy(low)), beside(low, Lora(2, 4.0, 0))):
        with torch.no_grad():
            assert torch.equal(completion_logp(policy, batch), completion_logp(low, batch))
        bench = runtime(micro_batch_tokens=1000)
        with bench.meter.phase("evaluate"):
            exact, plain = sampled_kl(policy, low, batch.pick(torch.zeros(4).long()), bench)
        assert not exact.any() and not plain.any()


def test_adapter_over_bfloat16_weights_is_float32(low):
    own = [p for p in beside(low, Lora(2, 4.0, 0)).parameters() if p.requires_grad]
    assert own and {p.dtype for p in own} == {torch.float32}


def test_scalars_are_not_rounded_to_bfloat16(low, tokens, make_batch):
    model = frozen(scalar_from(low).initialise(7))
    scores = completion_states(model, make_batch(tokens))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_attention_on_the_cpu_is_computed_in_float32(monkeypatch):
    q, k, v = (torch.randn(2, 3, 5, 8).bfloat16() for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), is_causal=True, scale=0.3
    )
    found = attention(q, k, v, Scoring(0.3), None)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected.bfloat16())


def test_rounding_of_bfloat16_is_measured_and_told(folder, low):
    assert find_rounding(load_causal(folder)) == 0.0
    found = find_rounding(low)
    expected = raised(low)
    trunk_of(expected).compute_dtype = torch.float32
    batch = made_up(low)
    with torch.no_grad():
        gap = completion_logp(low, batch) - completion_logp(expected, batch)
    assert found == pytest.approx(float(gap.abs().sum() / batch["mask"].sum()))
    told = []
    find_out(load_causal(folder, Arithmetic("bfloat16")), sharing=True, tell=told.append)
    assert "differ from those in float32 by" in told[0] and "Use float32 for a model of" in told[0]
    assert note_on_rounding(low, 0.001) is None


def test_weights_decide_the_dtype_of_forward_passes():
    assert compute_dtype(None, "float32") == "float32"
    assert compute_dtype(None, "bfloat16") == "bfloat16"
    assert compute_dtype("bfloat16", "float32") == "bfloat16"
    with pytest.raises(UsageError, match="weights in bfloat16 compute in bfloat16"):
        compute_dtype("float32", "bfloat16")


def test_run_with_bfloat16_weights_holds_and_saves_half_the_bytes():
    folder = fresh("low")
    done = command(*on_small("ppo", "--weights", "bfloat16", results=folder))
    assert done.code == 0, done.text
    assert "A KL of that size per token is rounding" in done.text
    run = only_run(folder, "small", "ppo")
    record = json.loads((run / "result.json").read_text())
    models = record["cost"]["models"]
    for role in ("policy", "reference"):
        assert models[role]["bytes"] == 2 * models[role]["parameters"]
    for role in ("value", "reward"):  # their heads are float32
        assert 0 < models[role]["bytes"] - 2 * models[role]["parameters"] < 1000
    assert record["runtime"]["bfloat16_nats_per_token"] > 0
    assert "weights=bfloat16" in record["ground"]["sampling"]
    with safe_open(run / "policy" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["grad_norm"] > 0
    refused = command(
        *on_small("dpo", "--weights", "bfloat16", "--dtype", "float32", results=folder)
    )
    assert refused.code == 2 and "Leave --dtype out" in refused.text
