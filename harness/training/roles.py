"""Models as a method uses them: a language model (policy or reference) and a critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial

from torch import Tensor, nn

from ..api.contracts import Policy
from ..core.global_state import enforce
from ..models.batches import Batch, PromptBatch
from ..models.divergences import Divergence, completion_divergence
from ..models.generation import Sampler
from ..models.initial_checkpoint import InitialCheckpoint
from ..models.loading import ScalarModel
from ..models.logprobs import (
    completion_logp,
    completion_logp_and_entropy,
    completion_values,
)
from .reference_cache import Cached, count_as_computed
from .runtime import Runtime, metered
from .trainer import BASE, Role

Recall = Callable[[Batch], Cached | None]


@dataclass(frozen=True)
class WithEntropy:
    """A language model whose output in a step holds log-probabilities and entropies."""

    role: Role


@dataclass(frozen=True)
class RoleBeside(Role):
    """A role whose pass needs a pass of another model, without gradients."""

    other: Role | None = None

    def flops(self, batch: Batch) -> float:
        """Return the FLOPs of one forward pass of each model."""
        assert self.other is not None
        return super().flops(batch) + self.other.flops(batch)

    def update_flops(self, batch: Batch) -> float:
        """Return the FLOPs of a forward and a backward pass, and of the other's forward pass."""
        assert self.other is not None
        return super().update_flops(batch) + self.other.flops(batch)


@dataclass(frozen=True)
class Against:
    """A language model whose output in a step holds its divergence from another one."""

    role: Role


class LanguageModel(Policy):
    """A causal language model: the policy or the reference.

    The start checkpoint is loaded when its weights are first needed. A reference whose
    log-probabilities all come from the cache is never loaded.
    """

    def __init__(
        self,
        model: nn.Module | InitialCheckpoint,
        role: str,
        phase: str,
        runtime: Runtime,
        recall: Recall = lambda batch: None,
    ) -> None:
        start = model if isinstance(model, InitialCheckpoint) else None
        outline = model.outline if isinstance(model, InitialCheckpoint) else model
        weights: Callable[[], nn.Module] = (
            cache(model.model) if isinstance(model, InitialCheckpoint) else lambda: model
        )
        self._weights = weights
        self.role = Role(
            role,
            outline,
            lambda batch: completion_logp(weights(), batch),
            lambda: start is not None and start.carries_adapters,
        )
        self._phase, self._runtime, self._recall = phase, runtime, recall

    @property
    def model(self) -> nn.Module:  # type: ignore[override]  # a language model keeps its model
        """The model itself."""
        return self._weights()

    def logp(self, batch: Batch) -> Tensor:
        """Return (B, K, T) log-probabilities at the batch's temperature, without gradients; 0 on
        padding.
        """
        enforce()
        with self._runtime.meter.aside():
            cached = self._recall(batch)
            if cached is None:
                self._weights()  # loading them is no cost of the method
        with self._runtime.meter.phase(self._phase):
            self.role.hold(self._runtime.meter)
            if cached is not None:
                return count_as_computed(self.role, batch, self._runtime, cached)
            return metered(self.role, batch, self._runtime)

    def entropy(self, batch: Batch) -> Tensor:
        """Return (B, K, T) entropies, in nats, of the distributions of the completion tokens,
        without gradients; 0 on padding.
        """
        enforce()
        with self._runtime.meter.aside():
            weights = self._weights()  # loading them is no cost of the method
        role = replace(self.role, compute=lambda b: completion_logp_and_entropy(weights, b)[..., 1])
        with self._runtime.meter.phase(self._phase):
            role.hold(self._runtime.meter)
            return metered(role, batch, self._runtime)

    @property
    def with_entropy(self) -> WithEntropy:
        """This model for a term of a step: its output is (B, K, T, 2), log-probabilities and
        entropies, from one pass.
        """
        weights = self._weights()
        return WithEntropy(
            replace(self.role, compute=lambda b: completion_logp_and_entropy(weights, b))
        )

    def against(self, other: LanguageModel, divergence: Divergence) -> Against:
        """Return this model beside another one for a term of a step: see `api.lab`."""
        weights, beside = self._weights(), other.model
        other.role.hold(self._runtime.meter)
        compute = partial(completion_divergence, weights, beside, divergence)
        own = {f.name: getattr(self.role, f.name) for f in fields(self.role)}
        return Against(RoleBeside(**own | {"compute": compute}, other=other.role))

    def answer(self, prompts: PromptBatch, sampler: Sampler) -> Batch:
        """Draw one completion per prompt."""
        with sampler.meter.aside():
            model = self._weights()
        return sampler.draw(model, prompts)


class Critic:
    """A value function."""

    def __init__(self, model: ScalarModel, runtime: Runtime, base_role: str = BASE) -> None:
        self.model = model
        self.role = Role(
            "value", model, lambda batch: completion_values(model, batch), base_role=base_role
        )
        self._runtime = runtime

    def values(self, batch: Batch) -> Tensor:
        """Return (B, K, T) values of the state before each completion token, without gradients; 0
        on padding.
        """
        enforce()
        with self._runtime.meter.phase("score"):
            return metered(self.role, batch, self._runtime)
