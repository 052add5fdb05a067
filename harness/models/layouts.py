"""The layout of a model's forward pass, by the results of the probes in capabilities.py.

The layouts are described in logprobs.py. Forward passes and the count of their FLOPs both use this
module.
"""

from __future__ import annotations

from torch import nn

from .batches import Batch
from .loading import ScalarModel, trunk_of

# numbers, 256 MiB in float32; larger logits are computed in parts and recomputed in backward
LOGITS_AT_ONCE = 2**26


def states_at_once(width: int) -> int:
    """Return how many states the head reads at once, for a vocabulary of `width` tokens."""
    return max(1, LOGITS_AT_ONCE // width)


def vocabulary_of(model: nn.Module) -> int:
    """Return the width of a causal model's logits."""
    return int(model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]


def packs(model: nn.Module) -> bool:
    """Return whether a causal or scalar model uses the packed layout."""
    return bool(getattr(_trunk(model), "share_prompt", False))


def reads_some(model: nn.Module) -> bool:
    """Return whether the last layer computes only the states that are read (last_layer.py)."""
    return getattr(_trunk(model), "last_parts", None) is not None


def head_apart(model: nn.Module, batch: Batch) -> bool:
    """Return whether a head reads the padded layout's states in parts: the logits are large."""
    many = batch["mask"].numel() * vocabulary_of(model) > LOGITS_AT_ONCE
    return many and bool(getattr(trunk_of(model), "plain_head", False))


def keeps_cache(model: nn.Module) -> bool:
    """Return whether a causal model decodes on its own cache."""
    return bool(getattr(getattr(model, "base_model", model), "keeps_cache", True))


def _trunk(model: nn.Module) -> nn.Module:
    return model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
