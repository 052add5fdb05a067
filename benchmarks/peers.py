"""The peer's side: TRL's trainers as their documents set them up, in float32, without checkpointing, nothing logged."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import world
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """CPU time at the end of every optimiser step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin."""
        self.marks.append(time.process_time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more."""
        self.marks.append(time.process_time())


def run(work: str, folder: Path, batch: int, steps: int, **shape: int) -> dict[str, Any]:
    """Take `steps` steps; return CPU seconds of each and what was drawn."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if work == "rollout":
        return _rollout(model, tokenizer, batch, steps, shape)
    with tempfile.TemporaryDirectory() as scratch:
        clock = Clock()
        trainer = _ppo(work, folder, batch, steps, shape, scratch) if work.startswith("ppo") else _trainer(
            work, folder, model, tokenizer, batch, steps, shape, scratch
        )  # fmt: skip
        trainer.add_callback(clock)
        trainer.train()
    return {"seconds": [b - a for a, b in zip(clock.marks, clock.marks[1:], strict=False)]}


def _rollout(model: Any, tokenizer: Any, batch: int, steps: int, shape: dict[str, int]) -> dict[str, Any]:
    """`generate` as TRL calls it: every prompt repeated for its completions, plain sampling."""
    ids = tokenizer(world.prompts(batch // shape["group"], shape["prompt"]), return_tensors="pt")["input_ids"]
    ids = ids.repeat_interleave(shape["group"], 0)
    seconds, drawn = [], []
    for turn in range(steps):
        torch.manual_seed(turn)
        begun = time.process_time()
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, max_new_tokens=shape["completion"], pad_token_id=0, eos_token_id=0,
            )  # fmt: skip
        seconds.append(time.process_time() - begun)
        ended = out[:, ids.shape[1] :] == 0
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, ended.shape[1])
        drawn.append(int(lengths.sum()))
    return {"seconds": seconds, "tokens": drawn}


def _trainer(
    work: str, folder: Path, model: Any, tokenizer: Any, batch: int, steps: int, shape: dict[str, int], scratch: str
) -> Any:
    import trl
    from datasets import Dataset

    common: dict[str, Any] = {
        "output_dir": scratch, "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": 1e-6,
        "lr_scheduler_type": "constant", "bf16": False, "gradient_checkpointing": False, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no",
    }  # fmt: skip
    if work in ("grpo", "rloo"):
        rows = Dataset.from_list([{"prompt": p} for p in world.prompts(512, shape["prompt"])])
        config: Any = trl.GRPOConfig if work == "grpo" else trl.RLOOConfig
        cls: Any = trl.GRPOTrainer if work == "grpo" else trl.RLOOTrainer
        told = config(
            **common, num_generations=shape["group"], max_completion_length=shape["completion"], temperature=1.0,
            top_k=0, beta=0.0 if work == "grpo" else 0.05,
        )  # fmt: skip
        return cls(
            model=model, args=told, processing_class=tokenizer, train_dataset=rows,
            reward_funcs=lambda completions, **_: [world.reward(c) for c in completions],
        )  # fmt: skip
    rows = Dataset.from_list(world.pairs(512, shape["prompt"]))
    if work in ("dpo", "ipo", "dpo_precomputed"):
        told = trl.DPOConfig(
            **common, beta=0.1, loss_type="ipo" if work == "ipo" else "sigmoid",
            precompute_ref_log_probs=work == "dpo_precomputed",
        )  # fmt: skip
        return trl.DPOTrainer(model=model, args=told, processing_class=tokenizer, train_dataset=rows)
    if work == "kto":
        sides = ("chosen", "rejected")
        single = [{"prompt": r["prompt"], "completion": r[k], "label": k == "chosen"} for r in rows for k in sides]
        return trl.KTOTrainer(
            model=model, args=trl.KTOConfig(**common, beta=0.1), processing_class=tokenizer,
            train_dataset=Dataset.from_list(single),
        )  # fmt: skip
    if work == "sft":
        some = rows.map(lambda r: {"completion": r["chosen"]}, remove_columns=["chosen", "rejected"])
        return trl.SFTTrainer(model=model, args=trl.SFTConfig(**common), processing_class=tokenizer, train_dataset=some)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    return trl.RewardTrainer(
        model=scorer, args=trl.RewardConfig(**common), processing_class=tokenizer, train_dataset=rows
    )


def _ppo(work: str, folder: Path, batch: int, steps: int, shape: dict[str, int], scratch: str) -> Any:
    """TRL 1.12's PPO, the last: reward and value models are classifiers with one label."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    rows = Dataset.from_dict({"input_ids": tokenizer(world.prompts(512, shape["prompt"]))["input_ids"]})
    told = PPOConfig(
        output_dir=scratch, per_device_train_batch_size=batch, gradient_accumulation_steps=1, num_mini_batches=1,
        total_episodes=batch * steps, num_ppo_epochs=4 if work == "ppo4" else 1, learning_rate=1e-6, bf16=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        response_length=shape["completion"], stop_token_id=0, temperature=1.0, kl_coef=0.05, num_sample_generations=0,
        local_rollout_forward_batch_size=batch, missing_eos_penalty=None,
    )  # fmt: skip
    policy, ref = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    scorer, value = (
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32) for _ in range(2)
    )
    return PPOTrainer(
        args=told, processing_class=tokenizer, model=policy, ref_model=ref, reward_model=scorer, value_model=value,
        train_dataset=rows, eval_dataset=rows,
    )  # fmt: skip
