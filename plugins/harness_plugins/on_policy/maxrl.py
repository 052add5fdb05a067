"""MaxRL: Maximum Likelihood Reinforcement Learning (Tajwar et al. 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import GradientMethod, OnPolicyOptions, UsageError, hookimpl, torch

from .base import PolicyGradient


@dataclass
class MaxRL(PolicyGradient):
    """REINFORCE whose advantages are divided by the group's mean: hard prompts weigh more.

    With verdicts of 0 and 1 its expected gradient is that of log p, p the chance to be right, cut
    off after G - 1 terms of its series: -sum_k (1 - p)^k / k.
    """

    name, paper = "maxrl", "https://arxiv.org/abs/2602.02710"
    needs = frozenset({"prompts", "verifier"})
    tuning_space = GradientMethod.tuning_space | {"num_generations": [4, 8, 16]}

    # without a KL all mass goes to what is right; how it is divided is left open
    optimum = OnPolicyOptions.optimum

    reward: str = "verifier"  # the only value: a mean of learned rewards may be negative

    def check(self) -> None:
        super().check()
        if self.reward != "verifier" or self.beta:
            raise ValueError(
                "maxrl divides by the mean of verdicts: reward is verifier, and beta is 0"
            )
        if self.length_penalty or self.missing_eos_penalty:
            raise ValueError("maxrl learns from rewards that are not negative: no penalties")

    def advantages(self, reward, batch):
        """A_i = (r_i - mean_G r) / mean_G r, (B, K); 0 for NaN, and in groups whose mean is 0."""
        if (reward < 0).any():
            least = float(reward.nan_to_num().min())
            raise UsageError(
                f"maxrl divides by a prompt's mean reward, and a reward is {least:g}: it learns"
                " from verdicts that are not negative. Use another method."
            )
        mean = reward.nanmean(-1, keepdim=True)
        scaled = (reward - mean) / mean.clamp(min=1e-6)
        return torch.where(reward.isnan() | (mean == 0), 0.0, scaled)


@hookimpl
def register_methods(register):
    register(MaxRL)
