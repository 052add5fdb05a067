"""The shared-prompt layout gives the padded layout's numbers, and a model that cannot use it is found out."""

import copy

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from harness.data import Prompt
from harness.logprobs import (
    completion_logits,
    completion_logp,
    completion_scores,
    completion_states,
    enable_sharing,
    shape_of,
)
from harness.models import scalar_from
from harness.tokens import Batch, PromptBatch

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=64, max_position_embeddings=128, **more)).eval()


def batch_of(b=3, k=4, q=9, t=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    prompt_mask = torch.ones(b, q, dtype=torch.long)
    for i in range(b):
        prompt_mask[i, : 2 * i] = 0
    lengths = torch.randint(1, t + 1, (b, k, 1), generator=generator)
    mask = (torch.arange(t) < lengths).float()
    ids = torch.randint(3, 60, (b, k, t), generator=generator)
    prompts = PromptBatch(
        [Prompt(str(i), "") for i in range(b)], torch.randint(3, 60, (b, q), generator=generator), prompt_mask
    )
    return Batch(prompts, {"completion_ids": ids, "mask": mask}, temperature=0.7)


def both(model, compute):
    padded = compute(model)
    assert enable_sharing(model)
    return padded, compute(model)


def test_logp_values_scores_and_logits_agree():
    model, batch = llama(), batch_of()
    for compute in (
        lambda m: completion_logp(m, batch),
        lambda m: completion_logits(m, batch) * batch["mask"][..., None],
    ):
        padded, shared = both(copy.deepcopy(model), compute)
        torch.testing.assert_close(shared, padded, atol=2e-5, rtol=0)
    scalar = scalar_from(model).initialise(0).eval()
    enable_sharing(model)
    sharing = scalar_from(model).eval()
    sharing.load_state_dict(scalar.state_dict())
    assert shape_of(sharing, batch).rows == 3 and shape_of(scalar, batch).rows == 12
    real = torch.cat([torch.ones_like(batch["mask"][..., :1]), batch["mask"]], -1)
    torch.testing.assert_close(
        completion_states(sharing, batch) * real, completion_states(scalar, batch) * real, atol=2e-5, rtol=0
    )
    for pooling in ("last", "mean", "sum"):
        a, b = (completion_scores(m, batch, pooling) for m in (sharing, scalar))
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


def test_gradients_agree():
    batch, grads = batch_of(), []
    for share in (False, True):
        model = llama()
        if share:
            assert enable_sharing(model)
        (completion_logp(model, batch) * torch.linspace(-1, 1, 6)).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 1e-6


@pytest.mark.parametrize("cls, config", [
    (GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=128)),
    (Qwen2ForCausalLM, Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=2)),
    (MistralForCausalLM, MistralConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=None)),
])  # fmt: skip
def test_other_attention_models_share(cls, config):
    torch.manual_seed(0)
    model, batch = cls(config).eval(), batch_of()
    padded, shared = both(model, lambda m: completion_logp(m, batch))
    torch.testing.assert_close(shared, padded, atol=5e-5, rtol=0)


@pytest.mark.parametrize("cls, config", [
    (BloomForCausalLM, BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=60)),
    (MistralForCausalLM, MistralConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=4)),
])  # fmt: skip
def test_models_that_cannot_share_keep_the_padded_layout(cls, config):
    torch.manual_seed(0)
    model, batch = cls(config).eval(), batch_of()
    before = completion_logp(model, batch)
    if enable_sharing(model):  # a library that builds their bias from positions may learn to: then it must agree
        torch.testing.assert_close(completion_logp(model, batch), before, atol=5e-5, rtol=0)
    else:
        assert shape_of(model, batch).rows == 12
        torch.testing.assert_close(completion_logp(model, batch), before)


@pytest.mark.parametrize("more", [{"sliding_window": 64}, {"sliding_window": 64, "max_window_layers": 1}])
def test_a_window_longer_than_any_trial_keeps_the_padded_layout(more):
    torch.manual_seed(0)
    config = MistralConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, initializer_range=0.25, **more)
    model, batch = MistralForCausalLM(config).eval(), batch_of(q=100)
    before = completion_logp(model, batch)
    assert not enable_sharing(model)
    torch.testing.assert_close(completion_logp(model, batch), before)
    model.base_model.share_prompt = True  # negative control: the layout would forget the window
    assert (completion_logp(model, batch) - before).abs().max() > 1e-2


def test_the_cheaper_layout_is_taken():
    model = llama()
    assert enable_sharing(model)
    long_prompt, long_answers = batch_of(b=1, k=4, q=60, t=6), batch_of(b=1, k=16, q=4, t=30)
    assert shape_of(model, long_prompt).rows == 1 and shape_of(model, long_answers).rows == 16


def test_a_leak_between_completions_is_found(monkeypatch):
    """Negative control: were the completions to see each other, the trial would refuse the layout."""
    from harness import logprobs

    honest = logprobs._shared_inputs

    def leaking(batch):
        inputs, index = honest(batch)
        return inputs | {"attention_mask": torch.triu(torch.full_like(inputs["attention_mask"], -1e9), 1)}, index

    monkeypatch.setattr(logprobs, "_shared_inputs", leaking)
    assert not enable_sharing(llama())
