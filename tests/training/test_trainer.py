"""One step: the same for any micro-batch size, padding and order. Turns: killed and resumed, bit
for bit the same.
"""

import copy
import json
import math

import pytest
import torch
from harness_plugins.dpo import DPO
from harness_plugins.engine_vllm import version_of
from torch import nn

from harness.core.data import Budget
from harness.core.errors import Diverged
from harness.core.meter import Meter
from harness.core.save_schedule import SaveInterval
from harness.core.settings import AdamWOptions
from harness.models.batches import Batch, PromptBatch
from harness.models.loading import load_tensors, scalar_from
from harness.models.logprobs import completion_logp, completion_values
from harness.training import trainer
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Loop
from harness.training.trainer import REDUCTIONS, Role, Term, Trainer, reduce_share, schedule


def per_pair(logp, batch):
    """(B,): the preference loss."""
    return DPO(beta=0.5).loss(logp, batch)


def per_completion(logp, batch):
    """(B, K): a weighted sequence likelihood."""
    return -(logp.sum(-1) * batch["weight"])


def per_token(logp, batch):
    """(B, K, T): a weighted token likelihood, and a metric of each shape."""
    metrics = {"m1": batch["weight"][:, 0], "m2": batch["weight"], "m3": logp}
    return -logp * batch["weight"][..., None], metrics


CASES = [
    (per_pair, "token-mean"),
    (per_completion, "token-mean"),
    *[(per_token, r) for r in (*REDUCTIONS, 7.0)],
]
NAMES = ["pair", "completion", *map(str, (*REDUCTIONS, 7.0))]


@pytest.fixture(autouse=True)
def in_a_phase(meter):
    """Costs are counted in a phase; the lab opens it, here the test does."""
    with meter.phase("update"):
        yield


@pytest.fixture
def batch(tokens, make_batch):
    plain = make_batch(
        tokens, words=(3, 1, 5, 2, 4), lengths=((2, 4), (1, 3), (6, 2), (3, 5), (1, 1))
    )
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 2, generator=generator)
    ref = torch.randn(5, 2, 6, generator=generator) * plain["mask"]
    return plain.with_columns(weight=weight, ref_logp=ref, p=torch.ones(len(ref)))


@pytest.fixture
def stepped(tiny_model, make_trainer):
    """Take one step; return (all weights as one vector, what the step returned)."""

    def stepped(
        batch,
        loss,
        reduction="token-mean",
        micro_batch_tokens=64,
        sgd=True,
        model=tiny_model,
        **options,
    ):
        trainer, role = make_trainer(model, micro_batch_tokens, sgd=sgd, **options)
        metrics = trainer.step([Term(loss, batch, role, reduction=reduction)], progress=0.0)
        return nn.utils.parameters_to_vector(role.module.parameters()).detach(), metrics

    return stepped


def check_same(a, b):
    """The same weights to 1e-6, and the same loss, gradient norm and metrics."""
    torch.testing.assert_close(a[0], b[0], atol=1e-6, rtol=0)
    assert a[1] == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in b[1].items()}


def widened(batch, left=2, right=3):
    """Return the batch with padding that no row needs."""
    pad = nn.functional.pad
    prompts = PromptBatch(
        batch.prompts.prompts, pad(batch.prompts.ids, (left, 0)), pad(batch.prompts.mask, (left, 0))
    )
    columns = {name: pad(x, (0, right)) if x.dim() == 3 else x for name, x in batch.columns.items()}
    return Batch(prompts, columns, batch.temperature)


# -- one step --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "reduction"), CASES, ids=NAMES)
def test_step_is_the_same_for_any_micro_batch_padding_and_order(stepped, batch, loss, reduction):
    whole = stepped(batch, loss, reduction, micro_batch_tokens=10_000)
    for size in (1, 30):
        check_same(stepped(batch, loss, reduction, micro_batch_tokens=size), whole)
    check_same(stepped(widened(batch), loss, reduction), whole)
    check_same(stepped(batch.select([3, 0, 4, 2, 1]), loss, reduction), whole)
    assert whole[1]["grad_norm"] > 1e-2  # or the weights could not have told


def test_step_has_gradients_where_a_plugin_switched_them_off(stepped, batch):
    loss, reduction = CASES[0]

    def switching(logp, batch):
        value = loss(logp, batch)
        torch.set_grad_enabled(False)
        return value

    whole = stepped(batch, loss, reduction, micro_batch_tokens=30)
    with torch.no_grad():
        check_same(stepped(batch, switching, reduction, micro_batch_tokens=30), whole)


@pytest.mark.parametrize(
    ("loss", "reduction"), [case for case in CASES if case[1] != 7.0], ids=NAMES[:-1]
)
def test_mean_over_each_micro_batch_is_noticed(stepped, batch, loss, reduction, monkeypatch):
    whole = stepped(batch, loss, reduction, micro_batch_tokens=10_000)
    monkeypatch.setattr(
        trainer,
        "reduce_share",
        lambda values, part, whole, how: reduce_share(values, part, part, how),
    )
    broken = stepped(batch, loss, reduction, micro_batch_tokens=1)
    with pytest.raises(AssertionError):
        check_same(broken, whole)


def test_what_is_infinite_on_padding_does_not_matter(stepped, batch):
    def loss(logp, part):
        return torch.where(part["mask"] > 0, -logp, torch.inf)

    check_same(stepped(batch, loss), stepped(batch, lambda logp, part: -logp))


def test_metric_called_loss_is_refused(stepped, batch):
    with pytest.raises(ValueError, match="cannot be called 'loss'"):
        stepped(batch, lambda logp, part: (-logp, {"loss": logp}))


def test_adamw_steps_agree_too(stepped, batch, tiny_model):
    steps = [
        stepped(batch, per_token, "token-mean", size, sgd=False, learning_rate=1e-4)[0]
        for size in (1, 10_000)
    ]
    torch.testing.assert_close(*steps, atol=1e-6, rtol=0)
    start = nn.utils.parameters_to_vector(tiny_model.parameters())
    assert (steps[0] - start).abs().max() == pytest.approx(
        1e-4, rel=0.01
    )  # the first step of Adam is the rate


@pytest.mark.parametrize("loss", [per_pair, per_completion])
def test_dropout_is_noticed(stepped, batch, loss, tiny_model, make_trainer, with_dropout):
    whole = stepped(batch, loss)
    trainer, role = make_trainer(tiny_model, sgd=True)
    noisy = with_dropout(role.module)
    noisy_role = Role("policy", role.module, lambda part: completion_logp(noisy, part))
    metrics = trainer.step([Term(loss, batch, noisy_role)], 0.0)
    with pytest.raises(AssertionError):
        assert metrics["loss"] == pytest.approx(whole[1]["loss"], rel=1e-4)


def test_reductions_by_hand(tokens, make_batch):
    batch = make_batch(tokens, words=(1, 1), lengths=((2,), (3,)), open_ended=())
    values = torch.tensor([[[1.0, 2.0, 9.0]], [[3.0, 4.0, 5.0]]])  # the 9 lies on padding
    told = {
        "token-mean": 15 / 5,
        "seq-mean-token-mean": (1.5 + 4) / 2,
        "seq-mean-token-sum": 15 / 2,
        10.0: 1.5,
    }
    for how, value in told.items():
        assert float(reduce_share(values, batch, batch, how)) == pytest.approx(value)
        parts = [
            reduce_share(values[[i], :, : 2 + i], batch.select([i]), batch, how) for i in range(2)
        ]
        assert float(sum(parts)) == pytest.approx(value)
        with pytest.raises(AssertionError):  # the padding counted
            unmasked = batch.with_columns(mask=torch.ones(2, 1, 3))
            assert float(reduce_share(values, unmasked, unmasked, how)) == pytest.approx(value)
    assert float(reduce_share(torch.tensor([1.0, 2.0]), batch, batch, "token-mean")) == 1.5
    assert float(reduce_share(torch.tensor([[1.0], [4.0]]), batch, batch, "token-mean")) == 2.5
    with pytest.raises(ValueError, match="token-mean"):
        reduce_share(values, batch, batch, "mean")


@pytest.mark.parametrize("how", REDUCTIONS)
def test_share_of_a_batch_without_tokens_is_zero(how, tokens, make_batch):
    """A verifier may score no answer of a minibatch: a sum over no token is 0, not NaN."""
    batch = make_batch(tokens, words=(1, 1), lengths=((2,), (3,)))
    batch = batch.with_columns(mask=torch.zeros(batch.shape))
    share = reduce_share(torch.full(batch.shape, torch.nan), batch, batch, how)
    assert float(share) == 0.0


def test_weights_of_terms_add_up(tiny_model, make_trainer, batch):
    def weights_after(*terms):
        trainer, role = make_trainer(tiny_model, sgd=True)
        metrics = trainer.step(
            [Term(loss, batch, role, weight=weight) for loss, weight in terms], 0.0
        )
        return nn.utils.parameters_to_vector(role.module.parameters()).detach(), metrics["loss"]

    def both(logp, part):
        return 2.0 * -logp.sum(-1) + 0.5 * per_completion(logp, part)

    def likelihood(logp, part):
        return -logp.sum(-1)

    apart, together = (
        weights_after((likelihood, 2.0), (per_completion, 0.5)),
        weights_after((both, 1.0)),
    )
    torch.testing.assert_close(apart[0], together[0], atol=1e-6, rtol=0)
    assert apart[1] == pytest.approx(together[1], rel=1e-5)
    unweighted = weights_after((likelihood, 1.0), (per_completion, 1.0))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(unweighted[0], together[0], atol=1e-6, rtol=0)


def test_two_models_step_apart(tiny_model, make_trainer, batch):
    trainer, role = make_trainer(tiny_model, sgd=True)
    critic = scalar_from(tiny_model).initialise(1).requires_grad_(True)
    trainer.add("value", critic, learning_rate=0.01)
    value = Role("value", critic, lambda part: completion_values(critic, part))
    start = copy.deepcopy(role.module.state_dict())
    metrics = trainer.step([Term(lambda v, part: (v - 1) ** 2, batch, value)], 0.0)
    assert metrics["grad_norm_value"] > 0 and "grad_norm" not in metrics
    assert all(torch.equal(x, start[name]) for name, x in role.module.state_dict().items())
    assert trainer.optimizers["value"].param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("limit", [0.01, 0.5, 0.0])
def test_gradients_are_clipped_to_a_norm(stepped, tiny_model, batch, limit):
    start = nn.utils.parameters_to_vector(tiny_model.parameters())
    weights, metrics = stepped(batch, per_completion, learning_rate=1.0, max_grad_norm=limit)
    moved = float((weights - start).norm())
    assert metrics["grad_norm"] > 0.5  # the norm before clipping is what is reported
    assert moved == pytest.approx(limit or metrics["grad_norm"], rel=1e-3)


def test_what_is_not_finite_stops_the_run(stepped, batch):
    with pytest.raises(Diverged, match="loss is nan at optimiser step 1"):
        stepped(batch, lambda logp, part: logp.sum(-1) * math.nan)
    with pytest.raises(Diverged, match="gradient of the policy is nan"):
        stepped(batch, lambda logp, part: (logp.sum((1, 2)) * 0).sqrt())


def test_every_step_shows_in_the_versions_of_the_weights(tiny_model, make_trainer, batch):
    """An engine that copies weights looks at these counters, and fused AdamW leaves them alone."""
    trainer, role = make_trainer(tiny_model)
    seen = {version_of(role.module)}
    for _ in range(3):
        trainer.step([Term(per_completion, batch, role)], 0.5)
        seen.add(version_of(role.module))
    assert len(seen) == 4


def test_steps_flops_and_tokens_are_counted(tiny_model, make_trainer, batch, meter):
    trainer, role = make_trainer(tiny_model, micro_batch_tokens=10_000)
    with meter.phase("update"):
        trainer.step([Term(per_completion, batch, role)], 0.0)
    cost = meter.phases["update"]
    assert (cost.steps, cost.flops) == (1, 3 * role.flops(batch))
    assert cost.tokens_trained == int(batch["mask"].sum() + 2 * batch.prompts.mask.sum())


# -- the end-of-sequence token ---------------------------------------------------------------------


def eos_gradients(batch, model):
    """Return the gradient of the mean likelihood with respect to the logits that predict each
    token, (B, K, T, V).
    """
    told = []

    def after(module, args, output):
        told.append(torch.zeros_like(output.logits, requires_grad=True))
        output.logits = told[0]

    hook = model.register_forward_hook(after)
    values = -completion_logp(model, batch)
    hook.remove()
    reduce_share(values, batch, batch, "token-mean").backward()
    b, k, t = batch.shape
    return told[0].grad[:, -(t + 1) : -1].view(b, k, t, -1)


def check_eos_is_learned(gradient, lengths, eos):
    """The EOS logit has a gradient where the completion ends; what follows has none."""
    for i in range(lengths.shape[0]):
        for j in range(lengths.shape[1]):
            n = int(lengths[i, j])
            assert gradient[i, j, n - 1, eos] < 0 and (gradient[i, j, n:] == 0).all()
            assert (gradient[i, j, :n].abs().sum(-1) > 0).all()


def test_eos_is_learned_and_nothing_after_it(eos_padded, make_batch, tiny_model):
    batch = make_batch(eos_padded, open_ended=())
    check_eos_is_learned(eos_gradients(batch, tiny_model), batch.lengths, 2)
    broken = batch.with_columns(mask=(batch["completion_ids"] != eos_padded.pad).float())
    unmasked = batch.with_columns(mask=torch.ones_like(batch["mask"]))
    for wrong in (
        broken,
        unmasked,
    ):  # the policy never learns to stop; it learns what follows the end
        gradient = eos_gradients(wrong, tiny_model)
        with pytest.raises(AssertionError):
            check_eos_is_learned(gradient, batch.lengths, 2)


# -- the schedule ----------------------------------------------------------------------------------


def test_schedule():
    linear = AdamWOptions(lr_schedule="linear", warmup_ratio=0.2, lr_final=0.1)
    assert schedule(linear, 0.0) == pytest.approx(0.01) and schedule(linear, 0.1) == pytest.approx(
        0.5
    )
    assert schedule(linear, 0.2) == pytest.approx(1.0)
    assert schedule(linear, 0.6) == pytest.approx(0.1 + 0.9 * 0.5) and schedule(
        linear, 1.0
    ) == pytest.approx(0.1)
    cosine = AdamWOptions(lr_schedule="cosine", warmup_ratio=0.0)
    assert [schedule(cosine, p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0]
    )
    constant = AdamWOptions(lr_schedule="constant", warmup_ratio=0.5)
    assert [schedule(constant, p) for p in (0.25, 0.5, 0.99)] == pytest.approx([0.5, 1, 1])


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_schedule_rises_then_falls_within_its_bounds(shape, warmup):
    rates = [
        schedule(AdamWOptions(lr_schedule=shape, warmup_ratio=warmup), p / 100) for p in range(100)
    ]
    peak = rates.index(max(rates))
    assert 0 < min(rates) and max(rates) == pytest.approx(1) and peak == round(100 * warmup)
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(
        rates[peak:], reverse=True
    )


def test_learning_rate_follows_the_schedule(tiny_model, make_trainer, batch):
    trainer, role = make_trainer(tiny_model, lr_schedule="linear", learning_rate=0.4)
    trainer.step([Term(per_completion, batch, role)], progress=0.75)
    assert trainer.optimizers["policy"].param_groups[0]["lr"] == pytest.approx(0.1)


# -- turns, kills and resumes ----------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.fixture
def train(tiny_model, batch, accelerator):
    """Train six turns in two streams, die in turn `die` (0: never); return (weights, rows, state,
    damaged).
    """

    def train(folder, die=0, every=0.0, budget=None):
        meter = Meter(peak=lambda reset: 0)
        options = AdamWOptions(learning_rate=1e-2)
        policy = copy.deepcopy(tiny_model).requires_grad_(True)
        trainer = Trainer(options, accelerator, meter, 64)

        def on_step(turn, total, row):
            if row["step"] == die:
                raise Killed

        loop = Loop(trainer, Checkpoints(folder, SaveInterval(every)), meter, on_step, budget)
        trainer.add("policy", policy)
        role = Role("policy", policy, lambda part: completion_logp(policy, part))
        loop.state.setdefault("seen", [])
        for total in (4, 2):
            for turn in loop.turns(total):
                loop.state["seen"].append([loop.stream, turn])
                part = batch.select([turn % 5, (turn + 2 + loop.stream) % 5])
                with meter.phase("update"):
                    loop.log(trainer.step([Term(per_token, part, role)], loop.progress))
        return nn.utils.parameters_to_vector(policy.parameters()).detach(), loop, loop.used()

    return train


def check_resumed(again, whole):
    """Bit-identical weights; the same rows, state, steps and counts."""
    assert torch.equal(again[0], whole[0])
    assert (
        again[1].rows == whole[1].rows and again[1].state == whole[1].state and again[2] == whole[2]
    )
    assert again[1].trainer.steps == whole[1].trainer.steps


@pytest.mark.parametrize("die", [1, 2, 4, 5, 6])
def test_killed_run_goes_on_bit_for_bit(train, tmp_path, die):
    whole = train(tmp_path / "whole")
    assert (
        whole[1].state["seen"] == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]
        and len(whole[1].rows) == 6
    )
    with pytest.raises(Killed):
        train(tmp_path / "cut", die=die)
    check_resumed(train(tmp_path / "cut"), whole)
    check_resumed(train(tmp_path / "cut"), whole)  # a finished run, run again, is left as it is


@pytest.mark.parametrize("missing", ["moment", "weight"])
def test_checkpoint_without_moments_or_weights_is_noticed(train, tmp_path, missing, monkeypatch):
    whole = train(tmp_path / "whole")
    tensors = Trainer.tensors
    monkeypatch.setattr(
        Trainer,
        "tensors",
        lambda self: {k: v for k, v in tensors(self).items() if f"/{missing}/" not in k},
    )
    with pytest.raises(Killed):
        train(tmp_path / "cut", die=4)
    again = train(tmp_path / "cut")
    with pytest.raises(AssertionError):
        check_resumed(again, whole)


def truncate(folder):
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder):
    file = folder / "tensors.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-50] ^= 1
    file.write_bytes(raw)


def empty_state(folder):
    (folder / "state.json").write_text("")


def half_state(folder):
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text[: len(text) // 2])


def no_tensors(folder):
    (folder / "tensors.safetensors").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, empty_state, half_state, no_tensors])
def test_damaged_checkpoint_falls_back_to_the_one_before(train, tmp_path, damage):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", die=5)
    kept = sorted(path.name for path in (tmp_path / "cut").glob("turn-*"))
    assert kept == ["turn-00000003", "turn-00000004"]
    damage(tmp_path / "cut" / kept[-1])
    again = train(tmp_path / "cut")
    assert again[1].checkpoints.damaged == [kept[-1]]
    check_resumed(again, whole)


def test_two_damaged_checkpoints_start_over(train, tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", die=5)
    for folder in (tmp_path / "cut").glob("turn-*"):
        flip(folder)
    again = train(tmp_path / "cut")
    assert len(again[1].checkpoints.damaged) == 2
    check_resumed(again, whole)


def test_unverified_read_is_noticed(train, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", die=5)
    newest = max((tmp_path / "cut").glob("turn-*"))
    flip(newest)
    state = json.loads((newest / "state.json").read_text())
    monkeypatch.setattr(
        Checkpoints, "load", lambda self: (load_tensors(newest / "tensors.safetensors"), state)
    )
    again = train(tmp_path / "cut")
    with pytest.raises(AssertionError):
        check_resumed(again, whole)


def test_half_written_checkpoint_is_not_seen(train, tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", die=3)
    (tmp_path / "cut" / ".partial").mkdir()
    (tmp_path / "cut" / ".partial" / "state.json").write_text("{")
    check_resumed(train(tmp_path / "cut"), whole)


def test_checkpoints_are_written_when_due(train, tmp_path):
    train(tmp_path / "never", every=3600.0)
    assert not list((tmp_path / "never").glob("turn-*"))


@pytest.fixture
def loop(meter, tmp_path, accelerator):
    """A loop without models: `loop(budget)`."""

    def make(budget=None):
        trainer = Trainer(AdamWOptions(), accelerator, meter, 64)
        return Loop(
            trainer, Checkpoints(tmp_path, SaveInterval(3600.0)), meter, lambda *told: None, budget
        )

    return make


def test_streams_do_not_nest(loop):
    one = loop()
    for _ in one.turns(2):
        with pytest.raises(RuntimeError, match="nest"):
            next(one.turns(2))
    assert list(one.turns(2)) == [0, 1]  # one after the other is fine
    assert len(one.rows) == 4


def test_metrics_of_a_turn_are_averaged(loop):
    one = loop()
    for turn in one.turns(2):
        one.log({"a": turn})
        one.log({"a": turn + 2.0, "b": 5.0})
    assert one.rows == [{"step": 1.0, "a": 1.0, "b": 5.0}, {"step": 2.0, "a": 2.0, "b": 5.0}]


@pytest.mark.parametrize(
    ("limit", "amounts", "turns"),
    [
        ({"steps": 3}, {"steps": 1}, 3),
        ({"samples": 10}, {"samples": 4}, 3),
        ({"tokens": 100}, {"tokens_generated": 30, "tokens_trained": 20}, 2),
        ({"flops": 1e3}, {"flops": 300.0}, 4),
        ({}, {"steps": 1}, 8),
    ],
)
def test_budget_stops_a_stream(loop, meter, limit, amounts, turns):
    one = loop(Budget(**limit))
    progress = []
    for _ in one.turns(8):
        progress.append(one.progress)
        with meter.phase("update"):
            meter.add(**amounts)
    assert len(progress) == len(one.rows) == turns
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] < 1
    assert list(one.turns(3)) == ([] if limit else [0, 1, 2])


def test_what_others_share_is_not_the_methods(loop, meter):
    one = loop(Budget(steps=2))
    with meter.phase("sft"):
        meter.add(steps=1000)
    assert one.used()["steps"] == 0 and len(list(one.turns(2))) == 2
