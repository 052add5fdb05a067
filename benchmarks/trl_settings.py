"""How both benchmarks, that on a CPU and that on a GPU, call TRL and transformers."""

from __future__ import annotations

from typing import Any

import torch


def sample(model: Any, ids: Any, completion: int) -> None:
    """Sample `completion` tokens for each prompt with plain sampling, as TRL calls `generate`."""
    with torch.no_grad():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=completion,
            pad_token_id=0,
            eos_token_id=0,
        )


def trainer_options(output_dir: str, steps: int, **more: Any) -> dict[str, Any]:
    """Return the options that TRL's trainers have in common: no checkpoints, nothing logged."""
    return {
        "output_dir": output_dir,
        "max_steps": steps,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        **more,
    }
