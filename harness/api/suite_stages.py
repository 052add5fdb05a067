"""The shared stages as a suite or a judge sees them. No torch at import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from ..core.meter import Meter
    from ..models.tokens import Tokens


class SuiteStages(Protocol):
    """The shared stages as a suite or a judge sees them.

    A stage runs when a property that depends on it is first read.
    """

    @property
    def tokens(self) -> Tokens:
        """The tokenizer of the base model, with the harness's rules."""

    @property
    def start(self) -> torch.nn.Module:
        """The start checkpoint, frozen."""

    @property
    def device(self) -> torch.device:
        """The device of this run."""

    @property
    def micro_batch_tokens(self) -> int:
        """The largest number of tokens in one forward pass."""

    def judge_model(self) -> Any:
        """Return a reward model trained on the suite's `judge_preferences`.

        No method sees these pairs.
        """

    def runtime(self, meter: Meter, seed: int) -> Any:
        """Return engine, sampling and device for the use of models.

        Args:
            meter: The meter that counts FLOPs, tokens and seconds.
            seed: The seed of sampling.
        """
