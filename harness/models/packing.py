"""Training and scoring without padding: a batch is packed into one sequence, each prompt once.

A batch of B prompts with K completions each becomes one sequence: the tokens of all prompts, then
those of all completions, (1, N). Embeddings, linear layers and norms
process exactly N tokens. Only attention separates the sequences: a prompt attends causally to
itself; a completion attends to its prompt, whose keys and values are computed once, and causally to
itself. With one completion per prompt, prompt and completion form one row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .attention_scores import Scoring, attention, hiding
from .batches import Batch


@dataclass(frozen=True)
class Grid:
    """Positions of packed tokens in a padded table of rows: `slots` (N,), ascending."""

    slots: Tensor
    rows: int
    width: int

    @cached_property
    def full(self) -> bool:
        """Whether the table has no padding, so that no copy is needed."""
        return len(self.slots) == self.rows * self.width

    def lay(self, tokens: Tensor) -> Tensor:
        """Return (rows, heads, width, d) of tokens (heads, N, d); padding is 0."""
        flat = tokens.transpose(0, 1)
        table: Tensor = flat
        if not self.full:
            table = _Spread.apply(flat, self.slots, self.rows * self.width)  # type: ignore[no-untyped-call]
        return table.reshape(self.rows, self.width, *flat.shape[1:]).transpose(1, 2)

    def pick(self, table: Tensor) -> Tensor:
        """Return (N, heads, d) of (rows, heads, width, d): the inverse of `lay`."""
        flat = table.transpose(1, 2).reshape(self.rows * self.width, table.shape[1], table.shape[3])
        if self.full:
            return flat
        return gather(flat, self.slots)


@dataclass
class Asking:
    """The queries of the tokens whose states are read: (M,) ascending positions in N."""

    read: Tensor  # (M,)
    prompts: Grid  # those among the prompts' tokens, (B, most in a row)
    last: Tensor  # (B, most in a row): the last position in its row that each query attends to
    own: Grid | None  # those among the completions' tokens
    bias: Tensor | None = None  # from the prompts' grid, computed once


@dataclass
class Packing:
    """A batch packed into one row, and its attention: see `attention.Attention`."""

    ids: Tensor  # (1, N)
    positions: Tensor  # (1, N)
    states: Tensor  # (B, K, T + 1) position in N of each state; arbitrary on padding
    prompts: Grid  # of the tokens that attend causally along a row, (B, Q); all of them if K is 1
    own: Grid | None  # of the completions' tokens, (B K, T); None if K is 1
    visible: Tensor  # (B, Q): which positions of the prompts are tokens
    longest: int  # tokens of the longest prompt with its completion

    # biases, made once for all layers: by kind, window and dtype
    _known: dict[tuple[str, int, torch.dtype], Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Return (1, N, heads, d) for queries (1, heads, N, d), keys and values (1, H, N, d)."""
        bias = self._row_bias(value, scoring.window)
        return self._attend(query, key, value, scoring, self.prompts, self.own, bias)

    def attend_from(
        self, asking: Asking, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Return (1, M, heads, d) for queries of some tokens, keys and values of all."""
        if asking.bias is None or asking.bias.dtype != value.dtype:
            places = torch.arange(self.prompts.width, device=value.device)
            asking.bias = hiding(
                _hidden(places, asking.last[:, None, :, None], scoring.window), value.dtype
            )
        return self._attend(query, key, value, scoring, asking.prompts, asking.own, asking.bias)

    def asking(self, read: Tensor) -> Asking:
        """Return the layout of the queries of some tokens (M,), ascending positions in N."""
        first = len(self.prompts.slots)
        some = int((read < first).sum())
        slots = self.prompts.slots[read[:some]]
        row, place = slots // self.prompts.width, slots % self.prompts.width
        counts = row.bincount(minlength=self.prompts.rows)
        nth = torch.arange(some, device=read.device) - (counts.cumsum(0) - counts)[row]
        prompts = Grid(row * int(counts.max()) + nth, self.prompts.rows, int(counts.max()))
        last = torch.zeros(prompts.rows * prompts.width, dtype=torch.long, device=read.device)
        last[prompts.slots] = place
        own = self.own and Grid(self.own.slots[read[some:] - first], self.own.rows, self.own.width)
        return Asking(read, prompts, last.view(prompts.rows, prompts.width), own)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        asks: Grid,
        own_asks: Grid | None,
        bias: Tensor | None,
    ) -> Tensor:
        if (
            key.dtype != value.dtype or query.dtype != value.dtype
        ):  # rotated in float32 under autocast
            query, key = query.to(value.dtype), key.to(value.dtype)
        groups, first = query.shape[1] // key.shape[1], len(self.prompts.slots)
        (q, own_q), (k, own_k), (v, own_v) = (
            _split(query, len(asks.slots)),
            *(_split(x, first) for x in (key, value)),
        )
        q, k, v = asks.lay(q), self.prompts.lay(k), self.prompts.lay(v)
        out = asks.pick(attention(q, _for_heads(k, groups), _for_heads(v, groups), scoring, bias))
        if self.own is None or own_asks is None:
            return out[None]
        q, own_k, own_v = own_asks.lay(own_q), self.own.lay(own_k), self.own.lay(own_v)
        k, v = (self._after_prompt(*x, groups) for x in ((k, own_k), (v, own_v)))
        out_own = own_asks.pick(attention(q, k, v, scoring, self._bias(q, scoring.window)))
        return torch.cat([out, out_own])[None]

    def _after_prompt(self, prompt: Tensor, own: Tensor, groups: int) -> Tensor:
        """Return (B K, heads, Q + T, d): keys or values of each prompt, then its completions'."""
        b, k = len(prompt), len(own) // len(prompt)
        before, after = (
            prompt[:, None].expand(b, k, *prompt.shape[1:]),
            own.view(b, k, *own.shape[1:]),
        )
        return _for_heads(torch.cat([before, after], 3).flatten(0, 1), groups)

    def _row_bias(self, query: Tensor, window: int | None) -> Tensor | None:
        """Return the bias (1, 1, Q, Q) of a row that is longer than the window; else None: the
        mask is the causal one.
        """
        if window is None or window >= self.prompts.width:
            return None
        key = ("row", window, query.dtype)
        if key not in self._known:
            places = torch.arange(self.prompts.width, device=query.device)
            hidden = _hidden(places, places[:, None], window)
            self._known[key] = hiding(hidden, query.dtype)[None, None]
        return self._known[key]

    def _bias(self, query: Tensor, window: int | None) -> Tensor:
        """Return the attention bias (B K, 1, T, Q + T) of the completions' tokens."""
        if window is not None and window >= self.longest:
            window = None
        key = ("own", window or 0, query.dtype)
        if key not in self._known:
            assert self.own is not None
            t, k = self.own.width, self.own.rows // self.prompts.rows
            steps = torch.arange(t, device=query.device)
            hides_own = _hidden(steps, steps[:, None], window).expand(self.own.rows, t, t)
            hides_prompt = ~self.visible[:, None].expand(-1, t, -1)
            if window is not None:
                places = torch.arange(self.prompts.width, device=query.device)
                at = self.visible.sum(1)[:, None, None] + steps[:, None]  # (B, T, 1) in its row
                hides_prompt = hides_prompt | _hidden(places, at, window)
            hidden = torch.cat([hides_prompt.repeat_interleave(k, 0), hides_own], 2)
            self._known[key] = hiding(hidden[:, None], query.dtype)
        return self._known[key]


def _hidden(key: Tensor, query: Tensor, window: int | None) -> Tensor:
    """Return which keys a query does not attend to, by position: later keys, and keys before the
    window.
    """
    later = key > query
    return later if window is None else later | (key <= query - window)


def pairs_of(batch: Batch, asking: bool = False, ends: bool = True) -> int:
    """Return how many (query, key) pairs a layer computes for a packed batch.

    `asking`: only states that are read have queries; `ends`: last tokens are read too.
    """
    (b, k, _), length, lengths = batch.shape, batch.prompts.mask.sum(1), batch.lengths
    if k == 1:
        wide = int((length + lengths[:, 0]).max())
        return b * wide * (int(lengths.max()) + ends if asking else wide)
    wide, long = int(length.max()), max(1, int(lengths.max()))
    return b * wide * (1 if asking else wide) + b * k * long * (wide + long)


def pack(batch: Batch) -> Packing:
    """Return a batch (B, K, T) packed into one row."""
    b, k, t = batch.shape
    real, mask, lengths = batch.prompts.mask.bool(), batch["mask"] > 0, batch.lengths
    length, device = real.sum(1), real.device  # (B,)
    in_prompt, row = (real.cumsum(1) - 1)[real], real.nonzero()[:, 0]
    owner, which, step = mask.nonzero(as_tuple=True)  # of every completion token
    ids = torch.cat([batch.prompts.ids[real], batch["completion_ids"][mask]])
    positions = torch.cat([in_prompt, length[owner] + step])
    if k == 1:
        whole = length + lengths[:, 0]
        last, wide = (
            whole.cumsum(0) - lengths[:, 0] - 1,
            int(whole.max()),
        )  # position in N of each prompt's last token
        slots, order = (torch.cat([row, owner]) * wide + positions).sort()
        ids, positions = ids[order], positions[order]
        first, prompts, own = (last + 1)[:, None], Grid(slots, b, wide), None
        longest = wide
    else:
        last, wide = length.cumsum(0) - 1, int(length.max())
        ends = lengths.flatten().cumsum(0).view(b, k) + len(row)
        first, prompts = ends - lengths, Grid(row * wide + in_prompt, b, wide)
        long = max(1, int(lengths.max()))
        own = Grid((owner * k + which) * long + step, b * k, long)
        longest = int((length[:, None] + lengths).max())
    before = last[:, None, None].expand(b, k, 1)
    after = first[..., None] + torch.arange(t, device=device)
    states = torch.cat([before, torch.where(mask, after, before)], -1)
    return Packing(
        ids[None],
        positions[None],
        states,
        prompts,
        own,
        torch.arange(wide, device=device) < length[:, None],
        longest,
    )


def _split(tokens: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return (heads, first, d) and the rest of (1, heads, N, d).

    Unlike slices, the backward pass allocates no table of zeros.
    """
    before, after = torch.split(tokens.squeeze(0), [first, tokens.shape[2] - first], 1)
    return before, after


def _for_heads(keys: Tensor, groups: int) -> Tensor:
    """Return keys or values (R, H, S, d) once for every query head that shares them."""
    return keys if groups == 1 else keys.repeat_interleave(groups, 1)


def gather(table: Tensor, slots: Tensor) -> Tensor:
    """Return (M, ...) of a table (N, ...) at distinct `slots` (M,)."""
    picked: Tensor = _Gather.apply(table, slots)  # type: ignore[no-untyped-call]
    return picked


class _Spread(torch.autograd.Function):
    """Scatter rows to distinct slots of a larger table; the gradient is a plain gather."""

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
    """Gather rows at distinct slots; the inverse of `_Spread`."""

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
