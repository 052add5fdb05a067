"""The suite `exact` and the arithmetic under it; and every method's own loop on a bench without
sampling noise.
"""

import math
from dataclasses import replace
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness_plugins.best_of_n import BestOfN
from harness_plugins.dpo import DPO
from harness_plugins.grpo import GRPO
from harness_plugins.ipo import IPO
from harness_plugins.kto import KTO
from harness_plugins.online_dpo import OnlineDPO
from harness_plugins.orpo import ORPO
from harness_plugins.ppo import PPO
from harness_plugins.raft import RAFT
from harness_plugins.reinforce_pp import ReinforcePP
from harness_plugins.rloo import RLOO
from harness_plugins.rrhf import RRHF
from harness_plugins.sft_chosen import SFTChosen
from harness_plugins.simpo import SimPO
from harness_plugins.slic import SLiC
from harness_suites.exact import NEVER_EVEN, PROMPTS, Exact, ExactReward

from harness.core.data import Prompt, Sampling
from harness.evaluation.kl import best_of_n_bound
from harness.models.enumeration import (
    completions,
    every_completion,
    kl,
    probabilities,
    total_variation,
)
from harness.models.generation import CachedEngine
from harness.models.loading import load_causal, load_tokenizer
from harness.models.tokens import Tokens
from harness.statistics.over_prompts import best_of_n_estimate

from ..helpers.exact_lab import far_from
from ..helpers.registries import sampled

# -- listing ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    """The suite's base model, its tokens, and every completion of the four prompts."""
    suite = Exact()
    tokens = Tokens(load_tokenizer(suite.base_model()), max_completion=suite.max_new_tokens)
    batch = every_completion(tokens, suite.prompts("test")[:4], suite.max_new_tokens)
    return SimpleNamespace(
        suite=suite, tokens=tokens, batch=batch, model=load_causal(suite.base_model())
    )


def problem_of(base, suite=None, method=None):
    ref = probabilities(base.model, base.batch, 4096)
    return (suite or base.suite).problem(method, base.batch, ref, base.tokens.texts(base.batch))


def test_probabilities_sum_to_one(base):
    def check(batch):
        total = probabilities(base.model, batch, 512).sum(-1)
        torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)

    check(base.batch)
    assert base.batch.shape == (4, 1 + 3 + 9 + 27, 3)
    ids, mask = base.batch["completion_ids"], base.batch["mask"]
    with pytest.raises(
        AssertionError
    ):  # a mask taken from the pad token, which is the end token: the end is lost
        check(base.batch.with_columns(mask=(ids != base.tokens.pad).float()))
    with pytest.raises(AssertionError):  # the first token is not scored
        check(base.batch.with_columns(mask=mask * torch.tensor([0.0, 1, 1])))
    with pytest.raises(AssertionError):  # completions cut at the limit are forgotten
        check(base.batch.with_columns(**{name: base.batch[name][:, :13] for name in base.batch}))


def test_every_completion_is_there_once_and_its_text_leads_back_to_it(base):
    ids = [
        tuple(c[:n])
        for c, n in zip(
            base.batch["completion_ids"][0].tolist(), base.batch.lengths[0], strict=True
        )
    ]
    assert len(set(ids)) == len(ids) == len(completions(range(4), 0, 3))
    texts = base.tokens.texts(base.batch)[0]
    assert sorted(texts) == sorted(base.suite.answers()) and len(set(texts)) == 40
    assert [tuple(base.tokens.completion_ids(PROMPTS[0], text)) for text in texts] == ids
    assert base.tokens.pad == base.tokens.eos == 0 and len(base.tokens.tokenizer) == 4
    assert base.tokens.tokenizer.all_special_ids == [0]


def test_no_two_contexts_look_alike(base):
    """Else the optimum could not be written down by this model: after "a" alone, "a" and "a a"
    would be one context.
    """

    def closest(prompts):
        told = [base.tokens.prompt_ids(p) for p in prompts]
        contexts = {
            (*p, *w) for p in told for n in range(3) for w in product(range(1, 4), repeat=n)
        }
        with torch.no_grad():
            logits = torch.stack(
                [base.model(torch.tensor([c])).logits[0, -1] for c in sorted(contexts)]
            )
        return float(
            ((logits[:, None] - logits).abs().amax(-1) + 9 * torch.eye(len(contexts))).min()
        )

    assert closest(PROMPTS) > 1e-3
    with pytest.raises(AssertionError):
        assert closest(["a"]) > 1e-3


def test_exact_figures_are_what_sampling_finds(base):
    """20,000 draws per prompt of a policy and of the start: frequencies, KL, reward and win-rate
    within 5 errors.
    """
    n, problem = 20000, problem_of(base)
    model = load_causal(base.suite.base_model())
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    policy = probabilities(model, base.batch, 4096)

    def draws(of, seed):
        prompts = base.tokens.prompt_batch(base.suite.prompts("test")[:4])
        noise = torch.rand(4 * n, 3, generator=torch.Generator().manual_seed(seed))
        batch = CachedEngine({0}).generate(of, prompts, n, Sampling(1.0, 3), noise)
        place = {text: i for i, text in enumerate(base.tokens.texts(base.batch)[0])}
        return torch.tensor([[place[text] for text in row] for row in base.tokens.texts(batch)])

    ours, theirs = draws(model, 1), draws(base.model, 2)

    def check(told, seen):
        error = seen.double().std(1) / math.sqrt(n)
        assert ((told - seen.double().mean(1)).abs() < 5 * error + 1e-9).all()

    ratio = (policy.log() - problem.ref.log()).gather(1, ours)
    a, b = problem.reward.gather(1, ours), problem.reward.gather(1, theirs)
    check(kl(policy, problem.ref), ratio)
    check(problem.expected(policy), a)
    check(problem.win_rate(policy), (a > b).double() + 0.5 * (a == b))
    frequency = torch.stack([row.bincount(minlength=40) for row in ours]) / n
    assert total_variation(frequency, policy).max() < 0.02
    for wrong in (kl(problem.ref, policy), kl(policy, problem.ref) * 1.1):
        with pytest.raises(AssertionError):
            check(wrong, ratio)
    with pytest.raises(AssertionError):
        check(1 - problem.win_rate(policy), (a > b).double() + 0.5 * (a == b))


# -- the suite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_pairs_are_all_pairs_with_bradley_terry_probabilities(base, ties):
    suite = Exact(ties=ties)
    pairs, judge = suite.preferences(), ExactReward()
    judge.prepare(suite, None)
    assert (
        len(pairs)
        == 4 * 40 * 39 / 2
        == len({(p.prompt.text, *sorted((p.chosen, p.rejected))) for p in pairs})
    )
    for pair in pairs[::37]:
        w, l = judge.score([pair.prompt] * 2, [pair.chosen, pair.rejected])
        assert w >= l and pair.p == pytest.approx(1 / (1 + math.exp(l - w)), abs=2 * NEVER_EVEN)
        assert suite.make_verifier().verify([pair.prompt], [pair.chosen], [None], [True]) == [w]
    assert all(pair.p > 0.5 for pair in pairs)  # an even one would be dropped
    rewards = problem_of(base, suite).reward
    levels = {len(set(row)) for row in rewards.tolist()}
    assert max(levels) <= 5 if ties else levels == {40}
    assert rewards.abs().max() <= 2 and 0.8 < rewards.std() < 1.2


def test_another_seed_is_another_table():
    one, other = Exact(), Exact()
    other.shared_seed = 1
    told = [[s.reward(Prompt("x", "a b"), text) for text in s.answers()] for s in (one, other)]
    assert told[0] != told[1] and one.demonstrations() != other.demonstrations()


def test_penalties_are_part_of_the_reward_a_method_sees(base):
    plain, taxed = (
        problem_of(base),
        problem_of(base, method=PPO(missing_eos_penalty=0.5, length_penalty=0.25)),
    )
    ended = (base.batch["completion_ids"] == 0).any(-1) & (base.batch.lengths < 3) | (
        base.batch["completion_ids"][..., 2] == 0
    )
    told = plain.reward - 0.25 * base.batch.lengths - 0.5 * (~ended)
    torch.testing.assert_close(taxed.reward, told)
    torch.testing.assert_close(
        taxed.prefer, plain.prefer
    )  # the labeller prefers by what is measured


def test_longer_answers_are_refused():
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="max_tokens"):
            Exact(max_tokens=wrong).check()
    Exact(max_tokens=1).check()


# -- best of n -------------------------------------------------------------------------------------


def by_levels(problem, n):
    """KL of best-of-n per prompt from its levels alone: sum_v q_v log(q_v / f_v), q_v = F_v^n -
    (F_v - f_v)^n.
    """
    found = []
    for ref, reward in zip(problem.ref.numpy(), problem.reward.numpy(), strict=True):
        f = np.array([ref[reward == v].sum() for v in np.unique(reward)])
        F = f.cumsum()
        q = F**n - (F - f).clip(0) ** n
        found.append((q[q > 0] * np.log(q[q > 0] / f[q > 0])).sum())
    return torch.tensor(found)


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_is_the_level_formula(base, ties):
    """Of two draws: all N^2 ordered pairs, the first of equals kept. Of more: the KL from the
    levels alone.
    """
    problem = problem_of(base, Exact(ties=ties))
    problem = replace(
        problem, ref=problem.ref / problem.ref.sum(-1, keepdim=True)
    )  # float32's error to the power n
    two = torch.zeros_like(problem.ref)
    for i, j in product(range(40), repeat=2):
        winner = torch.where(problem.reward[:, j] > problem.reward[:, i], j, i)
        two[torch.arange(4), winner] += problem.ref[:, i] * problem.ref[:, j]
    torch.testing.assert_close(problem.best_of(2), two, atol=1e-12, rtol=0)
    torch.testing.assert_close(problem.best_of(1), problem.ref)
    for n in (2, 4, 16, 64):
        policy = BestOfN(n=n).optimum(problem)
        torch.testing.assert_close(
            policy.sum(-1), torch.ones(4, dtype=torch.float64), atol=1e-12, rtol=0
        )
        torch.testing.assert_close(
            kl(policy, problem.ref), by_levels(problem, n), atol=1e-9, rtol=0
        )
        assert (kl(policy, problem.ref) < best_of_n_bound(n) + 1e-6).all()
        generator = torch.Generator().manual_seed(n)
        draws = torch.multinomial(
            problem.ref, 4000 * n, replacement=True, generator=generator
        ).view(4, 4000, n)
        best = problem.reward.gather(1, draws.view(4, -1)).view(4, 4000, n).max(-1).values
        rare = 1e-3  # what so few draws need not have seen once
        assert (
            (best.mean(1) - problem.expected(policy)).abs()
            < 5 * best.std(1) / math.sqrt(4000) + rare
        ).all()
    if ties:  # a formula that takes every completion for a level of its own gives another KL
        below = (problem.reward[:, None] < problem.reward[:, :, None]).double()
        F = (below * problem.ref[:, None]).sum(-1) + problem.ref
        naive = F**16 - (F - problem.ref) ** 16
        with pytest.raises(AssertionError):
            torch.testing.assert_close(naive, problem.best_of(16), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rounded", [False, True])
def test_estimator_of_best_of_n_is_the_mean_over_all_subsets(rounded):
    rng = np.random.default_rng(3)
    proxy = rng.normal(size=9)
    proxy = (np.round(proxy) if rounded else proxy).tolist()
    values = rng.normal(size=9).tolist()

    def subsets(n):
        total = 0.0
        for chosen in combinations(range(9), n):
            top = max(proxy[i] for i in chosen)
            tied = [values[i] for i in chosen if proxy[i] == top]
            total += sum(tied) / len(tied)
        return total / math.comb(9, n)

    for n in (1, 2, 5, 8, 9):
        assert best_of_n_estimate(values, proxy, n) == pytest.approx(subsets(n), abs=1e-12)
    with pytest.raises(AssertionError):
        assert best_of_n_estimate(values, proxy, 4) == pytest.approx(subsets(5), abs=1e-3)
    with pytest.raises(ValueError, match="best of 10"):
        best_of_n_estimate(values, proxy, 10)
    for missing in ([math.nan, 1.0], [0.0, 1.0]), ([0.0, 1.0], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="a value or its proxy is missing"):
            best_of_n_estimate(*missing, 1)


def test_estimator_of_best_of_n_is_unbiased(base):
    """Best of 8 from 24 draws, 400 times, ties included: its mean is the exact value, with less
    noise than one draw.
    """
    problem = problem_of(base, Exact(ties=True))
    reward, told = problem.reward[0], float(problem.expected(problem.best_of(8))[0])
    generator = torch.Generator().manual_seed(0)
    draws = reward[
        torch.multinomial(problem.ref[0], 400 * 24, replacement=True, generator=generator)
    ].view(400, 24)
    found = np.array([best_of_n_estimate(row, row, 8) for row in draws.tolist()])
    assert abs(found.mean() - told) < 5 * found.std() / 20
    single = draws[:, :8].max(1).values.numpy()
    assert found.std() < 0.8 * single.std()
    plain = float(draws.max(1).values.mean())  # best of 24 is no estimate of best of 8
    with pytest.raises(AssertionError):
        assert abs(plain - told) < 5 * found.std() / 20
    assert best_of_n_estimate([0.5] * 3000, list(range(3000)), 1000) == pytest.approx(
        0.5
    )  # no overflow


# -- methods on a bench of exact expectations ------------------------------------------------------


PPO_EXACT = {
    "steps": 800,
    "num_ppo_epochs": 1,
    "gae_lambda": 1.0,
    "whiten_advantages": False,
    "beta": 0.5,
}
ITERATED = {
    "steps": 1600,
    "num_generations": 2,
    "beta": 1.0,
    "labels": "soft",
    "move_reference_every": 800,
}
RRHF_EXACT = {"steps": 800, "num_candidates": 2, "rrhf_weight": 0.5}
RANKED = {"mode": "sample-rank", "steps": 800, "num_candidates": 4}
ON_POLICY = {"steps": 800, "num_generations": 2, "beta": 0.5}

# SFT on the chosen: the cross-entropy to how often a completion is chosen. DPO: the population loss
# is the cross-entropy of p(y > y') = sigma(r - r') and sigma(beta (s - s')), least where beta (s -
# s') = r - r' for every pair: s = r / beta + c, pi* = ref exp(r / beta) / Z, whoever samples the
# pairs. IPO: both orders averaged, h = s - s' is regressed on (p - 1/2) / tau; least squares of an
# additive h over all pairs gives s(y) = mean over y' of that, + c: another policy than pi*, and
# with length averages another again. SimPO, gamma 0: as DPO with log pi / |y| for s: log pi = |y|
# (r / beta + c), and the reference nowhere. With a margin, and for ORPO: the minimiser over all
# distributions, found by descent from two starts. KTO: all mass on completions that are chosen more
# often than not, and z0 = 0; with weights that put mass on all of them z0 is found along with the
# policy (KTO.optimum). SLiC, RRHF: the minimiser of a loss with kinks over all distributions, found
# by descent on softer ones. PPO, RLOO, REINFORCE++, GRPO with the KL in the reward: R(y) = r - beta
# log(pi / ref). At pi* R = beta log Z whatever y, so A = 0 under any baseline and any scale;
# nowhere else is the gradient of E r - beta KL 0. GRPO as in the paper, one token: the gradient of
# k3 is that of KL(ref || pi), so pi (a - E a) = beta (pi - ref) with a = E[A | y] over the rest of
# the group; without a spread a = (r - E r) (G-1) / G. Online DPO: as DPO, with pairs of the
# policy's own; iterated, T rounds of it tilt by r / beta each: pi* at beta / T. RAFT: a round is
# the best of K, exactly imitated; the best of K of the best of K is that of K^2.
EXACT = {
    "sft_chosen": (SFTChosen(), {}),
    "dpo": (DPO(beta=0.5), {}),
    "ipo": (IPO(beta=0.5), {}),
    "ipo-averaged": (IPO(beta=0.5, length_average=True), {}),
    "simpo": (SimPO(beta=2.0, gamma=0.0), {}),
    "simpo-margin": (SimPO(beta=2.0, gamma=0.5), {}),
    "orpo": (ORPO(), {}),
    "orpo-sequences": (ORPO(nll_reduction="sequence-mean"), {}),
    "kto": (KTO(beta=1.0), {"steps": 2400}),
    "kto-weights": (KTO(beta=0.5, desirable_weight=30.0), {}),
    "slic": (SLiC(), {}),
    "slic-rank": (SLiC(**RANKED), {"limit": 2}),
    "rrhf": (RRHF(**RRHF_EXACT), {"limit": 2}),
    "ppo": (PPO(**PPO_EXACT), {}),
    "rloo": (RLOO(**ON_POLICY), {}),
    "reinforce_pp": (ReinforcePP(**ON_POLICY | {"num_generations": 1}), {}),
    "grpo-reward": (GRPO(**ON_POLICY, kl_in="reward", kl_estimator="k1"), {}),
    "grpo": (GRPO(**ON_POLICY | {"beta": 1.0}), {"limit": 1, "words": 5}),
    "grpo-no-spread": (
        GRPO(**ON_POLICY | {"beta": 1.0}, std_normalise=False),
        {"limit": 1, "words": 5},
    ),
    "grpo-k2": (
        GRPO(**ON_POLICY, std_normalise=False, kl_estimator="k2"),
        {"limit": 1, "words": 5},
    ),
    "online_dpo": (OnlineDPO(**ON_POLICY, labels="soft"), {}),
    "online_dpo-iterated": (OnlineDPO(**ITERATED), {}),
    "raft": (RAFT(steps=1, epochs=800, num_generations=2), {}),
    "raft-rounds": (RAFT(steps=2, epochs=800, num_generations=2), {}),
}
LONG = {"slic-rank", "online_dpo-iterated"}  # only with `-m slow`
KINKED = (
    "slic",
    "slic-rank",
    "rrhf",
)  # whose optimum is known as far as the last softness of its hinge


@pytest.mark.parametrize("name", sampled(EXACT, of=set(EXACT) - LONG))
def test_with_exact_expectations_a_method_reaches_its_optimum(name):
    method, runtime = EXACT[name]
    assert far_from(method, **runtime) < (2e-3 if name in KINKED else 1e-4)


class Swapped(DPO):
    """Chosen and rejected exchanged."""

    def loss(self, logp, batch):
        return super().loss(logp.flip(1), batch.with_columns(ref_logp=batch["ref_logp"].flip(1)))


class Unmoored(KTO):
    """The reference point is 0, whatever the drift."""

    def reference_point(self, lab, batch):
        return torch.zeros(())


class Flipped(PPO):
    """The KL pushes away from the reference."""

    def shaped_rewards(self, score, logp, ref_logp, mask, beta):
        return super().shaped_rewards(score, ref_logp, logp, mask, beta)


class Clamped(PPO):
    """Negative log-ratios are cut off at 0, token by token."""

    def shaped_rewards(self, score, logp, ref_logp, mask, beta):
        return super().shaped_rewards(score, torch.maximum(logp, ref_logp), ref_logp, mask, beta)


class K3(PPO):
    """k3 of every token in place of k1: never negative, and its gradient is not that of the KL."""

    def shaped_rewards(self, score, logp, ref_logp, mask, beta):
        u = logp - ref_logp
        return super().shaped_rewards(score, torch.exp(-u) - 1 + u, 0.0, mask, beta)


FAULTY = {
    "sft_chosen, shift": (SFTChosen(), None, {"shift": True}),
    "dpo, swapped": (Swapped(beta=0.5), DPO(beta=0.5), {}),
    "dpo, beta": (DPO(beta=0.25), DPO(beta=0.5), {}),
    "dpo, sure labels": (DPO(beta=0.5, label_smoothing=0.2), DPO(beta=0.5), {}),
    "dpo, shift": (DPO(beta=0.5), None, {"shift": True}),
    "dpo, end lost": (DPO(beta=0.5), None, {"lose_end": True}),
    "ipo, shift": (IPO(beta=0.5), None, {"shift": True}),
    "ipo, averaged": (IPO(beta=0.5, length_average=True), IPO(beta=0.5), {}),
    "kto, weights": (KTO(beta=0.5, desirable_weight=3.0), KTO(beta=0.5, desirable_weight=30.0), {}),
    "kto, no z0": (
        Unmoored(beta=0.5, desirable_weight=30.0),
        KTO(beta=0.5, desirable_weight=30.0),
        {},
    ),
    "kto, end lost": (KTO(beta=0.5, desirable_weight=30.0), None, {"lose_end": True}),
    "slic, margin": (SLiC(delta=2.0), SLiC(), {}),
    "slic, shift": (SLiC(), None, {"shift": True}),
    "slic-rank, best of 2": (SLiC(**RANKED | {"num_candidates": 2}), SLiC(**RANKED), {"limit": 2}),
    "rrhf, sums": (RRHF(**RRHF_EXACT, length_exponent=0.0), RRHF(**RRHF_EXACT), {"limit": 2}),
    "rrhf, shift": (RRHF(**RRHF_EXACT), None, {"limit": 2, "shift": True}),
    "ppo, sign": (Flipped(**PPO_EXACT), PPO(**PPO_EXACT), {}),
    "ppo, clamp": (Clamped(**PPO_EXACT), PPO(**PPO_EXACT), {}),
    "ppo, k3": (K3(**PPO_EXACT), PPO(**PPO_EXACT), {}),
    "ppo, shift": (PPO(**PPO_EXACT), None, {"shift": True}),
    "ppo, discount": (PPO(**PPO_EXACT | {"gamma": 0.8}), PPO(**PPO_EXACT), {}),
    "rloo, end lost": (RLOO(**ON_POLICY), None, {"lose_end": True}),
    "grpo, pi*": (GRPO(**ON_POLICY | {"beta": 1.0}), DPO(beta=1.0), {"limit": 1, "words": 5}),
    "grpo, many tokens": (GRPO(**ON_POLICY | {"beta": 1.0}), DPO(beta=1.0), {}),
    "online_dpo, rounds": (
        OnlineDPO(**ITERATED),
        OnlineDPO(**ITERATED | {"move_reference_every": 0}),
        {},
    ),
    "raft, K": (RAFT(steps=1, epochs=800, num_generations=2), RAFT(steps=2, num_generations=2), {}),
}

# one fault of a kind in the default run: an exchange, another loss, a sign, a clamp, a pi* and K
FAULTS = ("dpo, swapped", "kto, no z0", "ppo, sign")


@pytest.mark.parametrize("name", sampled(FAULTY, of=FAULTS))
def test_fault_ends_elsewhere(name):
    method, right, runtime = FAULTY[name]
    assert far_from(method, right, **runtime) > 0.02
