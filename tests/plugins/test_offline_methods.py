"""IPO, KTO, SLiC-HF, RRHF, SimPO and ORPO: losses by hand and by TRL, and optima against descent on
the same losses.
"""

import itertools
import math
import types
from collections import defaultdict

import pytest
import torch
from harness_plugins.dpo import DPO
from harness_plugins.ipo import IPO
from harness_plugins.kto import KTO
from harness_plugins.orpo import ORPO, log_odds
from harness_plugins.population import best_of, ordered_pairs
from harness_plugins.rrhf import RRHF
from harness_plugins.simpo import SimPO
from harness_plugins.slic import SLiC, knock_out, shuffled

from harness.core.options import options_of
from harness.models.enumeration import Enumerated, total_variation

from ..helpers.plain_losses import sigmoid, softplus
from ..helpers.trl_losses import trl_cpo_loss

LOG2 = math.log(2)
MASK = torch.tensor(
    [[[1.0, 1, 1, 1], [1, 1, 0, 0]], [[1, 0, 0, 0], [1, 1, 1, 0]], [[1, 1, 0, 0], [1, 1, 0, 0]]]
)


def draw(seed=0, mask=MASK):
    """Return logp, ref_logp (3, 2, 4), zero on padding, and a batch."""
    generator = torch.Generator().manual_seed(seed)
    logp, ref = (
        (-2 * torch.rand(mask.shape, generator=generator, dtype=torch.float64) - 0.1) * mask
        for _ in range(2)
    )
    p = torch.tensor([1.0, 0.8, 1.0], dtype=torch.float64)
    return logp.requires_grad_(), {"ref_logp": ref, "mask": mask.double(), "p": p}


def direct(batch, target=True):
    """Return a SLiC batch of labelled pairs, as SLiC.given makes it."""
    p = batch["p"][:, None]
    first = torch.zeros_like(p, dtype=torch.long)
    return batch | {
        "winner": first,
        "loser": first + 1,
        "kept": p,
        "flipped": 1 - p,
        "target": torch.cat([p, 1 - p], 1) * target,
    }


PAIR_METHODS = {
    "ipo": IPO(beta=0.2),
    "ipo averaged": IPO(beta=0.2, length_average=True),
    "simpo": SimPO(beta=2.0, gamma=0.5),
    "orpo": ORPO(lambda_or=0.3, nll_reduction="sequence-mean"),
    "slic": SLiC(delta=1.5, lambda_reg=0.2),
}


def by_hand(name, lp_w, lp_l, ref_w, ref_l, n_w, n_l):
    """Return the loss of one pair with a plain label, in plain Python."""
    if name == "ipo":
        return (lp_w - ref_w - lp_l + ref_l - 1 / 0.4) ** 2
    if name == "ipo averaged":
        return ((lp_w - ref_w) / n_w - (lp_l - ref_l) / n_l - 1 / 0.4) ** 2
    if name == "simpo":
        return -math.log(sigmoid(2 * lp_w / n_w - 2 * lp_l / n_l - 0.5))
    if name == "slic":
        return max(0.0, 1.5 - lp_w + lp_l) - 0.2 * lp_w
    odds_w, odds_l = (math.exp(m) / (1 - math.exp(m)) for m in (lp_w / n_w, lp_l / n_l))
    return -lp_w / n_w - 0.3 * math.log(sigmoid(math.log(odds_w / odds_l)))


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_pair_losses_by_hand(name):
    logp, batch = draw()
    loss = PAIR_METHODS[name].loss(logp, direct(batch))[0].tolist()
    wrong = []
    for i in range(3):
        sums, refs, lengths = (
            x[i].sum(-1).tolist() for x in (logp, batch["ref_logp"], batch["mask"])
        )
        told = by_hand(name, *sums, *refs, *lengths)
        other = by_hand(name, *sums[::-1], *refs[::-1], *lengths[::-1])  # the labels turned round
        p = batch["p"][i].item()
        assert loss[i] == pytest.approx(p * told + (1 - p) * other)
        wrong.append(other)
    with pytest.raises(AssertionError):
        assert loss == pytest.approx(wrong)


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_pair_raises_the_chosen_and_lowers_the_rejected(name):
    logp, batch = draw()
    batch["p"] = torch.ones(3, dtype=torch.float64)
    with torch.no_grad():  # all alike: no margin yet
        logp.copy_(-(MASK / MASK.sum(-1, keepdim=True)).double())
    batch["ref_logp"] = logp.detach().clone()
    (gradient,) = torch.autograd.grad(PAIR_METHODS[name].loss(logp, direct(batch))[0].sum(), logp)
    assert (gradient[:, 0][MASK[:, 0] > 0] < 0).all() and (gradient[:, 1][MASK[:, 1] > 0] > 0).all()
    batch["p"] = torch.zeros(3, dtype=torch.float64)  # negative control: labels turned round
    (gradient,) = torch.autograd.grad(PAIR_METHODS[name].loss(logp, direct(batch))[0].sum(), logp)
    assert (gradient[:, 0][MASK[:, 0] > 0] > 0).all()


@pytest.mark.parametrize("method", [DPO(), *(PAIR_METHODS[n] for n in ("ipo", "simpo", "orpo"))])
def test_accuracy_of_equal_likelihoods_is_a_half_whatever_their_rounding(method):
    logp, batch = draw()
    batch["p"] = torch.ones(3, dtype=torch.float64)
    level = -MASK.double()  # each token as likely: equal by token, and as the reference
    rounding = torch.tensor([[[1e-7], [0]], [[-1e-7], [0]], [[0], [0]]], dtype=torch.float64)
    batch["ref_logp"] = level
    metrics = method.loss(level + rounding * MASK, direct(batch))[1]
    assert metrics["accuracy"].tolist() == [0.5] * 3


@pytest.mark.parametrize("tau", [0.1, 0.7])
@pytest.mark.parametrize("average", [False, True])
def test_ipo_starts_at_its_squared_margin_and_rests_there(tau, average):
    _, batch = draw()
    method = IPO(beta=tau, length_average=average)
    loss, metrics = method.loss(batch["ref_logp"], batch)
    assert loss.tolist() == pytest.approx([1 / (4 * tau**2)] * 3)
    assert metrics["accuracy"].tolist() == [0.5] * 3  # ties
    lengths = batch["mask"].sum(-1, keepdim=True) if average else 1
    aim = torch.zeros(3, 2, 4, dtype=torch.float64)
    aim[:, 0, 0] = 1 / (2 * tau)
    batch["p"] = torch.ones(3, dtype=torch.float64)
    logp = (batch["ref_logp"] + aim * lengths).requires_grad_()
    rest = method.loss(logp, batch)[0]
    assert rest.abs().max() < 1e-20 and torch.autograd.grad(rest.sum(), logp)[0].abs().max() < 1e-9
    other = IPO(beta=tau, length_average=not average).loss(logp, batch)[0]
    assert other.max() > 1e-3  # negative control: the two forms differ where lengths do


def test_averaged_tau_is_token_sum_tau_over_the_length():
    mask = torch.ones(3, 2, 4)
    logp, batch = draw(mask=mask)
    averaged = IPO(beta=0.4, length_average=True).loss(logp, batch)[0]
    assert torch.allclose(averaged * 16, IPO(beta=0.1).loss(logp, batch)[0])
    assert not torch.allclose(averaged, IPO(beta=0.4).loss(logp, batch)[0])


# -- KTO -------------------------------------------------------------------------------------------


def singles(seed=1, label=(1.0, 0.0, 0.7), z0=0.4):
    logp, batch = draw(seed)
    batch = {"ref_logp": batch["ref_logp"][:, :1], "label": torch.tensor(label).double()}
    return logp.detach()[:, :1].requires_grad_(), batch | {"z0": torch.full((3,), z0).double()}


def test_kto_by_hand():
    logp, batch = singles()
    method = KTO(beta=0.3, desirable_weight=1.2, undesirable_weight=0.9)
    loss = method.loss(logp, batch)[0].tolist()
    for i, r in enumerate((logp - batch["ref_logp"]).sum((1, 2)).tolist()):
        good = 1.2 - 1.2 * sigmoid(0.3 * (r - 0.4))
        bad = 0.9 - 0.9 * sigmoid(0.3 * (0.4 - r))
        q = batch["label"][i].item()
        assert loss[i] == pytest.approx(q * good + (1 - q) * bad)
    swapped = method.loss(logp, batch | {"label": 1 - batch["label"]})[0].tolist()
    with pytest.raises(AssertionError):
        assert loss == pytest.approx(swapped)


def test_kto_starts_at_half_its_weights_and_pulls_each_its_way():
    logp, batch = singles(label=(1.0, 0.0, 1.0), z0=0.0)
    logp = batch["ref_logp"].clone().requires_grad_()
    loss = KTO(desirable_weight=1.3, undesirable_weight=0.8).loss(logp, batch)[0]
    assert loss.tolist() == pytest.approx([0.65, 0.4, 0.65])
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient[:, 0, 0].sign().tolist() == [-1, 1, -1]
    far = KTO(beta=1.0).loss((logp + 100).requires_grad_(), batch)[0]
    assert (
        float(torch.autograd.grad(far.sum(), logp)[0].abs().max()) < 1e-20
    )  # gains and losses saturate


class FakeModel:
    def __init__(self, logp):
        self.told, self.asked = logp, []

    def logp(self, batch):
        self.asked.append(batch)
        return self.told(batch)


class FakeLab:
    """What `train` asks of a lab; `steps` keeps the terms of every step."""

    def __init__(self, batches=(), reward=None):
        self.batches, self.scores, self.steps, self.logged, self.of = batches, reward, [], {}, None
        self.start, self.asked = object(), {}

    def labelled(self, epochs, steps, shuffle_labels):
        self.asked["shuffle_labels"] = shuffle_labels
        yield from self.batches

    def pairs(self, epochs, steps, shuffle_labels):
        yield from self.labelled(epochs, steps, shuffle_labels)

    def prompts(self, steps):
        yield from self.batches[:steps]

    def rollout(self, batch, n, of=None):
        self.of = of
        assert batch.shape[1] == n
        return batch

    def reward(self, batch):
        return self.scores

    def demonstrations(self, n):
        return ("demonstrations", n)

    def generator(self, purpose):
        return torch.Generator().manual_seed(0)

    def term(self, loss, batch, weight=1.0):
        return loss, batch, weight

    def step(self, *what):
        self.steps.append([self.term(*what)] if callable(what[0]) else list(what))

    def log(self, **metrics):
        self.logged |= metrics


@pytest.mark.parametrize(("drift", "told"), [(0.5, 0.5), (-0.5, 0.0)])
def test_z0_is_the_mean_over_the_batch_of_mismatched_pairs_then_clamped(
    make_batch, tokens, drift, told
):
    batch = make_batch(tokens, lengths=((3,), (3,), (3,), (3,)), open_ended=())
    batch = batch.with_columns(label=torch.tensor([1.0, 0, 1, 0]))
    shares = torch.tensor([8.0, -4, -2, 2])[:, None, None] / 3 * drift * batch["mask"]
    lab = FakeLab([batch])
    lab.policy = FakeModel(lambda b: shares - 1.0)
    lab.reference = FakeModel(lambda b: torch.zeros(4, 1, 3) - 1.0)
    assert KTO(shuffle_labels=True).train(lab) is lab.policy and lab.asked == {
        "shuffle_labels": True
    }
    (((_, stepped, _),),) = lab.steps
    assert float(lab.logged["z0"]) == pytest.approx(told)
    assert stepped["z0"].tolist() == pytest.approx([told] * 4) and not stepped["z0"].requires_grad
    apart = lab.policy.asked[0]
    assert torch.equal(
        apart["completion_ids"], batch["completion_ids"].roll(-1, 0)
    )  # the next example's completion
    assert not torch.equal(apart["completion_ids"], batch["completion_ids"])
    each = (shares.sum((1, 2))).clamp(min=0).mean()  # negative control: clamped before the mean
    assert float(each) != pytest.approx(told)


def test_kto_refuses_a_batch_of_one():
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        KTO(batch_size=1).check()
    KTO(batch_size=2).check()


# -- SLiC and RRHF ---------------------------------------------------------------------------------


def test_hinge_is_silent_beyond_its_margin():
    logp, batch = draw()
    batch["p"] = torch.ones(3, dtype=torch.float64)
    with torch.no_grad():
        logp[:, 0, 0] += 50
    for weight, silent in ((0.0, True), (0.1, False)):
        loss, metrics = SLiC(lambda_reg=weight).loss(logp, direct(batch))
        (gradient,) = torch.autograd.grad(loss.sum(), logp)
        assert not metrics["active"].any() and (gradient == 0).all() == silent
        assert (gradient[:, 1] == 0).all()
    (gradient,) = torch.autograd.grad(SLiC(delta=100.0).loss(logp, direct(batch))[0].sum(), logp)
    assert (gradient[:, 1] > 0).all()  # negative control


def test_knock_out_by_hand():
    winner, loser = knock_out(torch.tensor([[3.0, 1, 2, 5], [1, 1, 1, 1]]))
    assert winner.tolist() == [[0, 3, 3], [0, 2, 0]] and loser.tolist() == [[1, 2, 0], [1, 3, 2]]
    scores = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    winner, loser = knock_out(scores)
    assert winner.shape == (50, 7) and (winner[:, -1] == scores.argmax(1)).all()
    assert (scores.gather(1, winner) > scores.gather(1, loser)).all()
    for row in loser.tolist():
        assert len(set(row)) == 7  # everyone but the winner loses once


def candidates(make_batch, tokens):
    return make_batch(tokens, words=(3, 1), lengths=((2, 4, 1, 3), (3, 3, 2, 2)), open_ended=())


def test_slic_ranks_candidates_of_the_start_checkpoint(make_batch, tokens):
    batch, reward = (
        candidates(make_batch, tokens),
        torch.tensor([[0.3, 2.0, -1.0, 0.5], [1.0, 1.0, 1.0, math.nan]]),
    )
    lab = FakeLab([batch], reward)
    lab.policy = "policy"
    method = SLiC(mode="sample-rank", num_candidates=4, steps=1, delta=1.0, lambda_reg=0.1)
    method.check()
    assert method.train(lab) == "policy" and lab.of is lab.start
    (((loss, stepped, _),),) = lab.steps
    assert stepped["target"].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert stepped["kept"].tolist() == [
        [1, 1, 1],
        [0, 1, 0],
    ]  # ties teach nothing; what cannot be told loses
    logp = (
        -torch.rand(batch.shape, generator=torch.Generator().manual_seed(0)) * batch["mask"]
    ).requires_grad_()
    lp = logp.sum(-1).tolist()
    told = [
        (sum(max(0, 1 - lp[0][w] + lp[0][l]) for w, l in ((1, 0), (3, 2), (1, 3)))) / 3
        - 0.1 * lp[0][1],
        max(0, 1 - lp[1][2] + lp[1][3]) / 3 - 0.1 * lp[1][0],
    ]
    assert loss(logp, stepped)[0].tolist() == pytest.approx(told)
    lab.steps, method.shuffle_labels = [], True
    method.train(lab)
    assert lab.steps[0][0][1]["target"].tolist() != stepped["target"].tolist()


def test_slic_can_keep_demonstrations_likely(make_batch, tokens):
    batch = make_batch(tokens).with_columns(p=torch.tensor([1.0, 0.75, 1.0, 1.0]))
    lab = FakeLab([batch])
    lab.policy = "policy"
    method = SLiC(target="demonstrations", lambda_reg=0.3, batch_size=5)
    method.train(lab)
    (_, stepped, one), (nll, demos, weight) = lab.steps[0]
    assert not stepped["target"].any() and (one, demos, weight) == (1.0, ("demonstrations", 5), 0.3)
    assert stepped["kept"][1].tolist() == [0.75] and stepped["flipped"][1].tolist() == [0.25]
    assert nll(torch.tensor([[[-1.0, -2.0]], [[-3.0, 0.0]]]), None).tolist() == [3, 3]
    SLiC(lambda_reg=0.3).train(lab)
    assert len(lab.steps[1]) == 1 and lab.steps[1][0][1]["target"].any()
    assert "demonstrations" in method.required() and SLiC().required() == {"pairs"}
    assert SLiC(mode="sample-rank", steps=1).required() == {"prompts", "reward"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": "ranked"}, "mode is"),
        ({"target": "best"}, "target is"),
        ({"delta": 0}, "delta must"),
        ({"num_candidates": 4}, "no use of num_candidates"),
        ({"length_penalty": 0.1}, "no use of length_penalty"),
        ({"mode": "sample-rank"}, "set steps"),
        ({"mode": "sample-rank", "steps": 1, "epochs": 2.0}, "no use of epochs"),
        ({"mode": "sample-rank", "steps": 1, "num_candidates": 6}, "power of two"),
        ({"target": "demonstrations", "lambda_reg": 0.0}, "no weight"),
    ],
)
def test_slic_refuses_what_makes_no_sense(options, why):
    with pytest.raises(ValueError, match=why):
        SLiC(**options).check()
    SLiC().check(), SLiC(mode="sample-rank", steps=1, num_candidates=2, length_penalty=0.1).check()


@pytest.mark.parametrize("make", [IPO, KTO, SimPO, ORPO, SLiC, RRHF])
def test_numbers_that_make_no_sense_are_refused(make):
    make().check()
    bad = {
        IPO: {"beta": 0.0},
        KTO: {"undesirable_weight": 0.0},
        SimPO: {"gamma": -1.0},
        ORPO: {"nll_reduction": "mean"},
        SLiC: {"lambda_reg": -1.0},
        RRHF: {"num_candidates": 1},
    }[make]
    with pytest.raises(ValueError):
        make(**bad).check()


@pytest.mark.parametrize("make", [IPO, KTO, SimPO, ORPO, SLiC, RRHF])
def test_every_option_has_a_help(make):
    assert [name for name, option in options_of(make).items() if not option.help] == []


def rrhf_by_hand(lp, lengths, scores, weight, exponent):
    p = [x / n**exponent for x, n in zip(lp, lengths, strict=True)]
    pairs = itertools.permutations(range(len(p)), 2)
    rank = sum(max(0.0, p[i] - p[j]) for i, j in pairs if scores[i] < scores[j])
    best = scores.index(max(scores))
    return weight * rank - lp[best] / lengths[best]


@pytest.mark.parametrize(("weight", "exponent"), [(1.0, 1.0), (0.5, 0.0), (2.0, 1.3)])
def test_rrhf_by_hand(make_batch, tokens, weight, exponent):
    batch = candidates(make_batch, tokens)
    score = torch.tensor([[0.3, 2.0, -1.0, 0.3], [1.0, 4.0, 4.0, 0.0]])
    logp = (
        -3
        * torch.rand(batch.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        * batch["mask"]
    )
    method = RRHF(rrhf_weight=weight, length_exponent=exponent)
    loss = method.loss(logp, batch.with_columns(score=score))[0].tolist()
    hand = [logp.sum(-1).tolist(), batch.lengths.tolist(), score.tolist()]
    assert loss == pytest.approx(
        [rrhf_by_hand(*row, weight, exponent) for row in zip(*hand, strict=True)]
    )
    hand[2] = (-score).tolist()
    with pytest.raises(AssertionError):
        assert loss == pytest.approx(
            [rrhf_by_hand(*row, weight, exponent) for row in zip(*hand, strict=True)]
        )


def test_ties_and_right_orders_contribute_nothing_to_rrhf():
    logp = torch.tensor([[[-1.0], [-2.0], [-3.0]]], requires_grad=True)
    batch = {"mask": torch.ones(1, 3, 1)}
    for score, pulled in (
        ([[5.0, 5.0, 5.0]], False),
        ([[3.0, 2.0, 1.0]], False),
        ([[3.0, 1.0, 2.0]], True),
    ):
        loss, metrics = RRHF().loss(logp, batch | {"score": torch.tensor(score)})
        (gradient,) = torch.autograd.grad(loss.sum(), logp)
        assert gradient[0, 0, 0] == -1 and bool(gradient[0, 1:].any()) == pulled
        assert bool(metrics["misranked"].any()) == pulled


def test_rrhf_scores_candidates_of_the_start_checkpoint(make_batch, tokens):
    batch, reward = (
        candidates(make_batch, tokens),
        torch.tensor([[0.3, 2.0, -1.0, 0.5], [1.0, 1.0, math.nan, 2.0]]),
    )
    lab = FakeLab([batch], reward)
    lab.policy = "policy"
    assert RRHF(num_candidates=4).train(lab) == "policy" and lab.of is lab.start
    score = lab.steps[0][0][1]["score"]
    assert score[0].tolist() == reward[0].tolist() and score[1, 2] == -math.inf
    RRHF(num_candidates=4, shuffle_labels=True).train(lab)
    dealt = lab.steps[1][0][1]["score"]
    assert (
        dealt.tolist() != score.tolist()
        and dealt.sort(1).values.tolist() == score.sort(1).values.tolist()
    )


def test_shuffled_scores_say_nothing():
    scores = torch.arange(4.0).repeat(4000, 1)
    means = shuffled(scores, torch.Generator().manual_seed(0)).mean(0)
    assert (means - 1.5).abs().max() < 0.1 and (scores.mean(0) - 1.5).abs().max() > 1


# -- ORPO and SimPO --------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [-1e-5, -1e-3, -0.5, -LOG2, -2.0, -30.0, -80.0])
def test_log_odds_keep_their_digits_in_single_precision(m):
    told = m - math.log(-math.expm1(m))
    x = torch.tensor(m, requires_grad=True)
    assert log_odds(x).item() == pytest.approx(told, rel=1e-5, abs=1e-6)
    (gradient,) = torch.autograd.grad(log_odds(x), x)
    assert gradient.item() == pytest.approx(
        1 / -math.expm1(m), rel=1e-3
    )  # d log odds / d m = 1 / (1 - P)
    if m == -1e-5:
        naive = x - torch.log(1 - torch.exp(x))
        assert naive.item() != pytest.approx(told, rel=1e-5)  # negative control


def test_certain_completion_has_finite_odds():
    m = torch.zeros(2, requires_grad=True)
    assert (
        torch.isfinite(log_odds(m)).all()
        and torch.isfinite(torch.autograd.grad(log_odds(m).sum(), m)[0]).all()
    )


def test_where_both_are_alike():
    logp = -MASK.double() * 0.7
    batch = {"mask": MASK.double(), "p": torch.ones(3, dtype=torch.float64)}
    assert SimPO(gamma=0.0).loss(logp, batch)[0].tolist() == pytest.approx([LOG2] * 3)
    assert SimPO(gamma=0.4).loss(logp, batch)[0].tolist() == pytest.approx([softplus(0.4)] * 3)
    orpo = ORPO(lambda_or=0.2, nll_reduction="sequence-mean")
    assert orpo.loss(logp, batch)[0].tolist() == pytest.approx([0.7 + 0.2 * LOG2] * 3)
    summed = SimPO(gamma=0.0).loss(logp, batch | {"mask": torch.ones_like(MASK)})[0]
    assert summed.tolist() != pytest.approx(
        [LOG2] * 3
    )  # negative control: not divided by the own length


# -- TRL -------------------------------------------------------------------------------------------

ACCELERATOR = types.SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    unwrap_model=lambda x: x,
)


def outputs(flat):
    told = flat.detach()
    return types.SimpleNamespace(log_probs=flat, entropy=told, mean_logits=told, is_top1=told > -1)


def with_prompt(mask):
    """Return masks (N, T) with a column for one prompt token in front."""
    return torch.cat([torch.zeros(len(mask), 1), mask], 1).long()


def trl_pairs(logp, ref, mask, **settings):
    """Return TRL's DPO trainer's loss on given log-probabilities, with stand-ins for its model and
    its state.
    """
    trl = pytest.importorskip("trl")
    flat, masks = (
        x.transpose(0, 1).flatten(0, 1) for x in (logp, mask)
    )  # chosen stacked on rejected
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=False),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_weights=[1.0],
        use_weighting=False,
        label_smoothing=0.0,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        **settings,
    )
    chosen, rejected = ref.sum(-1).unbind(1)
    ids = torch.ones(len(flat), flat.shape[1] + 1, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": with_prompt(masks),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs(flat), inputs, False)


def trl_kto(logp, batch, apart, mask, **settings):
    """Return TRL's KTO trainer's loss; `apart` are the policy's and the reference's mismatched
    log-probabilities.
    """
    trl = pytest.importorskip("trl")

    class Model:
        training = True

        def __call__(self, **_):
            return outputs(logp[:, 0])

    trainer = types.SimpleNamespace(
        model=Model(),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        _compute_kl_logps=lambda model, batch: apart[0],
        **settings,
    )
    ids = torch.ones(len(logp), logp.shape[-1] + 1, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": with_prompt(mask),
        "label": batch["label"] > 0.5,
        "ref_logps": batch["ref_logp"].sum((1, 2)),
        "ref_KL_logps": apart[1],
    }
    return trl.KTOTrainer._compute_loss(trainer, trainer.model, inputs, False)


def trl_orpo(logp, batch, beta):
    """Return TRL's ORPO loss, its NLL over the completion's tokens alone, as that of an empty
    prompt would be.
    """
    orpo = pytest.importorskip("trl.experimental.orpo")
    mean = logp.sum(-1) / batch["mask"].sum(-1)
    chosen, rejected = mean.unbind(1)
    nll = -logp[:, 0].sum() / batch["mask"][:, 0].sum()
    trainer = types.SimpleNamespace(
        beta=beta,
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        concatenated_forward=lambda model, batch: (chosen, rejected, chosen, rejected, nll),
    )
    trainer.odds_ratio_loss = lambda *a: orpo.ORPOTrainer.odds_ratio_loss(trainer, *a)
    return orpo.ORPOTrainer.get_batch_loss_metrics(trainer, None, {})[0]


def plain(seed, mask=MASK):
    logp, batch = draw(seed, mask)
    batch["p"] = torch.ones(3, dtype=torch.float64)
    return logp.detach().float().requires_grad_(), {name: x.float() for name, x in batch.items()}


def same(ours, theirs, logp, wrong):
    """Check that two losses of logp agree in value and gradient, and that a wrong one does not."""
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, logp)[0], torch.autograd.grad(theirs, logp)[0]
    )
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong, theirs)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_averaged_ipo_is_trls(beta):
    logp, batch = plain(2)
    ours = IPO(beta=beta, length_average=True).loss(logp, batch)[0].mean()
    theirs = trl_pairs(logp, batch["ref_logp"], batch["mask"], loss_types=["ipo"], beta=beta)
    same(ours, theirs, logp, IPO(beta=beta).loss(logp, batch)[0].mean())


@pytest.mark.parametrize("sign", [1, -1])
def test_kto_is_trls(sign):
    logp, batch = plain(3)
    single, mask = logp[:, :1], batch["mask"][:, 0]
    told = {"ref_logp": batch["ref_logp"][:, :1], "label": torch.tensor([1.0, 0.0, 1.0])}
    apart = (
        torch.tensor([-1.0, -3.0, -2.0]),
        torch.tensor([-2.0, -3.5, -1.5]) - (0 if sign > 0 else -5),
    )
    z0 = (apart[0] - apart[1]).mean().clamp(min=0)
    assert (z0 > 0) == (sign > 0)
    settings = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.9}
    ours = KTO(**settings).loss(single, told | {"z0": z0.expand(3)})[0].mean()
    theirs = trl_kto(single, told, apart, mask, **settings).mean()
    wrong = KTO(**settings).loss(single, told | {"z0": z0.expand(3) + 1})[0].mean()
    same(ours, theirs, logp, wrong)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (0.1, 0.5), (2.5, 0.0)])
def test_simpo_is_trls(beta, gamma):
    logp, batch = plain(4)
    ours = SimPO(beta=beta, gamma=gamma).loss(logp, batch)[0].mean()
    wrong = SimPO(beta=beta, gamma=gamma + 0.3).loss(logp, batch)[0].mean()
    theirs = trl_cpo_loss(logp, batch["mask"], loss_type="simpo", beta=beta, simpo_gamma=gamma)
    same(ours, theirs, logp, wrong)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_is_trls(beta):
    logp, batch = plain(5)
    batch["tokens"] = batch["mask"][:, 0].sum(-1).mean().expand(3)
    ours, theirs = ORPO(lambda_or=beta).loss(logp, batch)[0].mean(), trl_orpo(logp, batch, beta)
    with pytest.raises(AssertionError):  # the other mean
        torch.testing.assert_close(
            ORPO(lambda_or=beta, nll_reduction="sequence-mean").loss(logp, batch)[0].mean(), ours
        )
    same(ours, theirs, logp, ORPO(lambda_or=2 * beta).loss(logp, batch)[0].mean())


# -- optima ----------------------------------------------------------------------------------------
#  The population loss of every method is written out below by listing every pair, or every tuple of
# candidates, and giving it to the loss that trains; Adam on float64 logits then goes down it. What
# `optimum` says is derived otherwise.


def world(seed=0, n=5, prompts=2, longest=3, ties=False):
    """Return a made-up problem: uneven start checkpoint and pair sampler, Bradley-Terry labels."""
    generator = torch.Generator().manual_seed(seed)
    ref, mu = (
        torch.randn(prompts, n, generator=generator, dtype=torch.float64).softmax(-1)
        for _ in range(2)
    )
    reward = torch.randn(prompts, n, generator=generator, dtype=torch.float64)
    reward = reward.round() if ties else reward
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).expand(prompts, n)
    prefer = torch.sigmoid(reward[:, :, None] - reward[:, None, :])
    return Enumerated(ref, reward, lengths, tuple((i,) for i in range(n)), mu, prefer)


def as_tokens(lp, lengths):
    """Return (..., T) per-token log-probabilities with these sums and lengths, and the mask."""
    mask = (torch.arange(int(lengths.max())) < lengths[..., None]).double()
    return lp[..., None] / lengths[..., None] * mask, mask


def of_pairs(method, problem):
    """Return the population loss (P,) of a pair method as a function of logp (P, N): all pairs, i
    before j.
    """
    p, n = problem.ref.shape
    i, j = torch.triu_indices(n, n, 1)
    weights = problem.mu[:, i] * problem.mu[:, j]
    weights = weights / weights.sum(-1, keepdim=True)
    two = torch.stack([i, j], 1)

    def loss(logp):
        values = []
        for x in range(p):
            tokens, mask = as_tokens(logp[x][two], problem.lengths[x][two])
            ref, _ = as_tokens(problem.ref[x].log()[two], problem.lengths[x][two])
            batch = {"mask": mask, "ref_logp": ref, "p": problem.prefer[x][i, j]}
            values.append((weights[x] * method.loss(tokens, direct(batch))[0]).sum())
        return torch.stack(values)

    return loss


def of_tuples(method, problem, k):
    """Return the population loss of RRHF or sample-rank SLiC: every tuple of k draws, by its
    probability.
    """
    p, n = problem.ref.shape
    tuples = torch.tensor(list(itertools.product(range(n), repeat=k)))

    def loss(logp):
        values = []
        for x in range(p):
            tokens, mask = as_tokens(logp[x][tuples], problem.lengths[x][tuples])
            score = problem.reward[x][tuples]
            winner, loser = knock_out(score) if k in (2, 4) else (None, None)
            batch = {"mask": mask, "score": score}
            if winner is not None:
                beaten = (score.gather(1, winner) > score.gather(1, loser)).double()
                best = torch.zeros_like(score).scatter(1, winner[:, -1:], 1.0)
                batch |= {
                    "winner": winner,
                    "loser": loser,
                    "kept": beaten,
                    "flipped": 0 * beaten,
                    "target": best,
                }
            values.append((problem.ref[x][tuples].prod(1) * method.loss(tokens, batch)[0]).sum())
        return torch.stack(values)

    return loss


def descend(loss, problem, steps=600, rate=0.3, start=None):
    """Return where Adam with a falling rate ends, from the start checkpoint or given logits."""
    logits = (problem.ref.log() if start is None else start).clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps) ** 2
        optimiser.zero_grad()
        loss(logits.log_softmax(-1)).sum().backward()
        optimiser.step()
    return logits.detach().softmax(-1)


def far(p, q):
    return float(total_variation(p, q).max())


SMOOTH = {
    "ipo": IPO(beta=0.3),
    "ipo averaged": IPO(beta=0.6, length_average=True),
    "simpo": SimPO(beta=1.5, gamma=0.0),
    "simpo margin": SimPO(beta=1.5, gamma=0.7),
    "orpo": ORPO(lambda_or=0.5, nll_reduction="sequence-mean"),
}
OTHERS = {
    "ipo": IPO(beta=0.3, length_average=True),
    "ipo averaged": IPO(beta=0.6),
    "simpo": SimPO(beta=2.5, gamma=0.0),
    "simpo margin": SimPO(beta=1.5, gamma=0.0),
    "orpo": ORPO(lambda_or=5.0, nll_reduction="sequence-mean"),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("seed", [0, 1])
def test_optimum_of_a_pair_method_is_where_descent_ends(name, seed):
    problem = world(seed)
    optimum, reached = (
        SMOOTH[name].optimum(problem),
        descend(of_pairs(SMOOTH[name], problem), problem),
    )
    assert far(optimum, reached) < 1e-3 and far(optimum, problem.ref) > 0.05
    assert far(OTHERS[name].optimum(problem), reached) > 5e-3  # negative control


def test_ipo_bounds_the_tilt_and_does_not_reach_the_optimum_of_rlhf():
    problem, tau = world(2), 0.3
    ratio = (IPO(beta=tau).optimum(problem) / problem.ref).log()
    assert (ratio.amax(-1) - ratio.amin(-1)).max() <= 1 / tau
    assert far(IPO(beta=tau).optimum(problem), problem.tilted(tau)) > 0.1
    uniform = Enumerated(**{**vars(problem), "mu": torch.full_like(problem.mu, 0.2)})
    assert (
        far(IPO(beta=tau).optimum(problem), IPO(beta=tau).optimum(uniform)) > 1e-3
    )  # it depends on the pairs' sampler


def test_simpo_forgets_the_start_checkpoint():
    problem = world(3, longest=1)
    optimum = SimPO(beta=0.5, gamma=0.0).optimum(problem)
    assert far(optimum, (problem.reward / 0.5).softmax(-1)) < 1e-12
    assert far(optimum, problem.tilted(0.5)) > 0.05  # DPO does not
    assert far(SimPO(beta=0.5, gamma=1.0).optimum(problem), optimum) > 0.01


def kto_population(method, problem, sizes):
    """Return KTO's population loss: every completion by how often it is seen, good or bad; z0 by a
    double loop.
    """
    p, n = problem.ref.shape
    pairs = problem.mu[:, :, None] * problem.mu[:, None, :] * (1 - torch.eye(n))
    seen = pairs.sum(2) / pairs.sum((1, 2))[:, None]
    good = (pairs * problem.prefer).sum(2) / pairs.sum(2)

    def loss(logp):
        ratio = (logp - problem.ref.log()).detach()
        z0 = sum(
            (seen[other] * ratio[x]).sum() / p**2 for x in range(p) for other in range(p)
        ).clamp(min=0)
        sizes.append(float(z0))
        values = []
        for x in range(p):
            batch = {
                "ref_logp": problem.ref[x].log()[:, None, None],
                "label": good[x],
                "z0": z0.expand(n),
            }
            values.append((seen[x] * method.loss(logp[x][:, None, None], batch)[0]).sum())
        return torch.stack(values)

    return loss


@pytest.mark.parametrize(
    ("options", "interior"),
    [
        ({"beta": 0.5}, False),
        ({"beta": 1.0}, False),
        ({"beta": 0.3, "undesirable_weight": 1.5}, False),
        (
            {"beta": 0.5, "desirable_weight": 40.0},
            True,
        ),  # nothing is worth avoiding: z0 has to be found
    ],
)
def test_kto_divides_the_mass_as_its_conditions_say(options, interior):
    problem, method, sizes = world(4, n=5), KTO(**options), []
    optimum = method.optimum(problem)
    reached = descend(kto_population(method, problem, sizes), problem, steps=1200)
    assert far(optimum, reached) < 5e-3
    assert far(optimum, problem.tilted(options["beta"])) > 0.05  # it is no route to pi*
    assert bool((optimum > 0).all()) == interior
    if interior:
        assert sizes[-1] > 0.01  # mu is not the start checkpoint, so z0 is above 0, and matters:
        ratio = torch.einsum("xy,zy->", (optimum / problem.ref).log(), seen_of(problem)) / 4
        assert float(ratio) == pytest.approx(sizes[-1], abs=1e-3)
    else:
        assert sizes[-1] == 0


def seen_of(problem):
    pairs = ordered_pairs(problem)
    return (pairs.sum(1) + pairs.sum(2)) / 2


def test_kto_says_nothing_where_its_conditions_do_not():
    problem = world(4)
    assert KTO(beta=1.5).optimum(problem) is None  # not concave
    assert KTO(undesirable_weight=50.0).optimum(problem) is None  # nothing is worth having
    assert KTO(shuffle_labels=True).optimum(problem) is None and KTO().optimum(problem) is not None


@pytest.mark.parametrize(
    "method",
    [SLiC(delta=1.0, lambda_reg=0.3), SLiC(delta=2.0, lambda_reg=0.1)],
    ids=lambda m: f"{m.delta}",
)
def test_slic_has_one_minimum_and_it_is_not_that_of_rlhf(method):
    problem = world(5)
    loss = of_pairs(method, problem)
    one = descend(loss, problem)
    start = torch.randn(2, 5, generator=torch.Generator().manual_seed(9)).double()
    other = descend(loss, problem, start=start)
    optimum = method.optimum(problem)
    assert far(one, other) < 5e-3 and far(optimum, one) < 5e-3 and far(optimum, other) < 5e-3
    assert far(optimum, problem.tilted(0.5)) > 0.05
    assert far(SLiC(delta=1.0, lambda_reg=2.0).optimum(problem), one) > 0.02  # negative control


@pytest.mark.parametrize("ties", [False, True])
def test_sample_rank_slic_ends_at_its_own_minimum(ties):
    problem = world(6, n=4, ties=ties)
    method = SLiC(mode="sample-rank", steps=1, num_candidates=4, lambda_reg=0.3)
    optimum, reached = method.optimum(problem), descend(of_tuples(method, problem, 4), problem)
    assert far(optimum, reached) < 5e-3
    assert (
        far(
            SLiC(mode="sample-rank", steps=1, num_candidates=2, lambda_reg=0.3).optimum(problem),
            reached,
        )
        > 0.03
    )


@pytest.mark.parametrize(("longest", "ties"), [(1, False), (1, True), (3, False)])
def test_rrhf_ends_at_its_own_minimum(longest, ties):
    problem, method = world(7, n=4, longest=longest, ties=ties), RRHF(num_candidates=3)
    optimum, reached = method.optimum(problem), descend(of_tuples(method, problem, 3), problem)
    assert far(optimum, reached) < 3e-3
    assert far(best_of(problem, 3), reached) > 6e-3  # imitation of the best alone ends elsewhere
    assert (
        far(RRHF(num_candidates=3, rrhf_weight=0.0).optimum(problem), best_of(problem, 3)) < 1e-3
        or longest > 1
    )


def test_best_of_is_an_enumeration():
    problem = world(8, n=4, ties=True)
    told = torch.zeros_like(problem.ref)
    for draws in itertools.product(range(4), repeat=3):
        for x in range(2):
            first = max(
                draws, key=lambda y, x=x: float(problem.reward[x, y])
            )  # the first of equals
            told[x, first] += problem.ref[x, list(draws)].prod()
    assert far(best_of(problem, 3), told) < 1e-12 and far(best_of(problem, 2), told) > 1e-3


@pytest.mark.parametrize("make", [IPO, KTO, SimPO, ORPO, SLiC, RRHF])
def test_labels_by_coin_have_no_optimum(make):
    assert make(shuffle_labels=True).optimum(world(0, n=3)) is None
