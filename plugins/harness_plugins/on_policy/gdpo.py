"""GDPO: Group reward-Decoupled normalisation Policy Optimization (Liu et al. 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import GradientMethod, OnPolicyOptions, UsageError, hookimpl, torch

from ..grpo import STD_FLOOR, group_advantages
from .base import Surrogate, clipped


@dataclass
class GDPO(Surrogate):
    """GRPO for several rewards: each is normalised in its group before they are added.

    So a reward of a small spread counts as much as one of a large spread. The rewards are the main
    one, or the verdicts of each of several verifiers, and the penalties that are set. Verifiers
    count equally: their weights and gates are of the mean that other methods learn from.
    """

    name, paper = "gdpo", "https://arxiv.org/abs/2601.05242"
    reduction = "seq-mean-token-mean"
    tuning_space = GradientMethod.tuning_space | {"clip_range": [0.1, 0.2, 0.3]}
    # no strength of a KL stays fixed, and what the sum of normalised rewards prefers has no name
    optimum = OnPolicyOptions.optimum

    # weight of the second reward, for an end of sequence, once normalised; 0 leaves it out
    missing_eos_penalty: float = 1.0
    clip_range: float = 0.2  # of the probability ratio

    def check(self) -> None:
        super().check()
        if self.clip_range <= 0:
            raise ValueError("clip_range must be above 0")
        if self.beta or not self.std_normalise:
            raise ValueError(
                "gdpo normalises each reward by its spread: beta is 0, std_normalise is true"
            )

    def scored(self, lab, prompts):
        """Return completions with `reward`, the plain sum, and `normalised`, the weighted sum of
        normalised rewards, (B, K) each.
        """
        batch = lab.rollout(prompts, self.num_generations, self.temperature, self.max_new_tokens)
        rewards = lab.rewards(batch)
        if len(rewards) < 2:
            raise UsageError(
                "gdpo normalises several rewards apart, and this run has one: set"
                " missing_eos_penalty or length_penalty, or use a suite with several verifiers"
            )
        weights = {"missing_eos": self.missing_eos_penalty, "length": self.length_penalty}
        parts = [
            weights.get(name, 1.0) * group_advantages(reward, True, self.ddof)
            for name, reward in rewards.items()
        ]
        total = torch.stack(list(rewards.values())).sum(0)
        return batch.with_columns(reward=total, normalised=torch.stack(parts).sum(0))

    def advantages(self, reward, batch):
        """A = (x - mean) / std over the whole rollout, (B, K); x = sum_n w_n (r_n - mean_G r_n) /
        std_G r_n; 0 for NaN.
        """
        known, x = ~reward.isnan(), batch["normalised"]
        if known.sum() <= self.ddof:
            return torch.zeros_like(x)
        some = x[known]
        spread = some.std(correction=self.ddof)
        return torch.where(known, (x - some.mean()) / (spread + STD_FLOOR), 0.0)

    def loss(self, logp, batch):
        """-min(rho A, clip(rho, 1-eps, 1+eps) A) per token (B, K, T), as GRPO without a KL."""
        ratio = torch.exp(logp - batch["old_logp"])
        return clipped(ratio, batch["advantages"][..., None], self.clip_range, self.clip_range)


@hookimpl
def register_methods(register):
    register(GDPO)
