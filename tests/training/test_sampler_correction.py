"""Truncated importance sampling and IcePop's mask: hand-computed weights and gradients."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.grpo import GRPO
from harness_plugins.on_policy.gspo import GSPO
from harness_plugins.online_dpo import OnlineDPO
from harness_plugins.raft import RAFT
from harness_plugins.rlvr import RLVR

from harness.api.methods import OnPolicyOptions
from harness.models.batches import Batch
from harness.training import sampler_correction
from harness.training.sampler_correction import BEFORE, corrected, gap, report, weighted
from harness.training.trainer import Term

from ..helpers.registries import METHODS, installed

TIS = SimpleNamespace(sampler_correction="tis", sampler_cap=2.0)
ICEPOP = SimpleNamespace(sampler_correction="icepop", sampler_low=0.5, sampler_high=5.0)
RATIOS = torch.tensor([[[1.0, 3.0, 0.4, 2.5], [0.5, 6.0, 1.0, 1.0]]])  # pi_t / pi_s of 8 tokens
MASK = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]])


def rollout(make_batch, tokens):
    """Two completions of a prompt, of 4 and 2 tokens, and the trained model's log-probabilities."""
    batch = make_batch(tokens, words=(3,), lengths=((4, 2),), open_ended=())
    sampled = -torch.ones_like(batch["mask"]) * batch["mask"]
    assert torch.equal(batch["mask"], MASK)
    return batch.with_columns(logp=sampled, **{BEFORE: sampled}), sampled + RATIOS.log() * MASK


def test_weights_by_hand(make_batch, tokens):
    batch, logp = rollout(make_batch, tokens)
    tis, icepop = corrected(batch, logp, TIS), corrected(batch, logp, ICEPOP)
    assert torch.equal(tis["logp"], logp) and torch.equal(tis[BEFORE], batch["logp"])
    assert tis["sampler_weight"][MASK > 0].tolist() == pytest.approx([1, 2, 0.4, 2, 0.5, 2])
    assert tis["sampler_weight_completion"][0].tolist() == pytest.approx([2, 2])  # of 3 and 3
    expected = [1, 3, 0, 2.5, 0.5, 0]
    assert icepop["sampler_weight"][MASK > 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert icepop["sampler_weight_completion"][0].tolist() == pytest.approx([3, 3])
    assert report(tis) == pytest.approx({"sampler_weight": 7.9 / 6, "sampler_clipped": 3 / 6})
    assert report(icepop) == pytest.approx({"sampler_weight": 7 / 6, "sampler_clipped": 2 / 6})


def test_weights_are_one_where_sampler_and_policy_agree(make_batch, tokens):
    batch, _ = rollout(make_batch, tokens)
    for options in (TIS, ICEPOP):
        same = corrected(batch, batch["logp"], options)
        losses = torch.randn(MASK.shape)
        assert torch.equal(weighted(losses, same), losses)
        assert torch.equal(weighted(losses.sum(-1), same), losses.sum(-1))
        assert report(same) == {"sampler_weight": 1.0, "sampler_clipped": 0.0}
    assert torch.equal(weighted(losses, batch), losses)  # a batch that was not corrected


@pytest.mark.parametrize("cap", [1e9, 1.5])
def test_expected_gradient_is_the_policys_and_truncation_biases_it(cap):
    """Over all completions of one token that the engine may draw: sum q w grad is sum p grad.

    Without truncation both are the same; with it the heavy tokens weigh less, as computed here.
    """
    theta = torch.tensor([0.3, -0.2, 0.8, 0.1], dtype=torch.double, requires_grad=True)
    sampler = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.double)
    reward = torch.tensor([1.0, -0.5, 2.0, 0.0], dtype=torch.double)
    policy = theta.log_softmax(0)
    options = SimpleNamespace(sampler_correction="tis", sampler_cap=cap)
    weight = sampler_correction.weights((policy - sampler.log()).detach(), options)
    (found,) = torch.autograd.grad((sampler * weight * reward * policy).sum(), theta)
    p = theta.detach().softmax(0)
    mass = torch.minimum(p, cap * sampler)  # q min(p / q, C)
    expected = mass * reward - (mass * reward).sum() * p
    assert torch.allclose(found, expected, atol=1e-12)
    exact = p * (reward - (p * reward).sum())
    assert torch.allclose(found, exact, atol=1e-12) == (cap > 1e3)


@pytest.mark.parametrize("of", ["tokens", "completions"])
def test_trainer_weighs_the_loss_of_the_policy(of, make_batch, tokens, make_trainer, tiny_model):
    """The gradient of a step is that of the loss written out with its weights."""
    batch, logp = rollout(make_batch, tokens)
    batch = corrected(batch, logp, TIS)
    weight = batch["sampler_weight"] if of == "tokens" else batch["sampler_weight_completion"]

    def loss(logp, part):
        return -logp if of == "tokens" else -logp.sum(-1)

    def by_hand(logp, part):
        return weight * loss(logp, part)

    plain = Batch(batch.prompts, {n: batch[n] for n in ("completion_ids", "mask")}, 1.0)
    after = []
    for losses, columns in ((loss, batch), (by_hand, plain), (loss, plain)):
        trainer, role = make_trainer(tiny_model, sgd=True)
        with trainer.meter.phase("update"):
            trainer.step([Term(losses, columns, role)], 0.0)
        after.append(torch.nn.utils.parameters_to_vector(role.module.parameters()).detach())
    assert torch.allclose(after[0], after[1], atol=1e-7)
    assert float((after[0] - after[2]).abs().max()) > 1e-4  # negative control


def test_loss_of_prompts_has_no_weight(make_batch, tokens):
    batch, logp = rollout(make_batch, tokens)
    with pytest.raises(ValueError, match="weighs tokens or completions"):
        weighted(torch.zeros(1), corrected(batch, logp, TIS))


def test_disagreement_is_measured_at_the_weights_that_sampled(
    make_batch, tokens, make_trainer, tiny_model
):
    trainer, role = make_trainer(tiny_model, micro_batch_tokens=12)
    batch = make_batch(tokens)
    with torch.no_grad():
        logp = role.compute(batch)
    batch = batch.with_columns(**{BEFORE: logp + 0.25 * batch["mask"]})
    term = Term(lambda logp, part: -logp, batch, role)

    def step(term):
        with trainer.meter.phase("update"):
            return trainer.step([term], 0.0)

    assert "sampler_gap" not in step(term)  # nothing sampled yet
    with torch.no_grad():
        batch = batch.with_columns(**{BEFORE: role.compute(batch) + 0.25 * batch["mask"]})
    trainer.sampled()
    term = replace(term, batch=batch)
    assert step(term)["sampler_gap"] == pytest.approx(0.25, abs=1e-5)
    assert "sampler_gap" not in step(term)  # the weights have moved since
    assert gap(logp, {"mask": batch["mask"]}) is None


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (GRPO, {"sampler_correction": "is"}, "none, tis or icepop, not 'is'"),
        (GRPO, {"sampler_cap": 3.0}, "sampler_cap"),
        (GRPO, {"sampler_correction": "tis", "sampler_low": 0.1}, "sampler_low"),
        (GRPO, {"sampler_correction": "icepop", "sampler_cap": 3.0}, "sampler_cap"),
        (GRPO, {"sampler_correction": "tis", "sampler_cap": 0.5}, "at least 1"),
        (GSPO, {"sampler_correction": "icepop", "sampler_high": 0.9}, "above 1"),
        (OnlineDPO, {"sampler_correction": "tis"}, "compares samples, whatever drew them"),
        (RAFT, {"sampler_correction": "icepop"}, "imitates the best samples"),
    ],
)
def test_options_without_effect_are_refused(cls, options, text):
    with pytest.raises(ValueError, match=text):
        cls(**options).check()


def test_every_on_policy_method_takes_the_correction_or_says_why_not():
    registry = installed()
    classes = [registry.get("methods", name) for name in METHODS]
    found = [cls for cls in classes if issubclass(cls, OnPolicyOptions)]
    assert len(found) >= 10
    for cls in found:
        method = cls(sampler_correction="tis")
        if cls.uncorrected:
            with pytest.raises(ValueError, match="sampler_correction=tis"):
                method.check()
        else:
            method.check()
    assert RLVR(sampler_correction="tis", sampler_cap=3.0).inner().sampler_cap == 3.0
