"""Decoding from a geometric mixture of two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Mixed:
    """A second model of a geometric mixture pi^(1 - share) other^share, token by token.

    Each next token is drawn from softmax((1 - share) a + share b), a and b the logits of the two
    models at the sampling temperature (Munos et al. 2023, 2312.00886).
    """

    model: nn.Module
    share: float  # in [0, 1]


class MixedCache:
    """The caches of two models whose logits are added with weights."""

    def __init__(self, own: Any, other: Any, mixed: Mixed) -> None:
        self.own, self.other, self.mixed = own, other, mixed
        self.keep_until, self.look_every = own.keep_until, own.look_every

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only."""
        self.own.keep(rows)
        self.other.keep(rows)

    def next_logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return (R, V) logits of the mixture after one more token (R,) per row."""
        own = self.own.next_logits(model, tokens)
        return mixed_logits(own, self.other.next_logits(self.mixed.model, tokens), self.mixed)


def mixed_logits(own: Tensor, other: Tensor, mixed: Mixed) -> Tensor:
    """Return logits of the geometric mixture, of two models' logits of the same shape."""
    return (1 - mixed.share) * own.float() + mixed.share * other.float()
