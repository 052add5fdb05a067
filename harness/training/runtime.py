"""How models are used in a run: engine, sampling, device, meter and processes, the same for every
method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.data import Sampling
from ..core.distributed import ALONE, DistributedContext
from ..core.errors import HarnessError
from ..core.meter import Meter
from ..models.batches import Batch
from ..models.engine import Engine
from ..models.memory import BatchSizes
from ..models.micro_batches import in_micro_batches
from .trainer import Role

Tell = Callable[[str], None]


@dataclass
class Runtime:
    """The runtime of a method: what is the same for every method of a run."""

    engine: Engine
    sampling: Sampling
    eos: set[int]
    seed: int
    meter: Meter
    micro_batch_tokens: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    distributed: DistributedContext = ALONE
    check: RolloutCheck | None = None
    tell: Tell = lambda text: None  # passes notes on to the user
    sizes: BatchSizes = field(default_factory=BatchSizes)
    # makes the engine for a model whose answers end with other tokens
    engine_for: Callable[[set[int]], Engine] | None = None


@dataclass
class RolloutCheck:
    """Compares the log-probabilities of drawn tokens, which training reuses, with a teacher-forced
    pass. The comparison is not charged to the method.
    """

    allowed: float  # nats
    largest: float = 0.0  # largest difference so far, in nats
    tokens: int = 0  # tokens compared

    def compare(self, role: Role, batch: Batch, runtime: Runtime) -> None:
        """Note the largest difference of a rollout; raise HarnessError where it exceeds
        rounding.
        """
        unbilled = replace(runtime, meter=Meter())
        with runtime.meter.aside(), unbilled.meter.phase("score"):
            logp = metered(role, batch, unbilled)
        gap = float((logp - batch["logp"]).abs().max())
        self.largest, self.tokens = max(self.largest, gap), self.tokens + int(batch["mask"].sum())
        if not gap <= self.allowed:
            raise HarnessError(
                "--check-rollouts: a token's log-probability as drawn and as computed afterwards"
                f" differ by {gap:.3g} nats; at most {self.allowed:g} is rounding. The engine"
                f" {runtime.engine.name} and the model disagree: try --engine hf,"
                " --no-prompt-sharing or --dtype float32."
            )


def metered(role: Role, batch: Batch, runtime: Runtime) -> Tensor:
    """Compute a role's output (B, K, T) in micro-batches without gradients. The cost goes to the
    current phase.
    """

    def count(part: Batch) -> None:
        runtime.meter.add(flops=role.flops(part))

    return in_micro_batches(
        role.compute,
        batch,
        runtime.micro_batch_tokens,
        count=count,
        distributed=runtime.distributed,
        sizes=runtime.sizes,
    )
