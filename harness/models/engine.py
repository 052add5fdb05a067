"""The contract of a rollout engine. Importing this module does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..core.data import Sampling
from ..core.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .batches import Batch, PromptBatch
    from .memory import BatchSizes


class Engine(ABC):
    """Samples completions from a causal language model.

    A run makes one engine for each set of end tokens and keeps it. Before it draws, it calls
    `start` and `sync`, and before an optimiser step `sleep`. It calls `close` at its end. An engine
    that computes with the model itself needs none of the four.
    """

    name: ClassVar[str]
    options_class: ClassVar[type[Any] | None] = None  # a dataclass, for `--engine-set NAME=VALUE`
    needs_gpu: ClassVar[bool] = False  # without a GPU the run stops with an error before it starts
    takes_truncation: ClassVar[bool] = False  # whether it can sample greedily and with top_p
    takes_mixtures: ClassVar[bool] = False  # whether it can sample from a mixture of two models
    takes_batch_tokens: ClassVar[bool] = False  # whether it respects the two fields below
    # whether all processes call `generate` together, those without a prompt too
    collective: ClassVar[bool] = False
    one_process: ClassVar[bool] = False  # whether runs of several processes are refused
    # whether it draws from a copy of the weights, which `sync` renews
    copies_weights: ClassVar[bool] = False
    # whether the noise decides each token by inverse transform, as in the engine `hf`
    exact_noise: bool = True
    max_tokens: int | None = None  # of a prompt with its completion; None: no limit of its own
    options: Any = None  # an instance of `options_class`
    batch_tokens: int = 131072  # tokens that may be decoded at once, prompts included
    sizes: BatchSizes | None = None  # of the run: halved when memory runs out

    @classmethod  # noqa: B027  # most engines need nothing
    def check_usable(cls, weights: str) -> None:
        """Raise UsageError where the engine cannot serve a run, before anything is prepared.

        Args:
            weights: The value of --weights.
        """

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

    def start(self, model: torch.nn.Module) -> None:  # noqa: B027
        """Start what draws from a model of this architecture, where it does not run already.

        Its time is in the record of the engine, and in no phase of the method.
        """

    def sync(self, model: torch.nn.Module) -> bool:
        """Make the next completions those of the present weights of a model; wake what sleeps.

        Returns:
            Whether weights were copied. The time counts to the phase `sync`.
        """
        return False

    def sleep(self) -> None:  # noqa: B027
        """Free the memory of a device until the next `sync`, where the engine can."""

    def close(self) -> None:  # noqa: B027
        """End what `start` began."""

    def record(self) -> dict[str, Any]:
        """Return what the record of a run holds of the engine, as JSON-able values."""
        return {}


def check_length(engine: Engine, width: int, new: int) -> None:
    """Raise UsageError for sequences that are longer than an engine serves.

    Args:
        engine: The engine.
        width: Tokens of the longest prompt.
        new: Tokens of the longest completion.
    """
    if engine.max_tokens is not None and width + new > engine.max_tokens:
        raise UsageError(
            f"--engine {engine.name}: a prompt of {width} tokens and a completion of up to {new}"
            f" are {width + new} tokens; the engine serves at most {engine.max_tokens}. Shorten"
            " one of them, or use --engine hf."
        )


class CompletionSource(Protocol):
    """A cache of completions that were sampled before."""

    def draw(self, model: torch.nn.Module, prompts: PromptBatch, n: int, sampling: Sampling) -> Any:
        """Return cached completions and their cost, or None where the cache has none."""
