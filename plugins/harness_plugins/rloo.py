"""RLOO: REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import OnPolicyOptions, Policy, hookimpl, torch

from .grpo import without_signal

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class RLOO(OnPolicyOptions):
    """Treat a completion as one action: its reward, KL included, less the mean of its prompt's
    other samples.
    """

    name, kind, paper = "rloo", "on-policy", "https://arxiv.org/abs/2402.14740"
    needs = frozenset({"prompts", "reward"})

    num_generations: int = 4  # completions per prompt; the others are a completion's baseline
    num_iterations: int = 1  # passes over each rollout; above 1 needs clip_range
    minibatch_size: int = 0  # prompts per update; 0: the whole rollout; below it needs clip_range
    clip_range: float = 0.0  # of the ratio of whole completions (TRL: 0.2); 0: REINFORCE, the paper

    def check(self) -> None:
        super().check()
        if self.num_generations < 2:
            raise ValueError(
                "num_generations must be at least 2: the baseline is the mean of the other samples"
            )
        if self.num_iterations < 1 or self.minibatch_size < 0 or self.clip_range < 0:
            raise ValueError(
                "num_iterations must be at least 1, minibatch_size and clip_range not negative"
            )
        stale = self.num_iterations > 1 or 0 < self.minibatch_size < self.batch_size
        if stale and not self.clip_range:
            raise ValueError(
                "REINFORCE is for the policy's own samples: several updates per rollout need a"
                " clip_range"
            )

    def advantages(self, reward):
        """A_i = R_i - mean_{j != i} R_j, (B, K); 0 where it, or every other one, is NaN."""
        known = ~reward.isnan()
        n, filled = known.sum(-1, keepdim=True), torch.where(known, reward, 0.0)
        others = (filled.sum(-1, keepdim=True) - filled) / (n - 1).clamp(min=1)
        return torch.where(known & (n > 1), reward - others, 0.0)

    def loss(self, logp, batch):
        """-A log pi(y|x) summed over tokens, (B, K); with clip_range, -min(rho A, clip(rho) A)."""
        advantages, log_pi = batch["advantages"], logp.sum(-1)
        if not self.clip_range:
            return -advantages * log_pi
        ratio = torch.exp(log_pi - batch["old_logp"].sum(-1))
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        loss = -torch.min(ratio * advantages, clipped * advantages)
        return loss, {"clip_fraction": (ratio != clipped).float(), "ratio": ratio}

    def train(self, lab: Lab) -> Policy:
        """Rollout, baseline, updates."""
        for _, batch in self.rollouts(lab):
            batch = self.experience(lab, batch)
            for part in lab.minibatches(
                batch, self.minibatch_size or self.batch_size, self.num_iterations
            ):
                lab.step(self.loss, part)
        return lab.policy

    def experience(self, lab, batch):
        """Attach advantages of R = r - beta log(pi / ref), the k1 of the whole completion."""
        reward, beta, kl = batch["reward"], lab.state["beta"], None
        if beta:  # without it no reference is held
            kl = (batch["logp"] - lab.reference.logp(batch)).sum(-1)
            reward = reward - beta * kl
        lab.log(groups_without_signal=without_signal(batch["reward"]))
        self.report(lab, batch, kl)
        return batch.with_columns(old_logp=batch["logp"], advantages=self.advantages(reward))

    def optimum(self, problem):
        """pi* of RLHF: there R is equal for all completions of a prompt, and advantages are 0."""
        return problem.tilted(self.beta) if self.beta and self.as_measured() else None


@hookimpl
def register_methods(register):
    register(RLOO)
