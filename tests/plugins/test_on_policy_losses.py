"""Losses of a policy's own samples: loss and gradient against published equations in plain Python,
against TRL, at the limits where one is another, and each one's optimum against its own training.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.grpo import GRPO
from harness_plugins.on_policy.base import PolicyGradient
from harness_plugins.on_policy.cispo import CISPO
from harness_plugins.on_policy.dapo import DAPO, with_signal
from harness_plugins.on_policy.gmpo import GMPO
from harness_plugins.on_policy.gspo import GSPO
from harness_plugins.on_policy.sapo import SAPO

from harness.api.registry import installed
from harness.training.trainer import reduce_share

from ..helpers.exact_lab import ExactLab, far_from
from ..helpers.registries import sampled
from ..helpers.trl_losses import trl_gmpo_loss, trl_grpo_loss

NAN = math.nan
LENGTHS = torch.tensor([[4, 2], [1, 3], [2, 2]])
LIMIT = 4  # tokens of the longest completion
EVEN = torch.ones_like(LENGTHS)  # completions of one token


class Columns(dict):
    """A batch that is its columns."""

    @property
    def shape(self):
        return self["mask"].shape

    @property
    def lengths(self):
        return self["mask"].sum(-1).long()

    def with_columns(self, **columns):
        return Columns({**self, **columns})


def draw(lengths=LENGTHS, seed=0, drift=0.6, dtype=torch.float64):
    """Return logp (3, 2, 4) of a policy that moved by `drift` since it sampled, and the batch."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(LIMIT) < lengths[..., None]).double()
    old = (-2 * torch.rand(mask.shape, generator=generator, dtype=torch.float64) - 0.1) * mask
    moved = drift * torch.randn(mask.shape, generator=generator, dtype=torch.float64) * mask
    advantages = torch.tensor([[1.0, -1.0], [-0.7, 0.7], [0.4, -0.4]], dtype=torch.float64)
    columns = {"old_logp": old, "mask": mask, "advantages": advantages}
    logp = torch.minimum(old + moved, torch.full_like(old, -0.01)) * mask
    columns = {name: column.to(dtype) for name, column in columns.items()}
    return logp.to(dtype).requires_grad_(), Columns(columns)


def taken(method, logp, batch):
    """Return what the lab makes of a method's loss, and its gradient."""
    lab = SimpleNamespace(max_new_tokens=LIMIT)
    values = method.loss(logp, batch)
    values = values[0] if isinstance(values, tuple) else values
    loss = reduce_share(values, batch, batch, method.reduced(lab, batch))
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.detach(), gradient * batch["mask"]  # the lab's logp are constants on padding


# -- equations in plain Python ---------------------------------------------------------------------


def sigma(x):
    return 1 / (1 + math.exp(-x))


def clip(x, low, high):
    return max(low, min(high, x))


def surrogate(ratio, a, low, high):
    return -min(ratio * a, clip(ratio, 1 - low, 1 + high) * a)


def mean(values):
    return sum(values) / len(values)


def rows(logp, batch):
    """Return the completions: y.u log-ratios and y.lp log-probabilities by token, y.n tokens, y.a
    the advantage.
    """
    out = []
    for i, j in torch.cartesian_prod(*map(torch.arange, batch["mask"].shape[:2])).tolist():
        n = int(batch["mask"][i, j].sum())
        lp, old = logp[i][j][:n], batch["old_logp"][i, j, :n].tolist()
        u = [p - q for p, q in zip(lp, old, strict=True)]
        a = float(batch["advantages"][i, j])
        out.append(SimpleNamespace(u=u, lp=lp, n=n, a=a, old=old))
    return out


def geometric_mean(y, limit):
    """GMPO's clipped log-ratios, averaged: the clip only ever lowers the objective."""
    side = math.copysign(1, y.a)
    return mean([side * min(side * u, side * clip(u, -limit, limit)) for u in y.u])


def gate(u, a):
    tau = 1.0 if a > 0 else 1.05
    return 4 / tau * sigma(tau * (math.exp(u) - 1))


# How a batch is averaged: over its tokens, over completions of their tokens' mean, or completions.
AVERAGES = {
    "tokens": lambda told: sum(map(sum, told)) / sum(map(len, told)),
    "means": lambda told: mean([mean(tokens) for tokens in told]),
    "sums": lambda told: mean([sum(tokens) for tokens in told]),
    "limit": lambda told: sum(map(sum, told)) / (len(told) * LIMIT),
}


def by_token(term):
    """An equation of each token: term(u, lp, frozen u, y)."""
    return lambda y, z: [term(u, lp, v, y) for u, lp, v in zip(y.u, y.lp, z.u, strict=True)]


def whole(term):
    """An equation of the whole completion: one value."""
    return lambda y, z: [term(y, z)]


# name: (method, average, its equation, what others make of it). y is the completion, and z the same
# as a constant, without a gradient.
CASES = {
    "gspo": (
        GSPO(clip_range=0.1, clip_range_high=0.15),
        "means",
        whole(lambda y, z: surrogate(math.exp(mean(y.u)), y.a, 0.1, 0.15)),
        whole(lambda y, z: surrogate(math.exp(sum(y.u)), y.a, 0.1, 0.15)),  # without the root
    ),
    "cispo": (
        CISPO(ratio_max=1.2),
        "tokens",
        by_token(lambda u, lp, v, y: -min(math.exp(v), 1.2) * y.a * lp),
        by_token(lambda u, lp, v, y: -min(math.exp(u), 1.2) * y.a),  # a gradient by the weight
    ),
    "dapo": (
        DAPO(clip_range=0.1, clip_range_high=0.4),
        "tokens",
        by_token(lambda u, lp, v, y: surrogate(math.exp(u), y.a, 0.1, 0.4)),
        by_token(lambda u, lp, v, y: surrogate(math.exp(u), y.a, 0.4, 0.1)),  # sides exchanged
    ),
    "gmpo": (
        GMPO(),
        "means",
        whole(lambda y, z: -y.a * math.exp(geometric_mean(y, 0.4))),
        whole(lambda y, z: -y.a * math.exp(mean([clip(u, -0.4, 0.4) for u in y.u]))),  # both sides
    ),
    "sapo": (
        SAPO(),
        "means",
        by_token(lambda u, lp, v, y: -gate(u, y.a) * y.a),
        by_token(lambda u, lp, v, y: -gate(u, -y.a) * y.a),  # temperatures exchanged
    ),
}


def hand_made(average, equation, logp, batch):
    """Return the loss of the equation, and its gradient by central differences."""
    still = rows(logp.tolist(), batch)

    def loss(values):
        pairs = zip(rows(values, batch), still, strict=True)
        return AVERAGES[average]([equation(y, z) for y, z in pairs])

    gradient, values = torch.zeros_like(logp), logp.tolist()
    for i, j, t in (batch["mask"] > 0).nonzero().tolist():
        at = values[i][j][t]
        values[i][j][t] = at + 1e-6
        above = loss(values)
        values[i][j][t] = at - 1e-6
        gradient[i, j, t], values[i][j][t] = (above - loss(values)) / 2e-6, at
    return torch.tensor(loss(values), dtype=torch.float64), gradient


def same(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def unlike(ours, theirs):
    """A negative control: the gradients differ."""
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_the_published_equation(name):
    method, average, equation, wrong = CASES[name]
    method.check()
    logp, batch = draw()
    ours = taken(method, logp, batch)
    same(ours, hand_made(average, equation, logp, batch), rtol=1e-6, atol=1e-8)
    unlike(ours, hand_made(average, wrong, logp, batch))
    flipped = batch.with_columns(advantages=-batch["advantages"])
    unlike(ours, hand_made(average, equation, logp, flipped))


def test_every_method_of_the_family_stands_among_the_equations():
    ours = {
        name
        for name, cls in installed().classes["methods"].items()
        if issubclass(cls, PolicyGradient)
    }
    assert ours == {name.partition(",")[0] for name in CASES}


# -- limits at which one is another ----------------------------------------------------------------


class Plain(GRPO):
    """GRPO without a KL, its aggregation as this family states it."""

    def reduced(self, lab, batch):
        return self.reduction(batch, LIMIT)


GRPO_OFF = {"beta": 0.0}
TOKENS = GRPO_OFF | {"loss_aggregation": "token-mean"}
GRPO_OF_GMPO = {"clip_range": 1 - math.exp(-0.4), "clip_range_high": math.exp(0.4) - 1}
UNCLIPPED = {"clip_range": 1e6, "clip_range_high": 1e6}
# name: (method, the same at this limit, the batch at which it is)
LIMITS = {
    "gspo of one token is grpo": (
        GSPO(clip_range=0.1, clip_range_high=0.15),
        Plain(**GRPO_OFF, clip_range=0.1, clip_range_high=0.15),
        {"lengths": EVEN},
    ),
    "cispo starts as grpo": (CISPO(), Plain(**TOKENS), {"drift": 0.0}),
    "dapo is grpo's options": (DAPO(), Plain(**TOKENS, clip_range_high=0.28), {}),
    "gmpo of one token is grpo": (
        GMPO(),
        Plain(**GRPO_OFF, **GRPO_OF_GMPO),
        {"lengths": EVEN},
    ),
    "sapo starts as grpo": (SAPO(), Plain(**GRPO_OFF), {"drift": 0.0}),
}
DIFFER = {  # where the limit is not reached they differ
    "gspo of one token is grpo": {},
    "cispo starts as grpo": {"drift": 2.0},
    "gmpo of one token is grpo": {},
    "sapo starts as grpo": {},
}


@pytest.mark.parametrize("name", LIMITS)
def test_at_a_limit_one_loss_has_the_gradient_of_another(name):
    one, other, where = LIMITS[name]
    logp, batch = draw(**where)
    torch.testing.assert_close(taken(one, logp, batch)[1], taken(other, logp, batch)[1])
    if name in DIFFER:
        logp, batch = draw(**DIFFER[name])
        unlike(taken(one, logp, batch), taken(other, logp, batch))


# -- TRL -------------------------------------------------------------------------------------------

TRL = {
    "gspo": (
        GSPO(clip_range=0.1, clip_range_high=0.15),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 0.1,
            "epsilon_high": 0.15,
        },
    ),
    "cispo": (CISPO(ratio_max=1.2), {"loss_type": "cispo", "epsilon_high": 1.2}),
    "dapo": (DAPO(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "sapo": (SAPO(), {"loss_type": "sapo"}),
}


@pytest.mark.parametrize("name", TRL)
def test_loss_and_gradient_are_trls(name):
    method, settings = TRL[name]
    logp, batch = draw()
    theirs = trl_grpo_loss(logp, batch, **settings)
    ours = taken(method, logp, batch)
    same(ours, (theirs.detach(), torch.autograd.grad(theirs, logp)[0]))
    unlike(taken(method, logp, batch.with_columns(old_logp=logp.detach())), ours)


def test_gmpo_is_trls():
    logp, batch = draw()
    theirs = trl_gmpo_loss(logp, batch, epsilon_low=0.4, epsilon_high=0.4)
    same(taken(GMPO(), logp, batch), (theirs.detach(), torch.autograd.grad(theirs, logp)[0]))


# -- optima, on expectations without noise ---------------------------------------------------------

FEW = {"beta": 0.5, "steps": 240, "num_generations": 2}
OPTIMA = {
    "gspo": GSPO(**FEW),
    "cispo": CISPO(**FEW),
    "dapo": DAPO(**FEW, dynamic_sampling=False),
    "gmpo": GMPO(**FEW),
    "sapo": SAPO(**FEW),
}


@pytest.mark.parametrize("name", sampled(OPTIMA, of=("gspo", "dapo")))
def test_with_exact_expectations_a_method_reaches_its_optimum(name):
    assert far_from(OPTIMA[name], limit=2, steps=240) < 1e-3


class Unanchored(GSPO):
    """The KL of the reward has the wrong sign."""

    def experience(self, lab, batch):
        reference = lab.reference
        turned = SimpleNamespace(logp=lambda b: 2 * b["logp"] - reference.logp(b))
        return super().experience(SimpleNamespace(**vars(lab) | {"reference": turned}), batch)


class Hard(DAPO):
    """Overlong completions lose nothing."""

    def overlong(self, lengths, limit):
        return torch.zeros_like(lengths, dtype=torch.float64)


ENDS_ELSEWHERE = {
    "dapo": (Hard(**FEW, dynamic_sampling=False), DAPO(**FEW, dynamic_sampling=False)),
    "gspo": (GSPO(**FEW | {"beta": 1.0}), GSPO(**FEW)),
}


@pytest.mark.parametrize("name", sampled(ENDS_ELSEWHERE, of=("dapo",)))
def test_another_reward_ends_elsewhere(name):
    method, right = ENDS_ELSEWHERE[name]
    assert far_from(method, optimum_of=right, limit=2, steps=240) > 0.02


def test_without_a_kl_no_optimum_is_stated():
    problem = ExactLab(limit=2).problem()
    assert all(m.optimum(problem) is not None for m in OPTIMA.values())
    for changed in ({"beta": 0.0}, {"temperature": 0.7}, {"adaptive_beta": True}):
        assert [m for m in OPTIMA.values() if replace(m, **changed).optimum(problem)] == []


# -- DAPO's sampling -------------------------------------------------------------------------------


def test_the_overlong_penalty_rises_over_the_last_tokens():
    told = DAPO(overlong_cache=0.2).overlong(torch.tensor([10.0, 80.0, 81.0, 90.0, 100.0]), 100)
    assert told.tolist() == pytest.approx([0, 0, -0.05, -0.5, -1])
    assert DAPO(overlong_penalty=0.0).overlong(torch.tensor([100.0]), 100).tolist() == [0]


def test_groups_without_signal_are_replaced():
    """Rollouts of two groups each; the reward says how many of them have a signal."""
    lab = RefillLab([[0, 1], [0, 0], [2, 3], [0, 0]])
    method = DAPO(batch_size=2, num_minibatches=1, overlong_penalty=0.0, num_generations=2)
    ((_, batch),) = list(method.rollouts(lab))
    assert batch["reward"].tolist() == [[0.0, 1.0], [0.0, 2.0]]  # surplus groups are dropped
    assert lab.asked == [2, 2] and lab.logged == [{"groups_sampled": 6, "groups_kept": 3}]


def test_refills_end():
    method = DAPO(batch_size=2, num_minibatches=1, max_refills=2, num_generations=2)
    lab = RefillLab([[0, 0]] * 9)
    assert list(method.rollouts(lab)) == [] and lab.asked == [2, 2]
    lab = RefillLab([[0, 1]] + [[0, 0]] * 9)
    ((_, batch),) = list(method.rollouts(lab))
    assert batch.shape[0] == 1  # trained on what there is


def test_an_unknown_reward_is_no_signal():
    batch = refilled([0, 1, 2]).with_columns(
        reward=torch.tensor([[NAN, 1.0], [1.0, 1.0], [0.0, 1.0]])
    )
    assert with_signal(batch)["reward"].tolist() == [[0.0, 1.0]]
    assert with_signal(batch.select([0, 1])) is None


def refilled(high):
    """A batch with a group of rewards (0, h) for each h."""
    return ExactLab(limit=2).batch(
        torch.zeros(len(high), dtype=torch.long),
        torch.zeros(len(high), 2, dtype=torch.long),
        torch.ones(len(high)),
        reward=torch.tensor([[0.0, float(h)] for h in high]),
    )


class RefillLab:
    """A lab with one turn, whose rollouts have given rewards."""

    max_new_tokens = 2

    def __init__(self, rewards):
        self.rewards, self.asked, self.logged, self.state = list(rewards), [], [], {}

    def prompts(self, steps):
        yield "prompts"

    def further_prompts(self, n):
        self.asked.append(n)

    def rollout(self, *_):
        return refilled(self.rewards.pop(0))

    def reward(self, batch):
        return batch["reward"]

    def log(self, **metrics):
        self.logged.append(metrics)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (GSPO(num_generations=1), "num_generations"),
        (GSPO(clip_range=0.0), "clip_range"),
        (GSPO(num_minibatches=0), "num_minibatches"),
        (GSPO(num_minibatches=9, batch_size=8), "num_minibatches"),
        (GSPO(num_iterations=0), "num_iterations"),
        (GSPO(std_normalise=False, ddof=1), "ddof"),
        (GSPO(beta=-1.0), "beta"),
        (CISPO(ratio_max=0.9), "ratio_max"),
        (DAPO(clip_range_high=0.0), "clip_range_high"),
        (DAPO(overlong_cache=0.0), "overlong_cache"),
        (DAPO(overlong_penalty=0.0, overlong_cache=0.1), "overlong_penalty"),
        (DAPO(dynamic_sampling=False, max_refills=2), "dynamic_sampling"),
        (DAPO(max_refills=0), "max_refills"),
        (GMPO(log_clip_range=0.0), "log_clip_range"),
        (SAPO(tau_neg=0.0), "tau_neg"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_options_that_make_no_sense_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        method.check()
