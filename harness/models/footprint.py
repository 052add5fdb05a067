"""Bytes that a model needs, computed from its configuration alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SAMPLING_TABLES = 5  # (rows, V) in float32: logits, their log-softmax, its exponent and its sums
SHARE_OF_MEMORY = 0.25  # share of the memory for the keys, values and logits of decoding


def cache_bytes(config: Any, element: int) -> int:
    """Return the bytes of keys and values of one token, `element` bytes per number.

    Args:
        config: The text configuration of a model. Without attention heads the result is 0.
        element: Bytes of a number.
    """
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * groups * width * element)


def decoding_tokens(model: nn.Module, width: int, memory: int) -> int:
    """Return how many tokens decoding may hold in a quarter of the memory, a power of two.

    Args:
        model: A causal language model.
        width: Tokens of a row: of its prompt and of the longest completion.
        memory: Bytes of the device in all. The memory that is free at the moment is not used, so
            that one machine always decodes in the same batches.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    compute = getattr(getattr(model, "base_model", model), "compute_dtype", torch.float32)
    row = width * cache_bytes(config, compute.itemsize) + SAMPLING_TABLES * 4 * config.vocab_size
    tokens = max(1, int(SHARE_OF_MEMORY * memory * width / row))
    return int(2 ** (tokens.bit_length() - 1))
