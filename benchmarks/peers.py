"""The peer's side: TRL's trainers as their documents set them up, in float32, without
checkpointing, nothing logged.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import world
from clock import Clock
from roofline import completions_per_prompt
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl_settings import sample, trainer_options

Costs = tuple[
    Clock, list[list[int]]
]  # CPU seconds of each step; the lengths of what was drawn in it


class Calls(TrainerCallback):
    """Has a trainer tell a clock when it begins and when a step has ended."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin."""
        self.clock.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more."""
        self.clock.tick()


def run(work: str, folder: Path, batch: int, steps: int, shape: dict[str, int]) -> Costs:
    """Take `steps` steps; return CPU seconds of each and the lengths of what was drawn."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lengths: list[list[int]] = []
    clock = Clock()
    model.generate = noting(model.generate, lengths)
    if work == "rollout":
        _rollout(model, tokenizer, batch, steps, shape, clock)
    else:
        _train(work, folder, model, tokenizer, batch, steps, shape, clock)
    return clock, lengths


def noting(generate: Any, lengths: list[list[int]]) -> Any:
    """Return `generate` that also notes how long completions were, the end included."""

    def noted(**options: Any) -> Any:
        out = generate(**options)
        ids = out if isinstance(out, torch.Tensor) else out.sequences
        ended = ids[:, options["input_ids"].shape[1] :] == 0
        lengths.append(
            torch.where(ended.any(1), ended.int().argmax(1) + 1, ended.shape[1]).tolist()
        )
        return out

    return noted


def _train(
    work: str,
    folder: Path,
    model: Any,
    tokenizer: Any,
    batch: int,
    steps: int,
    shape: dict[str, int],
    clock: Clock,
) -> None:
    """Let the trainer train; a step ends where its callbacks say so: of PPO after a rollout and all
    its epochs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        make = _ppo if work.startswith("ppo") else _trainer
        trainer = make(work, folder, model, tokenizer, batch, steps, shape, scratch)
        trainer.add_callback(Calls(clock))
        trainer.train()


def _rollout(
    model: Any, tokenizer: Any, batch: int, steps: int, shape: dict[str, int], clock: Clock
) -> None:
    """`generate` as TRL calls it: every prompt repeated for its completions, plain sampling."""
    ids = tokenizer(world.prompts(batch // shape["group"], shape["prompt"]), return_tensors="pt")[
        "input_ids"
    ]
    ids = ids.repeat_interleave(shape["group"], 0)
    clock.begin()
    for turn in range(steps):
        torch.manual_seed(1000 * shape["seed"] + turn)
        sample(model, ids, shape["completion"])
        clock.tick()


def _trainer(
    work: str,
    folder: Path,
    model: Any,
    tokenizer: Any,
    batch: int,
    steps: int,
    shape: dict[str, int],
    scratch: str,
) -> Any:
    """Return TRL's trainer of any work but PPO."""
    common = _common(batch, steps, shape, scratch)
    if work in ("grpo", "rloo"):
        return _online(work, model, tokenizer, common, shape)
    return _offline(work, folder, model, tokenizer, common, shape)


def _common(batch: int, steps: int, shape: dict[str, int], scratch: str) -> dict[str, Any]:
    """Return the options that TRL's trainers have in common."""
    return trainer_options(
        scratch,
        steps,
        seed=shape["seed"],
        per_device_train_batch_size=batch,
        bf16=False,
        use_cpu=True,
    )


def _offline(
    work: str,
    folder: Path,
    model: Any,
    tokenizer: Any,
    common: dict[str, Any],
    shape: dict[str, int],
) -> Any:
    """Return TRL's trainer of a work that samples nothing."""
    import trl
    from datasets import Dataset

    rows = Dataset.from_list(world.pairs(world.DRAWN, shape["prompt"], shape["completion"]))
    common_: dict[str, Any] = {"model": model, "processing_class": tokenizer, "train_dataset": rows}
    if work in ("dpo", "ipo", "dpo_precomputed"):
        # precomputed when the trainer is made, before the clock starts
        args: Any = trl.DPOConfig(
            **common,
            beta=0.1,
            loss_type="ipo" if work == "ipo" else "sigmoid",
            precompute_ref_log_probs=work == "dpo_precomputed",
        )
        return trl.DPOTrainer(args=args, **common_)
    if work == "kto":
        common_["train_dataset"] = Dataset.from_list(_single(rows))
        return trl.KTOTrainer(args=trl.KTOConfig(**common, beta=0.1), **common_)
    if work == "sft":
        common_["train_dataset"] = rows.map(
            lambda r: {"completion": r["chosen"]}, remove_columns=["chosen", "rejected"]
        )
        return trl.SFTTrainer(args=trl.SFTConfig(**common), **common_)
    common_["model"] = _scalar(folder)
    return trl.RewardTrainer(args=trl.RewardConfig(**common), **common_)


def _single(rows: Any) -> list[dict[str, Any]]:
    """Return pairs as labelled completions."""
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]


def _scalar(folder: Path) -> Any:
    """Return a classifier with one label on the model of a folder."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )


def _online(
    work: str, model: Any, tokenizer: Any, common: dict[str, Any], shape: dict[str, int]
) -> Any:
    import trl
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": p} for p in world.prompts(length=shape["prompt"])])
    config: Any = trl.GRPOConfig if work == "grpo" else trl.RLOOConfig
    cls: Any = trl.GRPOTrainer if work == "grpo" else trl.RLOOTrainer
    settings = config(
        **common,
        num_generations=shape["group"],
        max_completion_length=shape["completion"],
        temperature=1.0,
        top_k=0,
        beta=0.0 if work == "grpo" else 0.05,
    )
    return cls(
        model=model,
        args=settings,
        processing_class=tokenizer,
        train_dataset=rows,
        reward_funcs=lambda completions, **_: [world.reward(c) for c in completions],
    )


def _ppo(
    work: str,
    folder: Path,
    model: Any,
    tokenizer: Any,
    batch: int,
    steps: int,
    shape: dict[str, int],
    scratch: str,
) -> Any:
    """TRL 1.12's PPO, the last: reward and value models are classifiers with one label.

    It draws one completion per row of its data, in shuffled batches; prompts with a group of
    completions (`ppo_group`) stand in the data as often, so that both sides see the same prompts,
    if not the same ones in each batch.
    """
    from datasets import Dataset
    from trl.experimental.ppo import PPOTrainer

    ids = tokenizer(world.prompts(length=shape["prompt"]))["input_ids"]
    rows = Dataset.from_dict(
        {"input_ids": [row for row in ids for _ in range(completions_per_prompt(work, shape))]}
    )
    ref = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scorer, value = _scalar(folder), _scalar(folder)
    return PPOTrainer(
        args=_ppo_config(work, batch, steps, shape, scratch),
        processing_class=tokenizer,
        model=model,
        ref_model=ref,
        reward_model=scorer,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
    )


def _ppo_config(work: str, batch: int, steps: int, shape: dict[str, int], scratch: str) -> Any:
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        output_dir=scratch,
        seed=shape["seed"],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        total_episodes=batch * steps,
        num_ppo_epochs=4 if work.startswith("ppo4") else 1,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        response_length=shape["completion"],
        stop_token="eos",
        temperature=1.0,
        kl_coef=0.05,
        num_sample_generations=0,
        local_rollout_forward_batch_size=batch,
        missing_eos_penalty=1.0,
    )
