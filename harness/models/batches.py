"""Padded batches of prompts and completions.

Prompts are padded on the left and completions on the right, so that every completion of a batch
starts at the same column. Masks come from lengths, never from comparing with the pad token, so
pad == eos is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.data import Prompt


@dataclass
class PromptBatch:
    """B prompts: `ids` (B, Q) left-padded, `mask` (B, Q) 1 on real tokens.

    `places`: for prompts of a stream, (row in the split, how often the stream yielded it before).
    """

    prompts: list[Prompt]
    ids: Tensor
    mask: Tensor
    places: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice | list[int]) -> PromptBatch:
        """Return some of the prompts, without the columns that are padding for all of them."""
        index = list(range(len(self)))[rows] if isinstance(rows, slice) else rows
        mask = self.mask[index]
        first = int(mask.argmax(dim=1).min()) if index else 0
        places = self.places and [self.places[i] for i in index]
        return PromptBatch(
            [self.prompts[i] for i in index], self.ids[index][:, first:], mask[:, first:], places
        )


class Batch(Mapping[str, Tensor]):
    """B prompts with K completions each, and named columns of tensors whose first dimension is B.

    Always there: `completion_ids` (B, K, T) right-padded, and `mask` (B, K, T), 1.0 on completion
    tokens, their end-of-sequence token included. Log-probabilities of this batch are taken at
    `temperature`. `written` is the text of the completions, K per prompt, if a model with another
    tokenizer wrote them.
    """

    def __init__(
        self,
        prompts: PromptBatch,
        columns: Mapping[str, Tensor],
        temperature: float = 1.0,
        written: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.prompts = prompts
        self.columns = dict(columns)
        self.temperature = temperature
        self.written = None if written is None else [list(row) for row in written]

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, K, T)."""
        b, k, t = self["mask"].shape
        return b, k, t

    @property
    def lengths(self) -> Tensor:
        """(B, K) completion lengths in tokens, the end-of-sequence token included."""
        return self["mask"].sum(-1).long()

    def with_columns(self, **columns: Tensor) -> Batch:
        """Return the batch with added or replaced columns; the original does not change."""
        for name, column in columns.items():
            if (
                not isinstance(column, Tensor)
                or not column.dim()
                or column.shape[0] != self.shape[0]
            ):
                actual = list(column.shape) if isinstance(column, Tensor) else type(column).__name__
                raise ValueError(
                    f"column {name!r} is a tensor with {self.shape[0]} rows, as the batch has; not"
                    f" {actual}"
                )
            if column.dim() == 3 and column.shape != columns.get("mask", self["mask"]).shape:
                raise ValueError(
                    f"column {name!r} {list(column.shape)}: three dimensions are (B, K, T);"
                    " flatten others"
                )
        return Batch(self.prompts, {**self.columns, **columns}, self.temperature, self.written)

    def select(self, rows: Sequence[int]) -> Batch:
        """Return some rows, without the padding that none of them needs."""
        index = torch.as_tensor(rows, device=self["mask"].device)
        width = self.shape[2]
        longest = max(1, int(self.lengths[index].max()))
        columns = {
            name: (
                column[index][..., :longest]
                if column.dim() == 3 and column.shape[2] == width
                else column[index]
            )
            for name, column in self.columns.items()
        }
        written = self.written and [self.written[row] for row in rows]
        return Batch(self.prompts[list(rows)], columns, self.temperature, written)

    def pick(self, choice: Tensor) -> Batch:
        """Return the completions with index `choice` of each prompt: (B, 1, T) for a choice (B,),
        (B, M, T) for (B, M).
        """
        choice = choice.view(len(choice), -1)
        rows = torch.arange(self.shape[0], device=choice.device)[:, None]
        columns = {
            name: (
                column[rows, choice]
                if column.dim() >= 2 and column.shape[1] == self.shape[1]
                else column
            )
            for name, column in self.columns.items()
        }
        return Batch(self.prompts, columns, self.temperature)

    def first(self, k: int) -> Batch:
        """Return the first k completions of each prompt: shape (B, k, T)."""
        columns = {
            name: column[:, :k] if _per_completion(self, name) else column
            for name, column in self.columns.items()
        }
        return Batch(self.prompts, columns, self.temperature)

    def flat(self) -> Batch:
        """Return the batch with every completion a row of its own: (B * K, 1, T), per-completion
        columns likewise.
        """
        b, k, _ = self.shape
        order = [i for i in range(b) for _ in range(k)]
        columns = {
            name: (
                column.flatten(0, 1)[:, None]
                if column.dim() >= 2 and column.shape[1] == k
                else column[order]
            )
            for name, column in self.columns.items()
        }
        return Batch(self.prompts[order], columns, self.temperature)

    def beside(self, other: Batch) -> Batch:
        """Return the completions of two batches of the same prompts in one: (B, K1 + K2, T).

        Columns per completion and per token that both have are joined. All others are dropped,
        those of one value per prompt included.
        """
        b, k, t = self.shape
        if self.prompts.prompts != other.prompts.prompts:
            raise ValueError("beside joins completions of the same prompts, in the same order")
        if self.temperature != other.temperature:
            raise ValueError(
                f"beside joins completions of one temperature, not {self.temperature} and"
                f" {other.temperature}"
            )
        length = max(t, other.shape[2])
        columns = {
            name: torch.cat([_pad_tokens(x[name], x.shape[2], length) for x in (self, other)], 1)
            for name in self
            if name in other and _per_completion(self, name) and _per_completion(other, name)
        }
        return Batch(self.prompts, columns, self.temperature)

    def mismatched(self) -> Batch:
        """Return every prompt with the completions of the next row: (B, K, T), no other columns."""
        columns = {name: self[name].roll(-1, 0) for name in ("completion_ids", "mask")}
        return Batch(self.prompts, columns, self.temperature)

    @staticmethod
    def concatenate(parts: Sequence[Batch]) -> Batch:
        """Return one batch of the rows of several, all with the same K and columns."""
        assert len({part.temperature for part in parts}) == 1, "batches of unlike temperature"
        width = max(part.prompts.ids.shape[1] for part in parts)
        length = max(part.shape[2] for part in parts)
        prompts = PromptBatch(
            [p for part in parts for p in part.prompts.prompts],
            torch.cat([_pad_left(part.prompts.ids, width) for part in parts]),
            torch.cat([_pad_left(part.prompts.mask, width) for part in parts]),
        )
        columns = {}
        for name in parts[0]:
            columns[name] = torch.cat(
                [_pad_tokens(part[name], part.shape[2], length) for part in parts]
            )
        return Batch(prompts, columns, parts[0].temperature)


def _per_completion(batch: Batch, name: str) -> bool:
    return batch[name].shape[1:2] == batch["mask"].shape[1:2]


def _pad_left(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (width - x.shape[1], 0))


def _pad_tokens(column: Tensor, own: int, length: int) -> Tensor:
    per_token = column.dim() == 3 and column.shape[2] == own
    return torch.nn.functional.pad(column, (0, length - own)) if per_token else column
