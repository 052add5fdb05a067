"""The common part of methods that learn from their own scored samples, without a critic.

A method states how rewards become advantages and what the loss of a token or of a completion is.
The base classes sample, score, attach what the updates need, and step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness import OnPolicyOptions, Policy, torch

from ..grpo import group_advantages, without_signal

if TYPE_CHECKING:
    from torch import Tensor

    from harness import Batch, Lab


@dataclass
class PolicyGradient(OnPolicyOptions):
    """A method that takes one step on each rollout: its samples are the policy's own.

    The KL of a `beta` above 0 is a part of the reward, as the k1 of the whole completion. At the
    optimum of RLHF all completions of a prompt then have the same reward, and advantages are 0.
    """

    kind = "on-policy"
    needs = frozenset({"prompts", "reward"})
    tuning_space = OnPolicyOptions.tuning_space | {"beta": [0.01, 0.05, 0.2]}
    least: ClassVar[int] = 2  # completions per prompt at least
    reduction: ClassVar[str] = "token-mean"  # of a loss per token, over all updated completions

    num_generations: int = 8  # completions per prompt: the group
    beta: float = 0.0  # strength of the KL constraint, in the reward; 0 holds no reference

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.num_generations < self.least:
            raise ValueError(
                f"num_generations must be at least {self.least}: a completion is compared with"
                " others of its prompt"
            )

    @abstractmethod
    def advantages(self, reward: Tensor, batch: Batch) -> Tensor:
        """Return advantages (B, K) of rewards (B, K), the KL included; 0 for NaN, an unknown one.

        `batch` has the rollout's other columns.
        """

    def loss(self, logp: Tensor, batch: Batch) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """-A log pi(y|x), summed over tokens (B, K): REINFORCE."""
        return -batch["advantages"] * logp.sum(-1)

    def parts(self, lab: Lab, batch: Batch) -> Iterator[Batch]:
        """Yield the parts of a rollout, an update each."""
        yield batch

    def train(self, lab: Lab) -> Policy:
        """Rollout, advantages, updates."""
        for _, batch in self.rollouts(lab):
            for part in self.parts(lab, self.experience(lab, batch)):
                lab.step(self.updating(lab, part, self.reduced(lab, part)))
        return lab.policy

    def updating(self, lab: Lab, part: Batch, reduction: str | float) -> Any:
        """Return the term of an update."""
        return lab.term(self.loss, part, reduction=reduction)

    def reduced(self, lab: Lab, part: Batch) -> str | float:
        """Return how the lab reduces the token losses of a part."""
        return self.reduction

    def experience(self, lab: Lab, batch: Batch) -> Batch:
        """Attach what the updates need to a scored rollout; all of it is fixed from here on."""
        reward, beta, kl = batch["reward"], lab.state["beta"], None
        if beta:  # without it no reference is held
            kl = (batch["logp"] - lab.reference.logp(batch)).sum(-1)
            reward = reward - beta * kl
        if self.num_generations > 1:
            lab.log(groups_without_signal=without_signal(batch["reward"]))
        self.report(lab, batch, kl)
        advantages = self.advantages(reward, batch)
        return batch.with_columns(old_logp=batch["logp"], advantages=advantages)

    def optimum(self, problem):
        """pi* of RLHF: there the reward with its KL is the same for all completions of a prompt.

        Every advantage is then 0, whatever scales it. Without a KL there is no interior optimum.
        """
        return problem.tilted(self.beta) if self.beta and self.as_measured() else None


@dataclass
class Surrogate(PolicyGradient):
    """A method whose loss is a function of the ratio pi / pi_old: several updates on each rollout.

    With one update per rollout the ratio is 1, and the gradient is that of GRPO without a clip.
    """

    num_minibatches: int = 4  # parts of a rollout, an update each
    num_iterations: int = 1  # passes over each rollout
    std_normalise: bool = True  # divide advantages by the group's spread
    ddof: int = 0  # of that spread: 0 population, 1 sample (Bessel; TRL)

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if not 1 <= self.num_minibatches <= self.batch_size or self.num_iterations < 1:
            raise ValueError(
                "num_minibatches lies between 1 and batch_size, and num_iterations is at least 1"
            )
        if self.ddof not in (0, 1) or (self.ddof and not self.std_normalise):
            raise ValueError(
                "ddof is 0 or 1, and of the group's spread, by which std_normalise=false does not"
                " divide"
            )

    def advantages(self, reward: Tensor, batch: Batch) -> Tensor:
        """A_i = (r_i - mean_G r) / std_G r, as in GRPO."""
        return group_advantages(reward, self.std_normalise, self.ddof)

    def parts(self, lab: Lab, batch: Batch) -> Iterator[Batch]:
        """Yield the parts of a rollout, an update each."""
        size = -(-batch.shape[0] // self.num_minibatches)
        yield from lab.minibatches(batch, size, self.num_iterations)


def sequence_ratio(logp: Tensor, batch: Batch) -> Tensor:
    """Return (pi(y|x) / pi_old(y|x))^(1 / |y|) of each completion, (B, K): GSPO's s."""
    log_ratio = (logp - batch["old_logp"]).sum(-1)
    return torch.exp(log_ratio / batch["mask"].sum(-1).clamp(min=1))


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, dict]:
    """Return -min(rho A, clip(rho, 1 - low, 1 + high) A) and the usual metrics, any shape."""
    within = ratio.clamp(1 - low, 1 + high)
    loss = -torch.min(ratio * advantages, within * advantages)
    return loss, {"clip_fraction": (ratio != within).float(), "ratio": ratio}
