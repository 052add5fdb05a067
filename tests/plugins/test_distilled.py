"""Losses of whole distributions: equations, TRL's, limits, the teacher and the fixed point."""

import copy
import math
from pathlib import Path

import harness_suites
import pytest
import torch
from harness_plugins.distilled.gkd import GKD, generalised_jsd
from harness_plugins.distilled.tdpo import TDPO, kl_of_reference
from harness_plugins.dpo import DPO

from harness.check import Options
from harness.check.methods import proofs_of
from harness.check.trials import Trials
from harness.experiments.requirements.asks import asks_of
from harness.models import logprobs
from harness.models.divergences import completion_divergence
from harness.models.logprobs import completion_logits, completion_logp

from ..helpers.equations import drawn, in_plain_numbers, nls
from ..helpers.exact_lab import ExactLab, far_from
from ..helpers.registries import small_registry
from ..helpers.tools import command, fresh, on_small, with_shared_stages

BASE = Path(harness_suites.__file__).parent / "base"


# -- distributions in parts ------------------------------------------------------------------------


def moved(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return other


@pytest.fixture
def batch(tokens, make_prompts):
    ids = [[[5, 6, 7, 2], [8, 2]], [[9, 10, 2], [11, 12, 13]]]
    return tokens.batch(make_prompts([3, 1]), ids, temperature=0.7)


@pytest.mark.parametrize("at_once", [1000, 2])
def test_columns_are_those_of_full_distributions_whatever_the_parts(
    tiny_model, batch, at_once, monkeypatch
):
    monkeypatch.setattr(logprobs, "states_at_once", lambda vocabulary: at_once)
    model, other = tiny_model.train(False).requires_grad_(True), moved(tiny_model)
    columns = completion_divergence(model, other, kl_of_reference, batch)
    p, q = (completion_logits(m, batch).log_softmax(-1) for m in (model, other))
    kl = (q.exp() * (q - p)).sum(-1) * batch["mask"]
    torch.testing.assert_close(columns[..., 0], completion_logp(model, batch))
    torch.testing.assert_close(columns[..., 1], completion_logp(other, batch))
    torch.testing.assert_close(columns[..., 2], kl, atol=1e-5, rtol=1e-4)
    weights = list(model.parameters())
    ours = torch.autograd.grad(columns[..., 2].sum(), weights, allow_unused=True)
    theirs = torch.autograd.grad(kl.sum(), weights, allow_unused=True)
    for one, two in zip(ours, theirs, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)
    assert all(w.grad is None for w in other.parameters())


def test_a_model_against_itself_has_no_divergence(tiny_model, batch):
    columns = completion_divergence(tiny_model, tiny_model, kl_of_reference, batch)
    torch.testing.assert_close(columns[..., 2], torch.zeros(batch.shape), atol=1e-6, rtol=0)


# -- equations -------------------------------------------------------------------------------------


def tables(m=5, v=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(m, v, generator=generator).double().log_softmax(-1) for _ in range(2))
    return p.requires_grad_(), q


def kl(a, b):
    return sum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_the_published_one(beta):
    p, q = tables()
    expected, swapped = [], []
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        for out, one, two in ((expected, a, b), (swapped, b, a)):
            mixed = [
                math.log(beta * math.exp(y) + (1 - beta) * math.exp(x))
                for x, y in zip(one, two, strict=True)
            ]
            between = beta * kl(two, mixed) + (1 - beta) * kl(one, mixed)
            out.append({0.0: kl(two, one), 1.0: kl(one, two)}.get(beta, between))
    ours = generalised_jsd(p, q, beta)
    assert ours.tolist() == pytest.approx(expected)
    assert ours.tolist() != pytest.approx(swapped, rel=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_that_of_trls_gkd_trainer(beta):
    gkd = pytest.importorskip("trl.experimental.gkd")
    p, q = tables()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(p[None], q[None], beta=beta, reduction="none")
    ours = generalised_jsd(p, q, beta)
    torch.testing.assert_close(ours, theirs.reshape(*p.shape).sum(-1))
    one, two = (torch.autograd.grad(x.sum(), p, retain_graph=True)[0] for x in (ours, theirs))
    # log-probabilities are not shifted alike: compare what reaches the logits
    flat = [g - p.exp() * g.sum(-1, keepdim=True) for g in (one, two)]
    torch.testing.assert_close(*flat)


KL = torch.tensor([[0.4, 0.1], [0.2, 0.7], [0.0, 0.3]]).double()


def tdpo(method, kl=KL, p=(1.0, 0.8, 1.0)):
    """Loss and slopes by the first token's log-probability, and by the sequential KL."""
    logp, batch = drawn(2)
    per_token = (kl[..., None] * batch["mask"] / batch["mask"].sum(-1, keepdim=True)).detach()
    columns = torch.stack([logp.detach(), batch["ref_logp"], per_token], -1).requires_grad_()
    batch["p"] = torch.tensor(p).double()
    loss = method.loss(columns, batch)[0]
    (gradient,) = torch.autograd.grad(loss.sum(), columns)
    return loss.tolist(), gradient[..., 0, 0], gradient[..., 0, 2]


@pytest.mark.parametrize(("alpha", "stop"), [(0.5, True), (1.0, False)])
def test_tdpo_is_the_published_equation(alpha, stop):
    method = TDPO(beta=0.4, alpha=alpha, stop_gradient=stop)
    method.check()
    loss, by_logp, by_kl = tdpo(method)
    logp, batch = drawn(2, d=KL, p=torch.tensor([1.0, 0.8, 1.0]).double())

    def equation(ys, _, row, sign=1):
        h = 0.4 * (ys[0].s - ys[1].s + sign * alpha * (row.d[0] - row.d[1]))
        other = -0.4 * (ys[0].s - ys[1].s + sign * alpha * (row.d[0] - row.d[1]))
        return row.p * nls(h) + (1 - row.p) * nls(other)

    losses, slopes = in_plain_numbers(equation, logp, batch)
    assert loss == pytest.approx(losses)
    assert by_logp.tolist() == [pytest.approx(row, abs=1e-7) for row in slopes]
    wrong = in_plain_numbers(lambda *a: equation(*a, sign=-1), logp, batch)[0]
    assert loss != pytest.approx(wrong, rel=1e-3)
    # the rejected one's KL is pushed down, the chosen one's up only in TDPO1
    assert (by_kl[0, 1] > 0).all() and (by_kl[0, 0] == 0) == stop


def test_without_its_kl_tdpo_is_dpo():
    loss, slopes, _ = tdpo(TDPO(beta=0.4, alpha=0.0))
    logp, batch = drawn(2, p=torch.tensor([1.0, 0.8, 1.0]).double())
    plain = DPO(beta=0.4).loss(logp, batch)[0]
    assert loss == pytest.approx(plain.tolist())
    torch.testing.assert_close(slopes, torch.autograd.grad(plain.sum(), logp)[0][..., 0])
    assert tdpo(TDPO(beta=0.4, alpha=0.5))[0] != pytest.approx(loss)


# -- the fixed point -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "lmbda"),
    [(1.0, 1.0), *(pytest.param(*x, marks=pytest.mark.slow) for x in ((0.0, 0.0), (0.5, 1.0)))],
)
def test_distillation_ends_at_the_teacher(beta, lmbda):
    method = GKD(teacher="any", beta=beta, lmbda=lmbda, steps=300)
    assert far_from(method, limit=2, steps=300) < 2e-3


def test_a_teacher_of_unknown_probabilities_has_no_stated_optimum():
    lab = ExactLab(limit=2)
    problem = lab.problem()
    assert GKD().optimum(problem) is problem.taught
    assert lab.distance(problem.taught) > 0.1


# -- the teacher -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["teacher=/no/such/folder"], "there is no such folder"),
        ([], "needs a teacher"),
        (["teacher=any", "lmbda=2"], "must lie in"),
    ],
)
def test_a_run_without_a_usable_teacher_ends_in_one_message(options, told):
    sets = [word for option in options for word in ("--set", option)]
    done = command(*on_small("gkd", *sets, results=fresh("teacher")))
    assert done.code != 0 and told in done.text and "Traceback" not in done.text


def test_what_a_method_with_a_teacher_asks_for():
    assert asks_of(GKD(teacher="a")).teacher == "a" and asks_of(GKD()).teaches
    assert asks_of(TDPO()).reference and not asks_of(TDPO()).teaches
    assert GKD(lmbda=1.0).required() == {"prompts"} and GKD().required() == {"demonstrations"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [("lmbda=0.5",), ("lmbda=1", "beta=1")])
def test_gkd_passes_the_proofs_with_a_teacher(options):
    registry, settings = small_registry(), (f"teacher={BASE}", *options)
    results = with_shared_stages("every")
    given = Options(suite="small", results=results, settings=settings)
    bench = Trials("gkd", "small", registry, given)
    try:
        bench.runs()
        for proof, run in proofs_of(bench).items():
            print(proof, "-", run())
    finally:
        bench.close()
