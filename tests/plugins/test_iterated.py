"""Iterated methods: loss and gradient against published equations in plain Python, limits in which
one is another, and each one's optimum against its own training.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from harness_plugins.iterated.a_lol import ALoL
from harness_plugins.iterated.nash_md import NashMD
from harness_plugins.iterated.rebel import REBEL
from harness_plugins.iterated.spin import SPIN
from harness_plugins.iterated.sppo import SPPO
from harness_plugins.iterated.theory import least_squares, token_mixture
from harness_plugins.iterated.xpo import XPO
from harness_plugins.online_dpo import OnlineDPO
from harness_plugins.rloo import RLOO

from ..helpers.equations import both, clip, drawn, in_plain_numbers, nls, sigma
from ..helpers.exact_lab import ExactLab, far_from
from ..helpers.registries import sampled

GAIN = torch.tensor([[0.3, -1.0, 0.8], [1.2, 0.1, -0.4], [0.0, 0.5, -2.0]]).double()
WINS = torch.tensor([[0.6, 0.3, 0.8], [0.1, 0.55, 0.5], [0.9, 0.2, 0.4]]).double()
POSITIVE = GAIN.clamp(min=0)


def rebel(ys, row, eta):
    pairs = [(0, 1), (0, 2), (1, 2)]
    errors = [(ys[i].s - ys[j].s) / eta - (row.gain[i] - row.gain[j]) for i, j in pairs]
    return sum(e**2 for e in errors) / 3


def a_lol(ys, row, rho):
    return -sum(a * rho(y) * y.lp for a, y in zip(row.advantage, ys, strict=True))


def by_token(ys, fixed, row):
    ratios = [[clip(math.exp(a - b), 0.1, 1.9) for a, b in y.tokens] for y in fixed]
    weighted = [
        sum(r * a for r, (a, _) in zip(rs, y.tokens, strict=True))
        for rs, y in zip(ratios, ys, strict=True)
    ]
    return -sum(a * w for a, w in zip(row.advantage, weighted, strict=True))


# name: (method, its columns, its equation, what others make of it), of completions, of the same
# without a gradient, and of the row's columns
CASES = {
    "rebel": (
        REBEL(eta=0.5),
        {"gain": GAIN},
        lambda ys, _, row: rebel(ys, row, 0.5),
        lambda ys, _, row: rebel(ys, row, 2.0),  # eta on the other side
    ),
    "sppo": (
        SPPO(beta=0.4),
        {"wins": WINS},
        lambda ys, _, row: sum(
            (y.s - (p - 0.5) / 0.4) ** 2 for y, p in zip(ys, row.wins, strict=True)
        ),
        lambda ys, _, row: sum((y.s - p / 0.4) ** 2 for y, p in zip(ys, row.wins, strict=True)),
    ),
    "xpo": (
        XPO(beta=0.4, alpha=0.3, num_generations=2),
        {
            "p": torch.tensor([[1.0], [0.0], [0.8]]).double(),
            "pair_weight": torch.ones(3, 1).double(),
            "beta": torch.full((3,), 0.4).double(),
        },
        lambda ys, _, row: (
            row.p[0] * nls(0.4 * (ys[0].s - ys[1].s))
            + (1 - row.p[0]) * nls(0.4 * (ys[1].s - ys[0].s))
            + 0.3 * ys[1].lp
        ),
        lambda ys, _, row: (  # the bonus with the other sign
            row.p[0] * nls(0.4 * (ys[0].s - ys[1].s))
            + (1 - row.p[0]) * nls(0.4 * (ys[1].s - ys[0].s))
            - 0.3 * ys[1].lp
        ),
    ),
    "spin": (
        SPIN(beta=0.4),
        {},
        lambda ys, *_: nls(0.4 * (ys[0].s - ys[1].s)),
        lambda ys, *_: nls(0.4 * (ys[0].lp - ys[1].lp)),  # without the reference
    ),
    "nash_md": (
        NashMD(),
        {"advantage": GAIN},
        lambda ys, _, row: -sum(a * y.lp for a, y in zip(row.advantage, ys, strict=True)),
        lambda ys, _, row: sum(a * y.lp for a, y in zip(row.advantage, ys, strict=True)),
    ),
    "a_lol": (
        ALoL(),
        {"advantage": POSITIVE},
        lambda ys, fixed, row: (
            -sum(
                a * clip(math.exp(f.s), 0.1, 1.9) * y.lp
                for a, y, f in zip(row.advantage, ys, fixed, strict=True)
            )
        ),
        lambda ys, _, row: a_lol(ys, row, lambda y: clip(math.exp(y.s), 0.1, 1.9)),  # a gradient
    ),
    "a_lol, seq": (
        ALoL(importance="token"),
        {"advantage": POSITIVE},
        by_token,
        lambda ys, _, row: a_lol(ys, row, lambda y: 1.0),
    ),
    "a_lol, ref. free": (
        ALoL(importance="none"),
        {"advantage": POSITIVE},
        lambda ys, _, row: a_lol(ys, row, lambda y: 1.0),
        lambda ys, _, row: a_lol(ys, row, lambda y: 1.0 / y.n),  # a mean over tokens
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_published_equation(name):
    method, columns, equation, mistaken = CASES[name]
    method.check()
    reference = "old_logp" if name == "rebel" else "ref_logp"
    k = 2 if name in ("xpo", "spin") else 3
    logp, batch = drawn(k, reference=reference, **columns)
    losses, slopes = both(method, logp, batch)
    right, wrong = (in_plain_numbers(x, logp, batch, reference) for x in (equation, mistaken))
    assert losses == pytest.approx(right[0])
    assert slopes == [pytest.approx(row, abs=1e-7, rel=1e-6) for row in right[1]]
    found, off = losses + sum(slopes, []), wrong[0] + sum(wrong[1], [])
    assert found != pytest.approx(off, rel=1e-3)


def test_an_unknown_reward_moves_no_completion():
    unknown = GAIN.clone()
    unknown[0] = float("nan")
    for method, columns in (
        (REBEL(), {"gain": unknown}),
        (SPPO(beta=0.4), {"wins": SPPO().win_rates(unknown)}),
    ):
        reference = "old_logp" if method.name == "rebel" else "ref_logp"
        slopes = both(method, *drawn(reference=reference, **columns))[1]
        assert slopes[0] == [0.0] * 3 and any(slopes[1])


def test_win_rates_are_means_over_all_samples_of_a_prompt():
    reward = torch.tensor([[0.0, 1.0, 3.0]]).double()
    expected = [sum(sigma(a - b) for b in (0, 1, 3)) / 3 for a in (0, 1, 3)]
    assert SPPO().win_rates(reward)[0].tolist() == pytest.approx(expected)


# -- limits ----------------------------------------------------------------------------------------


def test_at_its_sampler_rebel_is_the_gradient_of_rloo_with_two_samples():
    """Where pi = pi_t, d/ds (s_1 - s_2 - (r_1 - r_2))^2 / 2 is the difference of rewards."""
    logp, batch = drawn(2, reference="old_logp", gain=GAIN[:, :2])
    batch["old_logp"] = logp.detach().clone()
    slopes = both(REBEL(eta=1.0), logp, batch)[1]
    advantages = RLOO(num_generations=2).advantages(GAIN[:, :2])
    assert slopes == [pytest.approx(row, rel=1e-6) for row in (-2 * advantages).tolist()]
    longer = both(REBEL(eta=2.0), logp, batch)[1]  # negative control: another step size
    assert longer != [pytest.approx(row, rel=1e-3) for row in (-2 * advantages).tolist()]


def test_without_its_bonus_xpo_is_online_dpo_on_the_same_pairs():
    columns = {**CASES["xpo"][1]}
    logp, batch = drawn(2, **columns)
    plain = both(OnlineDPO(beta=0.4), logp, batch)
    assert both(XPO(beta=0.4, alpha=0.0), logp, batch) == plain
    assert both(XPO(beta=0.4, alpha=0.3), logp, batch) != plain


def test_pairs_of_xpo_are_of_both_models():
    i, j = XPO(num_generations=4).pairs(4)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_a_mixture_of_one_model_is_that_model():
    problem = ExactLab(limit=2).problem()
    policy = problem.tilted(1.0)
    torch.testing.assert_close(token_mixture(problem, policy, 0.0), policy)
    torch.testing.assert_close(token_mixture(problem, policy, 1.0), problem.ref)
    between = token_mixture(problem, policy, 0.3)
    torch.testing.assert_close(between.sum(-1), torch.ones(2).double())
    whole = (0.7 * policy.log() + 0.3 * problem.ref.log()).softmax(-1)
    assert (between - whole).abs().max() > 1e-3  # normalised by token, not by completion


def test_least_squares_of_a_reachable_target_is_the_target():
    policy = torch.tensor([[0.2, 0.5, 0.3]]).double()
    s = torch.tensor([[0.4, 0.1, -0.6]]).double()
    s = s - (policy * s.exp()).sum(-1, keepdim=True).log()
    torch.testing.assert_close(least_squares(policy, s), s)
    raised = least_squares(policy, s + 0.5)
    torch.testing.assert_close((policy * raised.exp()).sum(-1), torch.ones(1).double())


# -- optima, on expectations without noise ---------------------------------------------------------

SHORT = {"limit": 2}
OPTIMA = {
    "a_lol": (ALoL(), SHORT | {"steps": 800}),
    "a_lol, ref. free": (ALoL(importance="none"), SHORT | {"steps": 800}),
    "nash_md": (NashMD(beta=0.2, steps=400, mixture_coef=0.3), SHORT | {"steps": 400}),
    "rebel": (REBEL(beta=0.5, steps=100), SHORT | {"steps": 400}),
    "spin": (SPIN(beta=2.0, steps=400, rounds=2), SHORT | {"steps": 200}),
    "sppo": (SPPO(beta=0.5, steps=200, rounds=2, num_generations=3), SHORT | {"steps": 100}),
    "xpo": (XPO(beta=1.0, steps=250, alpha=0.02, labels="soft"), SHORT | {"steps": 250}),
}


@dataclass
class ExactValue(ALoL):
    """The reference's expected reward instead of a mean of samples."""

    def value(self, lab, prompts):
        problem = lab.problem()
        pairs = len(next(lab.pairs())["weight"]) // len(problem.ref)
        return problem.expected(problem.ref).repeat_interleave(pairs)


def exact(method):
    if type(method) is ALoL:
        return ExactValue(importance=method.importance)
    return method


@pytest.mark.parametrize("name", sampled(OPTIMA, of=("rebel", "spin")))
def test_with_exact_expectations_a_method_reaches_its_optimum(name):
    method, how = OPTIMA[name]
    assert far_from(exact(method), **how) < 2e-3


@dataclass
class AgainstItself(NashMD):
    """The opponent is the policy, whatever the share."""

    def train(self, lab):
        return NashMD(**{**vars(self), "mixture_coef": 0.0}).train(lab)


@dataclass
class Unmoved(SPIN):
    """The reference stays in the second round."""

    def in_rounds(self, lab, stream):
        for _ in range(self.rounds):
            yield from stream(self.steps // self.rounds)


ENDS_ELSEWHERE = {
    "spin": Unmoved(beta=2.0, steps=400, rounds=2),
    "xpo": XPO(beta=1.0, steps=250, alpha=0.0, labels="soft"),
    "nash_md": AgainstItself(beta=0.2, steps=400, mixture_coef=1.0),
    "sppo": SPPO(beta=0.5, steps=100, rounds=1, num_generations=3),
}


@pytest.mark.parametrize("name", sampled(ENDS_ELSEWHERE, of=("spin",)))
def test_another_method_ends_elsewhere(name):
    right, how = OPTIMA[name]
    if name == "nash_md":
        right = replace(right, mixture_coef=1.0)
    assert far_from(ENDS_ELSEWHERE[name], optimum_of=right, **how) > 0.01


def test_optimum_of_spin_has_no_mass_where_nothing_is_demonstrated():
    problem = ExactLab(limit=1).problem()
    seen = torch.arange(problem.ref.shape[1]) % 2
    shares = (seen / seen.sum()).double().expand_as(problem.ref)
    for rounds in (1, 3):
        optimum = SPIN(beta=2.0, rounds=rounds).optimum(replace(problem, demonstrated=shares))
        assert optimum[:, seen == 0].eq(0).all()
        torch.testing.assert_close(optimum.sum(-1), torch.ones(len(optimum)).double())


def test_where_theory_names_no_optimum_none_is_stated():
    problem = ExactLab(limit=2).problem()
    unknown = (
        REBEL(beta=0.0),
        SPPO(temperature=0.7),
        XPO(labels="argmax"),
        XPO(beta=0.5, alpha=0.5, labels="soft"),  # the bonus has no interior point
        XPO(move_reference_every=10),
        NashMD(beta=0.0),
        ALoL(importance="token"),
    )
    assert [m for m in unknown if m.optimum(problem) is not None] == []
    assert SPIN().optimum(replace(problem, demonstrated=None)) is None


# -- rounds and options ----------------------------------------------------------------------------


class FakeLab:
    """A lab whose streams have one turn, and which counts moves of the reference."""

    def __init__(self, state=()):
        self.state, self.moves = dict(state), 0

    def move_reference(self):
        self.moves += 1


def test_the_reference_moves_between_rounds_and_not_again_after_a_restart():
    method = SPIN(rounds=3, steps=6)
    lab = FakeLab()
    turns = [lab.moves for _ in method.in_rounds(lab, lambda steps: iter(range(steps)))]
    assert turns == [0, 0, 1, 1, 2, 2]
    again = FakeLab(state={"rounds": 1})  # the first stream is done, and yields nothing
    streams = iter([0, 1, 2])
    turns = [
        again.moves
        for _ in method.in_rounds(again, lambda steps: iter(range(steps * (next(streams) > 0))))
    ]
    assert turns == [0, 0, 1, 1] and again.state["rounds"] == 2


@pytest.mark.parametrize(
    ("steps", "turns"), [(7, [0, 0, 0, 1, 1, 2, 2]), (2, [0, 1]), (3, [0, 1, 2])]
)
def test_steps_that_rounds_do_not_divide_are_all_taken(steps, turns):
    lab = FakeLab()
    method = SPIN(rounds=3, steps=steps)
    assert [lab.moves for _ in method.in_rounds(lab, lambda n: iter(range(n)))] == turns
    assert SPIN(rounds=3).steps_of_rounds() == [0, 0, 0]  # each round goes by epochs


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (REBEL(num_generations=1), "pair"),
        (REBEL(eta=0.0), "eta"),
        (REBEL(num_iterations=0), "num_iterations"),
        (SPPO(num_generations=1), "opponent"),
        (SPPO(beta=0.0), "beta"),
        (SPPO(rounds=0), "rounds"),
        (SPPO(adaptive_beta=True), "moved reference"),
        (XPO(num_generations=3), "even"),
        (XPO(alpha=-1.0), "alpha"),
        (SPIN(beta=0.0), "beta"),
        (NashMD(mixture_coef=1.5), "mixture_coef"),
        (ALoL(importance="all"), "sequence, token or none"),
        (ALoL(clip_range=1.0), "clip_range"),
        (ALoL(num_generations=0), "num_generations"),
        (ALoL(shuffle_labels=True), "not used"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_options_that_make_no_sense_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        method.check()
