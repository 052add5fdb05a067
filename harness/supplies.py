"""What a method is given: data and models that were prepared for it, and how they are used at the bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .contracts import Engine, Verifier
from .data import Demonstration, Prompt, Sampling
from .desk import LabelDesk
from .errors import HarnessError
from .logprobs import in_micro_batches
from .meter import Meter
from .rewards import RewardModel
from .shared_options import AdamWOptions
from .start import Start
from .team import ALONE, Team
from .tokens import Batch, Tokens
from .training import Role

if TYPE_CHECKING:
    from .reuse import Reuse
    from .stages.preferences import LabelledPair


@dataclass
class Supplies:
    """What was prepared for a method. Lists are empty, and `rewards` None, where the method did not ask."""

    start: Start  # the start checkpoint: in memory while somebody holds it
    tokens: Tokens
    prompts: Sequence[Prompt] = ()
    pairs: Sequence[LabelledPair] = ()
    demonstrations: Sequence[Demonstration] = ()
    rewards: Callable[[], list[RewardModel]] | None = None
    verifier: Verifier | None = None
    labels: int = 0  # that were asked for in making all this
    desk: Callable[[], LabelDesk] | None = None  # who labels fresh samples
    closing: list[Callable[[], None]] = field(default_factory=list)  # what ends with the run
    refresh: AdamWOptions = field(default_factory=AdamWOptions)  # how the reward model is trained on them
    reuse: Reuse | None = None  # what the start checkpoint says, made once and shared; None computes all of it

    def close(self) -> None:
        """End what was started for the method."""
        while self.closing:
            self.closing.pop()()


@dataclass
class Bench:
    """How a method works: what is the same for every method of a run."""

    engine: Engine
    sampling: Sampling
    eos: set[int]
    seed: int
    meter: Meter
    micro_batch_tokens: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    team: Team = ALONE
    check: RolloutCheck | None = None


@dataclass
class RolloutCheck:
    """Compares the log-probabilities of drawn tokens, which training reuses, with a teacher-forced pass; not billed."""

    allowed: float  # nats
    largest: float = 0.0  # difference so far
    tokens: int = 0  # compared

    def compare(self, role: Role, batch: Batch, bench: Bench) -> None:
        """Note the largest difference of a rollout; raise HarnessError where it is more than rounding."""
        unbilled = replace(bench, meter=Meter())
        with bench.meter.aside(), unbilled.meter.phase("score"):
            told = metered(role, batch, unbilled)
        gap = float((told - batch["logp"]).abs().max())
        self.largest, self.tokens = max(self.largest, gap), self.tokens + int(batch["mask"].sum())
        if not gap <= self.allowed:
            raise HarnessError(
                f"--check-rollouts: a token's log-probability as drawn and as computed afterwards differ by {gap:.3g} "
                f"nats; at most {self.allowed:g} is rounding. The engine {bench.engine.name} and the model disagree: "
                f"try --engine hf, --no-prompt-sharing or --dtype float32."
            )


def metered(role: Role, batch: Batch, bench: Bench) -> Tensor:
    """Compute a role's output (B, K, T) in micro-batches without gradients, and count it to the current phase."""

    def count(part: Batch) -> None:
        bench.meter.add(flops=role.flops(part))

    return in_micro_batches(role.compute, batch, bench.micro_batch_tokens, count=count, team=bench.team)
