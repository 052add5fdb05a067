"""ReMax: REINFORCE with the reward of the greedy completion as its baseline (Li et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import PolicyGradient


@dataclass
class ReMax(PolicyGradient):
    """The policy gradient of whole completions, against what the policy answers greedily."""

    name, paper = "remax", "https://arxiv.org/abs/2310.10505"
    least = 1

    num_generations: int = 1  # completions per prompt, beside the greedy one
    beta: float = 0.05  # strength of the KL constraint, in the reward; 0 holds no reference

    def advantages(self, reward, batch):
        """A = R(y) - r(greedy y), (B, K); 0 where either is NaN, unknown."""
        known = reward.isnan() | batch["greedy_reward"].isnan()[:, None]
        return torch.where(known, 0.0, reward - batch["greedy_reward"][:, None])

    def rollouts(self, lab):
        """Yield the prompts and a scored rollout, `greedy_reward` (B,) among its columns."""
        for prompts, batch in super().rollouts(lab):
            greedy = lab.greedy(prompts, self.max_new_tokens)
            reward = lab.reward(greedy)[:, 0]
            lab.log(greedy_reward=reward.nanmean() if not reward.isnan().all() else 0.0)
            yield prompts, batch.with_columns(greedy_reward=reward)


@hookimpl
def register_methods(register):
    register(ReMax)
