"""DAPO: Decoupled Clip and Dynamic sAmpling Policy Optimization (Yu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness import check_idle, hookimpl, torch

from ..entropy import EntropyOptions
from ..grpo import has_signal
from .base import Surrogate, clipped


@dataclass
class DAPO(EntropyOptions, Surrogate):
    """GRPO with a higher upper clip, the mean over all tokens, groups without a signal replaced by
    others, and a soft penalty on overlong completions.

    Groups beyond `batch_size` in the last sampled batch are dropped, as in the authors' code.
    """

    name, paper = "dapo", "https://arxiv.org/abs/2503.14476"

    clip_range: float = 0.2  # of the probability ratio, its lower side
    clip_range_high: float = 0.28  # its upper side
    dynamic_sampling: bool = True  # replace groups whose rewards are all the same
    # batches of further prompts per turn at most; the authors' code has 10 with the first
    max_refills: int = 9
    overlong_penalty: float = 1.0  # reward lost by the longest completion
    overlong_cache: float = 0.2  # last share of the longest length, over which the penalty rises

    def check(self) -> None:
        super().check()
        if self.clip_range <= 0 or self.clip_range_high <= 0:
            raise ValueError("clip_range and clip_range_high must be above 0")
        if self.max_refills < 1 or self.overlong_penalty < 0 or not 0 < self.overlong_cache <= 1:
            raise ValueError(
                "max_refills must be at least 1, overlong_penalty not negative, overlong_cache in"
                " (0, 1]"
            )
        if not self.dynamic_sampling:
            check_idle(self, "max_refills", "dynamic_sampling=true")
        if not self.overlong_penalty:
            check_idle(self, "overlong_cache", "an overlong_penalty above 0")
        self.check_entropy()

    def loss(self, logp, batch):
        """-min(rho A, clip(rho, 1-eps, 1+eps_high) A) per token (B, K, T), and its mean over
        all tokens of the update; rho = pi / pi_old.
        """
        ratio = torch.exp(logp - batch["old_logp"])
        advantages = batch["advantages"][..., None]
        loss, metrics = clipped(ratio, advantages, self.clip_range, self.clip_range_high)
        return self.counted(loss, batch), metrics

    def overlong(self, lengths, limit):
        """Return 0 up to limit - cache, then falling linearly to -1 at the limit; any shape."""
        cache = self.overlong_cache * limit
        return self.overlong_penalty * ((limit - cache - lengths) / cache).clamp(-1, 0)

    def rollouts(self, lab):
        """Yield per turn the prompts and a scored rollout, in which every group has a signal."""
        for prompts, batch in super().rollouts(lab):
            if self.dynamic_sampling:
                batch = self.refilled(lab, batch)
            if batch is None:
                continue
            limit = self.max_new_tokens or lab.max_new_tokens
            penalty = self.overlong(batch.lengths, limit).to(batch["reward"])
            yield prompts, batch.with_columns(reward=batch["reward"] + penalty)

    def refilled(self, lab, batch):
        """Return groups with a signal, `batch_size` at most, of this rollout and of further ones;
        None where none has a signal.
        """
        wanted, parts, sampled = batch.shape[0], [with_signal(batch)], batch.shape[0]
        for _ in range(self.max_refills):
            if sum(part.shape[0] for part in parts if part) >= wanted:
                break
            parts.append(with_signal(self.scored(lab, lab.further_prompts(wanted))))
            sampled += wanted
        kept = [part for part in parts if part]
        whole = type(batch).concatenate(kept) if kept else None
        lab.log(groups_sampled=sampled, groups_kept=whole.shape[0] if whole else 0)
        return whole and whole.select(range(min(wanted, whole.shape[0])))

    def optimum(self, problem):
        """pi* of RLHF for the reward less the penalty, whichever groups are left out."""
        if self.entropy_coef or self.top_entropy < 1:
            return None
        limit = int(problem.lengths.max())
        penalised = problem.reward + self.overlong(problem.lengths, limit).to(problem.reward)
        return super().optimum(replace(problem, reward=penalised))


def with_signal(batch):
    """Return the groups of a batch whose known rewards differ; None for no such group."""
    rows = has_signal(batch["reward"]).nonzero()[:, 0].tolist()
    return batch.select(rows) if rows else None


@hookimpl
def register_methods(register):
    register(DAPO)
