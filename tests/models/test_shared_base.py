"""Several adapters on one base: policy, critic and reward models share one set of weights."""

import copy
import gc
import json
from types import SimpleNamespace

import pytest
import torch

from harness.core.settings import AdamWOptions
from harness.models.activation_checkpointing import enable_activation_checkpointing
from harness.models.flops import forward_cost
from harness.models.initial_checkpoint import InitialCheckpoint, learner
from harness.models.loading import (
    load_tensors,
    plain_scalar,
    scalar_beside,
    scalar_from,
    size_of,
    trunk_of,
    weights_digest,
)
from harness.models.logprobs import completion_logp, completion_values
from harness.models.lora import (
    Lora,
    adapter_of,
    beside,
    carries,
    learn,
    load_own,
    own,
    own_state,
    size_of_own,
    switched,
    switched_on,
)
from harness.models.lora_weights import merge
from harness.training.reward_model import RewardModel
from harness.training.roles import Critic
from harness.training.trainer import Role, Term, Trainer

from ..helpers.tiny_models import tiny
from ..helpers.tools import command, fresh, on_small, only_run

VALUE = Lora(2, 4.0, 5, "value")


@pytest.fixture
def base(sharing_model):
    return sharing_model


def moved(model, seed=0):
    """Give a model's adapter something to say."""
    torch.manual_seed(seed)
    for name, p in own(model).items():
        if "lora_B" in name:
            p.data.normal_(std=0.05)
    return model


# -- switching -------------------------------------------------------------------------------------


def test_each_model_computes_with_its_own_adapter_and_the_base_with_none(base, tokens, make_batch):
    batch, alone = make_batch(tokens), copy.deepcopy(base)
    policy = moved(beside(base, Lora(3, 6.0, 1)), 1)
    expected = completion_logp(policy, batch)
    other = moved(beside(base, Lora(2, 4.0, 2)), 2)
    critic = moved(scalar_beside(base, VALUE).initialise(3), 3)
    assert [adapter_of(m) for m in (policy, other, critic, base)] == [
        "policy",
        "policy1",
        "value",
        None,
    ]
    values = completion_values(critic, batch)
    assert torch.equal(completion_logp(policy, batch), expected)
    assert not torch.equal(completion_logp(other, batch), expected)
    assert torch.equal(completion_values(critic, batch), values)
    assert torch.equal(completion_logp(base, batch), completion_logp(alone, batch))
    assert torch.equal(
        policy(input_ids=batch["completion_ids"][:, 0]).logits,
        policy(input_ids=batch["completion_ids"][:, 0]).logits,
    )
    assert switched_on(trunk_of(base)) is None and carries(base)


def test_adapter_is_off_again_after_an_error(base):
    beside_it = beside(base, Lora(2, 4.0, 1))
    with pytest.raises(ZeroDivisionError), switched(trunk_of(base), "policy"):
        assert switched_on(trunk_of(base)) == adapter_of(beside_it)
        1 / 0  # noqa: B018
    assert switched_on(trunk_of(base)) is None


def test_gradients_reach_the_adapter_that_computed_and_no_other(base, tokens, make_batch):
    batch = make_batch(tokens)
    policy, critic = beside(base, Lora(3, 6.0, 1)), scalar_beside(base, VALUE).initialise(3)
    completion_logp(policy, batch).sum().backward()
    assert all(p.grad is not None for p in own(policy).values())
    assert all(p.grad is None for p in own(critic).values())
    completion_values(critic, batch).sum().backward()
    assert all(p.grad is not None for p in own(critic).values())
    assert all(p.grad is None for n, p in base.named_parameters() if "lora_" not in n)


def test_layer_is_recomputed_with_the_adapter_of_its_forward_pass(base, tokens, make_batch):
    """Two models run forward before either runs backward."""
    batch = make_batch(tokens)

    def gradients():
        policy = moved(beside(base, Lora(3, 6.0, 1)), 1)
        critic = moved(scalar_beside(base, VALUE).initialise(3), 2)
        total = completion_logp(policy, batch).sum() + completion_values(critic, batch).sum()
        total.backward()
        return [p.grad for m in (policy, critic) for p in own(m).values()]

    plain = gradients()
    enable_activation_checkpointing(base)
    again = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_adapter_is_freed_with_its_model(base):
    policy, other = beside(base, Lora(2, 4.0, 1)), beside(base, Lora(2, 4.0, 2))
    del policy
    gc.collect()
    names = [name for name, _ in base.named_parameters() if "lora_" in name]
    assert names and all(".policy1." in name for name in names)
    del other
    gc.collect()
    assert not any("lora_" in name for name, _ in base.named_parameters())
    assert not carries(base)
    assert adapter_of(beside(base, Lora(2, 4.0, 1))) == "policy"  # the name is free again


def test_what_is_counted_and_saved_of_a_model_leaves_out_the_others(base):
    whole, digest, cost = size_of(base), weights_digest(base), forward_cost(base)
    policy = beside(base, Lora(3, 6.0, 1))
    alone, state = forward_cost(policy), own_state(policy)
    critic = scalar_beside(base, VALUE)
    vars(base).pop("forward_cost"), vars(policy).pop("forward_cost")
    assert size_of(base) == whole and weights_digest(base) == digest
    assert forward_cost(base) == cost and forward_cost(policy) == alone
    assert own_state(policy).keys() == state.keys()
    assert all(".default." in name for name in state)
    assert size_of(policy)[0] == whole[0] + size_of_own(policy)[0]
    assert {n for n in own(critic) if "lora_" not in n} == {"head.weight", "head.bias"}
    assert forward_cost(critic).linear == cost.linear + size_of_own(critic)[0] - 33


def test_copies_of_a_base_with_adapters_are_plain(base, tokens, make_batch):
    start, batch = InitialCheckpoint.of(base), make_batch(tokens)
    names = [name for name, _ in base.named_parameters()]
    policy = moved(beside(base, Lora(3, 6.0, 1)))
    copied = start.copy()
    assert [name for name, _ in copied.named_parameters()] == names and not carries(copied)
    assert start.equals(copied) and not start.equals(policy) and start.carries_adapters
    assert torch.equal(completion_logp(copied, batch), completion_logp(base, batch))


def test_results_are_those_of_two_modules_over_one_set_of_tensors(base, tokens, make_batch):
    """As LoRA was before: a copied module tree over the same tensors, with PEFT layers in it."""
    from peft import LoraConfig, inject_adapter_in_model

    batch, start = make_batch(tokens), InitialCheckpoint.of(base)
    former = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    policy = learner(start, SimpleNamespace(lora_rank=3, lora_alpha=0.0), seed=11)
    config = LoraConfig(r=3, lora_alpha=6.0, target_modules="all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(_adapter_seed(11))
        inject_adapter_in_model(config, former)
    former.eval()
    for model in (policy, former):
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=1e-2)
        for _ in range(3):
            (-completion_logp(model, batch)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    now, then = own_state(policy), former.state_dict()
    assert all(torch.equal(now[name], then[name]) for name in now)
    assert torch.equal(completion_logp(policy, batch), completion_logp(former, batch))


def _adapter_seed(seed):
    from harness.core.seeds import derive

    return derive(seed, "adapter")


def test_two_adapters_on_a_mixture_of_experts_are_apart():
    base = tiny("mixtral")
    ids = torch.arange(3, 33).view(2, 15)
    plain = base(ids).logits
    policy, other = moved(beside(base, Lora(2, 4.0, 1)), 1), beside(base, Lora(2, 4.0, 2))
    expected = policy(ids).logits
    assert float((expected - plain).detach().abs().max()) > 1e-3
    assert torch.equal(other(ids).logits, plain) and torch.equal(base(ids).logits, plain)
    moved(other, 2)
    assert torch.equal(policy(ids).logits, expected)
    expected.sum().backward()
    assert all(p.grad is not None for p in own(policy).values())
    assert all(p.grad is None for p in own(other).values())


def test_merged_into_its_base_a_model_computes_the_same(base, tokens, make_batch):
    batch, names = make_batch(tokens), [n for n, _ in base.named_parameters()]
    policy = moved(beside(base, Lora(3, 6.0, 1)))
    expected = completion_logp(policy, batch)
    whole = merge(policy)
    assert whole is base and [n for n, _ in base.named_parameters()] == names
    torch.testing.assert_close(completion_logp(base, batch), expected, atol=2e-5, rtol=0)
    del policy
    gc.collect()  # its adapter is gone already


# -- reward models and critics ---------------------------------------------------------------------


def test_reward_model_saves_its_adapter_and_head_and_is_loaded_on_the_start(
    base, tokens, make_batch, tmp_path
):
    start, batch = InitialCheckpoint.of(base), make_batch(tokens)
    model = moved(scalar_beside(base, Lora(2, 4.0, 1, "reward")).initialise(3))
    reward = RewardModel(model, "last", mean=0.5, scale=2.0)
    expected = reward.role.compute(batch).detach()
    reward.save(tmp_path)
    saved = load_tensors(tmp_path / "model.safetensors")
    assert sum(t.numel() for t in saved.values()) == size_of_own(model)[0]
    policy = beside(base, Lora(2, 4.0, 2))
    again = RewardModel.load(tmp_path, start)
    assert torch.equal(again.role.compute(batch), expected) and again.mean == 0.5
    assert not any(p.requires_grad for p in own(again.model).values())
    assert all(p.requires_grad for p in own(policy).values())  # the policy still learns


@pytest.mark.parametrize("rewarded", ["whole", "adapter"])
@pytest.mark.parametrize("lora", [None, VALUE])
def test_critic_starts_from_what_the_reward_model_computes(
    rewarded, lora, base, tokens, make_batch
):
    batch = make_batch(tokens)
    model = scalar_from(base).initialise(3)
    if rewarded == "adapter":
        model = moved(scalar_beside(base, Lora(3, 6.0, 1, "reward")).initialise(3))
    reward = RewardModel(learn(model, False), "last")
    for apart in (False, True):
        critic = reward.for_critic(lora, apart)
        critic.head.load_state_dict(model.head.state_dict())
        torch.testing.assert_close(
            completion_values(critic, batch), completion_values(model, batch), atol=2e-5, rtol=0
        )
        shares = any(p is q for p in critic.parameters() for q in model.parameters())
        assert shares == (lora is not None and (rewarded == "adapter" or not apart))
    assert not any(p.requires_grad for p in own(model).values())


def test_base_is_counted_once_whoever_uses_it(base, runtime, meter):
    start, bench = InitialCheckpoint.of(base), runtime()
    policy = Role("policy", beside(base, Lora(2, 4.0, 1)), completion_logp)
    reference = Role("reference", start.outline, completion_logp, lambda: start.carries_adapters)
    whole = RewardModel(scalar_from(base).initialise(1), "last")
    critic = Critic(whole.for_critic(VALUE, False), bench, whole.role.name)
    for role in (policy, reference, whole.role, critic.role):
        role.hold(meter)
    sizes = {name: told["parameters"] for name, told in meter.models.items()}
    assert sizes == {
        "base": size_of(base)[0],
        "policy": size_of_own(policy.module)[0],
        "reference": 0,
        "reward": size_of(whole.model)[0],
        "value": size_of_own(critic.model)[0],
    }


def test_training_of_an_adapted_scalar_model_goes_on_to_the_bit(
    base, accelerator, meter, tokens, make_batch
):
    batch = make_batch(tokens)

    def train(steps, saved=None):
        model = scalar_beside(base, VALUE).initialise(3)
        trainer = Trainer(AdamWOptions(learning_rate=1e-2), accelerator, meter, 1000)
        trainer.saved = dict(saved or {})
        trainer.add("value", learn(model))
        role = Role("value", model, lambda b: completion_values(model, b))
        with meter.phase("update"):
            for _ in range(steps):
                trainer.step([Term(lambda v, b: (v - 1) ** 2, batch, role)], 0.5)
        return {name: tensor.clone() for name, tensor in trainer.tensors().items()}

    first = train(2)
    straight, resumed = train(4), train(2, first)
    assert all(torch.equal(tensor, straight[name]) for name, tensor in resumed.items())
    assert len([name for name in straight if "/weight/" in name]) == len(own(plain_named(base)))


def plain_named(base):
    """Return a scalar model with an adapter: what such a training saves."""
    return scalar_beside(base, VALUE)


def test_copy_of_an_adapted_scalar_model_has_plain_weights(base, tokens, make_batch):
    batch, model = make_batch(tokens), moved(scalar_beside(base, VALUE).initialise(3))
    copied = plain_scalar(model)
    assert not any("lora_" in name for name, _ in copied.named_parameters())
    torch.testing.assert_close(
        completion_values(copied, batch), completion_values(model, batch), atol=2e-5, rtol=0
    )


def test_load_own_refuses_another_model(base):
    with pytest.raises(RuntimeError, match="not the tensors of this adapter"):
        load_own(scalar_beside(base, VALUE), own_state(beside(base, Lora(2, 4.0, 1))))


# -- a run -----------------------------------------------------------------------------------------


def test_run_holds_one_base_with_an_adapter_for_every_model_that_is_trained():
    folder = fresh("all-lora")
    options = ["--set", "lora_rank=2", "--stage-set", "sft.lora_rank=2"]
    options += ["--stage-set", "reward_model.lora_rank=2"]
    done = command(*on_small("ppo", *options, results=folder))
    assert done.code == 0, done.text
    models = json.loads((only_run(folder, "small", "ppo") / "result.json").read_text())["cost"][
        "models"
    ]
    assert models["base"]["parameters"] > 250_000 and models["reference"]["parameters"] == 0
    for role in ("policy", "reward", "value"):
        assert 0 < models[role]["parameters"] < 0.2 * models["base"]["parameters"], role
    (start,) = (folder / "artifacts").glob("sft-*/model.safetensors")
    assert not any("lora_" in name for name in load_tensors(start))
    for saved in (folder / "artifacts").glob("*reward_model-*/model.safetensors"):
        assert saved.stat().st_size < 0.2 * start.stat().st_size
