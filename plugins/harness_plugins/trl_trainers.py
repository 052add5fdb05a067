"""TRL's trainers as methods: their losses, optimiser and sampling, on the data, order, budget and
evaluation of every other method.

A trainer gets the same tokens in the same order. It trains a copy of the start checkpoint, and its
weights become the policy. Costs are counted from outside. TRL cannot save in the middle of this, so
an interrupted run begins anew.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Method, Policy, RewardOptions, check_idle, hookimpl, torch
from harness.core.settings import AdamWOptions

if TYPE_CHECKING:
    from harness import Lab
    from harness.training.outside import OutsideTraining

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


SPACE = {"learning_rate": {"times": [0.2, 5.0]}, "beta": {"times": [0.2, 5.0]}}


@dataclass
class TRLMethod(AdamWOptions, Method):
    """What TRL's trainers have in common."""

    extra: ClassVar[str] = "trl"
    takes: ClassVar[str] = "pairs"  # what a batch of the lab holds

    steps: int = 0  # optimiser steps; 0 takes `epochs`
    epochs: float = 1.0  # passes over the data
    gradient_accumulation_steps: int = 1  # parts of a batch, one after another
    beta: float = 0.1  # strength of the KL constraint

    def check(self) -> None:
        super().check()
        if find_spec("trl") is None:
            raise ValueError("needs TRL: pip install 'alignment-harness[trl]'")
        if self.steps < 0 or self.epochs <= 0 or self.beta < 0:
            raise ValueError("epochs must be above 0, and steps and beta not negative")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError("gradient_accumulation_steps must divide batch_size")
        check_idle(self, "lr_final", "a schedule of TRL's that ends above 0: there is none")

    def train(self, lab: Lab) -> Policy:
        """Let the trainer train, a step of it for each turn."""
        policy = lab.policy
        training = lab.outside(self.takes, self.steps, self.epochs)
        with training.turns() as begins:
            if begins:
                self.fit(lab, training)
        return policy

    def fit(self, lab: Lab, training: OutsideTraining) -> None:
        """Train a copy of the start checkpoint, and load its weights into the policy."""
        from transformers.trainer_callback import PrinterCallback

        from harness.models.loading import save_causal

        with TemporaryDirectory() as place, same_random_numbers():
            start = Path(place) / "start"
            save_causal(lab.policy.model, lab.tokens.tokenizer, start)
            trainer = self.trainer(lab, training, str(start), self.arguments(lab, training, place))
            trainer.remove_callback(PrinterCallback)  # the console shows the steps
            trainer.add_callback(callback(training))
            reference = getattr(trainer, "ref_model", None)
            with training.counted(policy=trainer.model, reference=reference):
                trainer.train()
            lab.policy.model.load_state_dict(trainer.model.state_dict())

    @abstractmethod
    def trainer(self, lab: Lab, training: OutsideTraining, start: str, options: dict) -> Any:
        """Return TRL's trainer of the model in the folder `start`."""

    def arguments(self, lab: Lab, training: OutsideTraining, place: str) -> dict[str, Any]:
        """Return the arguments that all trainers share."""
        steps = len(training.batches)
        return {
            "output_dir": place,
            "max_steps": steps,
            "per_device_train_batch_size": self.batch_size // self.gradient_accumulation_steps,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": SCHEDULES[self.lr_schedule],
            "warmup_steps": ceil(self.warmup_ratio * steps),
            "weight_decay": self.weight_decay,
            "adam_beta2": self.adam_beta2,
            "max_grad_norm": self.max_grad_norm,
            "beta": self.beta,
            "seed": training.seed,
            "use_cpu": lab.device.type == "cpu",
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
        }


def callback(training: OutsideTraining) -> Any:
    """Return what TRL calls after each step: it counts the step, and stops at the budget."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            if logs and "loss" in logs and not training.step(metrics_of(logs)):
                control.should_training_stop = True
            return control

    return Turns()


def metrics_of(logs: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a step under plain names; those that have no value are left out."""
    kept = {}
    for name, value in logs.items():
        counted = name in ("loss", "grad_norm")
        if isinstance(value, (int, float)) and (counted or isfinite(value)) and name != "epoch":
            kept[name.replace("/", "_")] = float(value)
    return kept


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Put back the random numbers of the process: TRL's trainers seed them."""
    import numpy as np

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def loaded(start: str, lab: Lab) -> Any:
    """Return the start checkpoint as TRL reads a model, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).to(lab.device)


def prepared(trainer: Any) -> Any:
    """Return a trainer's class that takes token ids as they are: they are the harness's own."""

    class Prepared(trainer):
        def _prepare_dataset(self, dataset, *rest):
            return dataset

    return Prepared


def prompt_ids(posed: Any) -> list[list[int]]:
    """Return the token ids of B prompts."""
    rows = zip(posed.ids.tolist(), posed.mask.tolist(), strict=True)
    return [[i for i, kept in zip(ids, mask, strict=True) if kept] for ids, mask in rows]


def completion_ids(batch: Any) -> list[list[list[int]]]:
    """Return the token ids of a batch's B x K completions, their ends included."""
    lengths = batch.lengths.tolist()
    return [
        [row[:n] for row, n in zip(rows, counts, strict=True)]
        for rows, counts in zip(batch["completion_ids"].tolist(), lengths, strict=True)
    ]


@dataclass
class TRLDPO(TRLMethod):
    """TRL's DPOTrainer. Soft labels are rounded."""

    name, kind, paper = "trl_dpo", "offline preference", "https://arxiv.org/abs/2305.18290"
    tuning_space = SPACE
    needs = frozenset({"pairs"})

    loss_type: str = "sigmoid"  # as in DPOConfig: sigmoid, ipo, hinge, robust and others
    label_smoothing: float = 0.0  # assumed share of flipped labels

    def trainer(self, lab, training, start, options):
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        tell_soft(training, self.name, "p")
        options |= {"loss_type": [self.loss_type], "label_smoothing": self.label_smoothing}
        return prepared(DPOTrainer)(
            model=loaded(start, lab),
            ref_model=loaded(start, lab),
            args=DPOConfig(**options, max_length=None, train_sampling_strategy="sequential"),
            processing_class=lab.tokens.tokenizer,
            train_dataset=Dataset.from_list(pair_rows(training.batches)),
        )


def pair_rows(batches: list[Any]) -> list[dict[str, Any]]:
    """Return pairs as rows of DPOTrainer, in order. One with p below a half is turned."""
    rows = []
    for batch in batches:
        columns = prompt_ids(batch.prompts), completion_ids(batch), batch["p"].tolist()
        for prompt, two, p in zip(*columns, strict=True):
            chosen, rejected = two if p >= 0.5 else two[::-1]
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


def tell_soft(training: OutsideTraining, name: str, column: str) -> None:
    """Say how many labels are soft: TRL's trainers take hard ones, so they are rounded."""
    labels = torch.cat([batch[column] for batch in training.batches])
    soft = int(((labels > 0) & (labels < 1)).sum())
    if soft:
        training.tell(
            f"{name}: {soft} of {len(labels)} labels are soft. TRL takes hard ones, so they are"
            " rounded, and the result is not that of the harness's own method."
        )


@dataclass
class TRLKTO(TRLMethod):
    """TRL's KTOTrainer on single labelled completions. Soft labels are rounded."""

    name, kind, paper = "trl_kto", "offline preference", "https://arxiv.org/abs/2402.01306"
    tuning_space = SPACE
    needs = frozenset({"labelled"})
    takes: ClassVar[str] = "labelled"

    desirable_weight: float = 1.0  # lambda_D of the paper
    undesirable_weight: float = 1.0  # lambda_U of the paper

    def trainer(self, lab, training, start, options):
        from datasets import Dataset
        from trl import KTOConfig, KTOTrainer

        tell_soft(training, self.name, "label")
        options |= {
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
        }
        rows = single_rows(training.batches, options["per_device_train_batch_size"])
        return prepared(KTOTrainer)(
            model=loaded(start, lab),
            ref_model=loaded(start, lab),
            args=KTOConfig(**options, max_length=None, train_sampling_strategy="sequential"),
            processing_class=lab.tokens.tokenizer,
            train_dataset=Dataset.from_list(rows),
        )


def single_rows(batches: list[Any], size: int) -> list[dict[str, Any]]:
    """Return labelled completions as rows of KTOTrainer, in order.

    The completions of its KL term are those of the same part of `size` rows, moved on by one, as
    TRL makes them.
    """
    rows = [
        {"prompt_ids": prompt, "completion_ids": answer, "label": label >= 0.5}
        for batch in batches
        for prompt, (answer,), label in zip(
            prompt_ids(batch.prompts), completion_ids(batch), batch["label"].tolist(), strict=True
        )
    ]
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        for row, other in zip(part, [part[-1], *part[:-1]], strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
    return rows


@dataclass
class TRLGRPO(RewardOptions, TRLMethod):
    """TRL's GRPOTrainer: it samples for itself, and the harness's reward scores what it samples."""

    name, kind, paper = "trl_grpo", "on-policy", "https://arxiv.org/abs/2402.03300"
    tuning_space = SPACE
    needs = frozenset({"prompts", "reward"})
    takes: ClassVar[str] = "prompts"

    steps: int = 100  # rollouts, each with one update
    beta: float = 0.04  # strength of the KL constraint; 0 holds no reference
    num_generations: int = 8  # completions per prompt: the group
    loss_type: str = "grpo"  # as in GRPOConfig: grpo, dapo, dr_grpo, bnpo and others
    scale_rewards: str = "group"  # what advantages are divided by: group, batch or none
    clip_range: float = 0.2  # of the probability ratio

    def check(self) -> None:
        super().check()
        self.check_reward()
        check_idle(self, "epochs", "pairs: this method takes `steps`")
        if self.steps < 1 or self.num_generations < 2:
            raise ValueError("steps must be at least 1, and num_generations at least 2")
        if self.reward_refresh:
            raise ValueError("reward_refresh has no meaning inside a trainer of TRL's")

    def required(self) -> frozenset[str]:
        return (self.needs - {"reward"}) | self.reward_needs()

    def trainer(self, lab, training, start, options):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        options |= {
            "per_device_train_batch_size": options["per_device_train_batch_size"]
            * self.num_generations,
            "num_generations": self.num_generations,
            "loss_type": self.loss_type,
            "scale_rewards": self.scale_rewards,
            "epsilon": self.clip_range,
            "temperature": training.temperature,
            "top_k": 0,
            "max_completion_length": lab.max_new_tokens,
        }
        prompts = [prompt for batch in training.batches for prompt in batch.prompts]
        ids = [row for batch in training.batches for row in prompt_ids(batch)]
        return with_prompts(GRPOTrainer, ids)(
            model=loaded(start, lab),
            args=GRPOConfig(**options, shuffle_dataset=False),
            processing_class=lab.tokens.tokenizer,
            reward_funcs=reward_of(lab, training, prompts),
            train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(len(ids))]),
        )


def with_prompts(trainer: Any, ids: list[list[int]]) -> Any:
    """Return a trainer's class that reads prompts as numbers of rows of token ids."""

    class Numbered(trainer):
        def _tokenize_prompts(self, prompts):
            return [ids[int(prompt)] for prompt in prompts], None, {}

    return Numbered


def reward_of(lab: Lab, training: OutsideTraining, prompts: list[Any]) -> Any:
    """Return the reward function of a trainer: the lab's reward of what was sampled."""

    def reward(prompts: list[str], completion_ids: list[list[int]], **rest: Any) -> list[Any]:
        training.generated(completion_ids)
        rows = [posed[int(prompt)] for prompt in prompts]
        ids = [[row] for row in completion_ids]
        batch = lab.tokens.batch(rows, ids, lab.device, training.temperature)
        ended = [[bool(row) and row[-1] in lab.tokens.ends] for row in completion_ids]
        scored = lab.reward(batch.with_columns(ended=torch.tensor(ended, device=lab.device)))
        return [value if isfinite(value) else None for value in scored[:, 0].tolist()]

    posed = prompts
    return reward


@hookimpl
def register_methods(register):
    for method in (TRLDPO, TRLKTO, TRLGRPO):
        register(method)
