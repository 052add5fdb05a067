"""Activation checkpointing: the same gradients to the bit, and fewer activations kept."""

import copy

import pytest
import torch

from harness.core.errors import UsageError
from harness.models.activation_checkpointing import (
    checkpointing,
    enable_activation_checkpointing,
)
from harness.models.capabilities import enable_sharing, find_head
from harness.models.flops import layers_of
from harness.models.loading import learning, scalar_from, trunk_of
from harness.models.logprobs import completion_logp, completion_values
from harness.models.lora import Lora, beside


def gradients(model, compute, batch):
    """Return {name: gradient} of the sum of a model's outputs."""
    model.zero_grad(set_to_none=True)
    compute(model, batch).pow(2).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def kept_bytes(model, compute, batch):
    """Return the bytes that autograd keeps for the backward pass, shared storages once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = compute(model, batch)
    del out
    return sum(kept.values())


def check_same(model, compute, batch):
    """Assert that a model has the same gradients with and without activation checkpointing."""
    plain = gradients(model, compute, batch)
    enable_activation_checkpointing(model)
    calls = count_calls(model)
    again = gradients(model, compute, batch)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    return calls


def count_calls(model):
    """Return a list that grows by the index of a layer each time its attention is computed."""
    trunk = model.trunk if hasattr(model, "trunk") else trunk_of(model)
    calls = []
    for index, layer in enumerate(layers_of(trunk)):
        attention = getattr(layer, "self_attn", None) or layer.attn
        attention.register_forward_hook(lambda *_, index=index: calls.append(index))
    return calls


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["tiny_model", "gpt2_model"])
def test_gradients_are_equal_to_the_bit(name, packed, request, tokens, make_batch):
    model = learning(copy.deepcopy(request.getfixturevalue(name)))
    (enable_sharing if packed else find_head)(model)
    calls = check_same(model, completion_logp, make_batch(tokens))
    # computed twice, but for the last layer; narrowed (packed), its attention hands over keys and
    # values first, which ends that call before the hook
    assert calls == [0, 1, 0]


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_of_an_adapter_are_equal_to_the_bit(packed, tiny_model, tokens, make_batch):
    plain = copy.deepcopy(tiny_model)
    (enable_sharing if packed else find_head)(plain)
    check_same(beside(plain, Lora(3, 6.0, 1)), completion_logp, make_batch(tokens))


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_of_a_critic_are_equal_to_the_bit(packed, tiny_model, tokens, make_batch):
    plain = copy.deepcopy(tiny_model)
    if packed:
        enable_sharing(plain)
    critic = learning(scalar_from(plain).initialise(7))
    check_same(critic, completion_values, make_batch(tokens))


def test_gradients_in_bfloat16_are_equal_to_the_bit(tiny_model, tokens, make_batch):
    model = learning(copy.deepcopy(tiny_model))
    enable_sharing(model)
    trunk_of(model).compute_dtype = torch.bfloat16
    check_same(model, completion_logp, make_batch(tokens))


def test_recomputation_with_another_attention_is_noticed(tiny_model, tokens, make_batch):
    """The negative control: without the packing's attention the recomputation is another pass."""
    from harness.models import logprobs

    model = learning(copy.deepcopy(tiny_model))
    enable_sharing(model)
    enable_activation_checkpointing(model)
    keep, logprobs.checkpointing = logprobs.checkpointing, lambda trunk, again: checkpointing(trunk)
    try:
        with pytest.raises(torch.utils.checkpoint.CheckpointError):
            gradients(model, completion_logp, make_batch(tokens))
    finally:
        logprobs.checkpointing = keep


@pytest.mark.parametrize("packed", [True, False])
def test_fewer_activations_are_kept(packed, build_model, tokens, make_batch):
    model = learning(build_model("llama"))
    (enable_sharing if packed else find_head)(model)
    batch = make_batch(tokens)
    before = kept_bytes(model, completion_logp, batch)
    enable_activation_checkpointing(model)
    assert kept_bytes(model, completion_logp, batch) < 0.8 * before  # one of two layers


def test_passes_without_gradients_are_as_before(tiny_model, tokens, make_batch):
    model = copy.deepcopy(tiny_model)
    enable_activation_checkpointing(model)
    with torch.no_grad(), checkpointing(trunk_of(model)):
        assert not any("forward" in vars(layer) for layer in layers_of(trunk_of(model)))
    with checkpointing(trunk_of(model)):
        assert ["forward" in vars(layer) for layer in layers_of(trunk_of(model))] == [True, False]
    assert not any("forward" in vars(layer) for layer in layers_of(trunk_of(model)))


def test_model_whose_layers_are_ambiguous_is_refused(tiny_model):
    model = copy.deepcopy(tiny_model)
    trunk_of(model).more = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    with pytest.raises(UsageError, match="--activation-checkpointing: LlamaModel has 2 lists"):
        enable_activation_checkpointing(model)


def test_value_head_alone_has_nothing_to_checkpoint():
    enable_activation_checkpointing(torch.nn.Linear(2, 1))
