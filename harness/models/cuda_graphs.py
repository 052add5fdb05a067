"""Decoding with CUDA graphs: the forward pass of a token is recorded once and replayed.

A recorded pass has fixed shapes and addresses. So attention covers the whole completion storage,
and a bias hides slots that are not yet written. Finished rows stay until half of all rows have
ended; then a new graph is recorded. Results differ from plain decoding by rounding error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from .attention import SharedPromptCache, attending
from .batches import PromptBatch
from .generation import CachedEngine, SharedDecoding
from .loading import trunk_of


class StaticPromptCache(SharedPromptCache):
    """A cache whose tensors, length included, keep their addresses for a recorded pass."""

    def __init__(self, prompt: Any, mask: Tensor, n: int, limit: int) -> None:
        super().__init__(prompt, mask, n, limit)
        self.at = torch.zeros(
            1, dtype=torch.long, device=mask.device
        )  # where the next token is written
        self.hidden = torch.full(
            (limit,), torch.finfo(self.keys.dtype).min, dtype=self.keys.dtype, device=mask.device
        )
        self.hidden[0] = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the newest token's keys and values (R, H, 1, d); return all of the storage."""
        rows = len(self.owner)
        stored = []
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            stored.append(store[layer_idx, :rows].index_copy_(2, self.at, new.to(store.dtype)))
        return stored[0], stored[1]

    def visible(self, scores: Tensor, window: int | None) -> Tensor:
        """Return scores of the completions' own keys, with unwritten slots hidden too."""
        return super().visible(scores, window) + self.hidden

    @property
    def newest(self) -> int | Tensor:
        """The place of the newest token in its completion: a tensor that a replay reads anew."""
        return self.at

    def advance(self) -> None:
        """Advance the position by one token; part of the recorded pass."""
        self.at += 1
        self.hidden.index_fill_(0, self.at.clamp(max=len(self.hidden) - 1), 0.0)

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only."""
        self.length = int(self.at)
        super().keep(rows)


class GraphedDecoding(SharedDecoding):
    """Decoding on shared prompts with a recorded pass over the next token."""

    keep_until, look_every = 0.5, 8
    cache_class = StaticPromptCache
    cache: StaticPromptCache

    def __init__(self, cache: Any, prompts: PromptBatch, n: int, limit: int) -> None:
        super().__init__(cache, prompts, n, limit)
        self.graph: torch.cuda.CUDAGraph | None = None

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only, and discard the recorded graph."""
        super().keep(rows)
        self.graph = None

    def next_logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return (R, V) logits after one more token (R,) per row; the next call overwrites them."""
        if self.graph is None:
            self._record(model, tokens)
        assert self.graph is not None
        self.tokens.copy_(tokens[:, None])
        self.graph.replay()
        return self.logits

    def _record(self, model: nn.Module, tokens: Tensor) -> None:
        self.tokens, self.positions = tokens[:, None].clone(), self.positions.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: libraries choose their algorithms
            self._forward(model)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self._forward(model)
            self.cache.advance()
            self.positions += 1

    def _forward(self, model: nn.Module) -> Tensor:
        with attending(trunk_of(model), self.cache):
            out = model(
                input_ids=self.tokens,
                position_ids=self.positions[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        return out.logits[:, -1]  # type: ignore[no-any-return]


class GraphEngine(CachedEngine):
    """The cached engine with recorded steps, for models that decode on shared prompts on a GPU."""

    name = "cuda_graphs"
    takes_mixtures = False  # not tried on a GPU

    @staticmethod
    def cached(
        model: nn.Module, prefilled: Any, prompts: PromptBatch, n: int, limit: int
    ) -> GraphedDecoding:
        """Return the recording cache; raise UsageError where it is not supported."""
        if prompts.ids.device.type != "cuda":
            raise UsageError(
                "--engine cuda_graphs: this run has no GPU. Use --engine hf, or --device cuda."
            )
        if not getattr(trunk_of(model), "share_cache", False):
            raise UsageError(
                f"--engine cuda_graphs: {type(model).__name__} cannot decode on shared prompts (a"
                " convolution, a bias, or --no-prompt-sharing). Use --engine hf."
            )
        return GraphedDecoding(prefilled, prompts, n, limit)
