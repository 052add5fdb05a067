"""The packed layout gives the padded layout's numbers; models that cannot use it are detected."""

import copy

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from harness.models import layouts, logprobs, packing
from harness.models.capabilities import enable_sharing, find_head
from harness.models.flops import ModelFlops
from harness.models.loading import scalar_from, trunk_of
from harness.models.logprobs import (
    completion_logits,
    completion_logp,
    completion_scores,
    completion_states,
    predictions,
)

from ..helpers.small_models import SMALL, batch_of, llama


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
    assert ModelFlops(sharing).forward(batch) < 0.6 * ModelFlops(scalar).forward(batch), (
        "the prompts are computed once"
    )
    real = torch.cat([torch.ones_like(batch["mask"][..., :1]), batch["mask"]], -1)
    torch.testing.assert_close(
        completion_states(sharing, batch) * real,
        completion_states(scalar, batch) * real,
        atol=2e-5,
        rtol=0,
    )
    for pooling in ("last", "mean", "sum"):
        a, b = (completion_scores(m, batch, pooling) for m in (sharing, scalar))
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("at_once", [2**26, 60, 600])  # numbers: one part, a token at a time, ten
def test_gradients_agree(k, at_once, monkeypatch):
    monkeypatch.setattr(layouts, "LOGITS_AT_ONCE", at_once)
    batch, grads = batch_of(k=k), []
    for share in (False, True):
        model = llama(num_key_value_heads=2)
        if share:
            assert enable_sharing(model)
        (completion_logp(model, batch) * torch.linspace(-1, 1, 6)).sum().backward()
        grads.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 1e-6


@pytest.mark.parametrize("at_once", [60, 600])  # numbers: a token at a time, ten
def test_gradients_agree_where_the_head_reads_padded_rows_in_parts(at_once, monkeypatch):
    batch, told = batch_of(), []
    for apart in (False, True):
        model, seen = llama(num_key_value_heads=2), []
        if apart:
            monkeypatch.setattr(layouts, "LOGITS_AT_ONCE", at_once)
            assert find_head(model)
            model.get_output_embeddings().register_forward_hook(
                lambda m, i, out, seen=seen: seen.append(out.numel())
            )
        logp = completion_logp(model, batch)
        (logp * torch.linspace(-1, 1, 6)).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        told.append((logp.detach(), grads))
    torch.testing.assert_close(told[0][0], told[1][0], atol=2e-6, rtol=0)
    assert (told[0][1] - told[1][1]).norm() / told[0][1].norm() < 1e-6
    assert len(seen) > 2 and max(seen) <= at_once  # the logits of all places were never there


def test_head_apart_is_billed_for_what_it_reads(monkeypatch):
    model, batch = llama(), batch_of()
    whole = ModelFlops(model).forward(batch)
    assert (
        find_head(model) and ModelFlops(model).forward(batch) == whole
    )  # few logits: as the model itself does it
    monkeypatch.setattr(layouts, "LOGITS_AT_ONCE", 600)
    b, k, t = batch.shape
    unread = b * k * (t + 1) - int(batch["mask"].sum())
    assert (
        whole - ModelFlops(model).forward(batch)
        == 2 * SMALL["hidden_size"] * SMALL["vocab_size"] * unread
    )


def test_head_that_does_more_than_a_product_is_found_out():
    torch.manual_seed(0)
    scaled = GraniteForCausalLM(
        GraniteConfig(**SMALL, intermediate_size=64, logits_scaling=4.0)
    ).eval()
    assert not find_head(scaled) and find_head(llama())


def test_critics_gradients_agree():
    batch, grads = batch_of(), []
    for share in (False, True):
        model = llama()
        if share:
            assert enable_sharing(model)
        scalar = scalar_from(model).initialise(0)
        (
            completion_states(scalar, batch)[..., 1:] * batch["mask"] * torch.linspace(-1, 1, 6)
        ).sum().backward()
        grads.append(
            torch.cat([p.grad.flatten() for p in scalar.parameters() if p.grad is not None])
        )
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 1e-6


def test_only_states_that_predict_a_token_go_through_the_head_a_part_at_a_time(monkeypatch):
    model, batch, read = llama(), batch_of(), []
    assert enable_sharing(model)
    model.lm_head.register_forward_hook(lambda _, told, __: read.append(len(told[0])))
    completion_logp(model, batch)
    assert read == [int(batch["mask"].sum())]
    read.clear()
    monkeypatch.setattr(layouts, "LOGITS_AT_ONCE", 10 * 60)
    completion_logp(model, batch).sum().backward()
    assert max(read) == 10 and sum(read) == 2 * int(
        batch["mask"].sum()
    )  # once more for the backward pass


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_of_a_logp_is_the_softmax_law(temperature):
    logits = torch.randn(5, 7, dtype=torch.double, requires_grad=True)
    ids = torch.tensor([0, 6, 3, 3, 2])
    told = logprobs.Predictions(logits, lambda x: x, temperature, 2)
    assert told.logp(ids).dtype == torch.float32  # whatever a head computes in
    assert torch.autograd.gradcheck(lambda x: logprobs._LogSoftmaxAt.apply(x, ids), (logits,))
    told.logp(ids).sum().backward()
    law = (torch.eye(7)[ids] - (logits.detach() / temperature).softmax(-1)) / temperature
    torch.testing.assert_close(logits.grad, law, atol=1e-6, rtol=0)


def test_head_that_is_more_than_a_product_is_left_to_the_model():
    """Granite divides its logits: a head taken apart would forget that."""
    torch.manual_seed(0)
    config = GraniteConfig(**SMALL, intermediate_size=64, num_key_value_heads=4, logits_scaling=3.0)
    model, batch = GraniteForCausalLM(config).eval(), batch_of()
    padded, packed = both(model, lambda m: completion_logp(m, batch))
    assert not model.base_model.plain_head
    torch.testing.assert_close(packed, padded, atol=2e-5, rtol=0)
    model.base_model.plain_head = True  # negative control
    assert (completion_logp(model, batch) - padded).abs().max() > 1e-3


def test_completion_without_tokens_has_no_logp():
    model, batch = llama(), batch_of()
    batch.columns["mask"][1, 2] = 0
    batch.columns["mask"][2] = 0
    padded, packed = both(model, lambda m: completion_logp(m, batch))
    torch.testing.assert_close(packed, padded, atol=2e-5, rtol=0)
    assert len(predictions(model, batch).states) == int(batch["mask"].sum())


@pytest.mark.parametrize(
    "cls, config",
    [
        (
            GPT2LMHeadModel,
            GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=128),
        ),
        (Qwen2ForCausalLM, Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=2)),
        (
            MistralForCausalLM,
            MistralConfig(
                **SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=None
            ),
        ),
    ],
)
def test_other_attention_models_share(cls, config):
    torch.manual_seed(0)
    model, batch = cls(config).eval(), batch_of()
    padded, shared = both(model, lambda m: completion_logp(m, batch))
    torch.testing.assert_close(shared, padded, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    "cls, config",
    [
        (BloomForCausalLM, BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=60)),
        (
            Lfm2ForCausalLM,
            Lfm2Config(
                **SMALL,
                intermediate_size=64,
                num_key_value_heads=2,
                layer_types=["conv", "full_attention"],
            ),
        ),
    ],
)
def test_models_that_cannot_share_keep_the_padded_layout(cls, config):
    torch.manual_seed(0)
    model, batch = cls(config).eval(), batch_of()
    before = completion_logp(model, batch)
    if enable_sharing(
        model
    ):  # a library that builds their bias from positions may learn to: then it must agree
        torch.testing.assert_close(completion_logp(model, batch), before, atol=5e-5, rtol=0)
    else:
        assert not model.base_model.share_prompt
        torch.testing.assert_close(completion_logp(model, batch), before)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("share", [False, True])
def test_batch_without_a_token_to_learn_from_has_a_gradient_of_zero(share, k):
    """A verifier may score no answer of a micro-batch; its part of the step is then 0."""
    model, batch = llama(), batch_of(b=2, k=k)
    if share:
        assert enable_sharing(model) and trunk_of(model).last_parts
    batch.columns["mask"].zero_()
    logp = completion_logp(model, batch)
    assert logp.shape == batch.shape and not logp.any()
    logp.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and not any(g.any() for g in grads)


@pytest.mark.parametrize("b, k, q, t", [(1, 16, 4, 30), (1, 4, 60, 6), (4, 1, 8, 30), (3, 2, 9, 9)])
def test_it_is_never_more_work(b, k, q, t):
    model, batch = llama(), batch_of(b, k, q, t)
    padded = ModelFlops(model).forward(batch)
    assert enable_sharing(model) and ModelFlops(model).forward(batch) < padded


def leaking(self, query, window):
    """Completions are blind to nothing of their own: they see what they have yet to say."""
    return torch.zeros_like(honest_bias(self, query, window))


def blind(self, query, window):
    """Completions do not see their prompts."""
    bias = honest_bias(self, query, window).clone()
    bias[..., : self.prompts.width] = torch.finfo(bias.dtype).min
    return bias


honest_bias = packing.Packing._bias


@pytest.mark.parametrize("fault", [leaking, blind, "shifted", "misplaced", "of another"])
def test_fault_is_found_by_the_trial(fault, monkeypatch):
    """Negative controls: were the layout wrong, the trial on made-up tokens would refuse it."""
    honest = packing.pack

    def shifted(batch):
        made = honest(batch)
        made.states = (made.states - 1).clamp(min=0)
        return made

    def misplaced(batch):
        made = honest(batch)
        made.positions = torch.arange(made.positions.shape[1])[None]
        return made

    def of_another(batch):
        return honest(
            batch.with_columns(
                completion_ids=batch["completion_ids"].flip(1 if batch.shape[1] > 1 else 0)
            )
        )

    if callable(fault):
        monkeypatch.setattr(packing.Packing, "_bias", fault)
    else:
        faults = {"shifted": shifted, "misplaced": misplaced, "of another": of_another}
        monkeypatch.setattr(logprobs, "pack", faults[fault])
    assert not enable_sharing(llama())


def test_model_whose_shared_layout_is_off_takes_the_padded_one():
    model, batch = llama(), batch_of()
    assert enable_sharing(model)
    packed = ModelFlops(model).forward(batch)
    with logprobs.padded([model]):
        assert ModelFlops(model).forward(batch) > packed
    assert ModelFlops(model).forward(batch) == packed
