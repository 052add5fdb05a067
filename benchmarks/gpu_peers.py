"""TRL's side of the GPU benchmark."""

from __future__ import annotations

import copy
import gc
import tempfile
from pathlib import Path
from typing import Any

from gpu_world import (
    BATCH,
    COMPLETION,
    GROUP,
    PAIRS,
    Clock,
    build,
    hash_of,
    or_out_of_memory,
    pairs,
    prompts,
)
from trl_settings import sample, trainer_options


def peers(size: str, works: list[str], steps: int, _: str) -> dict[str, Any]:
    """Return what TRL takes for each work."""
    import torch

    costs = {}
    for work in works:
        model, tokenizer = build(size, Path("random"))
        costs[work] = or_out_of_memory(_peers, work, model, tokenizer, steps)
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return costs


def _peers(work: str, model: Any, tokenizer: Any, steps: int) -> dict[str, Any]:
    """Return what TRL takes for a work."""
    from transformers import TrainerCallback

    if work == "rollout":
        return _peer_rollout(model, tokenizer, steps)
    clock = Clock()

    class Ticking(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()
            clock.tick()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    trainer = (_peer_grpo if work == "grpo" else _peer_dpo)(model, tokenizer, steps)
    trainer.add_callback(Ticking())
    trainer.train()
    return clock.read()


def _peer_rollout(model: Any, tokenizer: Any, steps: int) -> dict[str, Any]:
    """Return what `generate` takes as TRL calls it."""
    import torch

    clock = Clock()
    ids = tokenizer(prompts(BATCH // GROUP), return_tensors="pt")["input_ids"]
    ids = ids.repeat_interleave(GROUP, 0).cuda()
    clock.tick()
    for turn in range(steps):
        torch.manual_seed(turn)
        with torch.autocast("cuda", torch.bfloat16):
            sample(model, ids, COMPLETION)
        clock.tick()
    return clock.read()


def _peer_grpo(model: Any, tokenizer: Any, steps: int) -> Any:
    """Return TRL's trainer of GRPO."""
    import trl
    from datasets import Dataset

    config = trl.GRPOConfig(
        **trainer_options(tempfile.mkdtemp(), steps, bf16=True),
        per_device_train_batch_size=16,
        gradient_accumulation_steps=BATCH // 16,
        num_generations=GROUP,
        max_completion_length=COMPLETION,
        temperature=1.0,
        top_k=0,
        beta=0.0,
    )
    return trl.GRPOTrainer(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": p} for p in prompts(BATCH // GROUP)] * 8),
        reward_funcs=lambda completions, **_: [float(hash_of(c)) for c in completions],
    )


def _peer_dpo(model: Any, tokenizer: Any, steps: int) -> Any:
    """Return TRL's trainer of DPO."""
    import trl
    from datasets import Dataset

    config = trl.DPOConfig(
        **trainer_options(tempfile.mkdtemp(), steps, bf16=True),
        beta=0.1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=PAIRS // 8,
        max_length=None,
    )
    return trl.DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs(PAIRS) * 8),
    )
