"""The pair losses: loss and gradient against published equations in plain Python, against TRL, at
the limits where one is another, and each one's optimum against its own training.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.dpo import DPO
from harness_plugins.ipo import IPO
from harness_plugins.pairs.alpha_po import AlphaPO
from harness_plugins.pairs.apo_down import APODown
from harness_plugins.pairs.apo_zero import APOZero
from harness_plugins.pairs.base import PairLoss
from harness_plugins.pairs.bco import BCO
from harness_plugins.pairs.cal_dpo import CalDPO
from harness_plugins.pairs.chipo import ChiPO
from harness_plugins.pairs.coupled import CoupledLoss
from harness_plugins.pairs.cpo import CPO
from harness_plugins.pairs.discopop import DiscoPOP
from harness_plugins.pairs.dpo_nll import DPONLL
from harness_plugins.pairs.dpo_shift import DPOShift
from harness_plugins.pairs.dpop import DPOP
from harness_plugins.pairs.exo import EXO
from harness_plugins.pairs.f_dpo import FDPO
from harness_plugins.pairs.focal_po import FocalPO
from harness_plugins.pairs.gpo import GPO
from harness_plugins.pairs.hinge_norm import HingeNorm
from harness_plugins.pairs.ld_dpo import LDDPO
from harness_plugins.pairs.nca import NCA
from harness_plugins.pairs.r_dpo import RDPO
from harness_plugins.pairs.sppo_hard import SPPOHard
from harness_plugins.pairs.tr_dpo import TRDPO
from harness_plugins.simpo import SimPO

from harness.api.registry import installed
from harness.models.enumeration import total_variation

from ..helpers.exact_lab import ExactLab, far_from
from ..helpers.plain_losses import Columns, nls, sigmoid
from ..helpers.registries import sampled
from ..helpers.trl_losses import trl_cpo_loss, trl_dpo_loss

MASK = torch.tensor(
    [[[1.0, 1, 1, 1], [1, 1, 0, 0]], [[1, 0, 0, 0], [1, 1, 1, 0]], [[1, 1, 0, 0], [1, 1, 0, 0]]]
)


def draw(seed=0, dtype=torch.float64):
    """Return logp (3, 2, 4), zero on padding, and a batch with one doubtful label."""
    generator = torch.Generator().manual_seed(seed)
    logp, ref = (
        ((-2 * torch.rand(MASK.shape, generator=generator, dtype=torch.float64) - 0.1) * MASK).to(
            dtype
        )
        for _ in range(2)
    )
    columns = {
        "ref_logp": ref,
        "mask": MASK.to(dtype),
        "p": torch.tensor([1.0, 0.8, 1.0]).to(dtype),
    }
    shared = {
        "delta": torch.full((3,), 0.3).to(dtype),
        "dpo_lambda": torch.full((3,), 0.75).to(dtype),
    }
    return logp.requires_grad_(), columns | shared


# -- equations in plain Python ---------------------------------------------------------------------


def kl_of_two(q, t):
    return q * math.log(q / t) + (1 - q) * math.log((1 - q) / (1 - t))


def phi(s):
    return math.exp(s) + s


def clip(x, limit):
    return max(-limit, min(limit, x))


def mean_q(y, alpha):
    """q^-alpha, q = pi(y|x)^(1 / |y|)."""
    return math.exp(y.lp / y.n) ** -alpha


def discovered(h, tau):
    m = sigmoid(h / tau)
    return (1 - m) * nls(h) + m * math.exp(-h)


def common(y, other, alpha):
    """The log-ratio with the tokens beyond the shorter completion weighed by alpha."""
    n = min(y.n, other.n)
    return sum((1 if t < n else alpha) * (a - b) for t, (a, b) in enumerate(y.tokens))


# name: (method, its equation for a plain label, what others make of it). y.s is the log-ratio, y.lp
# the policy's log-probability, y.n the length.
CASES = {
    "apo_zero": (
        APOZero(beta=0.4),
        lambda w, l: 1 - sigmoid(0.4 * w.s) + sigmoid(0.4 * l.s),
        lambda w, l: 1 - sigmoid(0.4 * (w.s - l.s)),  # one sigmoid of the margin
    ),
    "apo_down": (
        APODown(beta=0.4),
        lambda w, l: sigmoid(0.4 * w.s) + 1 - sigmoid(0.4 * (w.s - l.s)),
        lambda w, l: 1 - sigmoid(0.4 * w.s) + 1 - sigmoid(0.4 * (w.s - l.s)),  # the anchor's sign
    ),
    "nca": (
        NCA(beta=0.4),
        lambda w, l: nls(0.4 * w.s) + 0.5 * nls(-0.4 * w.s) + 0.5 * nls(-0.4 * l.s),
        lambda w, l: nls(0.4 * w.s) + 0.5 * nls(-0.4 * l.s),  # the chosen one's second term
    ),
    "discopop": (
        DiscoPOP(beta=0.4, tau=0.05),
        lambda w, l: discovered(0.4 * (w.s - l.s), 0.05),
        lambda w, l: discovered(0.4 * (w.s - l.s), -0.05),  # the switch turned round
    ),
    "sppo_hard": (
        SPPOHard(beta=0.4),
        lambda w, l: (w.s - 1.25) ** 2 + (l.s + 1.25) ** 2,
        lambda w, l: (w.s - l.s - 1.25) ** 2,  # IPO
    ),
    "dpop": (
        DPOP(beta=0.4, dpop_lambda=5.0),
        lambda w, l: nls(0.4 * (w.s - l.s - 5 * max(0, -w.s))),
        lambda w, l: nls(0.4 * (w.s - l.s - 5 * max(0, w.s))),  # the penalty's sign
    ),
    "chipo": (
        ChiPO(beta=0.4, r_max=0.25),
        lambda w, l: nls(clip(0.4 * phi(w.s) - 0.4 * phi(l.s), 0.5)),
        lambda w, l: nls(0.4 * phi(w.s) - 0.4 * phi(l.s)),  # without the clip
    ),
    "r_dpo": (
        RDPO(beta=0.4, alpha=0.3),
        lambda w, l: nls(0.4 * (w.s - l.s) + 0.3 * (w.n - l.n)),
        lambda w, l: nls(0.4 * (w.s - l.s) - 0.3 * (w.n - l.n)),  # the sign that pays for length
    ),
    "cpo": (
        CPO(beta=0.4, cpo_alpha=0.7),
        lambda w, l: nls(0.4 * (w.lp - l.lp)) - 0.7 * w.lp / w.n,
        lambda w, l: nls(0.4 * (w.s - l.s)) - 0.7 * w.lp / w.n,  # with a reference
    ),
    "cpo, sum": (
        CPO(beta=0.4, cpo_alpha=0.7, nll_reduction="sum"),
        lambda w, l: nls(0.4 * (w.lp - l.lp)) - 0.7 * w.lp,
        lambda w, l: nls(0.4 * (w.lp - l.lp)) - 0.7 * w.lp / w.n,
    ),
    "bco": (
        BCO(beta=0.4),
        lambda w, l: nls(0.4 * w.s - 0.3) + nls(-(0.4 * l.s - 0.3)),
        lambda w, l: nls(0.4 * w.s) + nls(-0.4 * l.s),  # without the shift
    ),
    "cal_dpo": (
        CalDPO(beta=0.4),
        lambda w, l: nls(w.s - l.s) + (w.s - 1.25) ** 2 + (l.s + 1.25) ** 2,
        lambda w, l: nls(w.s - l.s) + (w.s - 0.2) ** 2 + (l.s + 0.2) ** 2,  # beta / 2 as the target
    ),
    "alpha_po": (
        AlphaPO(beta=1.5, gamma=0.4, alpha=0.5),
        lambda w, l: nls(1.5 * ((1 - mean_q(w, 0.5)) / 0.5 - (1 - mean_q(l, 0.5)) / 0.5) - 0.4),
        lambda w, l: nls(1.5 * (w.lp / w.n - l.lp / l.n) - 0.4),  # SimPO
    ),
    "gpo": (
        GPO(beta=0.4),
        lambda w, l: math.exp(-0.4 * (w.s - l.s)),
        lambda w, l: nls(0.4 * (w.s - l.s)),
    ),
    "gpo, truncated-quadratic": (
        GPO(beta=0.4, function="truncated-quadratic"),
        lambda w, l: max(0, 1 - 0.4 * (w.s - l.s)) ** 2,
        lambda w, l: max(0, 1 + 0.4 * (w.s - l.s)) ** 2,
    ),
    "gpo, savage": (
        GPO(beta=0.4, function="savage"),
        lambda w, l: (1 - sigmoid(0.4 * (w.s - l.s))) ** 2,
        lambda w, l: 1 - sigmoid(0.4 * (w.s - l.s)),
    ),
    "focal_po": (
        FocalPO(beta=0.4, gamma=0.5),
        lambda w, l: sigmoid(0.4 * (w.s - l.s)) ** 0.5 * nls(0.4 * (w.s - l.s)),
        lambda w, l: sigmoid(-0.4 * (w.s - l.s)) ** 0.5 * nls(0.4 * (w.s - l.s)),  # focal loss
    ),
    "dpo_shift": (
        DPOShift(beta=0.4, dpo_lambda=0.75),
        lambda w, l: nls(0.4 * w.s - 0.75 * 0.4 * l.s),
        lambda w, l: nls(0.75 * 0.4 * w.s - 0.4 * l.s),  # the other one's weight
    ),
    "dpo_nll": (
        DPONLL(beta=0.4, alpha=0.7),
        lambda w, l: 0.7 * nls(0.4 * (w.s - l.s)) - w.lp / w.n,
        lambda w, l: nls(0.4 * (w.s - l.s)) - 0.7 * w.lp / w.n,  # the other term's weight
    ),
    "hinge_norm": (
        HingeNorm(beta=0.4),
        lambda w, l: max(0, 1 - 0.4 * (w.s - l.s)),
        lambda w, l: max(0, 1 - 0.4 * (w.lp - l.lp)),  # SLiC's, without a reference
    ),
    "f_dpo, js": (
        FDPO(beta=0.4, divergence="js"),
        lambda w, l: nls(0.4 * (math.log(sigmoid(w.s)) - math.log(sigmoid(l.s)))),
        lambda w, l: nls(0.4 * (math.log(sigmoid(-w.s)) - math.log(sigmoid(-l.s)))),
    ),
    "f_dpo, forward_kl": (
        FDPO(beta=0.4, divergence="forward_kl"),
        lambda w, l: nls(-0.4 * math.exp(-w.s) + 0.4 * math.exp(-l.s)),
        lambda w, l: nls(0.4 * math.exp(-w.s) - 0.4 * math.exp(-l.s)),  # pushes the chosen down
    ),
    "f_dpo, alpha": (
        FDPO(beta=0.4, divergence="alpha", alpha=0.3),
        lambda w, l: nls(0.4 / 0.3 * (math.exp(-0.3 * l.s) - math.exp(-0.3 * w.s))),
        lambda w, l: nls(1 / 0.3 * (math.exp(-0.3 * l.s) - math.exp(-0.3 * w.s))),  # without beta
    ),
    "ld_dpo": (
        LDDPO(beta=0.4, ld_alpha=0.3),
        lambda w, l: nls(0.4 * (common(w, l, 0.3) - common(l, w, 0.3))),
        lambda w, l: nls(0.4 * 0.3 * (w.s - l.s)),  # all tokens weighed
    ),
    "tr_dpo": (
        TRDPO(beta=0.4),
        lambda w, l: nls(0.4 * (w.s - l.s)),
        lambda w, l: nls(0.4 * (w.lp - l.lp)),
    ),
    "dpo, length-averaged": (
        DPO(beta=0.4, length_average=True),
        lambda w, l: nls(0.4 * (w.s / w.n - l.s / l.n)),
        lambda w, l: nls(0.4 * (w.s - l.s)),
    ),
}


def row(logp, ref, mask, more=0.0):
    """Return a completion in plain numbers, with `more` nats on its first token."""
    n = int(mask.sum())
    lp, ref = [x + more * (t == 0) for t, x in enumerate(logp.tolist()[:n])], ref.tolist()[:n]
    tokens = list(zip(lp, ref, strict=True))
    return SimpleNamespace(lp=sum(lp), s=sum(a - b for a, b in tokens), n=n, tokens=tokens)


def in_plain_numbers(equation, logp, batch):
    """Return losses [B] and their derivatives [B][2] by the first token's log-probability."""
    losses, slopes = [], []
    for i, p in enumerate(batch["p"].tolist()):
        parts = [(logp[i, k], batch["ref_logp"][i, k], batch["mask"][i, k]) for k in (0, 1)]

        def loss(*more, parts=parts, p=p):
            w, l = (row(*part, e) for part, e in zip(parts, more, strict=True))
            return p * equation(w, l) + (1 - p) * equation(l, w)

        losses.append(loss(0, 0))
        e = 1e-5
        slopes.append([(loss(*s) - loss(*(-x for x in s))) / (2 * e) for s in ((e, 0), (0, e))])
    return losses, slopes


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_published_equation(name):
    method, equation, mistaken = CASES[name]
    method.check()
    logp, batch = draw()
    loss = method.loss(logp, batch)[0]
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    losses, slopes = in_plain_numbers(equation, logp, batch)
    assert loss.tolist() == pytest.approx(losses)
    assert gradient[..., 0].tolist() == [pytest.approx(s, abs=1e-7, rel=1e-6) for s in slopes]
    others, other_slopes = in_plain_numbers(mistaken, logp, batch)  # negative control
    found, wrong = (losses + sum(slopes, []), others + sum(other_slopes, []))
    assert found != pytest.approx(wrong, rel=1e-3)


@pytest.mark.parametrize("p", [1.0, 0.8])
def test_exo_is_the_reverse_kl_to_the_smoothed_label(p):
    logp, batch = draw()
    batch["p"] = torch.full((3,), p).double()
    method = EXO(beta=0.4, label_smoothing=0.05)
    loss = method.loss(logp, batch)[0]
    target = p * 0.95 + (1 - p) * 0.05
    told, forward = (
        in_plain_numbers(equation, logp, batch | {"p": torch.ones(3)})
        for equation in (
            lambda w, l: kl_of_two(sigmoid(0.4 * (w.s - l.s)), target),
            lambda w, l: kl_of_two(target, sigmoid(0.4 * (w.s - l.s))),  # as DPO has it
        )
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert loss.tolist() == pytest.approx(told[0])
    assert gradient[..., 0].tolist() == [pytest.approx(s, abs=1e-7) for s in told[1]]
    assert loss.tolist() != pytest.approx(forward[0], rel=1e-3)


def test_every_pair_loss_has_its_equation_here():
    classes = installed().classes["methods"].values()
    ours = [c for c in classes if issubclass(c, PairLoss) and not issubclass(c, CoupledLoss)]
    shipped = {c for c in ours if c.__module__.startswith("harness_")}
    assert shipped == {type(m) for m, *_ in CASES.values()} - {DPO} | {EXO}


def test_tail_of_the_longer_completion_weighs_ld_alpha():
    logp, batch = draw()
    loss = LDDPO(beta=0.4, ld_alpha=0.3).loss(logp, batch)[0]
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient[0, 0, 2:].tolist() == pytest.approx((0.3 * gradient[0, 0, :2]).tolist())
    assert gradient[2, 0, 0] == gradient[2, 0, 1]  # equal lengths have no tail


def test_dpop_has_one_gradient_at_the_reference_whatever_rounding_does():
    """The penalty is 15 times as steep as the loss, and at the start s_w is 0 up to rounding."""
    gradients = []
    for rounding in (-3e-6, 0.0, 3e-6):
        logp, batch = draw()
        batch["ref_logp"] = logp.detach().clone()
        batch["ref_logp"][:, 0, 0] += rounding
        loss = DPOP(beta=0.3).loss(logp, batch)[0].mean()
        gradients.append(torch.autograd.grad(loss, logp)[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[1], atol=1e-5, rtol=1e-4)


# -- limits in which one is another ----------------------------------------------------------------

B = {"beta": 0.4}
LIMITS = {
    "focal_po, gamma 0": (FocalPO(**B, gamma=0.0), DPO(**B)),
    "dpo_shift, lambda 1": (DPOShift(**B, dpo_lambda=1.0), DPO(**B)),
    "ld_dpo, alpha 1": (LDDPO(**B, ld_alpha=1.0), DPO(**B)),
    "r_dpo, alpha 0": (RDPO(**B, alpha=0.0), DPO(**B)),
    "dpop, lambda 0": (DPOP(**B, dpop_lambda=0.0), DPO(**B)),
    "f_dpo, reverse KL": (FDPO(**B, divergence="reverse_kl"), DPO(**B)),
    "f_dpo, alpha to 0": (FDPO(**B, divergence="alpha", alpha=1e-7), DPO(**B)),
    "f_dpo, alpha to 1": (
        FDPO(**B, divergence="alpha", alpha=1 - 1e-7),
        FDPO(**B, divergence="forward_kl"),
    ),
    "alpha_po, alpha to 0": (
        AlphaPO(beta=2.0, gamma=0.5, alpha=1e-7),
        SimPO(beta=2.0, gamma=0.5),
    ),
    "tr_dpo": (TRDPO(**B), DPO(**B)),
}


def gradient_of(method, seed=1):
    logp, batch = draw(seed)
    batch["dpo_lambda"] = torch.ones(3).double()
    return torch.autograd.grad(method.loss(logp, batch)[0].sum(), logp)[0]


@pytest.mark.parametrize("name", LIMITS)
def test_at_a_limit_the_gradient_is_that_of_another_method(name):
    method, other = LIMITS[name]
    torch.testing.assert_close(gradient_of(method), gradient_of(other), atol=1e-6, rtol=1e-5)


def test_away_from_the_limit_it_is_not():
    for method in (FocalPO(**B), LDDPO(**B), RDPO(**B), FDPO(**B), AlphaPO()):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(
                gradient_of(method), gradient_of(DPO(**B)), rtol=1e-2, atol=0
            )


def test_cal_dpo_less_its_contrast_is_sppo():
    contrast = gradient_of(DPO(beta=1.0))
    torch.testing.assert_close(gradient_of(CalDPO(**B)) - contrast, gradient_of(SPPOHard(**B)))


def test_bco_without_its_shift_and_apo_zero_are_kto_like():
    """At s = 0 all of them push both completions by half of beta; the shift alone breaks it."""
    logp, batch = draw()
    level = batch["ref_logp"].clone().requires_grad_()
    batch["p"] = torch.ones(3).double()
    slopes = []
    for shift in (0.0, 0.3):
        batch["delta"] = torch.full((3,), shift).double()
        loss = BCO(**B).loss(level, batch)[0].sum()
        slopes.append(torch.autograd.grad(loss, level)[0][0, :, 0].tolist())
    assert slopes[0] == pytest.approx([-0.2, 0.2]) and slopes[1] != pytest.approx([-0.2, 0.2])


def test_discovered_loss_switches_at_the_margin_of_zero():
    method, dpo = DiscoPOP(beta=0.4, tau=1e-4), DPO(beta=0.4)
    logp, batch = draw()
    batch["p"] = torch.ones(3).double()
    turned = batch | {"ref_logp": batch["ref_logp"].flip(1)}
    seen = []
    for given in ((logp, batch), (logp.flip(1), turned)):
        ours, logistic = (m.loss(*given)[0].detach() for m in (method, dpo))
        h = dpo.loss(*given)[1]["margin"].detach()
        torch.testing.assert_close(ours, torch.where(h > 0, torch.exp(-h), logistic))
        seen += (h > 0).tolist()
    assert True in seen and False in seen


def test_apo_down_lowers_the_rejected_most():
    logp, batch = draw()
    level = batch["ref_logp"].clone().requires_grad_()
    batch["p"] = torch.ones(3).double()
    for method, chosen in ((APODown(**B), 0.0), (APOZero(**B), -0.1)):
        (gradient,) = torch.autograd.grad(method.loss(level, batch)[0].sum(), level)
        assert gradient[0, :, 0].tolist() == pytest.approx([chosen, 0.1])


@pytest.mark.parametrize("name", [*CASES, "exo"])
@pytest.mark.parametrize("apart", [300.0, -300.0])
def test_losses_of_far_pairs_are_finite(name, apart):
    method = EXO() if name == "exo" else CASES[name][0]
    logp, batch = draw(dtype=torch.float32)
    with torch.no_grad():
        logp[:, 0, 0] -= max(apart, 0)
        logp[:, 1, 0] -= max(-apart, 0)
    batch["p"] = torch.ones(3)
    loss = method.loss(logp, batch)[0]
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert loss.isfinite().all() and gradient.isfinite().all()


# -- TRL -------------------------------------------------------------------------------------------

E = {"label_smoothing": 0.05}
DPO_TRAINER = {
    "apo_zero": (APOZero(**B), {"loss_types": ["apo_zero"]}),
    "apo_down": (APODown(**B), {"loss_types": ["apo_down"]}),
    "nca": (NCA(**B), {"loss_types": ["nca_pair"]}),
    "exo": (EXO(**B, **E), {"loss_types": ["exo_pair"], **E}),
    "discopop": (
        DiscoPOP(**B, tau=0.05),
        {"loss_types": ["discopop"], "args": SimpleNamespace(discopop_tau=0.05)},
    ),
    "sppo_hard": (SPPOHard(**B), {"loss_types": ["sppo_hard"]}),
    "hinge_norm": (HingeNorm(**B), {"loss_types": ["hinge"]}),
    "bco, no shift": (BCO(**B), {"loss_types": ["bco_pair"]}),
    "dpo, length-averaged": (DPO(**B, length_average=True), {"loss_types": ["sigmoid_norm"]}),
    "ld_dpo": (LDDPO(**B, ld_alpha=0.3), {"loss_types": ["sigmoid"], "ld_alpha": 0.3}),
    "f_dpo, js": (
        FDPO(**B, divergence="js"),
        {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"},
    ),
    "f_dpo, forward_kl": (
        FDPO(**B, divergence="forward_kl"),
        {"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"},
    ),
    "f_dpo, alpha": (  # its coefficient is 1 - alpha
        FDPO(**B, divergence="alpha", alpha=0.3),
        {
            "loss_types": ["sigmoid"],
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 0.7,
        },
    ),
}


def assert_same(method, batch, logp, theirs):
    """The mean loss and its gradient are TRL's, and not at another beta."""
    ours = method.loss(logp, batch)[0].mean()
    torch.testing.assert_close(ours, theirs)
    one, other = (torch.autograd.grad(x, logp, retain_graph=True)[0] for x in (ours, theirs))
    torch.testing.assert_close(one * MASK, other * MASK)  # padding is the lab's, and 0
    with pytest.raises(AssertionError):
        wrong = replace(method, beta=1.5 * method.beta).loss(logp, batch)[0].mean()
        torch.testing.assert_close(wrong, theirs)


def plain(seed=2):
    """Return logp and a batch in float32 with plain labels and no shift."""
    logp, batch = draw(seed, torch.float32)
    return logp, batch | {"p": torch.ones(3), "delta": torch.zeros(3)}


@pytest.mark.parametrize("name", DPO_TRAINER)
def test_loss_is_that_of_trls_dpo_trainer(name):
    method, settings = DPO_TRAINER[name]
    logp, batch = plain()
    ref = batch["ref_logp"]
    if name == "ld_dpo":  # TRL weighs the reference's before the loss
        shared = MASK.amin(1, keepdim=True)
        ref = ref * (shared + 0.3 * (1 - shared))
    theirs = trl_dpo_loss(logp, ref, batch["mask"], beta=0.4, **settings)
    assert_same(method, batch, logp, theirs)


def test_cpo_and_alpha_po_are_those_of_trls_cpo_trainer():
    logp, batch = plain()
    theirs = trl_cpo_loss(logp, loss_type="sigmoid", beta=0.4)
    assert_same(CPO(beta=0.4, cpo_alpha=0.0), batch, logp, theirs)
    settings = {"loss_type": "simpo", "alpha": 0.5, "beta": 1.5, "simpo_gamma": 0.4}
    theirs = trl_cpo_loss(logp, batch["mask"], **settings)
    assert_same(AlphaPO(beta=1.5, gamma=0.4, alpha=0.5), batch, logp, theirs)


def test_trls_bco_pair_has_no_shift():
    logp, batch = plain()
    theirs = trl_dpo_loss(logp, batch["ref_logp"], batch["mask"], beta=0.4, loss_types=["bco_pair"])
    shifted = BCO(beta=0.4).loss(logp, batch | {"delta": torch.full((3,), 0.3)})[0].mean()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(shifted, theirs)


# -- optima, on expectations without noise ---------------------------------------------------------

ROUNDS = {"beta": 1.0, "steps": 1600, "ref_model_sync_steps": 800}
# Where several pairs have a kink, descent ends as near as the softness of the hinge; the policy of
# apo_zero nears the edge of the simplex slowly.
LOOSE = {"apo_zero": 3e-3, "dpop": 2e-3, "hinge_norm": 3e-3}
OPTIMA = {
    "alpha_po": AlphaPO(gamma=0.0),
    "alpha_po, margin": AlphaPO(),
    "apo_zero": APOZero(beta=1.0),
    "bco": BCO(beta=0.5),
    "cal_dpo": CalDPO(beta=0.5),
    "chipo": ChiPO(beta=0.5),
    "cpo": CPO(beta=0.5),
    "cpo, sum": CPO(beta=0.5, nll_reduction="sum"),
    "discopop": DiscoPOP(beta=0.5, tau=1.0),
    "dpo, length-averaged": DPO(beta=1.0, length_average=True),
    "dpo_nll": DPONLL(beta=0.5),
    "dpo_shift": DPOShift(beta=0.5),
    "dpop": DPOP(beta=0.5, dpop_lambda=1.0),
    "exo": EXO(beta=0.5),
    "f_dpo, js": FDPO(beta=0.5),
    "f_dpo, forward_kl": FDPO(beta=1.0, divergence="forward_kl"),
    "f_dpo, alpha": FDPO(beta=0.5, divergence="alpha"),
    "focal_po": FocalPO(beta=0.5),
    "gpo": GPO(beta=0.5),
    "gpo, truncated-quadratic": GPO(beta=0.5, function="truncated-quadratic"),
    "gpo, savage": GPO(beta=0.5, function="savage"),
    "hinge_norm": HingeNorm(beta=0.5),
    "ld_dpo": LDDPO(beta=0.5),
    "nca": NCA(beta=0.5),
    "r_dpo": RDPO(beta=0.5, alpha=0.2),
    "sppo_hard": SPPOHard(beta=0.5),
    "tr_dpo": TRDPO(**ROUNDS),
}


@pytest.mark.parametrize("name", sampled(OPTIMA, of=("r_dpo", "f_dpo, js")))
def test_with_exact_expectations_a_pair_loss_reaches_its_optimum(name):
    assert far_from(OPTIMA[name]) < LOOSE.get(name, 1e-4)


class PaidForLength(RDPO):
    """The sign of the length term turned round."""

    def pair_loss(self, w, l):
        h = self.beta * (w.ratio - l.ratio) - self.alpha * (w.length - l.length)
        return torch.nn.functional.softplus(-h)


class Unshifted(BCO):
    """The shift is 0, whatever the rewards."""

    def mean_reward(self, ratio, pairs):
        return 0.0


class Detached(FocalPO):
    """No gradient through the focal factor."""

    def pair_loss(self, w, l):
        log_p = torch.nn.functional.logsigmoid(self.beta * (w.ratio - l.ratio))
        return -torch.exp(self.gamma * log_p.detach()) * log_p


ENDS_ELSEWHERE = {
    "r_dpo": (PaidForLength(beta=0.5, alpha=0.2), RDPO(beta=0.5, alpha=0.2)),
    "bco": (Unshifted(beta=0.5), BCO(beta=0.5)),
    "focal_po": (Detached(beta=0.5), FocalPO(beta=0.5)),
    "f_dpo": (FDPO(beta=0.5), FDPO(beta=0.5, divergence="alpha")),
    "chipo": (ChiPO(beta=0.5, r_max=0.3), ChiPO(beta=0.5)),
    "tr_dpo": (DPO(beta=1.0), TRDPO(**ROUNDS)),
    "gpo": (DPO(beta=0.5), GPO(beta=0.5)),
    "ld_dpo": (LDDPO(beta=0.5, ld_alpha=0.0), LDDPO(beta=0.5)),
    "exo": (IPO(beta=0.5), EXO(beta=0.5)),
    "dpo_shift": (DPO(beta=0.5), DPOShift(beta=0.5)),
    "nca": (DPO(beta=0.5), NCA(beta=0.5)),
    "cal_dpo": (DPO(beta=1.0), CalDPO(beta=0.5)),
}


@pytest.mark.parametrize("name", sampled(ENDS_ELSEWHERE, of=("r_dpo",)))
def test_another_loss_ends_elsewhere(name):
    method, right = ENDS_ELSEWHERE[name]
    assert far_from(method, optimum_of=right) > 0.02


def test_exo_nears_the_optimum_of_rlhf_as_its_smoothing_goes_to_zero():
    problem = ExactLab().problem()
    far = [
        float(total_variation(EXO(beta=0.5, label_smoothing=e).optimum(problem), pi).max())
        for e, pi in ((e, problem.tilted(0.5)) for e in (0.2, 1e-2, 1e-4))
    ]
    assert far[0] > far[1] > far[2] and far[2] < 1e-3


def test_where_theory_names_no_optimum_none_is_stated():
    problem = ExactLab().problem()
    unknown = (
        APODown(beta=1.0),
        DiscoPOP(beta=0.5),
        APOZero(beta=1.5),  # not concave
        ChiPO(beta=0.5, r_max=0.3),  # margins of the reward are clipped
        DPOShift(dpo_lambda_strategy="increase_linear", steps=10),
        TRDPO(ref_model_mixup_alpha=0.5, steps=100),
        TRDPO(),
    )
    assert [m for m in unknown if m.optimum(problem) is not None] == []
    flags = [replace(m, shuffle_labels=True) for m in OPTIMA.values()]
    assert [m for m in flags if m.optimum(problem) is not None] == []


# -- loops and options -----------------------------------------------------------------------------


class FakeLab:
    """Pairs whose policy has a log-ratio of `drift` per step so far; keeps what is stepped on."""

    def __init__(self, steps=5, drift=0.0):
        self.state, self.steps, self.moves, self.logged, self.drift = {}, [], [], [], drift
        self.count = steps
        self.policy = SimpleNamespace(logp=lambda batch: batch["ref_logp"] + self.moved())
        self.reference = SimpleNamespace(logp=lambda batch: batch["ref_logp"])

    def moved(self):
        return self.drift * len(self.steps) * MASK / MASK.sum(-1, keepdim=True)

    def pairs(self, *_, **__):
        for _ in range(self.count):
            batch = dict(draw()[1])
            yield Columns(batch)

    def step(self, loss, batch):
        self.steps.append(batch)

    def move_reference(self, share):
        self.moves.append((len(self.steps), share))

    def log(self, **metrics):
        self.logged.append(metrics)


def test_shift_of_bco_is_a_running_mean_of_both_rewards():
    lab = FakeLab(steps=3, drift=1.0)
    BCO(beta=0.5, delta_decay=0.8).train(lab)
    told = [0.0, 0.2 * 0.5, 0.8 * 0.1 + 0.2 * 1.0]  # the reward is 0.5 per step so far
    assert [float(b["delta"][0]) for b in lab.steps] == pytest.approx(told)
    assert [x["delta"] for x in lab.logged] == pytest.approx(told)
    resumed = FakeLab(steps=1, drift=1.0)
    resumed.state = {"delta": 7.0}
    BCO(beta=0.5, delta_decay=0.8).train(resumed)
    assert float(resumed.steps[0]["delta"][0]) == pytest.approx(5.6)


def test_reference_of_tr_dpo_moves_every_tau_steps():
    lab = FakeLab(steps=5)
    TRDPO(ref_model_sync_steps=2, ref_model_mixup_alpha=0.6).train(lab)
    assert lab.moves == [(2, 0.6), (4, 0.6)]


@pytest.mark.parametrize(
    ("strategy", "told"), [("increase_linear", [0.5, 0.7]), ("decrease_linear", [0.9, 0.7])]
)
def test_weight_of_dpo_shift_changes_over_the_steps(strategy, told):
    lab = FakeLab(steps=2)
    limits = {"dpo_lambda_min": 0.5, "dpo_lambda_max": 0.9}
    DPOShift(dpo_lambda_strategy=strategy, steps=2, **limits).train(lab)
    assert [float(b["dpo_lambda"][0]) for b in lab.steps] == pytest.approx(told)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (AlphaPO(alpha=0.0), "simpo"),
        (AlphaPO(gamma=-1.0), "gamma"),
        (BCO(delta_decay=1.0), "delta_decay"),
        (ChiPO(r_max=0.0), "r_max"),
        (CPO(cpo_alpha=-1.0), "cpo_alpha"),
        (CPO(nll_reduction="mean"), "token-mean or sum"),
        (DiscoPOP(tau=0.0), "tau"),
        (DPONLL(alpha=0.0), "SFT"),
        (DPOP(dpop_lambda=-1.0), "dpop_lambda"),
        (DPOShift(dpo_lambda=1.5), "weights lie"),
        (DPOShift(dpo_lambda_strategy="up"), "increase_linear"),
        (DPOShift(dpo_lambda_strategy="increase_linear"), "set steps"),
        (DPOShift(dpo_lambda_max=0.9), "no meaning"),
        (EXO(label_smoothing=0.0), "infinite"),
        (FDPO(divergence="kl"), "reverse_kl"),
        (FDPO(divergence="alpha", alpha=1.0), r"\(0, 1\)"),
        (FDPO(alpha=0.3), "no meaning"),
        (FocalPO(gamma=-0.1), "gamma"),
        (GPO(function="logistic"), "is dpo"),
        (LDDPO(ld_alpha=1.1), "ld_alpha"),
        (TRDPO(ref_model_sync_steps=0), "ref_model_sync_steps"),
        (TRDPO(ref_model_mixup_alpha=0.0), "ref_model_mixup_alpha"),
        (TRDPO(ref_model_mixup_alpha=0.5, lora_rank=4), "average of two adapters"),
        (NCA(beta=0.0), "beta"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_options_that_make_no_sense_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        method.check()
