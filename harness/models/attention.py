"""Replacement of a model's attention through the transformers API, and decoding on shared prompts.

The model's modules are unchanged. Only the attention function (`transformers.AttentionInterface`)
and, for decoding, the cache (`transformers.Cache`) are replaced. packing.py defines the attention
of training and scoring.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache

from .attention_scores import Scoring, hiding

NAME = "harness"  # of the attention function, in the library's registry
UNKNOWN = ("position_bias", "alibi")  # arguments that this attention does not support


class Attention(Protocol):
    """How the tokens of a forward pass attend to one another."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Return (R, S, heads, d) for queries (R, heads, S, d), keys and values (R, H, S', d) of a
        layer.
        """


_now: Attention | None = None  # of the current forward pass: the library passes no argument for it


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend with the attention of the current forward pass; the library calls this."""
    if _now is None or any(options.get(name) is not None for name in UNKNOWN):
        raise ValueError("this attention does not support an option of the model")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scaling, sliding_window, softcap, s_aux)
    return _now.attend(module.layer_idx, query, key, value, scoring), None  # type: ignore[arg-type]


AttentionInterface.register(NAME, attend)


@contextmanager
def attending(trunk: nn.Module, how: Attention) -> Iterator[None]:
    """Replace a model's attention inside the context."""
    global _now
    config: Any = trunk.config.get_text_config()  # type: ignore[operator, union-attr]
    before, _now = (config._attn_implementation, _now), how
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation, _now = before


class SharedPromptCache(Cache):  # type: ignore[misc]
    """Keys and values of prompts, stored once, and of their completions, preallocated.

    A completion's token attends to its prompt and to the completion so far: two products, one
    softmax. The first product is batched over all completions of a prompt, so the prompt is never
    repeated. A layer with a window stores only the end of the prompts, and masks keys outside its
    window.
    """

    def __init__(self, prompt: Cache, mask: Tensor, n: int, limit: int) -> None:
        """Take a prefilled cache of B prompts, mask (B, Q), for n completions of `limit` tokens."""
        super().__init__(layers=[])
        self.prompt = [(layer.keys, layer.values) for layer in prompt.layers]  # (B, H, Q, d) each
        (b, heads, _, d), like = self.prompt[0][0].shape, self.prompt[0][0]
        self.total = mask.shape[1] + limit  # columns at the end of the longest completion
        shape = (len(self.prompt), b * n, heads, limit, d)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
        self.bias.masked_fill_(mask == 0, torch.finfo(like.dtype).min)
        self.owner = torch.arange(b, device=like.device).repeat_interleave(
            n
        )  # the prompt of each row
        self.length = 0  # tokens written
        self._arrange()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new token's keys and values (R, H, 1, d); return those of all tokens so far."""
        rows = len(self.owner)
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            store[layer_idx, :rows, :, self.length] = new[:, :, 0]
        stored = self.length + 1
        return self.keys[layer_idx, :rows, :, :stored], self.values[layer_idx, :rows, :, :stored]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens have been seen, padding included."""
        return self.bias.shape[1] + self.length

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only, and their prompts."""
        for store in (self.keys, self.values):
            store[:, : len(rows), :, : self.length] = store[:, rows, :, : self.length]
        self.owner = self.owner[rows]
        there = torch.unique(self.owner)
        if len(there) < len(self.bias):
            self.prompt = [(k[there], v[there]) for k, v in self.prompt]
            self.bias = self.bias[there]
            self.owner = torch.searchsorted(there, self.owner)
        self._arrange()

    def _arrange(self) -> None:
        """Compute the slot of every row in a table of prompts by completions."""
        counts = self.owner.bincount(minlength=len(self.bias))
        self.widest = int(counts.max())
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self.owner), device=self.owner.device) - first[self.owner]
        self.slot = self.owner * self.widest + place
        self.full = len(self.owner) == len(self.bias) * self.widest

    def by_prompt(self, rows: Tensor) -> Tensor:
        """Return (R, H, r, d) as (B, H, W r, d) by prompt; W is the most rows of a prompt."""
        b, (_, heads, r, d) = len(self.bias), rows.shape
        if not self.full:
            spread = rows.new_zeros(b * self.widest, heads, r, d)
            spread[self.slot] = rows
            rows = spread
        return (
            rows.view(b, self.widest, heads, r, d)
            .transpose(1, 2)
            .reshape(b, heads, self.widest * r, d)
        )

    def by_row(self, prompts: Tensor) -> Tensor:
        """Undo `by_prompt`."""
        b, heads, wr, d = prompts.shape
        rows = (
            prompts.view(b, heads, self.widest, wr // self.widest, d).transpose(1, 2).flatten(0, 1)
        )
        return rows if self.full else rows[self.slot]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Return (R, 1, heads, d) for queries (R, heads, 1, d), keys and values (R, H, t, d)."""
        prompt_key, prompt_value = self.prompt[layer]
        rows, heads, _, d = query.shape
        query = query.reshape(rows, key.shape[1], heads // key.shape[1], d) * scoring.scaling
        shared = scoring.capped(self.by_prompt(query) @ prompt_key.transpose(-1, -2))
        width = shared.shape[-1]
        shared = shared + self._prompt_bias(width, scoring.window)[:, None, None]
        own = self.visible(scoring.capped(query @ key.transpose(-1, -2)), scoring.window)
        scores = torch.cat([self.by_row(shared), own], -1)
        weights = scoring.weights(scores).to(value.dtype)
        out = (
            self.by_row(self.by_prompt(weights[..., :width]) @ prompt_value)
            + weights[..., width:] @ value
        )
        return out.reshape(rows, 1, heads, d)

    def visible(self, scores: Tensor, window: int | None) -> Tensor:
        """Return scores (R, H, r, t) of the completions' own keys, with those too far hidden."""
        if not self._passes(window):
            return scores
        places = torch.arange(scores.shape[-1], device=scores.device)
        return scores + hiding(places + window <= self.newest, scores.dtype)

    def _prompt_bias(self, width: int, window: int | None) -> Tensor:
        """Return the bias (B, width) of the last `width` columns of the prompts."""
        columns = self.bias.shape[1]
        bias = self.bias[:, columns - width :]
        if not self._passes(window):
            return bias
        before = torch.arange(-width, 0, device=bias.device)  # -1 is a prompt's last token
        return bias.masked_fill(before + window <= self.newest, torch.finfo(bias.dtype).min)

    def _passes(self, window: int | None) -> TypeGuard[int]:
        """Return whether a completion may become longer than a window, with its prompt."""
        return window is not None and window < self.total

    @property
    def newest(self) -> int | Tensor:
        """The place of the newest token in its completion."""
        return self.length

    def advance(self) -> None:
        """Advance the length by one token, after every layer has written it."""
        self.length += 1
