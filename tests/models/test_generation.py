"""Sampling: the log-probabilities are the model's, the distribution is right, a row depends on its
own noise.
"""

import copy
import json
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from harness.core.data import Sampling
from harness.core.errors import UsageError
from harness.evaluation.kl import sampled_kl
from harness.models import packing
from harness.models.capabilities import enable_sharing
from harness.models.flops import forward_cost
from harness.models.generation import (
    CachedEngine,
    Sampler,
    assemble,
    check_sampling,
    decode,
    draw_tokens,
)
from harness.models.loading import frozen, scalar_from, trainable, trunk_of
from harness.models.logprobs import completion_logits, completion_logp, completion_values
from harness.models.lora import Lora, beside
from harness.models.mixtures import Mixed
from harness.training.trainer import Role

from ..helpers.tools import command, fresh, on_small, only_run, plugin, with_shared_stages


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tiny_model, gpt2_model):
    return {"llama": tiny_model, "gpt2": gpt2_model}[request.param]


@pytest.fixture
def prompts(tokens, make_prompts):
    return tokens.prompt_batch(make_prompts([3, 1, 6, 2, 4]))


@pytest.fixture
def draw(runtime):
    """Draw with the default bench: `draw(model, prompts, n, temperature=..., max_new_tokens=...,
    eos=...)`.
    """

    def draw(model, prompts, n=3, key=("test",), **options):
        b = runtime(**options)
        return Sampler(b.engine, b.sampling, b.meter, b.eos, key).draw(model, prompts, n)

    return draw


EAGER_TO_STOP = {
    "eos": range(2, 20),
    "max_new_tokens": 9,
}  # a random model rarely says </s>: let many words end it


def check_identity(batch, model):
    """The sampler's log-probabilities are the teacher-forced ones: ratio 1 and KL 0 at step 0."""
    again = completion_logp(model, batch)
    torch.testing.assert_close(batch["logp"], again, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        torch.exp(again - batch["logp"]), torch.ones(batch.shape), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_draws_from_the_normalised_geometric_mean_of_two_models(
    model, prompts, runtime, share
):
    """Its log-probabilities are those of two teacher-forced passes, whatever the cache."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    b = runtime(**EAGER_TO_STOP, temperature=0.7)
    sampler = Sampler(b.engine, b.sampling, b.meter, b.eos, ("mixture",))
    sampler.mixed_with = Mixed(other, share)
    batch = sampler.draw(model, prompts, 3)
    used = b.meter.total().flops
    logits = [completion_logits(one, batch) for one in (model, other)]
    mixed = ((1 - share) * logits[0] + share * logits[1]).log_softmax(-1)
    logp = mixed.gather(-1, batch["completion_ids"][..., None])[..., 0] * batch["mask"]
    torch.testing.assert_close(batch["logp"], logp, atol=1e-4, rtol=0)
    assert len(set(batch.lengths.flatten().tolist())) > 1  # rows ended, and left the caches
    if share == 0.3:  # negative control: neither model alone
        for one in (model, other):
            assert (completion_logp(one, batch) - logp).abs().max() > 1e-2
    sampler.mixed_with = None
    sampler.draw(model, prompts, 3)
    if share == 0.0:  # the same draws as without a second model, which costs the same again
        assert b.meter.total().flops - used == pytest.approx(used / 2)


def check_ends(batch, eos, limit):
    """The mask runs to the first end token, which it includes, or to the limit; see `ended`."""
    assert batch.shape[2] <= limit and (batch["mask"].diff(dim=-1) <= 0).all()
    for ids, n, ended in zip(
        batch["completion_ids"].flatten(0, 1).tolist(),
        batch.lengths.flatten().tolist(),
        batch["ended"].flatten().tolist(),
        strict=True,
    ):
        stops = [t for t, token in enumerate(ids[:n]) if token in eos]
        assert stops == ([n - 1] if ended else []) and (ended or n == limit)


# -- step-0 identities -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logp_is_the_teacher_forced_one(model, prompts, draw, temperature):
    batch = draw(model, prompts, temperature=temperature, **EAGER_TO_STOP)
    assert batch.lengths.unique().numel() > 3  # rows did leave the batch at different times
    check_identity(batch, model)
    assert ((batch["logp"] < 0) <= (batch["mask"] > 0)).all()


def test_trainable_copy_starts_at_ratio_one(model, prompts, draw):
    check_identity(draw(model, prompts), trainable(model))


def test_kl_to_itself_is_zero(model, prompts, draw, runtime, meter, with_dropout):
    batch = draw(model, prompts, n=1)
    with meter.phase("evaluate"):
        for estimate in sampled_kl(model, model, batch, runtime()):
            assert estimate.abs().max() < 1e-5
        exact, plain = sampled_kl(with_dropout(model), model, batch, runtime())
    with pytest.raises(AssertionError):
        assert exact.abs().max() < 1e-5 and plain.abs().max() < 1e-5


def test_dropout_breaks_the_identity(model, prompts, draw, with_dropout):
    noisy = with_dropout(model)
    with pytest.raises(AssertionError):
        check_identity(draw(model, prompts), noisy)
    with pytest.raises(AssertionError):  # nor do two passes of the noisy model agree
        check_identity(draw(noisy, prompts), noisy)


def test_another_temperature_breaks_the_identity(tiny_model, prompts, draw):
    batch = draw(tiny_model, prompts, temperature=0.7)
    batch.temperature = 1.0
    with pytest.raises(AssertionError):
        check_identity(batch, tiny_model)


# -- one row, its own noise ------------------------------------------------------------------------


def test_row_does_not_depend_on_its_neighbours(model, prompts):
    n, sampling, eos = 2, Sampling(1.0, 9), set(EAGER_TO_STOP["eos"])
    noise = torch.rand(len(prompts) * n, 9, generator=torch.Generator().manual_seed(3))
    whole = decode(model, prompts, n, sampling, noise, eos)
    for i in range(len(prompts)):
        rows = slice(i * n, (i + 1) * n)
        alone = decode(model, prompts[[i]], n, sampling, noise[rows], eos)
        assert torch.equal(alone.tokens, whole.tokens[rows]) and torch.equal(
            alone.lengths, whole.lengths[rows]
        )
        torch.testing.assert_close(alone.logp, whole.logp[rows], atol=1e-5, rtol=0)
        with pytest.raises(AssertionError):
            assert torch.equal(
                decode(model, prompts[[i]], n, sampling, noise[rows].flip(1), eos).tokens,
                whole.tokens[rows],
            )


def test_small_groups_draw_the_same(tiny_model, prompts):
    class Small(CachedEngine):
        batch_tokens = 40

    noise = torch.rand(len(prompts) * 2, 9, generator=torch.Generator().manual_seed(3))
    a, b = (
        cls({2}).generate(tiny_model, prompts, 2, Sampling(1.0, 9), noise)
        for cls in (CachedEngine, Small)
    )
    assert torch.equal(a["completion_ids"], b["completion_ids"]) and torch.equal(
        a["mask"], b["mask"]
    )
    torch.testing.assert_close(a["logp"], b["logp"], atol=1e-5, rtol=0)


def test_completions_of_a_prompt_differ_and_keys_tell_draws_apart(tiny_model, prompts, draw):
    batch = draw(tiny_model, prompts, n=6)
    assert all(
        len({tuple(ids) for ids in group}) == 6 for group in batch["completion_ids"].tolist()
    )
    assert torch.equal(batch["completion_ids"], draw(tiny_model, prompts, n=6)["completion_ids"])
    assert not torch.equal(
        batch["completion_ids"], draw(tiny_model, prompts, n=6, key=("other",))["completion_ids"]
    )


def test_every_completion_follows_its_own_prompt(tiny_model, prompts):
    """n > 1 repeats prompt-major: the first token's log-probability is that of the prompt the row
    stands under.
    """
    noise = torch.rand(len(prompts) * 3, 1, generator=torch.Generator().manual_seed(5))
    state = decode(tiny_model, prompts, 3, Sampling(1.0, 1), noise, {2})
    check_identity(assemble(prompts, [state], 3, 1.0), tiny_model)
    mixed = (
        torch.arange(15).view(3, 5).T.flatten()
    )  # the order that repeating instead of interleaving would give
    state.tokens, state.logp = state.tokens[mixed], state.logp[mixed]
    with pytest.raises(AssertionError):
        check_identity(assemble(prompts, [state], 3, 1.0), tiny_model)


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [{2}, {2, 9}, set(EAGER_TO_STOP["eos"])])
def test_nothing_follows_an_end(model, prompts, draw, eos):
    batch = draw(model, prompts, n=6, eos=eos, max_new_tokens=7)
    check_ends(batch, eos, limit=7)
    assert (batch["completion_ids"][batch["mask"] == 0] == 0).all() and (
        batch["logp"][batch["mask"] == 0] == 0
    ).all()
    if len(eos) > 2:
        assert 0 < batch["ended"].float().mean() < 1
        with pytest.raises(AssertionError):  # an EOS outside the mask
            check_ends(
                batch.with_columns(mask=(torch.arange(7) < batch.lengths[..., None] - 1).float()),
                eos,
                7,
            )
        with pytest.raises(AssertionError):
            check_ends(batch.with_columns(ended=~batch["ended"]), eos, 7)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_length_limit_holds(tiny_model, prompts, draw, limit):
    batch = draw(tiny_model, prompts, n=2, max_new_tokens=limit)
    assert batch.shape[2] == limit == batch.lengths.max()


def test_tokens_and_samples_are_counted(tiny_model, prompts, draw, meter):
    batch = draw(tiny_model, prompts, **EAGER_TO_STOP)
    cost = meter.phases["rollout"]
    assert cost.tokens_generated == batch["mask"].sum() and cost.samples == 15 and cost.flops > 0


# -- the distribution ------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A model that gives the same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, past_key_values=None, **_):
        logits = self.logits.expand(*input_ids.shape, -1)
        return types.SimpleNamespace(
            logits=logits, past_key_values=types.SimpleNamespace(reorder_cache=lambda rows: None)
        )


def check_distribution(tokens, probabilities):
    """Chi-square below its 99.9 % point, over the tokens that were drawn."""
    from scipy.stats import chi2

    count = torch.bincount(tokens, minlength=len(probabilities)).double()
    told = probabilities.double() * len(tokens)
    assert ((count - told) ** 2 / told).sum() < chi2.ppf(0.999, len(probabilities) - 1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_distribution_is_the_models(tokens, make_prompts, temperature):
    logits = torch.tensor([0.5, -1.0, 1.5, 0.0, -2.0, 1.0])
    prompts, n, limit = tokens.prompt_batch(make_prompts([2, 3])), 4000, 3
    noise = torch.rand(2 * n, limit, generator=torch.Generator().manual_seed(11))
    state = decode(Fixed(logits), prompts, n, Sampling(temperature, limit), noise, {2})
    drawn = state.tokens[torch.arange(limit) < state.lengths[:, None]]
    check_distribution(drawn, (logits / temperature).softmax(0))
    for wrong in (1.3 * temperature, 0.8 * temperature):
        with pytest.raises(AssertionError):
            check_distribution(drawn, (logits / wrong).softmax(0))
    told = (logits / temperature).log_softmax(0)[state.tokens]
    torch.testing.assert_close(state.logp[:, 0], told[:, 0])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_real_models_first_two_tokens_have_its_distribution(
    tiny_model, tokens, make_prompts, draw, temperature
):
    """The first token of 3000 draws by total variation; the second by E log-probability against its
    exact mean.
    """
    batch = draw(
        tiny_model,
        tokens.prompt_batch(make_prompts([3])),
        n=3000,
        temperature=temperature,
        max_new_tokens=2,
    )
    exact = completion_logits(tiny_model, batch.select([0]))[0, 0, 0].softmax(-1)
    counts = torch.bincount(batch["completion_ids"][0, :, 0], minlength=60) / 3000
    assert 0.5 * (counts - exact).abs().sum() < 0.05
    p = completion_logits(tiny_model, batch)[0, :, 1].log_softmax(-1)
    surprise = (batch["logp"][0, :, 1] - (p.exp() * p).sum(-1))[batch["mask"][0, :, 1] > 0]
    assert surprise.mean().abs() < 4 * surprise.std() / len(surprise) ** 0.5


EDGES = [0.0, 2**-24, 1 - 2**-24]


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(
        st.one_of(st.just(-torch.inf), st.floats(-40, 40, width=32)), min_size=2, max_size=9
    ).filter(lambda xs: max(xs) > -torch.inf),
    noise=st.floats(0, 1, exclude_max=True, width=32),
)
def test_token_without_probability_is_never_drawn(logits, noise):
    rows = torch.tensor(logits).expand(4, -1)
    tokens, logp = draw_tokens(rows, torch.tensor([noise, *EDGES]))
    assert (rows.log_softmax(-1).exp().gather(-1, tokens[:, None]) > 0).all() and torch.isfinite(
        logp
    ).all()


def test_left_search_would_draw_impossible_tokens():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert draw_tokens(logits, torch.tensor([0.0]))[0].item() == 1
    assert torch.searchsorted(logits.softmax(-1).cumsum(-1), torch.zeros(1, 1)).item() == 0


def test_draws_invert_the_distribution_function():
    logits = torch.tensor([0.2, 0.3, 0.5]).log().expand(5, -1)
    assert draw_tokens(logits, torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51]))[0].tolist() == [
        0,
        0,
        1,
        1,
        2,
    ]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [{"top_p": 0.9}, {"top_k": 50}, {"repetition_penalty": 1.2}])
def test_truncated_sampling_is_refused(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        check_sampling(Sampling(), **setting)


@pytest.mark.parametrize(
    ("sampling", "told"),
    [(Sampling(0.0), "greedy"), (Sampling(-1.0), "greedy"), (Sampling(1.0, 0), "max_new")],
)
def test_impossible_sampling_is_refused(sampling, told, runtime):
    b = runtime()
    with pytest.raises(UsageError, match=told):
        Sampler(b.engine, sampling, b.meter, b.eos, ())


# -- bfloat16 --------------------------------------------------------------------------------------


def test_every_forward_pass_computes_in_the_same_type(tiny_model, prompts, draw):
    """Policy, reference and training pass agree to the bit at step 0, in bfloat16 as in float32."""
    start = copy.deepcopy(tiny_model)
    start.base_model.compute_dtype = torch.bfloat16
    policy = trainable(start)
    batch = draw(start, prompts)
    reference = completion_logp(start, batch)
    assert (
        torch.equal(completion_logp(policy, batch).detach(), reference)
        and reference.dtype == torch.float32
    )
    assert (
        batch["logp"] - reference
    ).abs().max() < 0.1  # decoded one by one: bfloat16's own rounding
    assert not torch.equal(
        completion_logp(tiny_model, batch), reference
    )  # negative control: float32 differs
    critic = scalar_from(start).initialise(0)
    assert not torch.equal(
        completion_values(critic, batch),
        completion_values(scalar_from(tiny_model).initialise(0), batch),
    )


# -- FLOPs -----------------------------------------------------------------------------------------


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def eager(build_model):
    """A Llama with eager attention: torch's counter does not see the fused one on CPU."""
    return build_model("llama", attention="eager").requires_grad_(True)


def test_forward_flops_are_torchs(eager):
    ids = torch.randint(8, 60, (4, 40))
    with torch.no_grad():
        told = counted(lambda: eager(input_ids=ids))
    assert forward_cost(eager).padded(4, 40, 40) == pytest.approx(told, rel=0.02)
    with pytest.raises(AssertionError):  # attention forgotten
        assert forward_cost(eager).flops(160, 160, 0) == pytest.approx(told, rel=0.02)


def seen_by_torch(model, monkeypatch):
    """Return the model, its attention in the packed layout one that torch's counter sees."""

    def seen(q, k, v, scoring, bias):
        places = q.shape[-2], k.shape[-2]
        bias = (
            torch.zeros(places).masked_fill_(~torch.ones(places).tril().bool(), -1e9)
            if bias is None
            else bias
        )
        return (q @ k.transpose(-1, -2) * scoring.scaling + bias).softmax(-1) @ v

    monkeypatch.setattr(packing, "attention", seen)
    return model


@pytest.fixture(params=["padded", "packed"])
def laid_out(request, eager, monkeypatch):
    """The eager model in either layout."""
    model = copy.deepcopy(eager)
    assert request.param == "padded" or enable_sharing(model)
    return seen_by_torch(model, monkeypatch)


def test_only_the_experts_a_token_is_sent_to_are_counted():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    config = {
        "vocab_size": 60,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
        **small,
    }
    costs = [
        forward_cost(
            Qwen3MoeForCausalLM(Qwen3MoeConfig(num_experts=n, num_experts_per_tok=k, **config))
        ).linear
        for n, k in ((8, 2), (8, 4), (16, 2))
    ]
    expert = 3 * 32 * 16  # gate, up and down
    assert (
        costs[1] - costs[0] == 2 * expert and costs[2] - costs[0] == 8 * 32
    )  # a wider router, no more experts


@pytest.fixture(params=["pairs", "alone"])
def square_batch(request, tokens, make_batch):
    made = make_batch(tokens, words=(8, 8), lengths=((9, 9), (9, 9)))
    return made if request.param == "pairs" else made.flat()


def test_role_counts_its_forward_and_three_for_training(laid_out, square_batch):
    role = Role("policy", laid_out, lambda batch: completion_logp(laid_out, batch))
    with torch.no_grad():
        forward = counted(lambda: role.compute(square_batch))
    assert role.flops(square_batch) == pytest.approx(forward, rel=0.02)
    assert role.update_flops(square_batch) == pytest.approx(
        counted(lambda: role.compute(square_batch).sum().backward()), rel=0.01
    )


def test_what_the_last_layer_spares_an_adapter_is_torchs(eager, square_batch, monkeypatch):
    """The difference: of an adapter's whole count some is off, the lowest layer's gradients of
    activations.
    """
    pytest.importorskip("peft")
    model = copy.deepcopy(eager)
    assert enable_sharing(model)
    seen_by_torch(model, monkeypatch)
    told, found = [], []
    for whole in (False, True):
        policy = beside(frozen(model), Lora(3, 6.0, 1))
        if whole:
            trunk_of(policy).last_parts = None
        role = Role("policy", policy, lambda batch, policy=policy: completion_logp(policy, batch))
        told.append(role.update_flops(square_batch))
        found.append(counted(lambda role=role: role.compute(square_batch).sum().backward()))
    assert (
        told[1] - told[0] == pytest.approx(found[1] - found[0], rel=0.001)
        and found[1] > 1.1 * found[0]
    )


def test_critics_flops_are_torchs(laid_out, square_batch):
    critic = scalar_from(laid_out)
    role = Role("value", critic, lambda batch: completion_values(critic, batch))
    with torch.no_grad():
        assert role.flops(square_batch) == pytest.approx(
            counted(lambda: role.compute(square_batch)), rel=0.02
        )


# -- the check of rollouts -------------------------------------------------------------------------

LYING = '''
"""An engine whose log-probabilities are of another temperature than its draws."""

from harness import hookimpl


class Lying:
    """Off by a little."""

    name = "lying"

    def __new__(cls, *arguments):
        from harness.models.generation import CachedEngine

        class Engine(CachedEngine):
            name = "lying"

            def generate(self, *told):
                batch = super().generate(*told)
                return batch.with_columns(logp=batch["logp"] * 1.01)

        return Engine(*arguments)


@hookimpl
def register_engines(register):
    register(Lying)
'''


def test_what_is_drawn_can_be_checked_against_a_teacher_forced_pass():
    folder = with_shared_stages("checked")
    asked = on_small("ppo", "--check-rollouts", results=folder)
    assert command(*asked).code == 0
    runtime = json.loads((only_run(folder, "small", "ppo") / "result.json").read_text())["runtime"]
    assert (
        0 < runtime["rollouts_checked"]["largest"] < 1e-4
        and runtime["rollouts_checked"]["tokens"] > 100
    )
    again = command(*asked)
    assert again.code != 0 and "is finished, nothing is rolled out" in again.text
    plain = with_shared_stages("unchecked")
    assert command(*on_small("ppo", results=plain)).code == 0
    paths = [only_run(where, "small", "ppo") / "metrics.jsonl" for where in (folder, plain)]
    assert paths[0].read_bytes() == paths[1].read_bytes(), "looking changes nothing"


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (
            "best_of_n",
            (
                "--check-rollouts: best_of_n rolled nothing out",
                "--snapshots: best_of_n trains nothing",
            ),
        ),
        ("dpo", ("--check-rollouts: dpo rolled nothing out",)),
        ("grpo", ()),
    ],
)
def test_what_was_asked_for_and_found_nothing_to_do_is_told(method, told):
    done = command(
        *on_small(method, "--check-rollouts", "--snapshots", 1, results=with_shared_stages("idle"))
    )
    assert done.code == 0 and all(line in done.err for line in told), done.text
    assert done.err.count("rolled nothing out") + done.err.count("trains nothing") == len(told)


def test_record_says_how_it_was_computed_and_what_was_read_from_caches():
    folder = with_shared_stages("computed")
    for method, more in (("dpo", ["--set", "steps=8"]), ("grpo", ["--no-prompt-sharing"])):
        done = command(*on_small(method, *more, results=folder))
        assert done.code == 0, done.text
        result = json.loads((only_run(folder, "small", method) / "result.json").read_text())
        shared = method == "dpo"
        assert result["runtime"]["prompt_computed_once"] is shared
        assert result["runtime"]["prompt_cached_once"] is shared
        if shared:
            assert result["cost"]["method"]["flops_reused"] > 0


def test_engine_that_is_off_is_told():
    file = plugin(fresh("lying"), "lying", LYING)
    done = command(
        *on_small(
            "grpo",
            "--check-rollouts",
            "-p",
            file,
            "--engine",
            "lying",
            results=with_shared_stages("off"),
        )
    )
    assert done.code != 0 and "differ by" in done.text and "the engine lying" in done.text.lower()
    assert "Traceback" not in done.text
