"""The interfaces of models in the lab. Importing this costs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models.batches import Batch, PromptBatch
    from ..models.generation import Sampler


class Model(Protocol):
    """A causal language model in the lab: the policy, the reference or the start checkpoint."""

    @property
    def model(self) -> nn.Module | None:
        """The torch module."""

    def logp(self, batch: Batch) -> Tensor:
        """Return log-probabilities of the completion tokens, without gradients.

        Args:
            batch: Completions (B, K, T).

        Returns:
            (B, K, T) log-probabilities in nats at the temperature of the batch; 0 on padding.
        """

    def entropy(self, batch: Batch) -> Tensor:
        """Return the entropy of the distribution of each completion token, without gradients.

        It costs one forward pass. Distributions are computed in parts, never all at once.

        Args:
            batch: Completions (B, K, T).

        Returns:
            (B, K, T) entropies in nats at the temperature of the batch; 0 on padding.
        """

    @property
    def with_entropy(self) -> Any:
        """This model for `Lab.term(of=...)`: its output is (B, K, T, 2), log-probabilities and
        entropies with gradients, from one pass.
        """

    def against(self, other: Any, divergence: Callable[[Tensor, Tensor], Tensor]) -> Any:
        """Return this model beside another one for `Lab.term(of=...)`.

        Its output is (B, K, T, 3): log-probabilities of the tokens under this model and under the
        other one, and the divergence of the two distributions at each token. Only this model has
        gradients. Distributions are computed in parts, never all at once; the other model's pass
        is counted.

        Args:
            other: The reference, or `lab.teacher(...)`.
            divergence: Of log-probabilities (m, V) of this model and the other one at m tokens;
                returns (m,).
        """

    def answer(self, prompts: PromptBatch, sampler: Sampler) -> Batch:
        """Return one completion per prompt (B, 1, T), drawn with the sampler."""


class ValueModel(Protocol):
    """A value function in the lab."""

    def values(self, batch: Batch) -> Tensor:
        """Return (B, K, T) values of the state before each completion token, without gradients.

        Values are in units of the reward; they are 0 on padding.
        """


class StepTerm(Protocol):
    """One term of a training step, made by `Lab.term`. Its only use is `Lab.step`."""

    @property
    def weight(self) -> float:
        """The factor of this term in the objective."""
