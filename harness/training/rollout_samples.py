"""A few completions of every turn, as text, to read while training goes on."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..core.data import prompt_text
from ..core.fault_points import fault_point
from ..models.batches import Batch
from ..models.tokens import Tokens

PROMPTS, COMPLETIONS = 2, 2  # completions kept of one rollout
ROLLOUTS = 2  # completions kept of one turn


class RolloutSamples:
    """The first completions of the first prompts of each rollout, with their rewards."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._kept: list[tuple[Tensor, list[list[dict[str, Any]]]]] = []

    def drawn(self, batch: Batch, model: str) -> None:
        """Keep some completions (B, K, T) of a rollout; `model` names the model that drew them."""
        fault_point("rollout")
        if len(self._kept) < ROLLOUTS:
            rows = [
                [self._row(batch, i, j, model) for j in range(min(COMPLETIONS, batch.shape[1]))]
                for i in range(min(PROMPTS, batch.shape[0]))
            ]
            self._kept.append((batch["completion_ids"], rows))

    def scored(self, batch: Batch, rewards: Tensor) -> None:
        """Add the rewards (B, K) of a rollout; NaN stands for no reward."""
        for ids, rows in self._kept:
            if batch["completion_ids"] is ids:
                for i, row in enumerate(rows):
                    for j, completion in enumerate(row):
                        value = float(rewards[i, j])
                        completion["reward"] = value if math.isfinite(value) else None

    def take(self) -> list[dict[str, Any]]:
        """Return the completions that were kept since the last call."""
        kept, self._kept = self._kept, []
        return [completion for _, rows in kept for row in rows for completion in row]

    def _row(self, batch: Batch, i: int, j: int, model: str) -> dict[str, Any]:
        prompt, length = batch.prompts.prompts[i], int(batch.lengths[i, j])
        return {
            "prompt_id": prompt.id,
            "prompt": prompt_text(prompt.text),
            "completion": self._tokens.decode(batch["completion_ids"][i, j, :length].tolist()),
            "length": length,
            "ended": bool(batch["ended"][i, j]) if "ended" in batch else None,
            "model": model,
            "reward": None,
        }
