"""The options of the stages that methods share, and of the evaluation: what `--stage-set
STAGE.OPTION` sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    pass

from math import comb

T = TypeVar("T")
_BASE_CLASSES: set[type] = set()


def base_class(cls: type[T]) -> type[T]:
    """Mark a class as a base class of the harness: its options have the harness's defaults.

    A suite's recommendation under "*" applies to options with such a default. It does not apply to
    options that a plugin's own class states.
    """
    _BASE_CLASSES.add(cls)
    return cls


def is_base_class(cls: type) -> bool:
    """Return whether a class was marked as a base class of the harness."""
    return cls in _BASE_CLASSES


def check_idle(method: Any, option: str, unless: str) -> None:
    """Raise ValueError for an option that was changed but has no effect."""
    if getattr(method, option) != type(method).__dataclass_fields__[option].default:
        raise ValueError(f"{option} has no meaning without {unless}")


@base_class
@dataclass
class AdamWOptions:
    """Options of AdamW, under the same names for every trained model."""

    learning_rate: float = 1e-6  # peak learning rate of AdamW
    lr_schedule: str = "linear"  # linear, cosine or constant, after the warm-up
    lr_final: float = 0.0  # where the schedule ends, as a share of the peak
    warmup_ratio: float = 0.1  # share of training over which the learning rate rises
    weight_decay: float = 0.0  # decoupled weight decay
    adam_beta2: float = 0.98  # AdamW's second-moment decay (the first is 0.9, epsilon 1e-8)
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0 leaves them alone
    batch_size: int = 32  # examples per optimiser step: demonstrations, pairs, or prompts

    def check(self) -> None:
        """Raise ValueError for options that are invalid, alone or together."""
        if self.lr_schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"lr_schedule is linear, cosine or constant, not {self.lr_schedule!r}")
        if self.learning_rate <= 0 or self.batch_size < 1:
            raise ValueError("learning_rate must be above 0 and batch_size at least 1")
        if not 0 <= self.warmup_ratio < 1 or not 0 <= self.lr_final <= 1:
            raise ValueError("warmup_ratio must lie in [0, 1) and lr_final in [0, 1]")
        if self.weight_decay < 0 or self.max_grad_norm < 0 or not 0 < self.adam_beta2 < 1:
            raise ValueError(
                "weight_decay and max_grad_norm must not be negative, and adam_beta2 lies in (0, 1)"
            )


@base_class
@dataclass
class LoraOptions:
    """Options of a model that trains a LoRA adapter instead of all its weights."""

    lora_rank: int = 0  # rank of a LoRA adapter; 0 trains all weights
    lora_alpha: float = 0.0  # adapter scale times lora_rank; 0 takes twice the rank

    def check_lora(self) -> None:
        """Raise ValueError for options that make no sense, or without PEFT."""
        if self.lora_rank < 0 or self.lora_alpha < 0:
            raise ValueError("lora_rank and lora_alpha must not be negative")
        if not self.lora_rank:
            check_idle(self, "lora_alpha", "lora_rank")
        elif find_spec("peft") is None:
            raise ValueError(
                "lora_rank needs the package peft: pip install 'alignment-harness[lora]'"
            )


@base_class
@dataclass
class RewardOptions:
    """A mixin for methods that use a reward: its source, its penalties, and its refresh."""

    reward: str = "model"  # model: learned from preferences; verifier: the suite's own check
    reward_members: int = 1  # reward models trained with different seeds
    # of an ensemble: mean, worst, or uncertainty (mean - coef * variance)
    reward_combine: str = "mean"
    reward_variance_coef: float = 0.1  # coefficient of the variance for reward_combine=uncertainty
    reward_refresh: int = 0  # turns between updates of the reward model on fresh labels; 0: never
    length_penalty: float = 0.0  # subtracted from the reward for every completion token
    # subtracted from the reward of completions without an end-of-sequence token
    missing_eos_penalty: float = 0.0

    def check_reward(self) -> None:
        """Raise ValueError for a combination that cannot be computed."""
        if self.reward not in ("model", "verifier"):
            raise ValueError(f"reward is model or verifier, not {self.reward!r}")
        if self.reward_combine not in ("mean", "worst", "uncertainty"):
            raise ValueError(
                f"reward_combine is mean, worst or uncertainty, not {self.reward_combine!r}"
            )
        if self.reward_members < 1 or self.reward_refresh < 0 or self.reward_variance_coef < 0:
            raise ValueError(
                "reward_members must be at least 1; reward_refresh and reward_variance_coef not"
                " negative"
            )
        if self.reward_combine != "uncertainty":
            check_idle(self, "reward_variance_coef", "reward_combine=uncertainty")
        if self.reward_members == 1 and self.reward_combine != "mean":
            raise ValueError(
                f"reward_combine={self.reward_combine} needs an ensemble: set reward_members to 2"
                " or more"
            )
        if self.reward == "verifier" and (self.reward_members > 1 or self.reward_refresh):
            raise ValueError(
                "reward=verifier has no reward model: reward_members and reward_refresh have no"
                " meaning"
            )

    def reward_needs(self) -> frozenset[str]:
        """Return the needs that the suite must meet for this reward."""
        if self.reward == "verifier":
            return frozenset({"verifier"})
        return frozenset({"reward", "labels"} if self.reward_refresh else {"reward"})


@dataclass
class SFTOptions(LoraOptions, AdamWOptions):
    """Supervised fine-tuning of the base model on the suite's demonstrations: the start checkpoint
    of every method. A LoRA adapter is merged into the start checkpoint.
    """

    learning_rate: float = 2e-5  # peak learning rate of AdamW
    steps: int = 0  # optimiser steps; 0: use `epochs`
    epochs: float = 1.0  # passes over the demonstrations

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        self.check_lora()
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
            raise ValueError(
                "prompts and completions must be at least 2, and heldout between 0 and 1"
            )
        if self.labels and self.labels < 2 * comb(self.completions, 2):
            raise ValueError(
                f"labels={self.labels} is too few for two prompts with {self.completions}"
                f" completions each: at least {2 * comb(self.completions, 2)}, or fewer completions"
            )


@dataclass
class RewardModelOptions(LoraOptions, AdamWOptions):
    """Bradley-Terry on the preferences; `batch_size` counts prompts, each with all its pairs. With
    LoRA, reward models and judges are adapters over the start checkpoint.
    """

    learning_rate: float = 1e-5  # peak learning rate of AdamW
    epochs: float = 1.0  # passes over the preferences
    pooling: str = "last"  # of the per-token scores over the completion: last, mean, or sum
    unit_scale: bool = True  # divide scores by their spread over start-checkpoint samples

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        self.check_lora()
        if self.epochs <= 0:
            raise ValueError("epochs must be above 0")
        if self.pooling not in ("last", "mean", "sum"):
            raise ValueError(f"pooling is last, mean or sum, not {self.pooling!r}")


@dataclass
class EvaluationOptions:
    """Options of the evaluation, on prompts that no method sees."""

    prompts: int = 512  # prompts evaluated
    split: str = "test"  # test, or validation while settings are being chosen
    # answers drawn per prompt for pass@k, maj@k and their mean, where a verifier checks them; the
    # first one is judged
    answers: int = 1
    greedy: bool = False  # answer with the most probable token each time; KL stays sampled
    temperature: float = 0.0  # of the answers; 0 takes the suite's. KL stays at the suite's
    top_p: float = 1.0  # sample from the smallest set of tokens with this probability
    max_new_tokens: int = 0  # the longest answer; 0 takes the suite's
    stop: tuple[str, ...] = ()  # answers are cut before these strings; \n is a line break
    # fixed answers to compare with: a file, a run's folder, or `references` of the data; empty:
    # the start checkpoint's
    against: str = ""
    # of lm-evaluation-harness: names of stock tasks, task files or folders of them (--tasks)
    tasks: tuple[str, ...] = ()
    task_data: str = ""  # the folder that task files of one's own read (--task-data)
    task_documents: int = 0  # documents of each task, the first ones; 0 takes all
    task_chat: bool = False  # pose tasks by the chat template

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        if self.task_documents < 0:
            raise ValueError("task_documents must not be negative")
        if not self.tasks:
            for name in ("task_data", "task_documents", "task_chat"):
                check_idle(self, name, "tasks")
        self.stop = tuple(mark.replace("\\n", "\n") for mark in self.stop if mark)
        if self.temperature < 0 or self.max_new_tokens < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "temperature and max_new_tokens are not negative, and top_p lies in (0, 1]"
            )
        if self.greedy and (self.temperature or self.top_p < 1 or self.answers > 1):
            raise ValueError(
                "greedy has no temperature, no top_p, and one answer to a prompt (answers=1)"
            )
        if self.split not in ("test", "validation") or self.prompts < 2:
            raise ValueError("split is test or validation, and prompts at least 2")
        if self.answers < 1:
            raise ValueError("answers is at least 1")


STAGES: dict[str, type[Any]] = {
    "sft": SFTOptions,
    "preferences": PreferenceOptions,
    "reward_model": RewardModelOptions,
    "evaluation": EvaluationOptions,
}
