"""The contract of a rollout engine. Importing this costs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..core.data import Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .tokens import Batch, PromptBatch


class Engine(ABC):
    """Draws completions from a causal language model."""

    name: ClassVar[str]
    needs_gpu: ClassVar[bool] = False  # refused without one before anything is made

    @abstractmethod
    def generate(
        self,
        model: torch.nn.Module,
        prompts: PromptBatch,
        n: int,
        sampling: Sampling,
        noise: Tensor,
    ) -> Batch:
        """Draw n completions per prompt, `noise` (B * n, max_new_tokens) uniform on [0, 1) deciding
        every token.

        The answer carries `logp` (B, n, T): the log-probability of each token under the
        distribution it was drawn from.
        """


class CompletionSource(Protocol):
    """Completions that were sampled before and can be read instead of being sampled again."""

    def draw(self, model: torch.nn.Module, prompts: PromptBatch, n: int, sampling: Sampling) -> Any:
        """Return cached completions of the prompts with their cost, or None where there are none."""
