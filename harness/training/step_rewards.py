"""Process rewards: a verifier's reward of each step, at the token in which the step ends."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from ..api.contracts import Verifier
from ..core.data import Prompt
from ..core.errors import HarnessError
from ..core.global_state import put_back
from ..core.meter import Meter
from ..models.batches import Batch
from ..models.tokens import Tokens


def step_rewards(
    verifier: Verifier | None, batch: Batch, ended: Tensor, tokens: Tokens, meter: Meter
) -> Tensor:
    """Return (B, K, T) rewards where steps end, NaN elsewhere; counted in the current phase.

    `ended` (B, K) is true where a completion ended by itself. Steps ending in one token are added.
    """
    if verifier is None or not verifier.has_steps:
        raise ValueError(
            "this method asks for rewards of steps without saying so: add 'steps' to its `needs`"
        )
    b, k, _ = batch.shape
    meter.add(verifier_queries=b * k)
    ids, lengths = batch["completion_ids"].tolist(), batch.lengths.tolist()
    rewards = torch.full_like(batch["mask"], math.nan)
    for i, prompt in enumerate(batch.prompts.prompts):
        for j in range(k):
            own, end = ids[i][j][: lengths[i][j]], bool(ended[i, j])
            for token, reward in placed(verifier, prompt, own, end, tokens).items():
                rewards[i, j, token] = reward
    return rewards


def placed(
    verifier: Verifier, prompt: Prompt, ids: Sequence[int], ended: bool, tokens: Tokens
) -> dict[int, float]:
    """Return {token: reward} of the steps of one completion."""
    text = tokens.decode(ids)
    with put_back(f"The verifier {verifier.name}"):
        steps = verifier.steps(prompt, text, prompt.answer, ended) or []
    rewards: dict[int, float] = {}
    for end, reward in steps:
        if not 0 < end <= len(text) or not math.isfinite(reward):
            raise HarnessError(
                f"The verifier {verifier.name} returned a step ({end}, {reward}): expected an end"
                f" from 1 to {len(text)} characters and a finite reward."
            )
        token = bisect_left(range(len(ids)), end, key=lambda t: len(tokens.decode(ids[: t + 1])))
        token = min(token, len(ids) - 1)
        rewards[token] = rewards.get(token, 0.0) + float(reward)
    return rewards
