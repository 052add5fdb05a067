"""The contract of a rollout engine. Importing this module does not import torch."""

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
    needs_gpu: ClassVar[bool] = False  # without a GPU the run is refused at its start

    @abstractmethod
    def generate(
        self,
        model: torch.nn.Module,
        prompts: PromptBatch,
        n: int,
        sampling: Sampling,
        noise: Tensor,
    ) -> Batch:
        """Draw n completions per prompt; `noise` (B * n, max_new_tokens), uniform, decides the
        tokens.

        The batch has a column `logp` (B, n, T): the log-probability of each token under the
        distribution it was drawn from.
        """


class CompletionSource(Protocol):
    """A cache of sampled completions."""

    def draw(self, model: torch.nn.Module, prompts: PromptBatch, n: int, sampling: Sampling) -> Any:
        """Return cached completions of the prompts with their cost, or None."""
