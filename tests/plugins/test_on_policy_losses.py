"""Losses of a policy's own samples: loss and gradient against published equations in plain Python,
against TRL, at the limits where one is another, and each one's optimum against its own training.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.entropy import highest
from harness_plugins.grpo import GRPO
from harness_plugins.on_policy.base import PolicyGradient
from harness_plugins.on_policy.cispo import CISPO
from harness_plugins.on_policy.clip_cov import ClipCov
from harness_plugins.on_policy.covariance import covariances
from harness_plugins.on_policy.dapo import DAPO, with_signal
from harness_plugins.on_policy.dppo import DPPO
from harness_plugins.on_policy.gdpo import GDPO
from harness_plugins.on_policy.gmpo import GMPO
from harness_plugins.on_policy.gpg import GPG
from harness_plugins.on_policy.gspo import GSPO
from harness_plugins.on_policy.kl_cov import KLCov
from harness_plugins.on_policy.luspo import LUSPO
from harness_plugins.on_policy.maxrl import MaxRL
from harness_plugins.on_policy.opo import OPO
from harness_plugins.on_policy.reinforce import Reinforce
from harness_plugins.on_policy.remax import ReMax
from harness_plugins.on_policy.sapo import SAPO
from harness_plugins.on_policy.vespo import VESPO
from harness_plugins.rloo import RLOO

from harness import UsageError
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
    chosen = (torch.arange(LIMIT) % 2 == 0).double() * mask  # for clip_cov and kl_cov
    columns = {"old_logp": old, "mask": mask, "advantages": advantages, "chosen": chosen}
    logp = torch.minimum(old + moved, torch.full_like(old, -0.01)) * mask
    columns = {name: column.to(dtype) for name, column in columns.items()}
    return logp.to(dtype).requires_grad_(), Columns(columns)


def taken(method, logp, batch):
    """Return what the lab makes of a method's loss, and its gradient."""
    lab = SimpleNamespace(max_new_tokens=LIMIT)
    values = method.loss(logp, batch)
    values = values[0] if isinstance(values, tuple) else values
    reduction = "token-mean"
    if isinstance(method, PolicyGradient):
        reduction = method.reduced(lab, batch)
    elif isinstance(method, GRPO):
        reduction = method.reduction(batch, LIMIT)
    loss = reduce_share(values, batch, batch, reduction)
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
        chosen = batch["chosen"][i, j, :n].tolist()
        out.append(SimpleNamespace(u=u, lp=lp, n=n, a=a, old=old, chosen=chosen))
    return out


def geometric_mean(y, limit):
    """GMPO's clipped log-ratios, averaged: the clip only ever lowers the objective."""
    side = math.copysign(1, y.a)
    return mean([side * min(side * u, side * clip(u, -limit, limit)) for u in y.u])


def gate(u, a):
    tau = 1.0 if a > 0 else 1.05
    return 4 / tau * sigma(tau * (math.exp(u) - 1))


def by_token(term):
    """An equation of each token: term(u, lp, frozen u, y)."""
    return lambda y, z: [term(u, lp, v, y) for u, lp, v in zip(y.u, y.lp, z.u, strict=True)]


def whole(term):
    """An equation of the whole completion: one value."""
    return lambda y, z: [term(y, z)]


def gamma(w, k, decay):
    """VESPO's weight of a ratio."""
    return w**k * math.exp(decay - decay * w)


def vespo(y, z, exchanged=False):
    k, decay = (2.0, 3.0) if (y.a >= 0) != exchanged else (3.0, 2.0)
    return [-gamma(math.exp(sum(z.u)), k, decay) * y.a * lp for lp in y.lp]


def dppo(y, z, sided=True):
    """No gradient beyond a change of 0.1 in the direction of A, or in both."""
    out = []
    for u, lp, old in zip(y.u, z.lp, z.old, strict=True):
        change = math.exp(lp) - math.exp(old)
        beyond = math.copysign(1, y.a) * change > 0.1 if sided else abs(change) > 0.1
        out.append(0.0 if beyond else -math.exp(u) * y.a)
    return out


def clip_cov(y, z):
    terms = [surrogate(math.exp(u), y.a, 0.3, 0.3) for u in y.u]
    return [0.0 if c else term for c, term in zip(y.chosen, terms, strict=True)]


def kl_cov(y, z, sign=1):
    chosen = zip(y.chosen, y.u, strict=True)
    return [-math.exp(u) * y.a + sign * 0.5 * c * abs(u) for c, u in chosen]


plain = [  # equation of REINFORCE on a completion, and one of means
    by_token(lambda u, lp, v, y: -y.a * lp),
    by_token(lambda u, lp, v, y: -y.a * lp / y.n),
]

# How a batch is averaged: over its tokens, over completions of their tokens' mean, or completions.
AVERAGES = {
    "tokens": lambda told: sum(map(sum, told)) / sum(map(len, told)),
    "means": lambda told: mean([mean(tokens) for tokens in told]),
    "sums": lambda told: mean([sum(tokens) for tokens in told]),
    "limit": lambda told: sum(map(sum, told)) / (len(told) * LIMIT),
}


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
    "gdpo": (
        GDPO(clip_range=0.3),
        "means",
        by_token(lambda u, lp, v, y: surrogate(math.exp(u), y.a, 0.3, 0.3)),
        by_token(lambda u, lp, v, y: -math.exp(u) * y.a),  # without the clip
    ),
    "luspo": (
        LUSPO(clip_range=0.1, clip_range_high=0.15),
        "means",
        whole(lambda y, z: y.n * surrogate(math.exp(mean(y.u)), y.a, 0.1, 0.15)),
        whole(lambda y, z: surrogate(math.exp(mean(y.u)), y.a, 0.1, 0.15)),  # GSPO
    ),
    "vespo": (VESPO(), "tokens", vespo, lambda y, z: vespo(y, z, exchanged=True)),
    "dppo": (DPPO(tv_range=0.1), "limit", dppo, lambda y, z: dppo(y, z, sided=False)),
    "clip_cov": (
        ClipCov(clip_range=0.3),
        "tokens",
        clip_cov,
        by_token(lambda u, lp, v, y: surrogate(math.exp(u), y.a, 0.3, 0.3)),  # GRPO
    ),
    "kl_cov": (KLCov(kl_coef=0.5), "tokens", kl_cov, lambda y, z: kl_cov(y, z, sign=-1)),
    "gpg": (GPG(), "tokens", by_token(lambda u, lp, v, y: -y.a * lp), plain[1]),
    "maxrl": (MaxRL(), "sums", *plain),
    "opo": (OPO(), "sums", *plain),
    "reinforce": (Reinforce(), "sums", *plain),
    "remax": (ReMax(), "sums", *plain),
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


GRPO_OFF = {"beta": 0.0}
TOKENS = GRPO_OFF | {"loss_aggregation": "token-mean"}
GRPO_OF_GMPO = {"clip_range": 1 - math.exp(-0.4), "clip_range_high": math.exp(0.4) - 1}
UNCLIPPED = {"clip_range": 1e6, "clip_range_high": 1e6}
ONE = {"lengths": EVEN}
# name: (method, the same at this limit, the batch at which it is)
LIMITS = {
    "gspo of one token is grpo": (
        GSPO(clip_range=0.1, clip_range_high=0.15),
        GRPO(**GRPO_OFF, clip_range=0.1, clip_range_high=0.15),
        ONE,
    ),
    "cispo starts as grpo": (CISPO(), GRPO(**TOKENS), {"drift": 0.0}),
    "dapo is grpo's options": (DAPO(), GRPO(**TOKENS, clip_range_high=0.28), {}),
    "gmpo of one token is grpo": (
        GMPO(),
        GRPO(**GRPO_OFF, **GRPO_OF_GMPO),
        ONE,
    ),
    "gdpo steps as grpo": (GDPO(), GRPO(**GRPO_OFF), {}),
    "sapo starts as grpo": (SAPO(), GRPO(**GRPO_OFF), {"drift": 0.0}),
    "luspo of one token is gspo": (LUSPO(), GSPO(clip_range=2e-3, clip_range_high=2.5e-3), ONE),
    "vespo starts as cispo": (VESPO(), CISPO(), {"drift": 0.0}),
    "dppo without a limit is grpo without a clip": (
        DPPO(tv_range=1.0),
        GRPO(**GRPO_OFF, **UNCLIPPED, std_normalise=False, loss_aggregation="constant"),
        {},
    ),
    "kl_cov without a penalty is grpo without a clip": (
        KLCov(kl_coef=0.0),
        GRPO(**TOKENS, **UNCLIPPED),
        {},
    ),
    "gpg is cispo at a ratio of 1": (GPG(), CISPO(), {"drift": 0.0}),
    "opo is rloo's step": (OPO(), RLOO(), {}),
}
DIFFER = {  # where the limit is not reached they differ
    "gspo of one token is grpo": {},
    "cispo starts as grpo": {"drift": 2.0},
    "gmpo of one token is grpo": {},
    "sapo starts as grpo": {},
    "luspo of one token is gspo": {},
    "vespo starts as cispo": {},
    "gpg is cispo at a ratio of 1": {},
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
    "luspo": (
        LUSPO(clip_range=0.1, clip_range_high=0.15),
        {
            "loss_type": "luspo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 0.1,
            "epsilon_high": 0.15,
        },
    ),
    "vespo": (VESPO(), {"loss_type": "vespo"}),
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
    "luspo": LUSPO(**FEW),
    "vespo": VESPO(**FEW),
    "dppo": DPPO(**FEW),
    "clip_cov": ClipCov(**FEW),
    "kl_cov": KLCov(**FEW),
    "gpg": GPG(**FEW),
    "opo": OPO(**FEW),
    "reinforce": Reinforce(**FEW),
    "remax": ReMax(**FEW),
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


# -- advantages ------------------------------------------------------------------------------------

REWARDS = torch.tensor([[1.0, 0.0, 0.5, 3.0], [2.0, 2.0, 2.0, 2.0], [NAN, 1.0, 4.0, NAN]])
SIZES = torch.tensor([[2.0, 4.0, 1.0, 3.0], [1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 1.0, 2.0]])


def sized(lengths=SIZES):
    """A batch of completions of these lengths."""
    return Columns(mask=(torch.arange(4) < lengths[..., None]).float())


def by_rows(term):
    """Advantages by a loop: term(reward, known rewards of the group, their lengths)."""
    out = []
    for row, sizes in zip(REWARDS.tolist(), SIZES.tolist(), strict=True):
        known = [(r, n) for r, n in zip(row, sizes, strict=True) if not math.isnan(r)]
        group, lengths = zip(*known, strict=True)
        out.append([0.0 if math.isnan(r) else term(r, group, lengths) for r in row])
    return torch.tensor(out)


def weighed(group, lengths):
    return sum(r * n for r, n in zip(group, lengths, strict=True)) / sum(lengths)


def test_the_baseline_of_opo_is_weighed_by_length():
    ours = OPO().advantages(REWARDS, sized())
    torch.testing.assert_close(ours, by_rows(lambda r, group, n: r - weighed(group, n)))
    with pytest.raises(AssertionError):  # the plain mean
        torch.testing.assert_close(ours, by_rows(lambda r, group, n: r - mean(group)))


def test_no_other_baseline_has_less_variance_than_that_of_opo():
    """If the squared gradient of a completion is its length."""

    def variance(shift):
        return ((OPO().advantages(REWARDS[:2], sized(SIZES[:2])) + shift) ** 2 * SIZES[:2]).sum()

    assert variance(0.0) < min(variance(0.05), variance(-0.05))


def test_gpg_scales_up_for_groups_without_a_signal():
    ours = GPG().advantages(REWARDS, sized())
    torch.testing.assert_close(ours, by_rows(lambda r, group, n: 3 / 2 * (r - mean(group))))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours, by_rows(lambda r, group, n: r - mean(group)))
    assert GPG().advantages(REWARDS[1:2], sized(SIZES[1:2])).tolist() == [[0.0] * 4]


def test_maxrl_divides_by_the_mean():
    ours = MaxRL().advantages(REWARDS, sized())
    torch.testing.assert_close(ours, by_rows(lambda r, g, n: (r - mean(g)) / mean(g)))
    assert MaxRL().advantages(torch.tensor([[0.0, 0.0]]), None).tolist() == [[0.0, 0.0]]
    with pytest.raises(UsageError, match="a reward is -1"):
        MaxRL().advantages(torch.tensor([[1.0, -1.0]]), None)


class TwoRewards:
    """Rollouts of one turn with these rewards, each (B, K)."""

    def __init__(self, **rewards):
        self.told = rewards
        self.logged = {}

    def rollout(self, *_):
        return Columns(mask=torch.ones(*next(iter(self.told.values())).shape, 1))

    def rewards(self, batch):
        return self.told


SECOND = torch.tensor([[0.0, -1.0, -1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, -1.0]])


def normalised(values):
    spread = math.sqrt(mean([(v - mean(values)) ** 2 for v in values])) + 1e-4
    return [(v - mean(values)) / spread for v in values]


def test_gdpo_normalises_each_reward_in_its_group_and_the_sum_over_the_rollout():
    first = REWARDS.nan_to_num(2.0)

    def advantages(scale=1.0):
        method = GDPO(missing_eos_penalty=0.5)
        lab = TwoRewards(reward=scale * first, missing_eos=0.5 * SECOND)
        batch = method.scored(lab, None)
        torch.testing.assert_close(batch["reward"], scale * first + 0.5 * SECOND)
        return method.advantages(batch["reward"], batch)

    sums = []
    for one, two in zip(first.tolist(), SECOND.tolist(), strict=True):
        pairs = zip(normalised(one), normalised(two), strict=True)
        sums += [a + 0.5 * b for a, b in pairs]
    told = torch.tensor(normalised(sums)).view(3, 4)
    torch.testing.assert_close(advantages(), told, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(advantages(scale=30.0), told, atol=1e-3, rtol=1e-3)
    added = GRPO().advantages(first + 0.5 * SECOND)  # normalised after the sum
    with pytest.raises(AssertionError):
        torch.testing.assert_close(advantages(), added, atol=1e-2, rtol=1e-2)


def test_gdpo_leaves_unknown_rewards_out_and_needs_two():
    batch = GDPO().scored(TwoRewards(reward=REWARDS, missing_eos=SECOND), None)
    ours = GDPO().advantages(batch["reward"], batch)
    known = ~REWARDS.isnan()
    assert (ours[~known] == 0).all() and abs(float(ours[known].mean())) < 1e-6
    nothing = Columns(normalised=torch.zeros(1, 2))
    assert GDPO().advantages(torch.full((1, 2), NAN), nothing).tolist() == [[0.0, 0.0]]
    with pytest.raises(UsageError, match="this run has one"):
        GDPO(missing_eos_penalty=0.0).scored(TwoRewards(reward=REWARDS), None)


def expected_gradient(method, size):
    """The gradient by logits of the expected loss over all groups of `size`, of four answers."""
    logits = torch.tensor([0.3, -0.2, 0.8, 0.0], dtype=torch.float64, requires_grad=True)
    right = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    groups = torch.cartesian_prod(*[torch.arange(4)] * size)
    logp = logits.log_softmax(-1)[groups]
    batch = Columns(mask=torch.ones(*groups.shape, 1), advantages=0)
    batch["advantages"] = method.advantages(right[groups], batch)
    loss = method.loss(logp[..., None], batch)
    loss = loss[0] if isinstance(loss, tuple) else loss
    total = (logp.detach().sum(-1).exp() * loss.flatten(1).mean(-1)).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient, logits, right


def test_the_expected_step_of_maxrl_is_that_of_a_truncated_likelihood():
    """The series of log p = -sum_k (1 - p)^k / k, cut off after G - 1 terms."""
    for size in (2, 3, 5):
        gradient, logits, right = expected_gradient(MaxRL(), size)

        def series(terms, logits=logits, right=right):
            p = (logits.softmax(-1) * right).sum()
            whole = sum((1 - p) ** k / k for k in range(1, terms + 1))
            return torch.autograd.grad(whole, logits)[0]

        torch.testing.assert_close(gradient, series(size - 1))
        with pytest.raises(AssertionError):
            torch.testing.assert_close(gradient, series(size))


def test_the_baseline_of_reinforce_is_the_mean_of_earlier_rewards():
    lab = SimpleNamespace(state={"beta": 0.0}, log=lambda **_: None)
    method, told = Reinforce(beta=0.0), []
    for rewards in ([[1.0], [3.0]], [[NAN], [5.0]], [[0.0], [1.0]]):
        columns = {"reward": torch.tensor(rewards), "logp": torch.zeros(2, 1, 1)}
        batch = Columns(columns, mask=torch.ones(2, 1, 1), ended=torch.ones(2, 1))
        told.append(method.experience(lab, batch)["advantages"][:, 0].tolist())
    assert told == [[1.0, 3.0], [0.0, 3.0], [-3.0, -2.0]]
    assert lab.state["rewards"] == [10.0, 5]
    no = Reinforce(beta=0.0, baseline=False)
    assert no.experience(lab, batch)["advantages"][:, 0].tolist() == [0.0, 1.0]


def test_the_baseline_of_remax_is_the_reward_of_the_greedy_completion():
    lab = RefillLab([[2, 4], [1, 1]])
    lab.greedy = lambda prompts, limit: refilled([7, 9])
    lab.reward = lambda batch: batch["reward"].flip(-1)
    ((_, batch),) = list(ReMax(num_generations=2).rollouts(lab))
    ours = ReMax().advantages(batch["reward"], batch)
    assert ours.tolist() == [[2.0 - 7, 0.0 - 7], [4.0 - 9, 0.0 - 9]]
    unknown = batch.with_columns(greedy_reward=torch.tensor([NAN, 1.0]))
    assert ReMax().advantages(batch["reward"], unknown)[0].tolist() == [0.0, 0.0]


# -- tokens of high covariance ---------------------------------------------------------------------


def test_covariances_are_a_loop():
    logp, batch = draw()
    ours = covariances(logp.detach(), batch["advantages"], batch["mask"])
    told = rows(logp.tolist(), batch)
    lps, many = sum((y.lp for y in told), []), sum(([y.a] * y.n for y in told), [])
    wanted = [(p - mean(lps)) * (a - mean(many)) for p, a in zip(lps, many, strict=True)]
    torch.testing.assert_close(ours[batch["mask"] > 0], torch.tensor(wanted, dtype=torch.float64))
    assert (ours[batch["mask"] == 0] == 0).all()


class PartsLab:
    """Two parts of a rollout; the policy moves before the second."""

    def __init__(self, moved):
        self.logged, self.moved = [], moved
        self.policy = SimpleNamespace(logp=lambda part: self.moved)

    def minibatches(self, batch, size, epochs):
        yield from [batch] * 2

    def generator(self, *_):
        return torch.Generator().manual_seed(0)

    def log(self, **metrics):
        self.logged.append(metrics)


def largest(values, mask, count):
    """The places of the largest values, as a mask."""
    ranked = sorted(zip(values[mask > 0].tolist(), (mask > 0).nonzero().tolist(), strict=True))
    chosen = torch.zeros_like(mask)
    for _, place in ranked[-count:]:
        chosen[tuple(place)] = 1
    return chosen


def test_kl_cov_takes_the_largest_covariances_of_the_present_policy():
    logp, batch = draw()
    lab = PartsLab(logp.detach())
    parts = list(KLCov(kl_ratio=0.3, num_minibatches=1).parts(lab, batch))
    for part, present in zip(parts, (batch["old_logp"], logp.detach()), strict=True):
        covariance = covariances(present, batch["advantages"], batch["mask"])
        assert torch.equal(part["chosen"], largest(covariance, batch["mask"], 4))  # of 14 tokens
    assert not torch.equal(parts[0]["chosen"], parts[1]["chosen"])
    few = list(KLCov(num_minibatches=1).parts(lab, batch))[0]["chosen"]
    assert few.sum() == 1  # one at least


def test_rounding_of_a_ratio_of_one_moves_nothing_in_kl_cov():
    logp, batch = draw(drift=0.0)
    gradients = [
        taken(KLCov(), logp, batch.with_columns(old_logp=batch["old_logp"] + off))[1]
        for off in (1e-7, -1e-7)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    far = [
        taken(KLCov(), logp, batch.with_columns(old_logp=batch["old_logp"] + off))[1]
        for off in (1e-3, -1e-3)
    ]
    with pytest.raises(AssertionError):  # a move that is none of rounding has a sign
        torch.testing.assert_close(*far, rtol=1e-2, atol=1e-3)


def test_clip_cov_takes_tokens_between_the_bounds_that_no_clip_silences():
    logp, batch = draw()
    covariance = covariances(logp.detach(), batch["advantages"], batch["mask"])
    method = ClipCov(cov_low=0.05, cov_high=0.4, clip_ratio=1.0, clip_range=0.2, num_minibatches=1)
    _, part = list(method.parts(PartsLab(logp.detach()), batch))
    silenced = method.is_clipped(logp.detach(), batch)
    between = (covariance > 0.05) & (covariance < 0.4) & (batch["mask"] > 0)
    assert (between & silenced).any() and (between & ~silenced).any() and (~between).any()
    assert torch.equal(part["chosen"] > 0, between & ~silenced)
    one = replace(method, clip_ratio=2e-4)
    (first, _), (again, _) = (list(one.parts(PartsLab(logp.detach()), batch)) for _ in range(2))
    assert first["chosen"].sum() == 1 and torch.equal(first["chosen"], again["chosen"])
    none = replace(method, cov_low=8.0, cov_high=9.0)
    assert list(none.parts(PartsLab(logp.detach()), batch))[1]["chosen"].sum() == 0


# -- entropy ---------------------------------------------------------------------------------------


def entropies(batch, seed=3):
    """(3, 2, 4) made-up entropies, in nats."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(batch["mask"].shape, generator=generator, dtype=torch.float64)
    return (2 * drawn * batch["mask"]).requires_grad_()


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_most_uncertain_tokens_are_a_share_of_the_whole_update(share):
    _, batch = draw()
    entropy, mask = entropies(batch).detach(), batch["mask"]
    ours = highest(entropy, mask, share)
    count = int(ours.sum())
    assert torch.equal(ours, largest(entropy, mask, count)) and abs(count - share * 14) <= 1
    if share < 1:
        assert not torch.equal(ours, highest(-entropy, mask, share))


def test_the_high_entropy_mask_is_trls():
    logp, batch = draw()
    entropy = entropies(batch).detach()
    theirs = trl_grpo_loss(
        logp, batch, entropy, loss_type="dapo", epsilon_high=0.28, top_entropy_quantile=0.2
    )
    marked = batch.with_columns(uncertain=highest(entropy, batch["mask"], 0.2))
    ours = taken(DAPO(top_entropy=0.2), logp, marked)
    same(ours, (theirs.detach(), torch.autograd.grad(theirs, logp)[0]))
    unlike(taken(DAPO(), logp, batch), ours)
    silent = ours[1][marked["uncertain"] == 0]
    assert (silent == 0).all() and (ours[1] != 0).any()


@pytest.mark.parametrize("coefficient", [0.3, -0.3])
def test_the_entropy_bonus_is_trls(coefficient):
    logp, batch = draw()
    entropy = entropies(batch)
    theirs = trl_grpo_loss(
        *(logp, batch, entropy),
        loss_type="dapo",
        epsilon_high=0.28,
        _entropy_bonus_enabled=True,
        use_adaptive_entropy=False,
        entropy_coef=0.3,
    )
    method = DAPO(entropy_coef=coefficient)
    values, metrics = method.with_bonus(torch.stack([logp, entropy], -1), batch)
    ours = reduce_share(values, batch, batch, "token-mean")
    gradients = [torch.autograd.grad(x, (logp, entropy)) for x in (ours, theirs)]
    if coefficient > 0:
        same((ours, *gradients[0]), (theirs, *gradients[1]))
    else:  # the sign that lowers the entropy
        with pytest.raises(AssertionError):
            same((ours, *gradients[0]), (theirs, *gradients[1]))
    assert torch.equal(metrics["policy_entropy"], entropy)


IN_REWARD = {"kl_in": "reward", "kl_estimator": "k1", "std_normalise": False}


def test_with_an_entropy_bonus_grpo_ends_at_a_flatter_policy():
    method, bandit = (
        GRPO(**FEW, **IN_REWARD, entropy_coef=0.3),
        {"limit": 1, "words": 5, "steps": 240},
    )
    assert far_from(method, **bandit) < 1e-3
    without = GRPO(**FEW, **IN_REWARD)
    assert far_from(without, optimum_of=method, **bandit) > 0.02
    problem = ExactLab(**bandit).problem()
    assert GRPO(**FEW, entropy_coef=0.3).optimum(problem) is None  # the KL in the loss
    assert DAPO(**FEW, entropy_coef=0.3).optimum(problem) is None
    assert GRPO(**FEW, **IN_REWARD, top_entropy=0.5).optimum(problem) is None


def test_an_update_on_uncertain_tokens_marks_them_before_it():
    lab, method = ExactLab(limit=2, steps=2), GRPO(**FEW | {"steps": 2}, top_entropy=0.5)
    method.train(lab)
    assert lab.taken == 2
    (_, batch) = next(iter(method.rollouts(lab)))
    marked = method.marked(lab, batch)
    told = highest(lab.entropy(batch).detach(), batch["mask"], 0.5)
    assert torch.equal(marked["uncertain"], told) and 0 < told.sum() < batch["mask"].sum()


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
        (LUSPO(clip_range=-1.0), "clip_range"),
        (VESPO(lambda_neg=0.0), "lambdas"),
        (DPPO(tv_range=1.5), "difference of probabilities"),
        (ClipCov(cov_low=5.0), "cov_low"),
        (ClipCov(clip_ratio=0.0), "clip_ratio"),
        (KLCov(kl_ratio=0.0), "kl_ratio"),
        (KLCov(kl_coef=-1.0), "kl_coef"),
        (MaxRL(reward="model"), "verifier"),
        (MaxRL(beta=0.1), "beta is 0"),
        (MaxRL(length_penalty=0.1), "no penalties"),
        (OPO(num_generations=1), "num_generations"),
        (GPG(num_generations=1), "num_generations"),
        (DAPO(entropy_coef=-0.1), "entropy_coef"),
        (GDPO(beta=0.1), "beta is 0"),
        (GDPO(clip_range=0.0), "clip_range"),
        (GRPO(top_entropy=0.0), "top_entropy"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_options_that_make_no_sense_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        method.check()
