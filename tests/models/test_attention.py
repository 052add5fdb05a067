"""Decoding on prompts held once: the numbers of the model's own cache, rows that leave, models that
cannot.
"""

import copy

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from harness.core.data import Sampling
from harness.models import attention, generation
from harness.models.capabilities import enable_shared_cache, enable_sharing
from harness.models.generation import CachedEngine
from harness.models.loading import trunk_of
from harness.models.logprobs import completion_logp

from ..helpers.small_models import LLAMA, WIDE, model_of, prompts


def drawn(model, n=4, limit=24, temperature=0.8):
    noise = torch.rand(5 * n, limit, generator=torch.Generator().manual_seed(2))
    return CachedEngine({0, 7, 9}).generate(
        model, prompts(), n, Sampling(temperature, limit), noise
    )


SHARING = [
    (LlamaForCausalLM, LLAMA),
    (Qwen2ForCausalLM, Qwen2Config(**WIDE, num_key_value_heads=1)),
    (Qwen3ForCausalLM, Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=16)),
    (MistralForCausalLM, MistralConfig(**WIDE, num_key_value_heads=4, sliding_window=None)),
    (GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=128)),
]


@pytest.mark.parametrize("cls, config", SHARING, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("n", [1, 4])
def test_what_is_drawn_is_the_same_with_the_models_own_cache(cls, config, n):
    model = model_of(cls, config)
    apart = drawn(model, n)
    assert enable_shared_cache(model), "this model's attention can be exchanged"
    together = drawn(model, n)
    assert set(apart.lengths.flatten().tolist()) != {24}, "no row left on the way"
    torch.testing.assert_close(together["completion_ids"], apart["completion_ids"])
    torch.testing.assert_close(together["logp"], apart["logp"], atol=2e-5, rtol=0)
    torch.testing.assert_close(
        together["logp"], completion_logp(model, together), atol=2e-5, rtol=0
    )


def test_model_is_as_before():
    model = model_of(LlamaForCausalLM, LLAMA)
    before = model.config._attn_implementation
    assert enable_shared_cache(model)
    drawn(model)
    assert model.config._attn_implementation == before and attention._now is None
    with pytest.raises(RuntimeError), attention.attending(model, attention.Attention):
        raise RuntimeError("in the middle of it")
    assert model.config._attn_implementation == before


LFM2_LAYERS = ["conv", "full_attention"]
REFUSING = [
    (BloomForCausalLM, BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=60)),
    (Lfm2ForCausalLM, Lfm2Config(**WIDE, num_key_value_heads=2, layer_types=LFM2_LAYERS)),
]


@pytest.mark.parametrize("cls, config", REFUSING, ids=lambda x: getattr(x, "__name__", ""))
def test_model_that_cannot_keeps_its_own_cache(cls, config):
    """A bias from positions, a convolution: what this attention would leave out."""
    model = model_of(cls, config)
    before = drawn(model)
    assert not enable_shared_cache(model)
    torch.testing.assert_close(drawn(model)["logp"], before["logp"])


def test_bias_of_positions_is_not_left_out_in_silence():
    query = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match="does not support an option of the model"):
        attention.attend(torch.nn.Module(), query, query, query, None, position_bias=query)


@pytest.mark.parametrize("fault", ["padding seen", "rows mixed up", "one token forgotten"])
def test_fault_is_found_by_the_trial(fault, monkeypatch):
    """Negative controls: were the attention wrong, the trial on made-up tokens would refuse it."""
    honest = attention.SharedPromptCache
    if fault == "padding seen":
        monkeypatch.setattr(torch.Tensor, "masked_fill_", lambda self, *_: self)
    elif fault == "rows mixed up":
        monkeypatch.setattr(honest, "by_row", lambda self, p, f=honest.by_row: f(self, p).flip(0))
    else:
        update = honest.update
        monkeypatch.setattr(
            honest,
            "update",
            lambda *a: tuple(x[:, :, : max(1, x.shape[2] - 1)] for x in update(*a)),
        )
    assert not enable_shared_cache(model_of(LlamaForCausalLM, LLAMA))


def test_copies_inherit_and_bf16_decodes_on_shared_prompts_too():
    model = model_of(LlamaForCausalLM, LLAMA)
    trunk_of(model).compute_dtype = torch.bfloat16
    assert enable_shared_cache(model) and enable_sharing(model)
    policy = copy.deepcopy(model)
    assert trunk_of(policy).share_cache and trunk_of(policy).compute_dtype == torch.bfloat16
    batch = drawn(policy)
    off = (batch["logp"] - completion_logp(policy, batch)).abs().max()
    assert 0 < off < 0.3  # bf16's rounding, of two orders of summation
    assert generation.KEEP_UNTIL < 1
