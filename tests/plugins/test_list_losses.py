"""Losses of scored lists: loss and gradient against published equations in plain Python, limits in
which one is another, and each one's optimum against its own training.
"""

import math
from dataclasses import replace

import pytest
import torch
from harness_plugins.dpo import DPO
from harness_plugins.lists.base import ListLoss
from harness_plugins.lists.lipo import LiPO
from harness_plugins.lists.nca_k import NCAK, InfoNCA
from harness_plugins.lists.odpo import ODPO
from harness_plugins.lists.pro import PRO
from harness_plugins.pairs.nca import NCA

from harness.api.registry import installed

from ..helpers.equations import both, drawn, in_plain_numbers, nls, sigma
from ..helpers.exact_lab import ExactLab, far_from
from ..helpers.registries import sampled

SCORE = torch.tensor([[0.3, -1.0, 0.8], [1.2, 0.1, -0.4], [0.0, 0.5, -2.0]]).double()
PAIRS = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def softmax(values):
    total = sum(map(math.exp, values))
    return [math.exp(x) / total for x in values]


def lipo(ys, fixed, row, discounts=True):
    """Liu et al. 2024, the lambda loss; ranks are of values without a gradient."""
    psi = [sum(sigma(a - b) for b in row.score) / 3 for a in row.score]
    rank = [1 + sum(other.s > y.s for other in fixed) for y in fixed]
    total = 0
    for i, j in PAIRS:
        if psi[i] > psi[j]:
            gain = abs(2 ** psi[i] - 2 ** psi[j])
            discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            total += gain * (discount if discounts else 1) * nls(0.4 * (ys[i].s - ys[j].s))
    return total


def pro(ys, row, temperatures=True):
    order = sorted(range(3), key=lambda i: -row.score[i])
    total = -0.05 * 4 * ys[order[0]].lp
    for at, k in enumerate(order[:-1]):
        gaps = [row.score[k] - row.score[i] for i in order[at + 1 :]]
        gaps = gaps if temperatures else [1.0] * len(gaps)
        p = [y.lp / y.n for y in ys]
        own = math.exp(p[k] * max(gaps))
        rest = sum(math.exp(p[i] * g) for i, g in zip(order[at + 1 :], gaps, strict=True))
        total -= math.log(own / (own + rest))
    return total


def odpo(ys, row, f, sign=-1):
    pairs = [(i, j) for i, j in PAIRS if row.score[i] > row.score[j]]
    h = [0.4 * (ys[i].s - ys[j].s) + sign * 0.7 * f(row.score[i] - row.score[j]) for i, j in pairs]
    return sum(map(nls, h)) / len(h)


def nca(ys, row, alpha=0.5, share=1 / 3):
    q = softmax([r / alpha for r in row.score])
    rows = zip(q, ys, strict=True)
    return sum(w * nls(0.4 * y.s) + share * nls(-0.4 * y.s) for w, y in rows)


def info_nca(ys, row, alpha):
    told = softmax([0.4 * y.s for y in ys])
    q = softmax([r / alpha for r in row.score])
    return -sum(w * math.log(p) for w, p in zip(q, told, strict=True))


# name: (method, its equation, what others make of it)
CASES = {
    "lipo": (
        LiPO(beta=0.4),
        lipo,
        lambda ys, fixed, row: lipo(ys, fixed, row, discounts=False),  # gains alone
    ),
    "pro": (
        PRO(),
        lambda ys, _, row: pro(ys, row),
        lambda ys, _, row: pro(ys, row, temperatures=False),
    ),
    "odpo": (
        ODPO(beta=0.4, alpha=0.7),
        lambda ys, _, row: odpo(ys, row, math.log),
        lambda ys, _, row: odpo(ys, row, lambda gap: 1.0),  # an offset that ignores the scores
    ),
    "odpo, identity": (
        ODPO(beta=0.4, alpha=0.7, offset="identity"),
        lambda ys, _, row: odpo(ys, row, lambda gap: gap),
        lambda ys, _, row: odpo(ys, row, lambda gap: gap, sign=1),
    ),
    "nca_k": (
        NCAK(beta=0.4, alpha=0.5, num_candidates=3),
        lambda ys, _, row: nca(ys, row),
        lambda ys, _, row: nca(ys, row, share=1.0),  # noise not divided by K
    ),
    "info_nca": (
        InfoNCA(beta=0.4, alpha=0.5, num_candidates=3),
        lambda ys, _, row: info_nca(ys, row, 0.5),
        lambda ys, _, row: info_nca(ys, row, 0.01),  # the best completion alone
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_published_equation(name):
    method, equation, mistaken = CASES[name]
    method.check()
    logp, batch = drawn(3, score=SCORE)
    losses, slopes = both(method, logp, batch)
    right, wrong = (in_plain_numbers(x, logp, batch) for x in (equation, mistaken))
    assert losses == pytest.approx(right[0])
    assert slopes == [pytest.approx(row, abs=1e-7, rel=1e-6) for row in right[1]]
    found, off = losses + sum(slopes, []), wrong[0] + sum(wrong[1], [])
    assert found != pytest.approx(off, rel=1e-3)


def test_every_list_loss_has_its_equation_here():
    classes = installed().classes["methods"].values()
    shipped = {c for c in classes if issubclass(c, ListLoss) and c.__module__.startswith("harness")}
    assert shipped == {type(m) for m, *_ in CASES.values()}


# -- limits in which one is another ----------------------------------------------------------------


def of_two(method, scores=((0.3, -1.0), (1.2, 0.1), (0.5, 0.0))):
    """Loss and slopes of lists of two, better first."""
    logp, batch = drawn(2, score=torch.tensor(scores).double(), p=torch.ones(3).double())
    return both(method, logp, batch)


def test_without_an_offset_odpo_on_two_is_dpo():
    ours, theirs = of_two(ODPO(beta=0.4, alpha=0.0)), of_two(DPO(beta=0.4))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other))
    assert of_two(ODPO(beta=0.4, alpha=1.0)) != ours


def test_lipo_on_two_is_dpo_times_a_constant_of_the_scores():
    slopes, plain = of_two(LiPO(beta=0.4))[1], of_two(DPO(beta=0.4))[1]
    for row, other, (a, b) in zip(slopes, plain, ((0.3, -1), (1.2, 0.1), (0.5, 0.0)), strict=True):
        psi = [(0.5 + sigma(x - y)) / 2 for x, y in ((a, b), (b, a))]
        weight = (2 ** psi[0] - 2 ** psi[1]) * (1 / math.log(2) - 1 / math.log(3))
        assert row == pytest.approx([weight * x for x in other])


def test_nca_of_two_whose_reward_decides_all_is_that_of_pairs():
    ours = of_two(NCAK(beta=0.4, alpha=1e-3, num_candidates=2))
    theirs = of_two(NCA(beta=0.4))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other))
    assert of_two(NCAK(beta=0.4, alpha=1.0, num_candidates=2)) != ours


def test_info_nca_of_two_is_dpo_with_the_label_of_bradley_terry():
    scores = ((0.3, -1.0), (1.2, 0.1), (0.5, 0.0))
    logp, batch = drawn(2, score=torch.tensor(scores).double())
    batch["p"] = torch.tensor([sigma(a - b) for a, b in scores]).double()
    ours = both(InfoNCA(beta=0.4, num_candidates=2), logp, batch)
    theirs = both(DPO(beta=0.4), logp, batch)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other))


def test_rounding_does_not_decide_the_ranks_of_lipo():
    logp, batch = drawn(3, score=SCORE)
    batch["ref_logp"] = logp.detach().clone()
    losses = []
    for noise in (0.0, 1e-6, -1e-6):
        moved = (logp.detach() + noise * torch.tensor([1.0, 0, -1])[:, None]).requires_grad_()
        losses.append(both(LiPO(beta=0.4), moved, batch)[0])
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-4)] * 2


def test_rounding_decides_no_accuracy():
    """Equal completions have scores and log-probabilities that differ by rounding."""
    logp, batch = drawn(3, score=SCORE)
    told = LiPO(beta=0.4).loss(logp, batch)[1]["accuracy"]
    turned = LiPO(beta=0.4).loss(-logp, batch | {"ref_logp": -batch["ref_logp"]})[1]["accuracy"]
    torch.testing.assert_close(told + turned, torch.ones(3).double())
    batch["ref_logp"] = logp.detach().clone()
    batch["score"] = torch.tensor([[0.0, 1e-8, 1.0]] * 3).double()
    for noise in (1e-6, -1e-6):
        moved = logp.detach() + noise * torch.tensor([1.0, 0, -1])[:, None]
        accuracy = LiPO(beta=0.4).loss(moved, batch)[1]["accuracy"]
        torch.testing.assert_close(accuracy, torch.full((3,), 0.5).double())


@pytest.mark.parametrize("name", CASES)
def test_a_list_counts_the_same_in_any_order(name):
    method = CASES[name][0]
    logp, batch = drawn(3, score=SCORE)
    slopes = both(method, logp, batch)[1]
    turned = {k: v.flip(1) for k, v in batch.items()}
    again = both(method, logp.detach().flip(1).requires_grad_(), turned)[1]
    assert [row[::-1] for row in again] == [pytest.approx(row) for row in slopes]


@pytest.mark.parametrize("name", CASES)
def test_equal_scores_and_far_completions_give_finite_losses(name):
    logp, batch = drawn(3, dtype=torch.float32, score=torch.zeros(3, 3))
    with torch.no_grad():
        logp[:, 0, 0] -= 300
    losses, slopes = both(CASES[name][0], logp, batch)
    assert all(map(math.isfinite, losses + sum(slopes, [])))


# -- optima, on expectations without noise ---------------------------------------------------------

OPTIMA = {
    "info_nca": InfoNCA(beta=0.5, steps=250, num_candidates=2),
    "nca_k": NCAK(beta=0.5, steps=400, num_candidates=3),
    "pro": PRO(steps=500, num_candidates=3),
}


@pytest.mark.parametrize("name", sampled(OPTIMA, of=("info_nca",)))
def test_with_exact_expectations_a_method_reaches_its_optimum(name):
    method = OPTIMA[name]
    assert far_from(method, limit=2, steps=method.steps) < 5e-3


@pytest.mark.parametrize("name", sampled(("info_nca", "nca_k"), of=("info_nca",)))
def test_another_loss_ends_elsewhere(name):
    right = OPTIMA[name]
    other = replace(right, alpha=2.0)
    assert far_from(other, optimum_of=right, limit=2, steps=right.steps) > 0.02


def test_where_theory_names_no_optimum_none_is_stated():
    problem = ExactLab(limit=2).problem()
    assert LiPO().optimum(problem) is None and ODPO().optimum(problem) is None
    assert PRO().optimum(problem) is None  # lists of eight are too many
    flags = [replace(m, shuffle_labels=True) for m in OPTIMA.values()]
    assert [m for m in flags if m.optimum(problem) is not None] == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LiPO(num_candidates=1), "num_candidates"),
        (LiPO(beta=0.0), "beta"),
        (LiPO(lists="file"), "sampled or data"),
        (LiPO(lists="data", num_candidates=4), "no meaning"),
        (LiPO(lists="data", reward="verifier"), "no meaning"),
        (LiPO(steps=0), "steps"),
        (PRO(sft_weight=-1.0), "sft_weight"),
        (ODPO(offset="exp"), "log or identity"),
        (ODPO(alpha=-1.0), "alpha"),
        (NCAK(alpha=0.0), "alpha"),
        (InfoNCA(reward="judge"), "model or verifier"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_options_that_make_no_sense_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        method.check()
