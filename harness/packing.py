"""Training and scoring without padding: every prompt once, every token once, all of them in one row.

A batch of B prompts with K completions each becomes one sequence: the tokens of all prompts, then those of all
completions, (1, N). Whatever works token by token - embeddings, linear layers, norms - works on N tokens and no more.
Only attention has to know who sees whom: prompts attend causally within themselves; a completion attends to its prompt,
whose keys and values were computed once, and causally to itself. With one completion per prompt the two are one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .tokens import Batch


@dataclass(frozen=True)
class Grid:
    """Where the tokens of several rows lie: `slots` (N,), ascending, in a table of `rows` by `width` places."""

    slots: Tensor
    rows: int
    width: int

    @cached_property
    def full(self) -> bool:
        """Whether no place is left free, so that laying out is no work."""
        return len(self.slots) == self.rows * self.width

    def lay(self, tokens: Tensor) -> Tensor:
        """Return (rows, heads, width, d) of tokens (heads, N, d); free places are 0."""
        flat = tokens.transpose(0, 1)
        table: Tensor = flat
        if not self.full:
            table = _Spread.apply(flat, self.slots, self.rows * self.width)  # type: ignore[no-untyped-call]
        return table.reshape(self.rows, self.width, *flat.shape[1:]).transpose(1, 2)

    def pick(self, table: Tensor) -> Tensor:
        """Return (N, heads, d) of (rows, heads, width, d): the way back."""
        flat = table.transpose(1, 2).reshape(self.rows * self.width, table.shape[1], table.shape[3])
        if self.full:
            return flat
        picked: Tensor = _Gather.apply(flat, self.slots)  # type: ignore[no-untyped-call]
        return picked


@dataclass
class Packing:
    """A batch in one row, and how its tokens attend: see `attention.Attention`."""

    ids: Tensor  # (1, N)
    positions: Tensor  # (1, N)
    states: Tensor  # (B, K, T + 1) where in N each state is; where there is no token, it is any
    prompts: Grid  # of the tokens that attend causally along a row, (B, Q); all of them if K is 1
    own: Grid | None  # of the completions' tokens, (B K, T); None if K is 1
    visible: Tensor  # (B, Q): which places of the prompts are tokens

    _known: Tensor | None = None  # the bias, made once for all layers

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Return (1, N, heads, d) for queries (1, heads, N, d), keys and values (1, H, N, d)."""
        if key.dtype != value.dtype or query.dtype != value.dtype:  # rotated in float32 under autocast
            query, key = query.to(value.dtype), key.to(value.dtype)
        groups = query.shape[1] // key.shape[1]
        first = len(self.prompts.slots)
        q, k, v = (self.prompts.lay(x[0, :, :first]) for x in (query, key, value))
        out = self.prompts.pick(_attention(q, _for_heads(k, groups), _for_heads(v, groups), scaling))
        if self.own is None:
            return out[None]
        q, own_k, own_v = (self.own.lay(x[0, :, first:]) for x in (query, key, value))
        k, v = (self._after_prompt(*x, groups) for x in ((k, own_k), (v, own_v)))
        out_own = self.own.pick(_attention(q, k, v, scaling, self._bias(q)))
        return torch.cat([out, out_own])[None]

    def _after_prompt(self, prompt: Tensor, own: Tensor, groups: int) -> Tensor:
        """Return (B K, heads, Q + T, d): the keys or values of each prompt (B, H, Q, d) before its completions' own."""
        b, k = len(prompt), len(own) // len(prompt)
        before = prompt[:, None].expand(b, k, *prompt.shape[1:]).flatten(0, 1)
        return _for_heads(torch.cat([before, own], 2), groups)

    def _bias(self, query: Tensor) -> Tensor:
        """Return (B K, 1, T, Q + T), 0 where a completion's token sees a place and a very small number elsewhere."""
        if self._known is None or self._known.dtype != query.dtype:
            assert self.own is not None
            t, k = self.own.width, self.own.rows // self.prompts.rows
            causal = torch.ones(t, t, dtype=torch.bool, device=query.device).tril().expand(self.own.rows, t, t)
            seen = self.visible.repeat_interleave(k, 0)[:, None].expand(-1, t, -1)
            sees = torch.cat([seen, causal], 2)[:, None]
            bias = torch.zeros(sees.shape, dtype=query.dtype, device=query.device)
            self._known = bias.masked_fill_(~sees, torch.finfo(query.dtype).min)
        return self._known


def pairs_of(batch: Batch) -> int:
    """Return how many pairs of query and key a batch in one row computes."""
    (b, k, _), length, lengths = batch.shape, batch.prompts.mask.sum(1), batch.lengths
    if k == 1:
        return b * int((length + lengths[:, 0]).max()) ** 2
    wide, long = int(length.max()), max(1, int(lengths.max()))
    return b * wide**2 + b * k * long * (wide + long)


def pack(batch: Batch) -> Packing:
    """Return a batch (B, K, T) in one row."""
    b, k, t = batch.shape
    real, mask, lengths = batch.prompts.mask.bool(), batch["mask"] > 0, batch.lengths
    length, device = real.sum(1), real.device  # (B,)
    in_prompt, row = (real.cumsum(1) - 1)[real], real.nonzero()[:, 0]
    owner, which, step = mask.nonzero(as_tuple=True)  # of every completion token
    ids = torch.cat([batch.prompts.ids[real], batch["completion_ids"][mask]])
    positions = torch.cat([in_prompt, length[owner] + step])
    if k == 1:
        whole = length + lengths[:, 0]
        last, wide = whole.cumsum(0) - lengths[:, 0] - 1, int(whole.max())  # where in N a prompt ends
        slots, order = (torch.cat([row, owner]) * wide + positions).sort()
        ids, positions = ids[order], positions[order]
        first, prompts, own = (last + 1)[:, None], Grid(slots, b, wide), None
    else:
        last, wide = length.cumsum(0) - 1, int(length.max())
        ends = lengths.flatten().cumsum(0).view(b, k) + len(row)
        first, prompts = ends - lengths, Grid(row * wide + in_prompt, b, wide)
        long = max(1, int(lengths.max()))
        own = Grid((owner * k + which) * long + step, b * k, long)
    before = last[:, None, None].expand(b, k, 1)
    after = first[..., None] + torch.arange(t, device=device)
    states = torch.cat([before, torch.where(mask, after, before)], -1)
    return Packing(
        ids[None], positions[None], states, prompts, own, torch.arange(wide, device=device) < length[:, None]
    )


def _attention(q: Tensor, k: Tensor, v: Tensor, scaling: float, bias: Tensor | None = None) -> Tensor:
    """Return the attention of (R, heads, S, d) over (R, heads, S', d): causal, or as a bias says."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None, scale=scaling)


def _for_heads(keys: Tensor, groups: int) -> Tensor:
    """Return keys or values (R, H, S, d) once for every query head that shares them."""
    return keys if groups == 1 else keys.repeat_interleave(groups, 1)


class _Spread(torch.autograd.Function):
    """Rows at unlike places of a larger table; its gradient is a plain gather, as is not known to an index_put."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, slots: Tensor, size: int) -> Tensor:
        """Return (size, ...) with `flat` (N, ...) at `slots` (N,) and 0 elsewhere."""
        ctx.save_for_backward(slots)
        return _spread(flat, slots, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of `flat`."""
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Gather(torch.autograd.Function):
    """The way back: rows at unlike places."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, slots: Tensor) -> Tensor:
        """Return (N, ...) of `table` at `slots`."""
        ctx.save_for_backward(slots)
        ctx.size = len(table)
        return table.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of `table`."""
        return _spread(gradient, ctx.saved_tensors[0], ctx.size), None


def _spread(flat: Tensor, slots: Tensor, size: int) -> Tensor:
    return flat.new_zeros(size, *flat.shape[1:]).index_copy_(0, slots, flat)
