"""Divergences between the distributions of two models, token by token, in parts of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .batches import Batch
from .logprobs import Predictions, predictions
from .sharding import in_pass

# of log-probabilities (m, V) of two models: the divergence (m,) of m tokens
Divergence = Callable[[Tensor, Tensor], Tensor]


def completion_divergence(
    model: nn.Module, other: nn.Module, divergence: Divergence, batch: Batch
) -> Tensor:
    """Return (B, K, T, 3): log-probabilities of the completion tokens under both models, and the
    divergence of the distributions that they are drawn from.

    The first and the last have gradients of `model`; `other` has none. Distributions are computed
    in parts, never all at once. Padding has exactly 0.
    """
    places = batch["mask"] > 0
    ids = batch["completion_ids"][places]

    def compute() -> Tensor:
        with torch.no_grad():
            beside = predictions(other, batch)
        return _in_parts(predictions(model, batch), beside, ids, divergence)

    columns = in_pass(model, lambda: in_pass(other, compute))
    out = torch.zeros(*batch.shape, 3, device=columns.device)
    return out.masked_scatter(places[..., None], columns)


def _in_parts(own: Predictions, other: Predictions, ids: Tensor, divergence: Divergence) -> Tensor:
    """Return (M, 3) columns of M tokens."""
    rows = []
    for part in own.parts():
        one = partial(_columns, own, other, divergence)
        given = (own.states[part], other.states[part], ids[part])
        if own.states.requires_grad and len(own.states) > own.at_once:
            rows.append(checkpoint(one, *given, use_reentrant=False, preserve_rng_state=False))
        else:
            rows.append(one(*given))
    # no state: an empty tensor that still depends on all of the model, so that its gradient is 0
    return torch.cat(rows) if rows else own.read(own.states).sum(-1)[:, None].expand(-1, 3)


def _columns(
    own: Predictions,
    other: Predictions,
    divergence: Divergence,
    states: Tensor,
    beside: Tensor,
    ids: Tensor,
) -> Tensor:
    p = own.read(states).log_softmax(-1)
    with torch.no_grad():
        q = other.read(beside).log_softmax(-1)
    at = ids[:, None]
    return torch.cat([p.gather(-1, at), q.gather(-1, at), divergence(p, q)[:, None]], -1)
