"""Process rewards: where a verifier's rewards of steps stand, and what GRPO and PPO make of it."""

import math
from dataclasses import dataclass

import pytest
import torch
from harness_plugins.grpo import GRPO
from harness_plugins.ppo import PPO
from harness_plugins.rlvr import RLVR
from harness_suites.arithmetic import Arithmetic, SumVerifier
from harness_suites.world.sums import problem_in

from harness.core.data import Prompt
from harness.core.errors import HarnessError
from harness.core.meter import Meter
from harness.models.loading import load_tokenizer
from harness.models.tokens import Tokens
from harness.training.step_rewards import step_rewards

from ..helpers.exact_lab import ExactLab, far_from
from ..helpers.tools import command, fresh

NAN = math.nan
PROCESS = {"rewards": "process", "reward": "verifier"}
ASKED = "Q: start with 5 then add 3 then take 2 ? A:"


@pytest.fixture(scope="module")
def tokens():
    return Tokens(load_tokenizer(str(Arithmetic().base_model())))


def test_every_prompt_of_arithmetic_is_read_as_its_problem():
    suite = Arithmetic()
    for prompt in suite.prompts("validation")[:100]:
        assert problem_in(prompt.text) == suite.problem(prompt.id)
    assert problem_in("tell me about sea in 7 words") is None


@pytest.mark.parametrize(
    ("text", "rewards"),
    [
        ("5 + 3 = 8 ; 8 - 2 = 6 .", {4: 1.0, 10: 1.0}),
        ("5 + 3 = 9 ; 9 - 2 = 7 .", {4: 0.0, 10: 1.0}),  # the second step follows the first
        ("5 - 3 = 2 ; 8 - 2 = 6 .", {4: 0.0, 10: 0.0}),
        ("5 + 3 = 8 ; 8 - 2 = 6 ; 6 + 1 = 7 .", {4: 1.0, 10: 1.0, 16: 0.0}),  # one too many
        ("", {}),
    ],
)
def test_rewards_stand_at_the_results_of_steps(tokens, text, rewards):
    batch = tokens.batch([Prompt("p", ASKED, "6")], [[tokens.answer_ids(ASKED, text)]])
    meter = Meter(lambda reset: 0)
    with meter.phase("score"):
        found = step_rewards(SumVerifier(), batch, torch.ones(1, 1).bool(), tokens, meter)[0, 0]
    known = (~found.isnan()).nonzero()[:, 0].tolist()
    assert {t: float(found[t]) for t in known} == rewards
    assert meter.total().verifier_queries == 1


def test_completion_that_cannot_be_graded_has_no_steps(tokens):
    text = "5 + 3 = 8 ."
    batch = tokens.batch([Prompt("p", ASKED)], [[tokens.answer_ids(ASKED, text)]])
    meter = Meter(lambda reset: 0)
    with meter.phase("score"):
        found = step_rewards(SumVerifier(), batch, torch.ones(1, 1).bool(), tokens, meter)
    assert found.isnan().all()


@dataclass
class Beyond(SumVerifier):
    """Says that a step ends behind the text."""

    def steps(self, prompt, completion, gold, ended):
        return [(len(completion) + 1, 1.0)]


def test_step_that_ends_nowhere_is_refused(tokens):
    batch = tokens.batch([Prompt("p", ASKED, "6")], [[tokens.answer_ids(ASKED, "5 .")]])
    meter = Meter(lambda reset: 0)
    with meter.phase("score"), pytest.raises(HarnessError, match="expected an end"):
        step_rewards(Beyond(), batch, torch.ones(1, 1).bool(), tokens, meter)


STEPS = torch.tensor([[[NAN, 1.0, NAN, 0.0], [0.0, NAN, 1.0, NAN]]]).double()


def test_advantages_of_grpo_are_sums_of_normalised_rewards_of_later_steps():
    """DeepSeekMath, sect. 4.1.3, by hand: rewards 1, 0, 0, 1 of a group; mean and spread 1/2."""
    up = 0.5 / (0.5 + 1e-4)
    by_hand = [[0.0, 0.0, -up, -up], [0.0, up, up, 0.0]]
    ours = GRPO(**PROCESS).step_advantages(STEPS)[0].tolist()
    assert ours == [pytest.approx(row) for row in by_hand]
    outcome = GRPO().advantages(STEPS.nansum(-1))  # equal sums: no signal without the steps
    assert not outcome.any()


def test_loss_of_grpo_takes_advantages_of_tokens():
    logp = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    advantages = GRPO(**PROCESS).step_advantages(STEPS)
    loss, _ = GRPO(**PROCESS).loss(
        logp, {"old_logp": logp.detach(), "advantages": advantages, "mask": torch.ones(1, 2, 4)}
    )
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(slope, -advantages)


def test_rewards_of_ppo_stand_where_steps_end():
    mask, zero = torch.ones(1, 2, 4).double(), torch.zeros(1, 2, 4).double()
    logp = torch.full_like(zero, 0.5)
    ours = PPO(**PROCESS).shaped_rewards(STEPS.nan_to_num(0.0), logp, zero, mask, 0.2)
    torch.testing.assert_close(ours, STEPS.nan_to_num(0.0) - 0.1)
    whole = PPO().shaped_rewards(STEPS.nansum(-1), logp, zero, mask, 0.2)  # negative control
    assert (ours - whole).abs().max() > 0.5


QUIET = {"missing_eos_penalty": 0.0, "whiten_advantages": False, "gae_lambda": 1.0}


class Unpaid(ExactLab):
    """The last step of every completion has no reward."""

    def step_rewards(self, batch):
        rewards = super().step_rewards(batch)
        last = self.mask[batch["index"]].sum(-1).long()[..., None] - 1
        return rewards.scatter(-1, last, 0.0)  # so the sum is not the reward


@pytest.mark.slow
def test_steps_that_sum_to_the_reward_have_its_optimum():
    """Where the rewards of steps sum to the reward, pi* is that of the reward (gamma is 1)."""
    outcome = PPO(beta=0.5, steps=400, **QUIET)
    process = PPO(beta=0.5, steps=400, **PROCESS, **QUIET)
    assert far_from(process, optimum_of=outcome, limit=2, steps=400) < 2e-3
    lab = Unpaid(limit=2, steps=400)  # negative control
    process.train(lab)
    assert lab.distance(outcome.optimum(lab.problem())) > 0.02
    assert process.optimum(lab.problem()) is None


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (GRPO(rewards="process"), "reward=verifier"),
        (GRPO(rewards="steps"), "outcome or process"),
        (GRPO(**PROCESS, kl_in="reward", kl_estimator="k1"), "kl_in=loss"),
        (PPO(**PROCESS), "missing_eos_penalty"),
        (RLVR(algorithm="rloo", rewards="process"), "no option rewards"),
    ],
)
def test_options_that_make_no_sense_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        method.check()


def test_process_rewards_need_a_verifier_of_steps():
    assert {"verifier", "steps"} <= GRPO(**PROCESS).required()
    assert "steps" not in GRPO(reward="verifier").required()
    assert "steps" in RLVR(rewards="process").required()


@pytest.mark.slow
def test_run_with_process_rewards_and_a_suite_without_steps():
    more = ("--quick", "--set", "rewards=process", "--set", "reward=verifier")
    done = command("run", "--method", "grpo", "--suite", "arithmetic", *more, "--results", fresh())
    assert done.code == 0, done.text
    refused = command("run", "--method", "grpo", "--suite", "summarization", *more)
    assert refused.code != 0 and "steps" in refused.text
