"""Token ids, padding and masks; no other module handles padding.

Prompts are padded on the left and completions on the right, so that every completion of a batch
starts at the same column. Prompt and completion are tokenised separately and joined as ids, as in a
rollout. Masks come from lengths, never from comparing with the pad token, so pad == eos is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.data import Prompt, Text
from ..core.errors import UsageError


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
    tokens, their end-of-sequence token included. `temperature` is the one at which
    log-probabilities of this batch are taken.
    """

    def __init__(
        self, prompts: PromptBatch, columns: Mapping[str, Tensor], temperature: float = 1.0
    ) -> None:
        self.prompts = prompts
        self.columns = dict(columns)
        self.temperature = temperature

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
        return Batch(self.prompts, {**self.columns, **columns}, self.temperature)

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
        return Batch(self.prompts[list(rows)], columns, self.temperature)

    def pick(self, choice: Tensor) -> Batch:
        """Return one completion per prompt, `choice` (B,) naming which: shape (B, 1, T)."""
        rows = torch.arange(self.shape[0], device=choice.device)
        columns = {
            name: (
                column[rows, choice][:, None]
                if column.dim() >= 2 and column.shape[1] == self.shape[1]
                else column
            )
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


class Tokens:
    """A tokenizer with the harness's rules.

    Longer texts are cut to `max_prompt` and `max_completion` tokens, and counted.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_prompt: int | None = None,
        max_completion: int | None = None,
        other_ends: Iterable[int] = (),
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UsageError(
                "The tokenizer has no end-of-sequence token; completions could never end. Set"
                " eos_token."
            )
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.ends = {self.eos, *other_ends}  # every token that ends a completion
        self.max_prompt, self.max_completion = max_prompt, max_completion
        self.cut_prompts = self.cut_completions = 0

    def counting_afresh(self) -> Tokens:
        """Return a copy with counters at 0, so that each stage counts its own cuts."""
        return Tokens(self.tokenizer, self.max_prompt, self.max_completion, self.ends)

    def prompt_ids(self, text: Text) -> list[int]:
        """Return a prompt's ids: with start token for plain text, by chat template for messages.

        A prompt over `max_prompt` loses its beginning, because the answer follows its end.
        """
        if isinstance(text, str):
            ids = list(self.tokenizer(text)["input_ids"])
            ids = ids[:-1] if ids and ids[-1] == self.eos else ids
        else:
            ids = self._template(text, add_generation_prompt=True)
        if not ids:
            start = self.tokenizer.bos_token_id
            ids = [self.eos if start is None else start]
        if self.max_prompt and len(ids) > self.max_prompt:
            self.cut_prompts += 1
            ids = ids[-self.max_prompt :]
        return ids

    def completion_ids(self, prompt: Text, completion: Text) -> list[int]:
        """Return a completion's ids with one end-of-sequence token, or none if it was cut."""
        if isinstance(completion, str):
            ids = list(self.tokenizer(completion, add_special_tokens=False)["input_ids"])
        else:
            ids = self._message_ids(prompt, completion)
        first = next(
            (i for i, token in enumerate(ids) if token in self.ends), None
        )  # a completion ends at its first end token
        ids = [*ids, self.eos] if first is None else ids[: first + 1]
        if self.max_completion and len(ids) > self.max_completion:
            self.cut_completions += 1
            ids = ids[: self.max_completion]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of completion ids, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def texts(self, batch: Batch) -> list[list[str]]:
        """Return the completions of a batch as text, K per prompt."""
        b, k, _ = batch.shape
        ids, lengths = batch["completion_ids"].tolist(), batch.lengths.tolist()
        return [[self.decode(ids[i][j][: lengths[i][j]]) for j in range(k)] for i in range(b)]

    def prompt_batch(
        self, prompts: Sequence[Prompt], device: torch.device | str = "cpu"
    ) -> PromptBatch:
        """Return prompts as a left-padded batch."""
        rows = [self.prompt_ids(prompt.text) for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device
        )
        return PromptBatch(list(prompts), ids, mask)

    def batch(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Sequence[int]]],
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
    ) -> Batch:
        """Return prompts with K tokenised completions each as a batch at `temperature`."""
        width = max(len(ids) for group in completions for ids in group)
        ids = [[[*c, *[self.pad] * (width - len(c))] for c in group] for group in completions]
        mask = [[[1.0] * len(c) + [0.0] * (width - len(c)) for c in group] for group in completions]
        columns = {
            "completion_ids": torch.tensor(ids, device=device),
            "mask": torch.tensor(mask, device=device),
        }
        return Batch(self.prompt_batch(prompts, device), columns, temperature)

    def _message_ids(self, prompt: Text, completion: list[dict[str, str]]) -> list[int]:
        """Return the ids that the chat template adds for the completion's messages."""
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        head, whole = (
            self._template(prompt, add_generation_prompt=True),
            self._template([*prompt, *completion]),
        )
        if whole[: len(head)] == head:
            return whole[len(head) :]
        # the template rewrites earlier turns, so the completion is not a suffix of the whole
        content = "\n".join(message["content"] for message in completion)
        return list(self.tokenizer(content, add_special_tokens=False)["input_ids"])

    def _template(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = False
    ) -> list[int]:
        if not self.tokenizer.chat_template:
            raise UsageError(
                "The data are conversations but the tokenizer has no chat template. Use a chat"
                " model's tokenizer, set `chat_template` in its tokenizer_config.json, or give"
                " plain-text prompts and completions."
            )
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _pad_left(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (width - x.shape[1], 0))


def _pad_tokens(column: Tensor, own: int, length: int) -> Tensor:
    per_token = column.dim() == 3 and column.shape[2] == own
    return torch.nn.functional.pad(column, (0, length - own)) if per_token else column
