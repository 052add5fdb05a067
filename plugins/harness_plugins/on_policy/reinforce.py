"""REINFORCE (Williams 1992), with the running mean of the rewards as its baseline."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import PolicyGradient


@dataclass
class Reinforce(PolicyGradient):
    """The policy gradient of whole completions; the baseline is the mean of all rewards so far.

    So it stands in Ahmadian et al. 2024, beside RLOO.
    """

    name, paper = "reinforce", "https://arxiv.org/abs/2402.14740"
    least = 1

    num_generations: int = 1  # completions per prompt; they are not compared with each other
    beta: float = 0.05  # strength of the KL constraint, in the reward; 0 holds no reference
    baseline: bool = True  # subtract the mean of the rewards of earlier rollouts

    def advantages(self, reward, batch):
        """A = R - b, b the mean of earlier rewards; (B, K), 0 for NaN."""
        return torch.where(reward.isnan(), 0.0, reward - batch["baseline"][:, None])

    def experience(self, lab, batch):
        """Attach advantages, and count the rewards into the mean for later rollouts."""
        total, count = lab.state.setdefault("rewards", [0.0, 0])  # their sum, and how many
        mean = total / count if self.baseline and count else 0.0
        batch = batch.with_columns(baseline=torch.full_like(batch["reward"][:, 0], mean))
        batch = super().experience(lab, batch)
        known = ~batch["reward"].isnan()
        rewards = (batch["advantages"] + mean)[known]
        lab.state["rewards"] = [total + float(rewards.sum()), count + int(known.sum())]
        return batch


@hookimpl
def register_methods(register):
    register(Reinforce)
