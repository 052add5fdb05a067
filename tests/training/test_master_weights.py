"""Training of weights in bfloat16: steps on float32 copies, which checkpoints keep."""

import copy

import pytest
import torch

from harness.core.settings import AdamWOptions
from harness.models.capabilities import enable_sharing
from harness.models.loading import learning, trunk_of
from harness.models.logprobs import completion_logp
from harness.models.memory import BatchSizes
from harness.training.master_weights import MasterWeights
from harness.training.trainer import Role, Term, Trainer


@pytest.fixture
def low(tiny_model):
    """The tiny model with weights in bfloat16."""
    model = copy.deepcopy(tiny_model)
    for p in model.parameters():
        p.data = p.data.bfloat16()
    trunk_of(model).compute_dtype = torch.bfloat16
    enable_sharing(model)
    return model


@pytest.fixture
def train(low, accelerator, meter, tokens, make_batch):
    """Return a function that takes steps: train(steps, saved={}, micro_batch_tokens=1000)."""
    batch = make_batch(tokens)

    def make(steps, saved=None, micro_batch_tokens=1000, rate=1e-5):
        options = AdamWOptions(learning_rate=rate, lr_schedule="constant", warmup_ratio=0.0)
        policy = learning(copy.deepcopy(low))
        trainer = Trainer(options, accelerator, meter, micro_batch_tokens, sizes=BatchSizes())
        trainer.saved = dict(saved or {})
        trainer.add("policy", policy)
        role = Role("policy", policy, lambda b: completion_logp(policy, b))
        with meter.phase("update"):
            rows = [trainer.step([Term(lambda logp, b: -logp, batch, role)], 0.5)]
            rows += [
                trainer.step([Term(lambda logp, b: -logp, batch, role)], 0.5)
                for _ in range(steps - 1)
            ]
        return trainer, rows

    return make


def test_float32_weights_are_stepped_on_themselves():
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    masters = MasterWeights(weights)
    assert all(a is b for a, b in zip(masters.parameters, weights, strict=True))
    assert not masters.state()


def test_steps_smaller_than_a_bfloat16_number_add_up(train, low):
    trainer, rows = train(60)
    before = dict(low.named_parameters())
    module = trainer.modules["policy"]
    copies = dict(zip(before, trainer.masters["policy"].parameters, strict=True))
    for name, weight in module.named_parameters():
        assert weight.dtype == torch.bfloat16 and copies[name].dtype == torch.float32
        assert torch.equal(weight, copies[name].bfloat16())
    norm = "model.norm.weight"  # ones: the next smaller bfloat16 is 0.996, and a step is 1e-5
    moved = (copies[norm] - before[norm].float()).abs().max()
    assert 1e-4 < moved < 1e-3 and torch.equal(dict(module.named_parameters())[norm], before[norm])
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_without_copies_such_steps_are_lost(low):
    """The negative control: AdamW on bfloat16 weights."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.0)
    for _ in range(60):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.equal(weight, torch.ones(4, dtype=torch.bfloat16))


def test_gradients_of_micro_batches_are_summed_in_float32(train):
    whole, parts = train(1)[1][0], train(1, micro_batch_tokens=1)[1][0]
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=0.02)
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    masters = MasterWeights([weight])
    for _ in range(300):  # 256 + 1 is 256 in bfloat16
        weight.backward(torch.ones(1, dtype=torch.bfloat16))
    assert masters.parameters[0].grad.item() == 300.0 and weight.grad is None


def test_training_goes_on_from_its_copies_to_the_bit(train):
    straight, rows = train(6)
    first, _ = train(3)
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    assert saved["policy/master/0"].dtype == torch.float32
    resumed, again = train(3, saved)
    assert again == rows[3:]
    expected = straight.tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.tensors().items())
    # the negative control: from the rounded weights alone it goes another way
    rounded = {name: tensor for name, tensor in saved.items() if "/master/" not in name}
    assert any(
        not torch.equal(tensor, expected[name])
        for name, tensor in train(3, rounded)[0].tensors().items()
    )
