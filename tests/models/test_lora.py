"""Adapters: the start checkpoint's weights twice in use and once in memory; every method passes the
proofs with one.
"""

import copy
import json

import pytest
import torch

from harness.api.methods import GradientMethod
from harness.api.registry import installed
from harness.check import Options
from harness.check.methods import proofs_of
from harness.check.trials import Trials
from harness.models.flops import ModelFlops, forward_cost, frozen_cost
from harness.models.initial_checkpoint import InitialCheckpoint, merged
from harness.models.loading import frozen, learning, load_tensors, scalar_on, trunk_of
from harness.models.logprobs import completion_logp
from harness.models.lora import (
    Adapted,
    Lora,
    adapted,
    beside,
    carries,
    held,
    load_own,
    own,
    own_state,
    plain_state,
    size_of_own,
    switched,
    unchanged,
)
from harness.models.lora_weights import adaptation
from harness.training.trainer import Role, Trainer

from ..helpers.memory_counter import counted
from ..helpers.registries import METHODS, sampled
from ..helpers.tiny_models import MIXTURES, tiny, tiny_folder
from ..helpers.tools import command, fresh, on_small, only_run, with_shared_stages

GRADIENT = [m for m in METHODS if issubclass(installed().classes["methods"][m], GradientMethod)]


@pytest.fixture
def plain(sharing_model):
    return sharing_model


@pytest.fixture
def policy(plain):
    return beside(plain, Lora(3, 6.0, 1))


def moved(policy, seed=0):
    """Give the adapter's matrices something to say."""
    torch.manual_seed(seed)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.05)
    return policy


# -- the model -------------------------------------------------------------------------------------


def test_weights_are_the_start_checkpoints_own_and_stay_as_they_are(
    plain, policy, tokens, make_batch
):
    theirs = {p.data_ptr() for _, p in held(plain)}
    mine = {n: p for n, p in policy.named_parameters() if p.data_ptr() not in theirs}
    assert (
        mine
        and all("lora_" in n for n in mine)
        and {p.data_ptr() for p in policy.parameters()} > theirs
    )
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == list(mine)
    assert isinstance(policy, Adapted) and adapted(policy) and not adapted(plain)
    assert carries(plain) and list(own(policy).values()) == list(mine.values())
    before, batch = copy.deepcopy(plain_state(plain)), make_batch(tokens)
    completion_logp(moved(policy), batch).sum().backward()
    torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(v, before[k]) for k, v in plain_state(plain).items())
    assert all(p.grad is None for _, p in held(plain)) and not unchanged(policy)


def test_it_says_at_first_what_the_start_checkpoint_says(plain, policy, tokens, make_batch):
    batch = make_batch(tokens)
    assert unchanged(policy) and torch.equal(
        completion_logp(policy, batch), completion_logp(plain, batch)
    )
    gap = completion_logp(moved(policy), batch) - completion_logp(plain, batch)
    assert not unchanged(policy) and float(gap.detach().abs().max()) > 1e-3


def test_seed_decides_the_adapter_and_no_other_random_number(plain):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (own_state(beside(plain, Lora(2, 4.0, seed))) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[k], same[k]) for k in one) and not all(
        torch.equal(one[k], other[k]) for k in one
    )


@pytest.mark.parametrize("name", ["tiny_model", "gpt2_model"])  # GPT-2's matrices are transposed
def test_merged_it_is_a_plain_model_that_computes_the_same(name, request, tokens, make_batch):
    plain = frozen(copy.deepcopy(request.getfixturevalue(name)))
    policy, batch = moved(beside(plain, Lora(3, 6.0, 1))), make_batch(tokens)
    whole = merged(policy, InitialCheckpoint.of(plain))
    assert not adapted(whole) and whole.state_dict().keys() == plain_state(plain).keys()
    assert torch.allclose(completion_logp(whole, batch), completion_logp(policy, batch), atol=2e-5)
    assert merged(whole, InitialCheckpoint.of(plain)) is whole


def test_product_is_scaled_by_alpha_over_rank(plain, policy):
    moved(policy)
    name, layer = next((n, m) for n, m in policy.named_modules() if hasattr(m, "get_delta_weight"))
    a, b = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    x = torch.randn(2, layer.in_features)
    expected = plain.get_submodule(name)(x) + 6.0 / 3 * (x @ a.T @ b.T)
    with switched(trunk_of(plain), "policy"):
        assert a.shape[0] == 3 and torch.allclose(layer(x), expected, atol=1e-6)


def test_only_what_is_its_own_is_saved(plain, policy):
    state = {k: v.clone() for k, v in own_state(moved(policy)).items()}
    assert (
        sum(v.numel() for v in state.values())
        == size_of_own(policy)[0]
        < 0.5 * size_of_own(policy)[1]
    )
    again = beside(plain, Lora(3, 6.0, 2))
    load_own(again, state)
    assert all(torch.equal(v, state[k]) for k, v in own_state(again).items())
    with pytest.raises(RuntimeError, match="not the tensors of this adapter"):
        load_own(again, plain.state_dict())


def test_frozen_weights_cost_a_forward_and_a_passage_back(plain, tokens, make_batch):
    batch, whole = (
        make_batch(tokens),
        forward_cost(plain),
    )  # noted in the model, of which the policy is made then
    policy = beside(plain, Lora(3, 6.0, 1))
    with_adapter = forward_cost(policy)
    mine = size_of_own(policy)[0]
    assert with_adapter.linear == whole.linear + mine and with_adapter.head == whole.head
    assert (frozen_cost(policy).linear, frozen_cost(policy).head) == (whole.linear, whole.head)
    tokens_read, drawn = (
        int(batch.prompts.mask.sum() + batch["mask"].sum()),
        int(batch["mask"].sum()),
    )
    spared = 2 * whole.linear * tokens_read + 2 * whole.head * drawn
    for model in (
        policy,
        plain,
    ):  # as if all of the last layer were computed; test_generation.py counts it as it is
        trunk_of(model).last_parts = None
        vars(model).pop("forward_cost")
    role = Role("policy", policy, lambda b: completion_logp(policy, b))
    assert role.update_flops(batch) == 3 * ModelFlops(policy).forward(batch) - spared
    full = learning(copy.deepcopy(plain))
    assert Role("policy", full, lambda b: b).update_flops(batch) == 3 * ModelFlops(full).forward(
        batch
    )


def test_critic_on_the_policys_trunk_leaves_frozen_what_is_frozen(policy):
    critic = scalar_on(policy)
    critic.head.requires_grad_(True)
    assert (
        frozen_cost(critic).linear == frozen_cost(policy).linear and frozen_cost(critic).head == 0
    )


def test_it_equals_the_start_checkpoint_until_it_has_something_to_say(plain, policy, monkeypatch):
    start = InitialCheckpoint.of(plain)
    monkeypatch.setattr(
        "harness.models.initial_checkpoint.weights_digest",
        lambda model: pytest.fail("its weights were read"),
    )
    assert start.equals(policy) and not start.equals(moved(policy))


class Spying(Trainer):
    """Notes which weights the losses of a step would compute gradients for."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.learning = {}

    def step(self, terms, progress):
        for term in terms:
            named = term.of.module.named_parameters()
            self.learning.setdefault(term.of.name, set()).update(
                n for n, p in named if p.requires_grad
            )
        return super().step(terms, progress)


def test_no_gradient_is_computed_for_the_frozen_trunk_under_a_shared_critic(registry):
    options = Options(
        results=with_shared_stages("shared-critic"), settings=("lora_rank=2", "shared_critic=true")
    )
    bench = Trials("ppo", "summarization", registry, options)
    learning = bench.train(trainer_cls=Spying).trainer.learning
    bench.close()
    assert learning.keys() == {"policy", "value"} and all(
        "lora_" in name for name in learning["policy"]
    )
    heads = {name for name in learning["value"] if "lora_" not in name}
    assert heads and all(name.startswith("head") for name in heads)


# -- mixtures of experts ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXTURES)
def test_merged_of_a_mixture_of_experts_gives_the_logits_of_the_adapter(name):
    plain = tiny(name)
    policy = moved(beside(plain, Lora(3, 6.0, 1)))
    ids = torch.arange(3, 33).view(2, 15)
    expected = policy(ids).logits
    assert float((expected - plain(ids).logits).detach().abs().max()) > 1e-2
    whole = merged(policy, InitialCheckpoint.of(plain))
    assert whole.state_dict().keys() == plain_state(plain).keys()
    torch.testing.assert_close(whole(ids).logits, expected, atol=2e-5, rtol=0)
    expected.log_softmax(-1)[..., 0].sum().backward()
    learning = [p for p in policy.parameters() if p.requires_grad]
    assert learning and all(p.grad is not None and p.grad.any() for p in learning)


@pytest.mark.parametrize(
    ("name", "adapted_experts", "untouched"),
    [
        ("mixtral", True, set()),
        ("qwen3-moe", True, set()),
        ("deepseek-v3", True, {"mlp.gate_proj", "shared_experts.up_proj"}),
        ("gpt-oss", False, {"experts.gate_up_proj", "experts.down_proj", "mlp.router"}),
        ("phimoe", False, {"experts.gate_up_proj", "mlp.router"}),
    ],
)
def test_adaptation_names_what_has_an_adapter_and_what_has_none(name, adapted_experts, untouched):
    how = adaptation(beside(tiny(name), Lora(3, 6.0, 1)))
    assert ("experts.gate_up_proj" in how.adapted) == adapted_experts
    assert untouched <= how.untouched.keys() and not how.untouched.keys() & how.adapted.keys()
    assert (how.rank, how.alpha) == (3, 6.0) and "LoRA of rank 3 adapts 2 self_attn" in str(how)
    assert ("leaves as they are" in str(how)) == bool(how.untouched)


def test_adaptation_of_a_plain_model_is_none_and_of_gpt2_is_complete(plain, gpt2_model):
    assert adaptation(plain) is None
    assert not adaptation(beside(frozen(copy.deepcopy(gpt2_model)), Lora(3, 6.0, 1))).untouched


def test_model_that_another_program_has_adapted_is_not_taken_for_ours(plain):
    from peft import LoraConfig, inject_adapter_in_model

    theirs = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), plain)
    assert hasattr(theirs, "peft_config") and not adapted(theirs)
    assert own_state(theirs).keys() == theirs.state_dict().keys()


# -- the lab ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    return with_shared_stages("adapters")


@pytest.mark.parametrize("method", sampled(GRADIENT, of=("dpo",)))
def test_method_passes_the_proofs_with_an_adapter(method, registry, results):
    suite = "arithmetic" if method == "rlvr" else "small"
    bench = Trials(
        method, suite, registry, Options(suite=suite, results=results, settings=("lora_rank=2",))
    )
    try:
        bench.runs()
        for proof, run in proofs_of(bench).items():
            print(proof, "-", run())
    finally:
        bench.close()


def test_there_is_no_second_copy_of_the_weights(results):
    """A short DPO run computes what its reference says, and so holds one."""
    elsewhere = with_shared_stages("full")
    (trunks, sizes), full = (
        counted(results, "dpo", "--set", "lora_rank=2")["dpo"],
        counted(elsewhere, "dpo")["dpo"],
    )
    assert (trunks, full[0]) == (1, 2)  # the reference is the base with the adapter off
    assert sizes < 2 and full[1] > 4  # there also two moments, each as large as the weights
    records = [
        json.loads((only_run(r, "small", "dpo") / "result.json").read_text())
        for r in (results, elsewhere)
    ]
    (shared, plain), flops = (
        [r["cost"]["models"] for r in records],
        [r["cost"]["method"]["flops"] for r in records],
    )
    assert (
        shared["reference"] == {"parameters": 0, "bytes": 0}
        and plain["reference"] == plain["policy"]
    )
    assert shared["base"] == plain["policy"]
    assert 0 < shared["policy"]["parameters"] < 0.2 * plain["policy"]["parameters"]
    assert flops[0] < 0.9 * flops[1]  # no gradient of what is not trained
    assert (
        records[0]["runtime"]["prompt_computed_once"]
        and records[0]["runtime"]["last_layer_where_read"]
    )


def test_who_asks_for_the_start_checkpoint_later_gets_the_policys_own_weights(results):
    """GRPO rolls out before it asks for a reference."""
    trunks, sizes = counted(results, "grpo", "--set", "lora_rank=2")["grpo"]
    assert trunks == 2 and sizes < 2.6, (
        sizes
    )  # policy and reference are one module, and the reward model


def test_saved_policy_is_a_plain_model_and_says_what_was_measured(results):
    from transformers import AutoModelForCausalLM

    args = on_small(
        "ppo",
        "--set",
        "lora_rank=2",
        "--set",
        "shared_critic=true",
        "--save",
        "policy",
        "--snapshots",
        2,
        results=results,
    )
    done = command(*args)
    assert done.code == 0, done.text
    folder = only_run(results, "small", "ppo")
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder / "policy", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not adapted(model)
    (start,) = (results / "artifacts").glob("sft-*/model.safetensors")
    before, now = load_tensors(start), model.state_dict()
    moved_most = {n: float((now[n] - before[n]).abs().max()) for n in before}
    assert (
        moved_most["model.layers.0.self_attn.q_proj.weight"] > 0
        and moved_most["model.embed_tokens.weight"] == 0
    )
    told = json.loads((folder / "result.json").read_text())["evaluation"]
    assert told["kl"]["mean"] > 0
    last = told["curve"][-1]
    assert (last["win_rate"], last["kl"]) == (told["win_rate"]["mean"], told["kl"]["mean"])


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_mixture_of_experts_is_trained_with_an_adapter_and_its_policy_saved(name):
    from transformers import AutoModelForCausalLM

    where = fresh("mixture")
    model = tiny_folder(name, where / "model")
    lora = ("--set", "lora_rank=2", "--save", "policy")
    args = on_small("dpo", *lora, "--model", model, results=where / "results")
    done = command(*args)
    assert done.code == 0, done.text
    folder = only_run(where / "results", "small", "dpo")
    _, loading = AutoModelForCausalLM.from_pretrained(folder / "policy", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    how = json.loads((folder / "result.json").read_text())["runtime"]["adapter"]
    assert ("experts.down_proj" in how["adapted"]) == (name == "mixtral")
    assert ("It leaves as they are: 2 mlp.router" in done.err) == (name == "gpt-oss")


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("lora_rank=-1",), "lora_rank and lora_alpha must not be negative"),
        (("lora_alpha=8",), "lora_alpha has no meaning without lora_rank"),
    ],
)
def test_options_that_make_no_sense(settings, told, results):
    done = command(*on_small("dpo", *(a for s in settings for a in ("--set", s)), results=results))
    assert done.code == 2 and told in done.err and "Traceback" not in done.err


def test_method_that_trains_nothing_has_no_adapter(results):
    done = command(*on_small("best_of_n", "--set", "lora_rank=4", results=results))
    assert done.code == 2 and "lora_rank" in done.err


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("harness.core.settings.find_spec", lambda name: None)
    method = installed().get("methods", "dpo")
    with pytest.raises(
        ValueError, match=r"needs the package peft: pip install 'alignment-harness\[lora\]'"
    ):
        method(lora_rank=2).check()
    method().check()
