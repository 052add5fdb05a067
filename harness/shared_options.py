"""Options that many methods have, under one name everywhere: how to train, what to reward, how to keep near the start.

Mixins: a method inherits those it needs, and what an option says is done by the lab or by the helper beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .contracts import Method

if TYPE_CHECKING:
    from torch import Tensor

    from .lab import Lab
    from .tokens import Batch, PromptBatch


def check_idle(method: Any, option: str, unless: str) -> None:
    """Raise ValueError for an option that was changed although nothing makes use of it."""
    if getattr(method, option) != type(method).__dataclass_fields__[option].default:
        raise ValueError(f"{option} has no meaning without {unless}")


@dataclass
class AdamWOptions:
    """How anything here is trained: by AdamW, with the options under one name everywhere."""

    learning_rate: float = 1e-6  # peak learning rate of AdamW
    lr_schedule: str = "linear"  # linear, cosine or constant, after the warm-up
    lr_final: float = 0.0  # where the schedule ends, as a share of the peak
    warmup_ratio: float = 0.1  # share of training over which the learning rate rises
    weight_decay: float = 0.0  # decoupled weight decay
    adam_beta2: float = 0.98  # AdamW's second-moment decay (the first is 0.9, epsilon 1e-8)
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0 leaves them alone
    batch_size: int = 32  # examples per optimiser step: demonstrations, pairs, or prompts

    def check(self) -> None:
        """Raise ValueError for options that make no sense, alone or together; called before anything is made."""
        if self.lr_schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"lr_schedule is linear, cosine or constant, not {self.lr_schedule!r}")
        if self.learning_rate <= 0 or self.batch_size < 1:
            raise ValueError("learning_rate must be above 0 and batch_size at least 1")
        if not 0 <= self.warmup_ratio < 1 or not 0 <= self.lr_final <= 1:
            raise ValueError("warmup_ratio must lie in [0, 1) and lr_final in [0, 1]")
        if self.weight_decay < 0 or self.max_grad_norm < 0 or not 0 < self.adam_beta2 < 1:
            raise ValueError("weight_decay and max_grad_norm must not be negative, and adam_beta2 lies in (0, 1)")


@dataclass
class GradientMethod(AdamWOptions, Method):
    """A method that trains by gradient: a Method with the options of AdamW, and of what it trains."""

    lora_rank: int = 0  # train an adapter of this rank (LoRA) beside the start checkpoint's weights; 0 trains those
    lora_alpha: float = 0.0  # the adapter is scaled by lora_alpha / lora_rank; 0 takes twice the rank

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.lora_rank < 0 or self.lora_alpha < 0:
            raise ValueError("lora_rank and lora_alpha must not be negative")
        if not self.lora_rank:
            check_idle(self, "lora_alpha", "lora_rank")
        elif find_spec("peft") is None:
            raise ValueError("lora_rank needs the package peft: pip install 'alignment-harness[lora]'")


@dataclass
class PairOptions(GradientMethod):
    """A method that trains on preference pairs: how often it goes over them."""

    epochs: float = 1.0  # passes over the pairs
    steps: int = 0  # optimiser steps; 0 takes `epochs`
    shuffle_labels: bool = False  # a control: which completion of a pair is the chosen one is drawn by a coin

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.steps < 0 or self.epochs <= 0:
            raise ValueError("epochs must be above 0, and steps not negative")

    def pairs(self, lab: Lab) -> Iterator[Batch]:
        """Yield the pairs as these options say: (B, 2, T), chosen first."""
        return lab.pairs(self.epochs, self.steps, shuffle_labels=self.shuffle_labels)


@dataclass
class RewardOptions:
    """A mixin for methods that ask for a reward: which one, what is taken off it, how it is kept fresh."""

    reward: str = "model"  # model: learned from the preferences; verifier: the suite's own check, no model involved
    reward_members: int = 1  # reward models trained with different seeds
    reward_combine: str = "mean"  # of an ensemble: mean, worst, or uncertainty (mean - coef * variance)
    reward_variance_coef: float = 0.1  # coefficient of the variance for reward_combine=uncertainty
    reward_refresh: int = 0  # label fresh samples of the policy and train the reward model on them every so many turns
    length_penalty: float = 0.0  # taken off the reward for every completion token
    missing_eos_penalty: float = 0.0  # taken off the reward of a completion that did not end by itself

    def check_reward(self) -> None:
        """Raise ValueError for a combination that cannot be computed."""
        if self.reward not in ("model", "verifier"):
            raise ValueError(f"reward is model or verifier, not {self.reward!r}")
        if self.reward_combine not in ("mean", "worst", "uncertainty"):
            raise ValueError(f"reward_combine is mean, worst or uncertainty, not {self.reward_combine!r}")
        if self.reward_members < 1 or self.reward_refresh < 0 or self.reward_variance_coef < 0:
            raise ValueError("reward_members must be at least 1; reward_refresh and reward_variance_coef not negative")
        if self.reward_combine != "uncertainty":
            check_idle(self, "reward_variance_coef", "reward_combine=uncertainty")
        if self.reward_members == 1 and self.reward_combine != "mean":
            raise ValueError(f"reward_combine={self.reward_combine} needs an ensemble: set reward_members to 2 or more")
        if self.reward == "verifier" and (self.reward_members > 1 or self.reward_refresh):
            raise ValueError("reward=verifier has no reward model: reward_members and reward_refresh have no meaning")

    def reward_needs(self) -> frozenset[str]:
        """Return what the suite must give for this reward."""
        if self.reward == "verifier":
            return frozenset({"verifier"})
        return frozenset({"reward", "labels"} if self.reward_refresh else {"reward"})


@dataclass
class OnPolicyOptions(RewardOptions, GradientMethod):
    """A method that learns from its own samples: how many, how scored, and how far from the start it may go."""

    steps: int = 100  # turns: a rollout and its updates
    num_generations: int = 8  # completions per prompt
    beta: float = 0.05  # strength of the KL constraint
    adaptive_beta: bool = False  # steer beta so that the KL of a completion stays near kl_target
    kl_target: float = 6.0  # nats per completion, for adaptive_beta
    kl_gain: float = 0.1  # K_beta of the controller: the largest change per turn is 0.2 of it
    temperature: float | None = None  # of rollouts; none: the suite's, at which KL and win-rate are measured
    max_new_tokens: int | None = None  # of a rollout's completion; none: the suite's, at which all is measured

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        self.check_reward()
        if self.steps < 1 or self.num_generations < 1:
            raise ValueError("steps and num_generations must be at least 1")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError("max_new_tokens must be at least 1")
        if self.beta < 0:
            raise ValueError("beta must not be negative")
        if self.adaptive_beta and self.beta == 0:
            raise ValueError("adaptive_beta multiplies beta: start it above 0")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError("temperature must be above 0: greedy rollouts have no log-probabilities to learn from")
        if self.kl_target <= 0 or self.kl_gain <= 0:
            raise ValueError("kl_target and kl_gain must be above 0")
        if not self.adaptive_beta:
            check_idle(self, "kl_target", "adaptive_beta=true")
            check_idle(self, "kl_gain", "adaptive_beta=true")

    def required(self) -> frozenset[str]:
        """Return what this instance needs: no learned reward where the reward is the verifier's."""
        return (self.needs - {"reward"}) | {"prompts"} | self.reward_needs()

    def as_measured(self) -> bool:
        """Return whether samples are drawn as they are measured, and beta and reward stay: what theory speaks of."""
        usual = self.temperature is None and self.max_new_tokens is None
        return usual and not self.adaptive_beta and not self.reward_refresh

    def rollouts(self, lab: Lab) -> Iterator[tuple[PromptBatch, Batch]]:
        """Yield per turn the prompts and the policy's completions of them, `reward` (B, K) among the columns."""
        lab.state.setdefault("beta", self.beta)
        for prompts in lab.prompts(self.steps):
            batch = lab.rollout(prompts, self.num_generations, self.temperature, self.max_new_tokens)
            yield prompts, batch.with_columns(reward=lab.reward(batch))

    def report(self, lab: Lab, batch: Batch, kl: Tensor | None) -> None:
        """Log what a rollout was like, and steer beta by `kl` (B, K), nats per completion, if asked to.

        beta (1 + K_beta clip(KL / target - 1, -0.2, 0.2)): Ziegler et al. 2019 (1909.08593), sect. 2.2.
        """
        lab.log(beta=lab.state["beta"], length=batch.lengths.float().mean(), eos_rate=batch["ended"].float().mean())
        if not batch["reward"].isnan().all():  # a verifier may be able to score none of them
            lab.log(reward=batch["reward"].nanmean())
        if kl is None:
            return
        lab.log(kl=kl.mean())
        if self.adaptive_beta:
            lab.state["beta"] = self.adapted(lab.state["beta"], float(kl.mean()))

    def adapted(self, beta: float, kl: float) -> float:
        """Return beta after a rollout with this KL; the error is clipped, so beta stays positive."""
        error = min(0.2, max(-0.2, kl / self.kl_target - 1))
        return beta * (1 + self.kl_gain * error)
