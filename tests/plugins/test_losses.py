"""Losses, rewards and statistics against numbers worked out by hand, plain loops, TRL and
simulation.
"""

import math

import numpy as np
import pytest
import torch
from harness_plugins.best_of_n import level_mass
from harness_plugins.dpo import DPO
from harness_plugins.ppo import PPO
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.data import Comparison
from harness.evaluation.kl import best_of_n_bound, best_of_n_kl
from harness.models.logprobs import TIE, completion_states, completion_values, ordered_right
from harness.statistics.over_prompts import (
    PromptEstimate,
    mean_interval,
    t_quantile,
    win_rate,
    win_scores,
)
from harness.training.reward_model import (
    bradley_terry_loss,
    combine,
    label_accuracy,
    label_loss,
    pair_accuracy,
    preferred_of,
)

from ..helpers.plain_losses import sigmoid
from ..helpers.trl_losses import trl_dpo_loss

LOG2 = math.log(2)


def labelled(ref):
    """Return what DPO needs of a batch: plain labels, and the reference's log-probabilities."""
    return {"ref_logp": ref, "p": torch.ones(ref.shape[0], dtype=ref.dtype)}


def pairs_of(h, beta=1.0):
    """Return (logp, batch) whose beta * (s_w - s_l) is h, spread over three tokens."""
    s = torch.as_tensor(h, dtype=torch.float64) / beta
    ref = torch.randn(len(s), 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    share = torch.stack([s, -s], 1)[..., None].expand(-1, -1, 3) / 6
    return (ref + share).requires_grad_(), labelled(ref)


# -- DPO -------------------------------------------------------------------------------------------


def test_dpo_is_log_two_where_the_policy_is_the_reference():
    for method in (DPO(), DPO(label_smoothing=0.2), DPO(label_smoothing=0.2, robust=True)):
        logp, batch = pairs_of([0.0, 0.0])
        loss, metrics = method.loss(logp, batch)
        assert loss.tolist() == pytest.approx([LOG2, LOG2])
        assert metrics["margin"].abs().max() < 1e-12 and metrics["accuracy"].tolist() == [0.5] * 2


def test_dpo_by_hand():
    logp = torch.tensor([[[-1.0, -2.0, -0.5], [-3.0, -1.0, 0.0]]], requires_grad=True)
    ref = torch.tensor([[[-1.5, -2.5, -1.0], [-2.0, -1.0, 0.0]]])
    loss, metrics = DPO(beta=0.1).loss(logp, labelled(ref))
    told = {name: x.item() for name, x in metrics.items()}
    h = 0.1 * (1.5 - (-1.0))
    assert loss.item() == pytest.approx(-math.log(sigmoid(h)))
    assert told == {"margin": pytest.approx(h), "chosen_reward": pytest.approx(0.15), "accuracy": 1}
    loss.sum().backward()
    weight = 0.1 * sigmoid(-h)  # of the chosen tokens, minus that of the rejected
    assert torch.allclose(logp.grad, torch.tensor([[[-weight], [weight]]]).expand(1, 2, 3))
    with pytest.raises(AssertionError):  # the sign turned round
        swapped = DPO(beta=0.1).loss(logp.flip(1), labelled(ref.flip(1)))[0]
        assert swapped.item() == pytest.approx(loss.item())


def test_labellers_doubt_is_a_smoothed_label():
    """p L(h) + (1-p) L(-h) is cDPO at e = 1 - p, and the robust form is linear in the label."""
    logp, batch = pairs_of([0.3, -2.0, 1.1])
    doubtful = {**batch, "p": torch.full((3,), 0.8, dtype=torch.float64)}
    smoothed = DPO(beta=0.5, label_smoothing=0.2).loss(logp, batch)[0]
    torch.testing.assert_close(DPO(beta=0.5).loss(logp, doubtful)[0], smoothed)
    robust = DPO(beta=0.5, label_smoothing=0.1, robust=True)
    one, other = robust.loss(logp, batch)[0], robust.loss(logp, {**batch, "p": torch.zeros(3)})[0]
    torch.testing.assert_close(robust.loss(logp, doubtful)[0], 0.8 * one + 0.2 * other)
    with pytest.raises(AssertionError):  # negative control: a plain label is not a doubtful one
        torch.testing.assert_close(DPO(beta=0.5).loss(logp, batch)[0], smoothed)


@pytest.mark.parametrize("e", [0.1, 0.25, 0.4])
def test_cdpo_rests_at_its_margin(e):
    logp, batch = pairs_of([math.log((1 - e) / e)], beta=0.5)
    DPO(beta=0.5, label_smoothing=e).loss(logp, batch)[0].sum().backward()
    assert logp.grad.abs().max() < 1e-12
    for other in (
        DPO(beta=0.5),
        DPO(beta=0.5, label_smoothing=e / 2),
        DPO(beta=0.5, label_smoothing=e, robust=True),
    ):
        logp.grad = None
        other.loss(logp, batch)[0].sum().backward()
        assert logp.grad.abs().max() > 1e-3


@given(h=st.floats(-20, 20), e=st.floats(0.01, 0.49))
@settings(max_examples=40, deadline=None)
def test_robust_dpo_is_unbiased_under_flips(h, e):
    right, flipped = DPO(beta=1.0, label_smoothing=e, robust=True).loss(*pairs_of([h, -h]))[0]
    clean = DPO(beta=1.0).loss(*pairs_of([h]))[0].item()
    assert ((1 - e) * right + e * flipped).item() == pytest.approx(clean, rel=1e-8, abs=1e-8)


def test_cdpo_is_biased_under_flips():
    right, flipped = DPO(beta=1.0, label_smoothing=0.2).loss(*pairs_of([1.0, -1.0]))[0]
    clean = DPO(beta=1.0).loss(*pairs_of([1.0]))[0].item()
    with pytest.raises(AssertionError):
        assert (0.8 * right + 0.2 * flipped).item() == pytest.approx(clean, rel=1e-2)


@pytest.mark.parametrize(("loss_type", "e"), [("sigmoid", 0.0), ("robust", 0.1), ("robust", 0.3)])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_trls(loss_type, e, beta):
    generator = torch.Generator().manual_seed(3)
    ours = torch.randn(5, 2, 4, generator=generator).sub(3).requires_grad_()
    theirs, ref = (
        ours.detach().clone().requires_grad_(),
        torch.randn(5, 2, 4, generator=generator).sub(3),
    )
    method = DPO(beta=beta, label_smoothing=e, robust=loss_type == "robust")
    loss = method.loss(ours, labelled(ref))[0].mean()
    other = trl_dpo_loss(theirs, ref, loss_types=[loss_type], beta=beta, label_smoothing=e)
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(
        torch.autograd.grad(loss, ours)[0], torch.autograd.grad(other, theirs)[0]
    )
    wrong = (
        DPO(beta=1.5 * beta, label_smoothing=e, robust=loss_type == "robust")
        .loss(ours, labelled(ref))[0]
        .mean()
    )
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong, other)


# -- PPO -------------------------------------------------------------------------------------------


def surrogate(ratio, advantage, **options):
    """Return (loss, d loss / d logp, clip fraction) of one token."""
    logp = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    batch = {
        "old_logp": torch.tensor(0.0, dtype=torch.float64),
        "advantages": torch.tensor(advantage, dtype=torch.float64),
    }
    loss, metrics = PPO(**options).loss(logp, batch)
    loss.backward()
    return loss.item(), logp.grad.item(), metrics["clip_fraction"].item()


def test_surrogate_starts_as_the_policy_gradient():
    for advantage in (2.0, -0.7, 0.0):
        assert surrogate(1.0, advantage) == pytest.approx((-advantage, -advantage, 0))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.5, 1.0, -1.2, 0.0, 1),
        (1.5, -1.0, 1.5, 1.5, 1),  # gains stop at the clip, losses do not
        (0.5, 1.0, -0.5, -0.5, 1),
        (0.5, -1.0, 0.8, 0.0, 1),
        (1.1, 1.0, -1.1, -1.1, 0),
        (0.9, -2.0, 1.8, 1.8, 0),
    ],
)
def test_surrogate_is_clipped_on_both_sides(ratio, advantage, loss, gradient, clipped):
    told = pytest.approx((loss, gradient, clipped))
    assert surrogate(ratio, advantage) == told
    assert surrogate(ratio, advantage, clip_range=10.0)[1] == pytest.approx(
        -ratio * advantage
    )  # the plain gradient
    with pytest.raises(AssertionError):
        assert surrogate(ratio, -advantage) == told


@pytest.mark.parametrize(
    ("value", "old", "target", "eps", "loss"),
    [
        (
            1.0,
            0.0,
            2.0,
            0.2,
            0.5 * 1.8**2,
        ),  # moved past the clip towards the target: the clipped one counts
        (0.1, 0.0, 2.0, 0.2, 0.5 * 1.9**2),  # inside
        (-1.0, 0.0, 2.0, 0.2, 0.5 * 3.0**2),  # moved away: its own error counts
        (1.0, 0.0, 2.0, 0.0, 0.5 * 1.0**2),  # no clip
    ],
)
def test_value_loss_by_hand(value, old, target, eps, loss):
    batch = {"old_values": torch.tensor([[[old]]]), "returns": torch.tensor([[[target]]])}
    told, metrics = PPO(clip_range_value=eps).value_loss(torch.tensor([[[value]]]), batch)
    assert float(told) == pytest.approx(loss) == float(metrics["value_loss"])


MASK = torch.tensor([[[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0]], [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]])


def test_score_is_on_the_last_token_alone():
    score = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    generator = torch.Generator().manual_seed(1)
    logp, ref = (torch.randn(2, 2, 5, generator=generator) for _ in range(2))
    rewards = PPO().shaped_rewards(score, logp, ref, MASK, beta=0.3)
    plain = -0.3 * (logp - ref) * MASK
    added = rewards - plain
    for i, j in np.ndindex(2, 2):
        last = int(MASK[i, j].sum()) - 1
        told = [float(score[i, j]) if t == last else 0.0 for t in range(5)]
        assert added[i, j].tolist() == pytest.approx(told, abs=1e-6)
    assert (rewards[MASK == 0] == 0).all()
    assert (PPO().shaped_rewards(score, logp, logp, MASK, beta=0.3).sum(-1) == score).all()
    clamped = -0.3 * (logp - ref).clamp(min=0) * MASK
    with pytest.raises(AssertionError):  # the penalty keeps its sign
        torch.testing.assert_close(rewards - added, clamped)


def gae_by_hand(rewards, values, lengths, gamma, lam):
    """Return GAE by its definition, a double sum over the tokens that exist."""
    out = np.zeros(rewards.shape)
    for i, j in np.ndindex(*lengths.shape):
        n = int(lengths[i, j])
        r, v = rewards[i, j, :n].tolist(), [*values[i, j, :n].tolist(), 0.0]
        for t in range(n):
            out[i, j, t] = sum(
                (gamma * lam) ** (s - t) * (r[s] + gamma * v[s + 1] - v[s]) for s in range(t, n)
            )
    return out


def gae_case(seed=2):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 2, 5, generator=generator, dtype=torch.float64) * MASK for _ in range(2))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_a_double_loop(gamma, lam):
    rewards, values = gae_case()
    told = gae_by_hand(rewards, values, MASK.sum(-1), gamma, lam)
    method = PPO(gamma=gamma, gae_lambda=lam)
    ours = method.advantages(rewards, values, MASK.double()).numpy()
    np.testing.assert_allclose(ours, told, atol=1e-12)
    if lam == gamma == 1:  # return to go, less the value
        np.testing.assert_allclose(
            ours, ((rewards.flip(-1).cumsum(-1).flip(-1) - values) * MASK).numpy(), atol=1e-12
        )
    values_on_padding = values + 3.0 * (1 - MASK)
    with pytest.raises(
        AssertionError
    ):  # GAE over pads: the last token bootstraps from a value that is none
        np.testing.assert_allclose(
            method.advantages(rewards, values_on_padding, MASK.double()), told, atol=1e-3
        )
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            method.advantages(rewards, values_on_padding, torch.ones_like(rewards)), told, atol=1e-3
        )


def test_advantages_of_a_padded_batch_are_those_of_its_rows(scalar_model, eos_padded, make_batch):
    batch, method = make_batch(eos_padded), PPO(gamma=0.9)
    rewards = torch.randn(batch.shape, generator=torch.Generator().manual_seed(4)) * batch["mask"]

    def check(values_of):
        whole = method.advantages(rewards, values_of(scalar_model, batch), batch["mask"])
        for i in range(4):
            for j in range(2):
                row, n = batch.select([i]).pick(torch.tensor([j])), int(batch.lengths[i, j])
                row = row.with_columns(reward=rewards[i : i + 1, j : j + 1, : row.shape[2]])
                cut = type(row)(row.prompts, {name: x[..., :n] for name, x in row.columns.items()})
                alone = method.advantages(cut["reward"], values_of(scalar_model, cut), cut["mask"])
                torch.testing.assert_close(whole[i, j, :n], alone[0, 0], atol=1e-5, rtol=0)
                assert (whole[i, j, n:] == 0).all()

    with torch.no_grad():
        check(completion_values)
        with pytest.raises(AssertionError):  # a critic that speaks on padding
            check(lambda model, batch: completion_states(model, batch)[..., :-1])


def test_controller_by_hand():
    method = PPO(kl_target=6.0, kl_gain=0.1)
    told = {6.0: 1.0, 6.6: 1.01, 5.4: 0.99, 60.0: 1.02, 0.0: 0.98, -5.0: 0.98}
    for kl, factor in told.items():
        assert method.adapted(0.05, kl) == pytest.approx(0.05 * factor)
    with pytest.raises(AssertionError):  # pushing beta down when the KL is too large
        assert 0.05 * (1 - 0.1 * 0.2) == pytest.approx(method.adapted(0.05, 60.0))


# -- rewards ---------------------------------------------------------------------------------------


def preferred(*rankings):
    """Return (B, K, K): 1 where the row's completion has the better rank."""
    ranks = torch.tensor(rankings)
    return (ranks[:, :, None] < ranks[:, None, :]).float()


def test_equal_scores_cost_log_two():
    assert bradley_terry_loss(
        torch.zeros(3, 2), preferred([0, 1], [1, 0], [0, 1])
    ).tolist() == pytest.approx([LOG2] * 3)
    assert bradley_terry_loss(torch.ones(1, 4), preferred([2, 0, 3, 1])).tolist() == pytest.approx(
        [LOG2]
    )


def bradley_terry_by_hand(scores, ranks):
    losses = [
        -math.log(sigmoid(scores[w] - scores[l]))
        for w in range(len(ranks))
        for l in range(len(ranks))
        if ranks[w] < ranks[l]
    ]
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("ranks", [[2, 0, 3, 1], [0, 0, 1, 1], [0, 1, 1, 1], [5, 5, 5, 5]])
def test_rankings_of_four_are_a_loop_over_ordered_pairs(ranks):
    scores = [0.3, -1.2, 2.0, 0.7]
    s = torch.tensor([scores])
    told = pytest.approx(bradley_terry_by_hand(scores, ranks), abs=1e-6)
    assert float(bradley_terry_loss(s, preferred(ranks))) == told
    order = [3, 1, 0, 2]
    assert float(bradley_terry_loss(s[:, order], preferred([ranks[i] for i in order]))) == told
    if len(set(ranks)) > 1:
        with pytest.raises(AssertionError):
            assert float(bradley_terry_loss(-s, preferred(ranks))) == told


def test_labelled_completion_costs_what_a_classifier_pays():
    scores, label = torch.tensor([[0.3], [-1.2], [2.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    by_hand = [-math.log(sigmoid(0.3)), -math.log(sigmoid(1.2)), -math.log(sigmoid(-2.0))]
    assert label_loss(scores, label).tolist() == pytest.approx(by_hand, abs=1e-6)
    assert label_accuracy(scores, label) == pytest.approx(2 / 3)
    assert label_loss(torch.zeros(1, 1), label[:1]).tolist() == pytest.approx([LOG2])


def test_ties_give_no_gradient_and_do_not_dilute():
    scores = torch.tensor([[1.0, 5.0, 0.0]], requires_grad=True)
    bradley_terry_loss(scores, preferred([0, 0, 1])).sum().backward()
    alone = [-sigmoid(-(1.0 - 0.0)) / 2, -sigmoid(-(5.0 - 0.0)) / 2]
    assert scores.grad[0, :2].tolist() == pytest.approx(alone)
    tied = torch.tensor([[1.0, 5.0]], requires_grad=True)
    bradley_terry_loss(tied, preferred([4, 4])).sum().backward()
    assert not tied.grad.any()


def test_pair_accuracy_counts_ties_of_scores_as_half():
    assert pair_accuracy(
        torch.tensor([[3.0, 1, 2], [0, 0, 0]]), preferred([0, 2, 1], [0, 1, 1])
    ) == (4, 5)  # of the second row's two pairs, each a tie, half


@pytest.mark.parametrize("margin, share", [(0.2, 1), (-0.2, 0), (0.0, 0.5), (2e-4, 1), (-2e-4, 0)])
def test_ordered_right_counts_a_tie_as_half_whatever_its_rounding(margin, share):
    assert ordered_right(torch.tensor([margin], dtype=torch.float64)).tolist() == [share]
    if share == 0.5:
        assert ordered_right(torch.tensor([3e-5, -3e-5, TIE])).tolist() == [0.5, 0.5, 0.5]


def test_doubtful_label_weighs_both_orders():
    scores, p = torch.tensor([[0.4, -0.3]]), 0.8
    told = -p * math.log(sigmoid(0.7)) - (1 - p) * math.log(sigmoid(-0.7))
    table = preferred_of([[Comparison(0, 1, p)]], 2)
    assert float(bradley_terry_loss(scores, table)) == pytest.approx(told, abs=1e-6)
    assert float(
        bradley_terry_loss(scores, preferred_of([[Comparison(1, 0, 1 - p)]], 2))
    ) == pytest.approx(told, abs=1e-6)
    assert pair_accuracy(scores, table) == (1, 1)


def test_ensembles_by_hand():
    scores = torch.tensor([[[1.0, 4.0]], [[3.0, 4.0]], [[8.0, 1.0]]])  # (M, B, K)
    assert combine(scores, "mean", 0.5).tolist() == [[4.0, 3.0]]
    assert combine(scores, "worst", 0.5).tolist() == [[1.0, 1.0]]
    variance = torch.tensor([(9 + 1 + 16) / 3, (1 + 1 + 4) / 3])  # the population's
    told = torch.tensor([[4.0, 3.0]]) - 0.5 * variance
    torch.testing.assert_close(combine(scores, "uncertainty", 0.5), told)
    for wrong in (
        scores.mean(0) - 0.5 * scores.var(0),
        scores.mean(0) - 0.5 * scores.std(0, correction=0),
    ):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(wrong, told)


# -- best of n -------------------------------------------------------------------------------------


def levels_of(rounded):
    """Return (mass, cumulative mass) of the reward levels of 64 outcomes, methods.md section 3,
    best last.
    """
    rng = np.random.default_rng(5)
    mass, reward = rng.dirichlet(np.full(64, 2.0)), rng.normal(size=64)
    level = np.round(reward) if rounded else reward
    f = np.array([mass[level == value].sum() for value in np.unique(level)])
    return f, f.cumsum()


def exact_kl(f, F, n):
    """KL of best-of-n from the reference: sum_v q_v log(q_v / f_v), q_v = F_v^n - (F_v - f_v)^n."""
    q = F**n - np.clip(F - f, 0, None) ** n
    return float((q * np.log(q / f, where=q > 0, out=np.zeros_like(q))).sum()), q


def estimated_kl(f, q, n):
    """The estimate averaged over the levels that are selected."""
    return float((best_of_n_kl(n, torch.tensor(f)).numpy() * q).sum())


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_best_of_n_kl_is_near_the_level_formula(n):
    """An estimate: within 2 % without ties, within 12 % with few levels of large mass, and never
    over the bound.
    """
    for rounded, tolerance in ((False, 0.02), (True, 0.12)):
        f, F = levels_of(rounded)
        told, q = exact_kl(f, F, n)
        assert q.sum() == pytest.approx(1)
        assert estimated_kl(f, q, n) == pytest.approx(told, rel=tolerance, abs=1e-9)
        assert (
            told <= best_of_n_bound(n) + 1e-12
            and estimated_kl(f, q, n) <= best_of_n_bound(n) + 1e-12
        )


@pytest.mark.parametrize("n", [1024, 65536])
def test_bound_is_no_estimate_with_ties(n):
    f, F = levels_of(rounded=True)
    with pytest.raises(AssertionError):
        assert best_of_n_bound(n) == pytest.approx(exact_kl(f, F, n)[0], rel=0.12)


def test_best_of_n_kl_at_its_ends():
    tiny, whole = (
        best_of_n_kl(16, torch.tensor([0.0, 1e-30, 1e-9])),
        best_of_n_kl(16, torch.tensor([1.0])),
    )
    assert (
        tiny.tolist() == pytest.approx([best_of_n_bound(16)] * 3, rel=1e-6)
        and abs(float(whole)) < 1e-9
    )
    assert best_of_n_kl(1, torch.tensor([0.3])).item() == pytest.approx(0, abs=1e-12)
    assert best_of_n_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_level_mass_counts_each_completion_of_the_level_once():
    p = torch.tensor([[0.2, 0.2, 0.1, 0.3], [0.7, 0.7, 0.7, 0.05]])
    ids = torch.tensor([[[4], [4], [5], [6]], [[4], [4], [4], [7]]])
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    batch = {"logp": p.log()[..., None], "completion_ids": ids}
    assert level_mass(batch, scores, scores.argmax(1)).tolist() == pytest.approx([0.3, 0.05])


# -- statistics ------------------------------------------------------------------------------------


def test_win_rate_by_hand():
    assert win_scores([1, 2, 3], [2, 2, 2]) == [0.0, 0.5, 1.0]
    told = win_rate([1] * 7 + [0] * 3, [0] * 7 + [1] * 3)  # Wilson's interval for 7 of 10
    assert (told.mean, told.n) == (0.7, 10)
    assert (told.low, told.high) == pytest.approx((0.39678, 0.89221), abs=1e-4)
    none = win_rate([0] * 20, [1] * 20)
    assert (none.mean, none.low) == (0, 0) and none.high == pytest.approx(
        1.96**2 / (20 + 1.96**2), abs=1e-3
    )
    assert win_rate([1] * 9, [1] * 9) == PromptEstimate(
        0.5, pytest.approx(0.5), pytest.approx(0.5), 9
    )
    halves = win_rate([1, 1, 0, 2], [1, 1, 1, 1])
    assert halves.mean == 0.5 and 0 < halves.low < 0.5 < halves.high < 1


def test_mean_interval_by_hand():
    told = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.18245 * math.sqrt(5 / 3 / 4)
    assert (told.mean, told.low, told.high, told.n) == pytest.approx(
        (2.5, 2.5 - half, 2.5 + half, 4), abs=1e-4
    )
    cut = mean_interval([0.0, 0.1], bounds=(0.0, 1.0))
    assert cut.low == 0 and cut.high < 1
    with pytest.raises(ValueError, match="two"):
        mean_interval([1.0])


@pytest.mark.parametrize("df", [1, 5, 29, 30, 60, 1000])
def test_t_quantiles_are_scipys(df):
    from scipy.stats import t

    assert t_quantile(0.975, df) == pytest.approx(t.ppf(0.975, df), rel=1e-4)


def coverage(interval, draws, truth):
    """Share of intervals that hold the truth."""
    told = [interval(row) for row in draws]
    return sum(e.low <= truth <= e.high for e in told) / len(told)


def narrow(estimate, share=0.8):
    """An interval whose width is wrong."""
    half = share * (estimate.high - estimate.low) / 2
    middle = (estimate.high + estimate.low) / 2
    return PromptEstimate(estimate.mean, middle - half, middle + half, estimate.n)


def check_coverage(share):
    """Within four standard errors of 95 % over 2000 intervals, and a per cent for the discreteness
    of counts.
    """
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000) + 0.01


@pytest.mark.parametrize(("win", "tie", "n"), [(0.5, 0.2, 100), (0.8, 0.1, 60), (0.3, 0.6, 200)])
def test_win_rate_intervals_cover(win, tie, n):
    draws = (
        np.random.default_rng(0)
        .choice([1, 0, -1], size=(2000, n), p=[win, tie, 1 - win - tie])
        .tolist()
    )
    check_coverage(coverage(lambda row: win_rate(row, [0] * n), draws, win + tie / 2))
    too_narrow = coverage(lambda row: narrow(win_rate(row, [0] * n)), draws, win + tie / 2)
    with pytest.raises(AssertionError):
        check_coverage(too_narrow)


def test_ties_narrow_the_interval():
    """The plain Wilson interval, which takes p (1 - p) for the variance, covers too much with 60 %
    ties.
    """
    draws = np.random.default_rng(0).choice([1, 0, -1], size=(2000, 200), p=[0.3, 0.6, 0.1])
    z = 1.96

    def wilson(row):
        p, n = (np.mean(row) + 1) / 2, len(row)
        middle, half = (p + z * z / 2 / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
        return PromptEstimate(
            p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n), n
        )

    plain = coverage(wilson, draws, 0.6)
    with pytest.raises(AssertionError):
        check_coverage(plain)


@pytest.mark.parametrize("n", [5, 40])
def test_mean_intervals_cover(n):
    draws = np.random.default_rng(1).normal(2.0, 3.0, size=(2000, n)).tolist()
    check_coverage(coverage(mean_interval, draws, 2.0))
    too_narrow = coverage(lambda row: narrow(mean_interval(row)), draws, 2.0)
    with pytest.raises(AssertionError):
        check_coverage(too_narrow)
