"""What the engine that samples and the model that is trained disagree on, and its correction.

Both have the same weights, but other kernels round otherwise. The engine's tokens come from pi_s,
and gradients are taken of pi_t. At the weights that sampled, w = pi_t / pi_s makes the expected
gradient that of pi_t:

- `tis`, truncated importance sampling: min(w, C) (Yao et al. 2025, "Your efficient RL framework
  secretly brings you off-policy RL training").
- `icepop`: w where it lies in [low, high], else 0 (Ling team 2025, "Every step evolves",
  2510.18855).

A loss per token has the weights of its tokens, a loss per completion the weight of the product over
its tokens. The whole loss is weighted, a KL in it included: its expectation is over samples too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..models.batches import Batch

NONE, TIS, ICEPOP = "none", "tis", "icepop"
OF_TOKENS, OF_COMPLETIONS = "sampler_weight", "sampler_weight_completion"  # columns of a batch
BEFORE = "sampler_logp"  # the column of the engine's own log-probabilities


class Correction(Protocol):
    """The options of a method."""

    sampler_correction: str
    sampler_cap: float
    sampler_low: float
    sampler_high: float


def weights(log_ratio: Tensor, options: Correction) -> Tensor:
    """Return weights from log pi_t / pi_s, of the same shape."""
    ratio = log_ratio.exp()
    if options.sampler_correction == TIS:
        return ratio.clamp(max=options.sampler_cap)
    inside = (ratio >= options.sampler_low) & (ratio <= options.sampler_high)
    return torch.where(inside, ratio, 0.0)


def corrected(batch: Batch, logp: Tensor, options: Correction) -> Batch:
    """Return a rollout whose `logp` are the trained model's, with the weights of its loss.

    Args:
        batch: Completions (B, K, T) with the engine's log-probabilities.
        logp: (B, K, T) in nats, under the trained model at the same weights.
        options: Of the method.
    """
    log_ratio = (logp - batch[BEFORE]) * batch["mask"]
    return batch.with_columns(
        **{
            "logp": logp,
            OF_TOKENS: weights(log_ratio, options),
            OF_COMPLETIONS: weights(log_ratio.sum(-1), options),
        }
    )


def report(batch: Batch) -> dict[str, float]:
    """Return the metrics of a corrected rollout: the mean weight of a token, and the share whose
    weight is not its ratio.
    """
    mask, count = batch["mask"], batch["mask"].sum().clamp(min=1)
    ratio = (batch["logp"] - batch[BEFORE]).exp()
    changed = (batch[OF_TOKENS] != ratio).float()
    return {
        "sampler_weight": float((batch[OF_TOKENS] * mask).sum() / count),
        "sampler_clipped": float((changed * mask).sum() / count),
    }


def weighted(losses: Tensor, part: Mapping[str, Tensor]) -> Tensor:
    """Return losses (B, K, T) or (B, K) by the weights of a corrected batch; others as they are.

    Raises:
        ValueError: The loss is one number per prompt: no weight belongs to it.
    """
    if OF_TOKENS not in part:
        return losses
    if losses.dim() == 1:
        raise ValueError(
            "sampler_correction weighs tokens or completions, and this loss is of prompts: set"
            " sampler_correction=none"
        )
    return losses * part[OF_TOKENS if losses.dim() == 3 else OF_COMPLETIONS]


def gap(logp: Tensor, part: Mapping[str, Tensor]) -> Tensor | None:
    """Return |log pi_t - log pi_s| (B, K, T) in nats; None for what is no rollout of the policy.

    Args:
        logp: Under the trained model, at the weights that sampled.
        part: The rows of the batch.
    """
    if BEFORE not in part or part[BEFORE].shape != logp.shape:
        return None
    return (logp.detach() - part[BEFORE]).abs() * part["mask"]
