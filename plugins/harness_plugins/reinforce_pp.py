"""REINFORCE++: critic-free policy gradient with globally whitened advantages (Hu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import OnPolicyOptions, Policy, hookimpl, logprobs, torch

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class ReinforcePP(OnPolicyOptions):
    """PPO's clip and per-token KL, the return of each token as its advantage, the whole batch as
    the baseline.
    """

    name, kind, paper = "reinforce_pp", "on-policy", "https://arxiv.org/abs/2501.03262"
    needs = frozenset({"prompts", "reward"})

    num_generations: int = 1  # completions per prompt; the baseline is the batch, so one is enough
    group_baseline: bool = False  # subtract the mean of the prompt's samples first
    clip_range: float = 0.2  # of the probability ratio
    num_iterations: int = 1  # passes over each rollout
    minibatch_size: int = 0  # prompts per update; 0 takes the whole rollout

    def check(self) -> None:
        super().check()
        if self.num_iterations < 1 or self.minibatch_size < 0 or self.clip_range <= 0:
            raise ValueError(
                "num_iterations must be at least 1, minibatch_size not negative, clip_range above 0"
            )
        if self.group_baseline and self.num_generations < 2:
            raise ValueError(
                "group_baseline=true needs num_generations of 2 or more: the mean of one is itself"
            )
        if self.num_generations * self.batch_size < 2:
            raise ValueError(
                "one completion per rollout has no batch to be compared with: raise batch_size"
            )

    def advantages(self, reward, logp, ref_logp, mask, beta):
        """A_t = r - beta sum_{s >= t} k1_s, whitened over all tokens of the batch; (B, K, T).

        The optional group mean is of whole returns, KL included; otherwise the KL would weigh
        G/(G-1) of the reward. An unknown reward, NaN, takes no part in any mean, and its tokens get
        0.
        """
        known = ~reward.isnan()
        last = (mask.sum(-1).long() - 1)[..., None]
        score = torch.where(known, reward, 0.0)[..., None]
        rewards = (-beta * (logp - ref_logp) * mask).scatter_add(-1, last, score)
        returns = rewards.flip(-1).cumsum(-1).flip(-1)
        if not known.any():
            return torch.zeros_like(returns)
        if self.group_baseline:
            mean = torch.where(known, returns[..., 0], torch.nan).nanmean(-1)[:, None, None]
            returns = torch.where(known[..., None], returns - mean, 0.0)
        return logprobs.masked_whiten(returns, mask * known[..., None])

    def loss(self, logp, batch):
        """-min(rho A, clip(rho, 1-eps, 1+eps) A) per token, (B, K, T)."""
        ratio, advantages = torch.exp(logp - batch["old_logp"]), batch["advantages"]
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        loss = -torch.min(ratio * advantages, clipped * advantages)
        return loss, {"clip_fraction": (ratio != clipped).float(), "ratio": ratio}

    def train(self, lab: Lab) -> Policy:
        """Rollout, returns, updates."""
        for _, batch in self.rollouts(lab):
            batch = self.experience(lab, batch)
            for part in lab.minibatches(
                batch, self.minibatch_size or self.batch_size, self.num_iterations
            ):
                lab.step(self.loss, part)
        return lab.policy

    def experience(self, lab, batch):
        """Attach what the updates need to a scored rollout; all of it is fixed from here on."""
        beta, logp, mask = lab.state["beta"], batch["logp"], batch["mask"]
        ref_logp = lab.reference.logp(batch) if beta else logp  # without a KL no reference is held
        advantages = self.advantages(batch["reward"], logp, ref_logp, mask, beta)
        self.report(lab, batch, (logp - ref_logp).sum(-1) if beta else None)
        return batch.with_columns(old_logp=logp, advantages=advantages)

    def optimum(self, problem):
        """pi* of RLHF: the KL is in the reward, a constant baseline moves nothing and whitening
        scales all alike.

        That holds for a large batch. In a small one the mean and spread depend on the completion
        itself.
        """
        return problem.tilted(self.beta) if self.beta and self.as_measured() else None


@hookimpl
def register_methods(register):
    register(ReinforcePP)
