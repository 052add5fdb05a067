"""Every way to change a model in memory is found, and what the harness itself does is no change."""

import copy
import gc
from functools import partial

import pytest
import torch
from torch import nn

from harness.models.initial_checkpoint import InitialCheckpoint
from harness.models.loading import frozen
from harness.models.lora import Lora, beside
from harness.models.model_state import ModelState, bit_sums, foreign_code


def _copied(model):
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.5)


def _through_data(model):
    model.get_input_embeddings().weight.data.mul_(0.5)


def _given_data(model):
    weight = model.get_input_embeddings().weight
    weight.data = weight.data * 0.5


def _through_numpy(model):
    model.get_input_embeddings().weight.detach().numpy()[:] *= 0.5


def _loaded(model):
    model.load_state_dict({name: tensor * 0.5 for name, tensor in model.state_dict().items()})


def _swapped_rows(model):
    rows = model.get_input_embeddings().weight.data
    rows[[5, 6]] = rows[[6, 5]]


def _new_parameter(model):
    norm = model.model.norm
    norm.weight = nn.Parameter(norm.weight * 0.5, requires_grad=False)


def _buffer(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def _forward(model):
    plain = model.model.norm.forward
    model.model.norm.forward = lambda x: plain(x) * 0.5


def _hook(model):
    model.model.norm.register_forward_hook(lambda module, given, out: out * 0.5)


def _layer(model):
    model.model.layers[0].mlp = nn.Identity()


def _configuration(model):
    model.config.eos_token_id = 5


WAYS = (
    _copied,
    _through_data,
    _given_data,
    _through_numpy,
    _loaded,
    _swapped_rows,
    _new_parameter,
    _buffer,
    _forward,
    _hook,
    _layer,
    _configuration,
)


@pytest.fixture
def model(tiny_model):
    return frozen(copy.deepcopy(tiny_model))


@pytest.mark.parametrize("change", WAYS)
def test_model_state_finds_a_change(model, change):
    state = ModelState(model)
    assert state.touched() == state.changed(model) == ""
    change(model)
    assert state.changed(model)


def test_model_state_finds_a_write_at_once(model):
    state = ModelState(model)
    _copied(model)
    assert state.touched() == "model.embed_tokens.weight"


def test_model_state_allows_a_weight_set_to_its_own_values(model):
    """PEFT does that to parameters of experts in every pass."""
    state, weight = ModelState(model), next(model.parameters())
    with torch.no_grad():
        weight.set_(weight.clone())
    assert state.touched() == "" == state.changed(model)
    with torch.no_grad():
        weight.view(-1)[0] += 1
    assert "the weight" in state.changed(model)  # the negative control


def test_model_state_finds_a_forward_function_of_a_class(model, monkeypatch):
    assert foreign_code(model) == ""
    norm = type(model.model.norm)
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, x: plain(self, x) * 0.5)
    told = foreign_code(model)
    assert told.startswith(f"the forward function of {norm.__name__}, by code of tests")


def test_model_state_allows_copies_and_adapters(model):
    state = ModelState(model)
    learner = copy.deepcopy(model)
    _copied(learner)
    adapter = beside(model, Lora(2, 4.0, 0, "policy"))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    assert state.changed(model) == ""
    _through_data(model)
    assert state.changed(model) == "the weight model.embed_tokens.weight"


def test_model_state_holds_no_model_in_memory(model):
    start = InitialCheckpoint(partial(copy.deepcopy, model))
    held = start.model()
    assert start.changed() == ""
    _through_data(held)
    assert start.touched() == "" and start.changed() == "the weight model.embed_tokens.weight"
    del held
    gc.collect()
    assert start.changed() == ""  # it is read again
    assert torch.equal(start.model().get_input_embeddings().weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (300, 129)])
def test_bit_sums_find_one_flipped_bit(dtype, shape):
    tensor = torch.randn(shape).mul(9).to(dtype)
    before, other = bit_sums(tensor), tensor.clone()
    assert bit_sums(other) == before
    place = other.view(-1)[-1:].view(torch.uint8)
    place[-1] ^= 1
    assert bit_sums(other) != before
