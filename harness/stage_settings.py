"""The options of the stages that methods share, and of the evaluation: what `--stage-set STAGE.OPTION` sets."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

from .shared_options import AdamWOptions


@dataclass
class SFTOptions(AdamWOptions):
    """Supervised fine-tuning of the base model on the suite's demonstrations: the start checkpoint of every method."""

    learning_rate: float = 2e-5  # peak learning rate of AdamW
    steps: int = 0  # optimiser steps; 0 takes `epochs`
    epochs: float = 1.0  # passes over the demonstrations

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.steps < 0 or self.epochs <= 0:
            raise ValueError("epochs must be above 0, and steps not negative")


@dataclass
class PreferenceOptions:
    """Completions sampled from the start checkpoint and ranked by the labeller."""

    prompts: int = 2000  # prompts to sample; those of the held-out part included
    completions: int = 4  # K completions per prompt, all C(K, 2) pairs labelled
    heldout: float = 0.1  # share of the prompts kept for measuring the reward model
    labels: int = 0  # comparisons at most, the held-out part included; 0 is no limit

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        if self.prompts < 2 or self.completions < 2 or not 0 < self.heldout < 1:
            raise ValueError("prompts and completions must be at least 2, and heldout between 0 and 1")
        if self.labels and self.labels < 2 * comb(self.completions, 2):
            raise ValueError(
                f"labels={self.labels} is too few for two prompts with {self.completions} completions each: "
                f"at least {2 * comb(self.completions, 2)}, or fewer completions"
            )


@dataclass
class RewardModelOptions(AdamWOptions):
    """Bradley-Terry on the preferences; `batch_size` counts prompts, each with all its pairs."""

    learning_rate: float = 1e-5  # peak learning rate of AdamW
    epochs: float = 1.0  # passes over the preferences
    pooling: str = "last"  # of the per-token scores over the completion: last, mean, or sum
    unit_scale: bool = True  # divide by the spread of the score over start-checkpoint samples, so beta means the same

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.epochs <= 0:
            raise ValueError("epochs must be above 0")
        if self.pooling not in ("last", "mean", "sum"):
            raise ValueError(f"pooling is last, mean or sum, not {self.pooling!r}")


@dataclass
class EvaluationOptions:
    """What is measured, on prompts no method sees."""

    prompts: int = 512  # prompts evaluated
    split: str = "test"  # test, or validation while settings are being chosen

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        if self.split not in ("test", "validation") or self.prompts < 2:
            raise ValueError("split is test or validation, and prompts at least 2")


STAGES: dict[str, type[Any]] = {
    "sft": SFTOptions,
    "preferences": PreferenceOptions,
    "reward_model": RewardModelOptions,
    "evaluation": EvaluationOptions,
}
