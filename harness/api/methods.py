"""Options that many methods have, under one name everywhere: how to train, what to reward, how to
keep near the start.

Mixins: a method inherits those it needs, and what an option says is done by the lab or by the
helper beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..core.model_folder import model_files
from ..core.settings import AdamWOptions, LoraOptions, RewardOptions, base_class, check_idle
from .contracts import Method

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.batches import Batch, PromptBatch
    from .lab import Lab


@base_class
@dataclass
class GradientMethod(LoraOptions, AdamWOptions, Method):
    """A method that trains by gradient, with the options of AdamW and of LoRA.

    `lora_rank` is that of the policy and of a critic of its own.
    """

    tuning_space = {"learning_rate": {"times": [0.2, 5.0]}}

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        self.check_lora()


@base_class
@dataclass
class PairOptions(GradientMethod):
    """A method that trains on preference pairs: how often it goes over them."""

    epochs: float = 1.0  # passes over the pairs
    steps: int = 0  # optimiser steps; 0 takes `epochs`
    shuffle_labels: bool = False  # a control: a coin decides the chosen completion

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.steps < 0 or self.epochs <= 0:
            raise ValueError("epochs must be above 0, and steps not negative")

    def pairs(self, lab: Lab) -> Iterator[Batch]:
        """Yield the pairs as these options say: (B, 2, T), chosen first."""
        return lab.pairs(self.epochs, self.steps, shuffle_labels=self.shuffle_labels)


@base_class
@dataclass
class TeacherOptions(GradientMethod):
    """A method that learns from the distributions of another model, which is held beside the
    policy.
    """

    teacher: str = ""  # a folder in Hugging Face format, an adapter's folder, or a hub id

    def check(self) -> None:
        """Raise ValueError unless a model is named."""
        super().check()
        if not self.teacher:
            raise ValueError(
                f"the method {self.name} needs a teacher: --set teacher=FOLDER_OR_HUB_ID, a model"
                " with the start checkpoint's tokens"
            )
        paths = self.teacher.startswith((".", "/", "~")) or self.teacher.count("/") > 1
        if paths and not Path(self.teacher).is_dir():
            raise ValueError(f"teacher={self.teacher}: there is no such folder")

    def data_files(self) -> list[Path]:
        """Return the files of the teacher's folder. A changed teacher makes another run."""
        folder = Path(self.teacher)
        return model_files(folder) if self.teacher and folder.is_dir() else []


@base_class
@dataclass
class OnPolicyOptions(RewardOptions, GradientMethod):
    """A method that learns from its own samples: how many, how scored, and how far from the start
    it may go.
    """

    steps: int = 100  # turns: a rollout and its updates
    num_generations: int = 8  # completions per prompt
    beta: float = 0.05  # strength of the KL constraint
    adaptive_beta: bool = False  # steer beta so that the KL of a completion stays near kl_target
    kl_target: float = 6.0  # nats per completion, for adaptive_beta
    kl_gain: float = 0.1  # K_beta of the controller: the largest change per turn is 0.2 of it
    temperature: float | None = None  # of rollouts; none: the suite's, as in the evaluation
    max_new_tokens: int | None = None  # of rollouts; none: the suite's, as in the evaluation
    # weigh the loss by the policy's over the engine's probability: none, tis or icepop
    sampler_correction: str = "none"
    sampler_cap: float = 2.0  # the largest weight of tis
    sampler_low: float = 0.5  # icepop: what has a smaller weight takes no part
    sampler_high: float = 5.0  # icepop: nor what has a larger one

    # why sampler_correction has nothing to act on in this method; empty: it has
    uncorrected: ClassVar[str] = ""
    tuning_space = GradientMethod.tuning_space | {"beta": {"times": [0.2, 5.0]}}

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
            raise ValueError(
                "temperature must be above 0: greedy rollouts have no log-probabilities to learn"
                " from"
            )
        if self.kl_target <= 0 or self.kl_gain <= 0:
            raise ValueError("kl_target and kl_gain must be above 0")
        if not self.adaptive_beta:
            check_idle(self, "kl_target", "adaptive_beta=true")
            check_idle(self, "kl_gain", "adaptive_beta=true")
        self.check_correction()

    def check_correction(self) -> None:
        """Raise ValueError for a correction of the sampler that makes no sense."""
        correction = self.sampler_correction
        if correction not in ("none", "tis", "icepop"):
            raise ValueError(f"sampler_correction is none, tis or icepop, not {correction!r}")
        if correction != "none" and self.uncorrected:
            raise ValueError(f"sampler_correction={correction}: {self.uncorrected}")
        if self.sampler_cap < 1 or not 0 < self.sampler_low < 1 < self.sampler_high:
            raise ValueError(
                "sampler_cap is at least 1, sampler_low in (0, 1) and sampler_high above 1: the"
                " weight is 1 where sampler and policy agree"
            )
        if correction != "tis":
            check_idle(self, "sampler_cap", "sampler_correction=tis")
        if correction != "icepop":
            check_idle(self, "sampler_low", "sampler_correction=icepop")
            check_idle(self, "sampler_high", "sampler_correction=icepop")

    def required(self) -> frozenset[str]:
        """Return what this instance needs: no learned reward where the reward is the verifier's."""
        return (self.needs - {"reward"}) | {"prompts"} | self.reward_needs()

    def as_measured(self) -> bool:
        """Return whether samples are drawn as they are measured, and beta and reward stay: what
        theory speaks of.
        """
        usual = self.temperature is None and self.max_new_tokens is None
        return usual and not self.adaptive_beta and not self.reward_refresh

    def rollouts(self, lab: Lab) -> Iterator[tuple[PromptBatch, Batch]]:
        """Yield per turn the prompts and the policy's completions of them, `reward` (B, K) among
        the columns.
        """
        lab.state.setdefault("beta", self.beta)
        for prompts in lab.prompts(self.steps):
            yield prompts, self.scored(lab, prompts)

    def scored(self, lab: Lab, prompts: PromptBatch) -> Batch:
        """Return the policy's completions of prompts, `reward` (B, K) among the columns."""
        batch = lab.rollout(prompts, self.num_generations, self.temperature, self.max_new_tokens)
        return batch.with_columns(reward=lab.reward(batch))

    def report(self, lab: Lab, batch: Batch, kl: Tensor | None) -> None:
        """Log what a rollout was like, and steer beta by `kl` (B, K), nats per completion, if asked
        to.

        beta (1 + K_beta clip(KL / target - 1, -0.2, 0.2)): Ziegler et al. 2019 (1909.08593), sect.
        2.2.
        """
        lab.log(
            beta=lab.state["beta"],
            length=batch.lengths.float().mean(),
            eos_rate=batch["ended"].float().mean(),
            entropy=entropy(batch),
        )
        if not batch["reward"].isnan().all():  # a verifier may be able to score none of them
            lab.log(reward=batch["reward"].nanmean())
        if kl is None:
            return
        lab.log(kl=kl.mean())
        if self.adaptive_beta:
            lab.state["beta"] = self.adapted(lab.state["beta"], float(kl.mean()))

    def adapted(self, beta: float, kl: float) -> float:
        """Return beta after a rollout with this KL; the clipped error keeps beta positive."""
        error = min(0.2, max(-0.2, kl / self.kl_target - 1))
        return beta * (1 + self.kl_gain * error)


def entropy(batch: Batch) -> Tensor:
    """Return an unbiased estimate of the sampler's entropy, in nats per token.

    It is the mean of -log pi over the tokens (B, K, T) that were drawn, at their temperature.
    """
    return -(batch["logp"] * batch["mask"]).sum() / batch["mask"].sum().clamp(min=1)
