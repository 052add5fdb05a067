"""The contract of a rollout engine. Importing this module does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..core.data import Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .batches import Batch, PromptBatch
    from .memory import BatchSizes


class Engine(ABC):
    """Samples completions from a causal language model."""

    name: ClassVar[str]
    needs_gpu: ClassVar[bool] = False  # without a GPU the run stops with an error before it starts
    takes_truncation: ClassVar[bool] = False  # whether it can sample greedily and with top_p
    takes_mixtures: ClassVar[bool] = False  # whether it can sample from a mixture of two models
    takes_batch_tokens: ClassVar[bool] = False  # whether it respects the two fields below
    batch_tokens: int = 131072  # tokens that may be decoded at once, prompts included
    sizes: BatchSizes | None = None  # of the run: halved when memory runs out

    @abstractmethod
    def generate(
        self,
        model: torch.nn.Module,
        prompts: PromptBatch,
        n: int,
        sampling: Sampling,
        noise: Tensor,
    ) -> Batch:
        """Sample n completions per prompt.

        Args:
            model: The causal language model.
            prompts: B prompts.
            n: Completions per prompt.
            sampling: Temperature and length limit; `greedy` and `top_p` for an engine with
                `takes_truncation`.
            noise: (B * n, max_new_tokens), uniform on [0, 1). It determines every token: the same
                noise and weights give the same completions.


        An engine with `takes_mixtures` has one more argument, `mixed_with`: a `Mixed` or None.

        Returns:
            A batch (B, n, T). Column `logp` (B, n, T) is the log-probability in nats of each token
            under the distribution that it was sampled from.
        """


class CompletionSource(Protocol):
    """A cache of completions that were sampled before."""

    def draw(self, model: torch.nn.Module, prompts: PromptBatch, n: int, sampling: Sampling) -> Any:
        """Return cached completions and their cost, or None where the cache has none."""
