"""The attention of one layer: scores of queries and keys, softmax, and the weighted mean of
values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scoring:
    """How a layer turns the products of its queries and keys into weights."""

    scaling: float
    window: int | None = None  # tokens that a token attends to, itself included; None for all
    cap: float | None = None  # c of c tanh(score / c); None for no cap
    sinks: Tensor | None = None  # (heads,) an additional score per head; its weight is dropped

    @property
    def plain(self) -> bool:
        """Whether the weights are a softmax of the products alone, as torch's kernels compute."""
        return self.cap is None and self.sinks is None

    def capped(self, scores: Tensor) -> Tensor:
        """Return scaled scores under the cap."""
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    def weights(self, scores: Tensor) -> Tensor:
        """Return the float32 softmax of scores (R, H, r, S) over the last dimension.

        With sinks, either the H x r rows are the layer's query heads in order, or H is the number
        of heads and r the number of queries.
        """
        if self.sinks is None:
            return torch.softmax(scores, -1, dtype=torch.float32)
        heads = len(self.sinks)
        shape = (1, heads, 1, 1) if scores.shape[1] == heads else (1, scores.shape[1], -1, 1)
        sink = self.sinks.view(shape).expand(len(scores), -1, scores.shape[2], 1)
        both = torch.cat([scores, sink.to(scores.dtype)], -1)
        return torch.softmax(both, -1, dtype=torch.float32)[..., :-1]


def attention(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, bias: Tensor | None) -> Tensor:
    """Return the attention of (R, heads, S, d) over (R, heads, S', d): causal, or with a bias.

    On a CPU torch's bfloat16 kernel is slower than its float32 one, so float32 is used.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.float()
            return attention(q.float(), k.float(), v.float(), scoring, bias).to(q.dtype)
    if scoring.plain:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, bias, is_causal=bias is None, scale=scoring.scaling
        )
    if bias is None:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        bias = hiding(~seen, q.dtype)
    scores = scoring.capped(q @ k.transpose(-1, -2) * scoring.scaling) + bias
    return scoring.weights(scores).to(v.dtype) @ v


def hiding(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bias of scores: the lowest number where `hidden` is true, and 0 elsewhere."""
    bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return bias.masked_fill_(hidden, torch.finfo(dtype).min)
