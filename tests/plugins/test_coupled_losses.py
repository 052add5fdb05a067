"""Losses that couple the pairs of a batch: the whole batch's value and gradient by hand and by TRL,
the same in parts of any size, and their limits and optima.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.dpo import DPO
from harness_plugins.pairs.aot import AOT
from harness_plugins.pairs.beta_dpo import BetaDPO
from harness_plugins.pairs.coupled import CoupledLoss
from harness_plugins.pairs.dr_dpo import DrDPO
from harness_plugins.pairs.wpo import WPO

from harness.api.registry import installed

from ..helpers.exact_lab import ExactLab, far_from
from ..helpers.plain_losses import Columns, nls
from ..helpers.registries import sampled
from ..helpers.trl_losses import trl_dpo_loss

LENGTHS = [[4, 2], [1, 3], [2, 2], [3, 4], [2, 1]]
MASK = torch.tensor([[[float(t < n) for t in range(4)] for n in pair] for pair in LENGTHS])


def draw(seed=0, dtype=torch.float64, p=(1.0, 0.8, 1.0, 0.6, 1.0)):
    """Return logp (5, 2, 4), zero on padding, and a batch with doubtful labels."""
    generator = torch.Generator().manual_seed(seed)
    logp, ref = (
        ((-2 * torch.rand(MASK.shape, generator=generator, dtype=torch.float64) - 0.1) * MASK).to(
            dtype
        )
        for _ in range(2)
    )
    columns = {"ref_logp": ref, "mask": MASK.to(dtype), "p": torch.tensor(p).to(dtype)}
    return logp, Columns(columns | {"usual": torch.full((5,), 0.1).to(dtype)})


# -- equations in plain Python: of rows with s, lp, n of both sides and the label's p --------------


def h(row, beta=0.4):
    return beta * (row.w.s - row.l.s)


def likely(row):
    return math.exp(row.w.lp / row.w.n + row.l.lp / row.l.n)


def dpo(row, beta=0.4):
    return row.p * nls(h(row, beta)) + (1 - row.p) * nls(-h(row, beta))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def soft_minimum(rows, scale):
    parts = (
        row.p * math.exp(-nls(h(row)) / scale) + (1 - row.p) * math.exp(-nls(-h(row)) / scale)
        for row in rows
    )
    return -scale * math.log(mean(parts))


def by_quantile(rows, first, second):
    return mean(
        nls(0.4 * (a - b))
        for a, b in zip(sorted(map(first, rows)), sorted(map(second, rows)), strict=True)
    )


def adapted(rows, fixed):
    """beta-DPO with alpha 0.5, keeping 4 of 5; `fixed` has the values that get no gradient."""
    margins = [h(row) for row in fixed]
    beta = 0.4 * (1 + 0.5 * (mean(margins) - 0.1))
    nearest = sorted(range(len(rows)), key=lambda i: abs(margins[i] - 0.1))[:4]
    return mean(dpo(rows[i], beta) for i in nearest)


# name: (method, its equation, what others make of it), of rows and of rows without a gradient
CASES = {
    "aot": (
        AOT(beta=0.4),
        lambda rows, _: by_quantile(rows, lambda r: r.w.s, lambda r: r.l.s),
        lambda rows, _: mean(nls(h(r)) for r in rows),  # unsorted: DPO, as at a batch of one
    ),
    "aot, paired": (
        AOT(beta=0.4, paired=True),
        lambda rows, _: by_quantile(
            rows, lambda r: r.w.lp - r.l.lp, lambda r: r.w.lp - r.w.s - r.l.lp + r.l.s
        ),
        lambda rows, _: by_quantile(rows, lambda r: r.w.s, lambda r: r.l.s),
    ),
    "dr_dpo": (
        DrDPO(beta=0.4, beta_prime=0.7),
        lambda rows, _: soft_minimum(rows, 0.7),
        lambda rows, _: mean(map(dpo, rows)),  # of each pair alone
    ),
    "wpo": (
        WPO(beta=0.4),
        lambda rows, fixed: (
            mean(likely(f) * dpo(r) for r, f in zip(rows, fixed, strict=True))
            / mean(map(likely, fixed))
        ),
        lambda rows, _: (  # a gradient through the weights
            mean(likely(r) * dpo(r) for r in rows) / mean(map(likely, rows))
        ),
    ),
    "wpo, not normalised": (
        WPO(beta=0.4, normalise=False),
        lambda rows, fixed: mean(likely(f) * dpo(r) for r, f in zip(rows, fixed, strict=True)),
        lambda rows, _: mean(map(dpo, rows)),
    ),
    "beta_dpo": (
        BetaDPO(beta=0.4, alpha=0.5, kept=0.8),
        adapted,
        lambda rows, _: adapted(rows, rows),  # a gradient through beta
    ),
}


def rows_of(logp, batch, at=None, more=0.0):
    """Return the pairs in plain numbers, with `more` nats on the first token of completion `at`."""
    rows = []
    for i, pair in enumerate(LENGTHS):
        sides = []
        for k, n in enumerate(pair):
            lp = float(logp[i, k].sum()) + more * ((i, k) == at)
            s = lp - float(batch["ref_logp"][i, k].sum())
            sides.append(SimpleNamespace(lp=lp, s=s, n=n))
        rows.append(SimpleNamespace(w=sides[0], l=sides[1], p=float(batch["p"][i])))
    return rows


def by_hand(equation, logp, batch):
    """Return the loss of the batch and its derivatives [B][2] by first tokens."""
    fixed = rows_of(logp, batch)
    e, slopes = 1e-5, []
    for i in range(len(fixed)):
        for k in (0, 1):
            up, down = (equation(rows_of(logp, batch, (i, k), x), fixed) for x in (e, -e))
            slopes.append((up - down) / (2 * e))
    return equation(fixed, fixed), slopes


def in_parts(method, logp, batch, *sizes):
    """Return the mean loss and its gradient, from parts of these sizes."""
    columns = method.linearised(logp, batch)
    leaf, value, place = logp.clone().requires_grad_(), 0.0, 0
    for size in sizes:
        rows = slice(place, place + size)
        part = {name: column[rows] for name, column in columns.items()}
        loss = method.loss(leaf[rows], part)[0].sum() / len(logp)
        loss.backward()
        value, place = value + float(loss.detach()), place + size
    return value, leaf.grad


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_a_batch_are_those_of_the_equation_in_parts_of_any_size(name):
    method, equation, mistaken = CASES[name]
    method.check()
    logp, batch = draw()
    told, slopes = by_hand(equation, logp, batch)
    for sizes in ((5,), (2, 3), (1, 1, 1, 1, 1)):
        value, gradient = in_parts(method, logp, batch, *sizes)
        assert value == pytest.approx(told)
        assert gradient[..., 0].flatten().tolist() == pytest.approx(slopes, abs=1e-7)
    wrong, other_slopes = by_hand(mistaken, logp, batch)  # negative control
    assert [value, *slopes] != pytest.approx([wrong, *other_slopes], rel=1e-3)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"wpo, not normalised"}))  # a mean over pairs
def test_losses_of_parts_apart_are_another_loss(name):
    """Negative control: what a library gets that couples the pairs of a micro-batch."""
    method = CASES[name][0]
    logp, batch = draw()
    whole = in_parts(method, logp, batch, 5)[1]
    apart = [in_parts(method, logp[i : i + 1], cut(batch, i), 1)[1] / 5 for i in range(5)]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(whole, torch.cat(apart), rtol=1e-2, atol=1e-4)


def cut(batch, i):
    return Columns({name: column[i : i + 1] for name, column in batch.items()})


@pytest.mark.parametrize("method", [AOT(beta=0.4), DrDPO(beta=0.4), WPO(beta=0.4)])
def test_batch_of_one_pair_is_dpo(method):
    logp, batch = draw(p=(1.0,) * 5)
    for i in range(5):
        ours = in_parts(method, logp[i : i + 1], cut(batch, i), 1)[1]
        leaf = logp[i : i + 1].clone().requires_grad_()
        DPO(beta=0.4).loss(leaf, cut(batch, i))[0].sum().backward()
        torch.testing.assert_close(ours, leaf.grad * MASK[i : i + 1])
    w, l = method.sides(logp, batch)
    torch.testing.assert_close(method.pair_loss(w, l), DPO(beta=0.4).loss(logp, batch)[0])


LIMITS = {
    "dr_dpo": DrDPO(beta=0.4, beta_prime=1e5),
    "beta_dpo": BetaDPO(beta=0.4, alpha=0.0, kept=1.0),
}


@pytest.mark.parametrize("name", LIMITS)
def test_at_its_limit_a_coupled_loss_is_dpo(name):
    logp, batch = draw()
    ours = in_parts(LIMITS[name], logp, batch, 5)[1]
    leaf = logp.clone().requires_grad_()
    DPO(beta=0.4).loss(leaf, batch)[0].mean().backward()
    torch.testing.assert_close(ours, leaf.grad * MASK, atol=1e-5, rtol=1e-4)


TRL = {
    "aot": (AOT(beta=0.4), {"loss_types": ["aot_unpaired"]}),
    "aot, paired": (AOT(beta=0.4, paired=True), {"loss_types": ["aot"]}),
}


@pytest.mark.parametrize("name", TRL)
def test_aot_is_trls(name):
    method, settings = TRL[name]
    logp, batch = draw(2, torch.float32, p=(1.0,) * 5)
    leaf = logp.clone().requires_grad_()
    theirs = trl_dpo_loss(leaf, batch["ref_logp"], batch["mask"], beta=0.4, **settings)
    theirs.backward()
    value, gradient = in_parts(method, logp, batch, 2, 3)
    assert value == pytest.approx(float(theirs.detach()))
    torch.testing.assert_close(gradient, leaf.grad * MASK)


def test_every_coupled_loss_has_its_equation_here():
    classes = installed().classes["methods"].values()
    shipped = {c for c in classes if issubclass(c, CoupledLoss)}
    assert shipped == {type(method) for method, *_ in CASES.values()}


# -- optima and loops ------------------------------------------------------------------------------

OPTIMA = {"dr_dpo": DrDPO(beta=0.5, beta_prime=4.0), "wpo": WPO(beta=0.5)}


@pytest.mark.parametrize("name", sampled(OPTIMA, of=("wpo",)))
def test_with_exact_expectations_a_coupled_loss_reaches_its_optimum(name):
    assert far_from(OPTIMA[name]) < 1e-4


@pytest.mark.slow
def test_robust_optimum_is_not_that_of_rlhf():
    assert far_from(DPO(beta=0.5), optimum_of=OPTIMA["dr_dpo"]) > 0.02


def test_where_no_optimum_is_known_none_is_stated():
    problem = ExactLab().problem()
    assert AOT().optimum(problem) is None and BetaDPO().optimum(problem) is None
    assert WPO(shuffle_labels=True).optimum(problem) is None


def test_usual_margin_of_beta_dpo_is_a_running_mean():
    method = BetaDPO(beta=0.5, margin_decay=0.8)
    lab = SimpleNamespace(state={}, log=lambda **metrics: logged.append(metrics["usual_margin"]))
    logged = []
    logp, batch = draw()
    for share in (0.0, 1.0):
        moved = batch["ref_logp"] + share * torch.tensor([1.0, -1.0])[:, None] * (
            MASK / MASK.sum(-1, keepdim=True)
        )
        pairs = method.measured(lab, moved, batch)
    assert logged == pytest.approx([0.0, 0.2])  # a margin of 0.5 (1 + 1), times 0.2
    assert pairs["usual"].tolist() == pytest.approx([0.2] * 5) and lab.state["margin"] == logged[1]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (DrDPO(beta_prime=0.0), "beta_prime"),
        (BetaDPO(kept=0.0), "kept"),
        (BetaDPO(alpha=-1.0), "alpha"),
        (BetaDPO(margin_decay=1.0), "margin_decay"),
    ],
)
def test_options_of_coupled_losses_that_make_no_sense_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        method.check()
