"""Methods through the whole command on the suite `exact`, sampling and all: each near its own
optimum, faults far off.

The derivations of the optima stand in test_exact.py, where expectations are exact; here the same is
reached by the embedded model, from samples, through stages, lab, trainer and evaluator. The first
methods run by default; the rest are slow.
"""

import json
import re
from pathlib import Path

import pytest
from harness_suites.embedded import GROUPS
from harness_suites.exact import Exact

from ..helpers.tools import command, fresh, plugin, results

FAULTY = '''
"""Methods with one fault each."""

from dataclasses import dataclass

from harness import hookimpl, torch
from harness_plugins.dpo import DPO
from harness_plugins.ppo import PPO


@dataclass
class Flipped(PPO):
    """The KL pushes away from the reference."""

    name = "flipped"

    def shaped_rewards(self, score, logp, ref_logp, mask, beta):
        return super().shaped_rewards(score, ref_logp, logp, mask, beta)


@dataclass
class Clamped(PPO):
    """Negative log-ratios are cut off at 0, token by token."""

    name = "clamped"

    def shaped_rewards(self, score, logp, ref_logp, mask, beta):
        return super().shaped_rewards(score, torch.maximum(logp, ref_logp), ref_logp, mask, beta)


@dataclass
class Endless(DPO):
    """The end token is taken for padding: pad is eos here."""

    name = "endless"

    def loss(self, logp, batch):
        kept = (batch["completion_ids"] != 0).float()
        return super().loss(logp * kept, batch.with_columns(ref_logp=batch["ref_logp"] * kept))


@hookimpl
def register_methods(register):
    for cls in (Flipped, Clamped, Endless):
        register(cls)
'''

SLOW = pytest.mark.slow


def run(method, *options, suite=(), more=()):
    """Run a method on `exact`, its settings or those given; return what the evaluation found."""
    sets = [word for option in options for word in ("--set", option)]
    sets += [word for option in suite for word in ("--suite-set", option)]
    done = command(
        "run", "-m", method, "-s", "exact", "--threads", "1", "--results", results(), *sets, *more
    )
    assert done.code == 0, done.text
    (folder,) = re.findall(rf"^{method} on exact, seed 0.* -> (.+)$", done.text, re.M)
    return json.loads((Path(folder) / "result.json").read_text())["evaluation"]


def settings_of(method):
    """The suite's settings of a method, as a faulty relative of another name must be told them."""
    return [f"{name}={value}" for name, value in Exact.settings[method].items()]


PAPER = ("kl_in=loss", "kl_estimator=k3")
SAMPLED = (  # the first by default
    "dpo",
    "ppo",
    "sft_chosen",
    "ipo",
    "simpo",
    "rloo",
    "grpo",
    "online_dpo",
    "rlvr",
    "reinforce_pp",
    "orpo",
    "raft",
    "slic",
    "kto",
    "rrhf",
    "cal_dpo",
    "chipo",
    "exo",
    "f_dpo",
    "gpo",
    "r_dpo",
    "sppo_hard",
    "wpo",
    *GROUPS,
)
CLOSER = {  # what the suite's settings, which are for a minute, leave too far away
    # where candidates are equally likely the loss has a kink: the last steps have to be small
    "rrhf": {"options": ["learning_rate=1e-3", "steps=1000", "batch_size=256"]},
}


@pytest.mark.slow  # by default: with exact expectations, tests/suites/test_exact.py
@pytest.mark.parametrize("method", SAMPLED)
def test_method_lands_near_its_optimum(method):
    how = CLOSER.get(method, {})
    evaluation = run(method, *how.get("options", ()))
    figures, kl = evaluation["suite"], evaluation["kl"]
    assert figures["tv"] < 0.02 and figures["start_tv"] > 3 * 0.02
    # the evaluator's KL is that of all answers: within 1.5 half-widths, a 99.7 % interval
    assert abs(kl["mean"] - figures["exact_kl"]) <= 1.5 * (kl["high"] - kl["mean"])
    if method in ("dpo", "ppo", "rloo", "grpo", "online_dpo", "rlvr"):
        assert 0 <= figures["regret"] < 0.01


@SLOW
def test_grpo_of_one_token_lands_near_its_own_optimum_and_not_at_that_of_rlhf():
    """k3 in the loss: ref / (1 - (a - E a) / beta); the KL in the reward: pi*."""
    own, other = (
        run("grpo", *PAPER, suite=["max_tokens=1"])["suite"],
        run("rloo", suite=["max_tokens=1"])["suite"],
    )
    assert own["tv"] < 0.02 and other["tv"] < 0.02
    assert abs(own["exact_kl"] - other["exact_kl"]) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "of"), [("endless", "dpo"), ("flipped", "ppo"), ("clamped", "ppo")]
)
def test_faulty_method_ends_far_from_it(fault, of):
    file = plugin(fresh("faulty"), "faulty", FAULTY)
    figures = run(fault, *settings_of(of), more=("-p", file))["suite"]
    assert figures["tv"] > 0.05


def test_sft_is_at_no_distance_from_itself():
    evaluation = run("start")
    assert evaluation["suite"]["exact_kl"] == 0 and evaluation["suite"][
        "exact_win_rate"
    ] == pytest.approx(0.5)
    assert "tv" not in evaluation["suite"]


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_answers_as_the_level_formula_says(ties):
    """It has no probabilities of its own: the suite tells what theory says, the evaluator what it
    saw.
    """
    seen = run("best_of_n", "n=4", suite=[f"ties={ties}"])
    told = seen["suite"]
    assert "exact_kl" not in told and "tv" not in told
    for sampled, exact in (("gold", "reward"), ("win_rate", "win_rate")):
        half = (seen[sampled]["high"] - seen[sampled]["low"]) / 2
        assert abs(seen[sampled]["mean"] - told[f"optimum_{exact}"]) < 2 * half
    # where answers tie, its estimate counts only those of the level that were drawn: too much, and
    # at most the bound
    allowed = (
        0.5 * (seen["kl_bound"] - told["optimum_kl"])
        if not ties
        else seen["kl_bound"] - told["optimum_kl"]
    )
    assert -0.02 < seen["kl"]["mean"] - told["optimum_kl"] < allowed + 0.02
    assert abs(seen["gold"]["mean"] - told["start_reward"]) > 0.2
