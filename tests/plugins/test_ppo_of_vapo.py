"""The parts of VAPO in ppo: a critic that is trained first, two lambdas, one of them by length, and
the likelihood of right completions.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.ppo import PPO

from harness.training.trainer import reduce_share

from ..helpers.exact_lab import ExactLab

MASK = (torch.arange(5) < torch.tensor([[5, 2], [3, 4]])[..., None]).double()


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(MASK.shape, generator=generator, dtype=torch.float64) * MASK


def gae(rewards, values, gamma, lam):
    """Advantages of one completion by a double loop; its lists have no padding."""
    n = len(rewards)
    ahead = [*values[1:], 0.0]
    deltas = [r + gamma * v - w for r, v, w in zip(rewards, ahead, values, strict=True)]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, n)) for t in range(n)]


def by_rows(rewards, values, gamma, lam_of):
    out = torch.zeros_like(rewards)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        n = int(MASK[i, j].sum())
        lists = (x[i, j, :n].tolist() for x in (rewards, values))
        out[i, j, :n] = torch.tensor(gae(*lists, gamma, lam_of(n)), dtype=torch.float64)
    return out


def test_lambda_grows_with_the_length_of_a_completion():
    method = PPO(lambda_alpha=0.4, gamma=0.9)
    method.check()
    rewards, values = draw(), draw(1)
    ours = method.advantages(rewards, values, MASK, method.lambdas(MASK))

    def adaptive(n):
        return max(0.0, 1 - 1 / (0.4 * n))  # a completion of two tokens would have one below 0

    torch.testing.assert_close(ours, by_rows(rewards, values, 0.9, adaptive))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours, by_rows(rewards, values, 0.9, lambda n: 0.95))
    assert PPO().lambdas(MASK) == 0.95
    long = PPO(lambda_alpha=0.05).lambdas(torch.ones(1, 1, 2000))
    assert float(long) == pytest.approx(1 - 1 / 100)


class CriticLab(ExactLab):
    """An exact lab that says which terms were stepped on."""

    def __init__(self, turn=0, **runtime):
        super().__init__(limit=2, **runtime)
        self.turn, self.stepped = turn, []

    def critic(self, *_):
        values = self.value.mean() * torch.ones(1)
        return SimpleNamespace(values=lambda batch: values * batch["mask"], role="critic")

    def term(self, loss, batch, of=None, weight=1.0, reduction="token-mean"):
        return ("value" if of is not None else "policy", loss, batch)

    def step(self, *terms):
        self.stepped.append([name for name, *_ in terms])

    def prompts(self, steps, batch_size=None):
        for self.turn in range(steps):
            yield self.turn


def test_the_critic_alone_learns_whole_returns_in_the_first_turns():
    method = PPO(
        steps=3, value_pretrain_steps=2, num_ppo_epochs=1, gae_lambda=0.5, whiten_advantages=False
    )
    method.check()
    lab = CriticLab()
    method.train(lab)
    assert lab.stepped == [["value"], ["value"], ["policy", "value"]]
    for turn, lam in ((0, 1.0), (2, 0.5)):
        lab.turn = turn
        _, batch = next(iter(method.rollouts(CriticLab())))
        done = method.experience(lab, lab.critic(), batch)
        rewards = method.shaped_rewards(
            batch["reward"], batch["logp"], lab.reference.logp(batch), batch["mask"], 0.05
        )
        values = lab.critic().values(batch)
        told = method.advantages(rewards, values, batch["mask"], lam) + values
        torch.testing.assert_close(done["returns"], told)
        torch.testing.assert_close(
            done["advantages"], method.advantages(rewards, values, batch["mask"], 0.5)
        )


def test_the_critic_has_a_lambda_of_its_own():
    rewards, values, lab = draw(), draw(1), SimpleNamespace(turn=0)
    method = PPO(gae_lambda=0.5, critic_gae_lambda=1.0)
    advantages = method.advantages(rewards, values, MASK)
    ours = method.targets(lab, rewards, values, MASK, advantages)
    torch.testing.assert_close(ours, by_rows(rewards, values, 1.0, lambda n: 1.0) + values)
    shared = PPO(gae_lambda=0.5).targets(lab, rewards, values, MASK, advantages)
    torch.testing.assert_close(shared, advantages + values)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours, shared)


class Columns(dict):
    @property
    def shape(self):
        return self["mask"].shape

    def with_columns(self, **columns):
        return Columns({**self, **columns})


def test_right_completions_are_learned_by_their_likelihood():
    logp = (draw(2) - 2).requires_grad_()
    batch = Columns(mask=MASK, old_logp=draw(3) - 2, advantages=draw(4))
    batch["reward"] = torch.tensor([[1.0, 0.0], [math.nan, 1.0]], dtype=torch.float64)
    method = PPO(positive_nll_coef=0.1)
    ours, plain = (
        reduce_share(m.loss(logp, m.weighed(batch))[0], batch, batch, "token-mean")
        for m in (method, PPO())
    )
    right = [(0, 0, 5), (1, 1, 4)]
    nll = -sum(logp[i, j, :n].sum() for i, j, n in right) / 9  # over the tokens of right ones
    torch.testing.assert_close(ours, plain + 0.1 * nll)
    mean = -(logp * MASK).sum() / MASK.sum()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours, plain + 0.1 * mean)
    none = batch.with_columns(reward=torch.zeros(2, 2))
    assert (method.weighed(none)["nll_weight"] == 0).all()
    assert method.optimum(ExactLab(limit=2).problem()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_pretrain_steps": 100}, "value_pretrain_steps"),
        ({"critic_gae_lambda": 1.1}, "critic_gae_lambda"),
        ({"lambda_alpha": -0.1}, "lambda_alpha"),
        ({"lambda_alpha": 0.1, "gae_lambda": 0.5}, "gae_lambda has no meaning"),
        ({"positive_reward": 0.5}, "positive_reward has no meaning"),
        ({"positive_nll_coef": -1.0}, "positive_nll_coef"),
    ],
)
def test_options_of_vapo_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PPO(**options).check()
