"""What both sides of the GPU benchmark share: sizes, models, prompts, pairs and the clock."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = {  # the shapes of Qwen2.5
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
VOCABULARY = 151_936
GROUP, PROMPT, COMPLETION, BATCH, PAIRS = 8, 256, 256, 64, 16
ADAM = {"learning_rate": 1e-6, "lr_schedule": "constant", "warmup_ratio": 0.0}
SIDES = ("chosen", "rejected")
MICRO_TOKENS = 8192  # of a forward pass in training: 16 rows, on both sides
WORKS = ("rollout", "grpo", "dpo")


def build(size: str, folder: Path) -> tuple[Any, Any]:
    """Return a model with random weights on the GPU, and a tokenizer of as many words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    inner = Tokenizer(
        models.WordLevel(
            {"</s>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}, unk_token="</s>"
        )
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="</s>", padding_side="left"
    )
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        **SIZES[size],
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config).float()
    model.config._name_or_path = str(folder)
    return model, tokenizer


def prompts(n: int) -> list[str]:
    """Return n prompts of PROMPT words."""
    return [
        " ".join(f"w{1 + (7919 * i + 31 * j) % (VOCABULARY - 1)}" for j in range(PROMPT))
        for i in range(n)
    ]


def pairs(n: int) -> list[dict[str, str]]:
    """Return n preference pairs, completions of a quarter of COMPLETION words to all of them."""

    def words(i: int, salt: int) -> str:
        length = COMPLETION // 4 + (i * 37 + salt * 101) % (3 * COMPLETION // 4)
        return " " + " ".join(
            f"w{1 + (i * 104729 + salt * 13 + j) % (VOCABULARY - 1)}" for j in range(length - 1)
        )

    return [
        {"prompt": p, "chosen": words(i, 1), "rejected": words(i, 2)}
        for i, p in enumerate(prompts(n))
    ]


class Clock:
    """Wall time and peak memory of steps, the device synchronised."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.start()

    def start(self) -> None:
        """Forget the peak so far."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def tick(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        import torch

        torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def read(self) -> dict[str, Any]:
        """Return the median seconds of a step without the first, and the peak in bytes."""
        import torch

        seconds = [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return {
            "seconds": statistics.median(seconds[1:]),
            "peak": torch.cuda.max_memory_allocated(),
        }


def or_out_of_memory(run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any] | None:
    """Return the cost of a work; None, with the reason on stderr, where memory is too small."""
    import torch

    try:
        return run(*arguments)
    except torch.cuda.OutOfMemoryError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def hash_of(text: str) -> int:
    """Return a reward that depends on all of a text."""
    return sum(map(ord, text)) % 7
