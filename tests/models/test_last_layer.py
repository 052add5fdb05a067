"""The last layer computes the states that are read and no others, and nothing that is read changes
by it.
"""

import copy

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from harness.models import last_layer, packing
from harness.models.capabilities import enable_sharing, find_out, inherit
from harness.models.loading import scalar_from, trunk_of
from harness.models.logprobs import completion_logp, completion_states, padded

from ..helpers.small_models import SMALL, batch_of, llama

HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}


def qwen():
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=2))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60)).eval()


def neox():
    return GPTNeoXForCausalLM(GPTNeoXConfig(**HEADS, intermediate_size=64))


APART = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
KINDS = [  # the modules before the attention: some models project queries, keys and values at once
    (llama, APART, APART - {"self_attn.q_proj"}, {"self_attn.q_proj"}),
    (qwen, APART, APART - {"self_attn.q_proj"}, {"self_attn.q_proj"}),
    (
        neox,
        {"attention.query_key_value"},
        {"attention.query_key_value"},
        {"attention.query_key_value"},
    ),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0].__name__)
def kind(request):
    torch.manual_seed(0)
    build, *parts = request.param
    return build().eval(), parts


def logp_and_gradient(model, batch):
    model.zero_grad()
    logp = completion_logp(model, batch)
    (logp * torch.linspace(-1, 1, batch.shape[2])).sum().backward()
    return logp.detach(), torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


def test_parts_are_found_and_gradients_are_those_of_the_whole_layer(kind):
    model, parts = kind
    assert enable_sharing(model)
    found = trunk_of(model).last_parts
    assert [set(found.before), set(found.keys), set(found.queries)] == parts
    assert all(p.requires_grad for p in model.parameters()), (
        "they took gradients before, and do again"
    )
    for k in (1, 4):
        few, few_gradient = logp_and_gradient(model, batch_of(k=k))
        whole = copy.deepcopy(model)
        trunk_of(whole).last_parts = None
        logp, gradient = logp_and_gradient(whole, batch_of(k=k))
        torch.testing.assert_close(few, logp, atol=1e-5, rtol=0)
        assert (few_gradient - gradient).norm() / gradient.norm() < 1e-6


@pytest.mark.parametrize("k", [1, 4])
def test_only_states_that_are_read_pass_the_last_layer(k):
    model, batch, seen = llama(), batch_of(k=k), []
    enable_sharing(model)
    model.model.layers[-1].mlp.register_forward_hook(lambda _, told, out: seen.append(out.shape[1]))
    lengths = batch["mask"].sum()
    completion_logp(model, batch)
    assert seen.pop() == len(batch.prompts) + lengths - batch["mask"][..., 0].sum()
    critic = scalar_from(model).initialise(0)
    critic.trunk.layers[-1].mlp.register_forward_hook(
        lambda _, told, out: seen.append(out.shape[1])
    )
    completion_states(critic, batch)
    assert seen[-1] == len(batch.prompts) + lengths
    assert not model.model.layers[-1]._forward_pre_hooks, "the hook is gone"


def test_critics_agree_with_the_padded_layout():
    model = llama()
    enable_sharing(model)
    critic = scalar_from(model).initialise(0)
    for k in (1, 4):
        batch = batch_of(k=k)
        real = torch.cat([torch.ones_like(batch["mask"][..., :1]), batch["mask"]], -1)
        few = completion_states(critic, batch) * real
        with padded([critic]):
            torch.testing.assert_close(
                few, completion_states(critic, batch) * real, atol=2e-5, rtol=0
            )


def test_empty_completion_is_none():
    """As a refused answer is: its prompt is read, and nothing of it."""
    model, batch = llama(), batch_of(k=2)
    enable_sharing(model)
    batch["mask"][1] = 0
    few, whole = completion_logp(model, batch), None
    trunk_of(model).last_parts = None
    whole = completion_logp(model, batch)
    torch.testing.assert_close(few, whole, atol=1e-5, rtol=0)
    assert not few[1].any()


def test_bf16_reads_the_same_states():
    model, batch = llama(), batch_of()
    enable_sharing(model)
    trunk_of(model).compute_dtype = torch.bfloat16
    few = completion_logp(model, batch)
    trunk_of(model).last_parts = None
    torch.testing.assert_close(few, completion_logp(model, batch), atol=2e-2, rtol=0)


class Skip(torch.nn.Module):
    """A norm that adds what the first layer was told: it wants the states of all tokens."""

    def __init__(self, model):
        super().__init__()
        self.norm, self.first = model.model.norm, None
        model.model.embed_tokens.register_forward_hook(
            lambda _, told, out: setattr(self, "first", out)
        )

    def forward(self, states):
        return self.norm(states) + self.first


def test_model_that_reads_all_states_computes_all():
    model = llama()
    model.model.norm = Skip(model)
    assert enable_sharing(model) and trunk_of(model).last_parts is None
    shaped = gpt2()  # its trunk gives the states the shape of its input
    assert enable_sharing(shaped) and trunk_of(shaped).last_parts is None
    logp = completion_logp(model, batch_of())
    with padded([model]):
        torch.testing.assert_close(logp, completion_logp(model, batch_of()), atol=2e-5, rtol=0)


def test_layers_that_are_not_found_are_all_computed():
    model = llama()
    model.model.more = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    assert enable_sharing(model) and trunk_of(model).last_parts is None


def test_fault_is_found_by_trying(monkeypatch):
    """Negative control: every token sees one place too few."""
    usual = packing.Packing.asking

    def off(self, read):
        found = usual(self, read)
        found.last -= 1
        return found

    monkeypatch.setattr(packing.Packing, "asking", off)
    model = llama()
    assert enable_sharing(model) and trunk_of(model).last_parts is None


def test_copies_inherit_and_a_layer_that_does_not_attend_is_told(monkeypatch):
    model, other = llama(), llama()
    find_out(model, sharing=True)
    inherit(other, model)
    assert trunk_of(other).last_parts == trunk_of(model).last_parts is not None
    find_out(other, sharing=False)
    batch = batch_of()
    monkeypatch.setattr(last_layer, "last_layer", lambda trunk: trunk.norm)
    with pytest.raises(ValueError, match="did not call the attention function"):
        completion_logp(model, batch)
