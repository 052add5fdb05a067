"""What a method is given: data and models that were prepared for it, and how they are used at the bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .contracts import Engine, Verifier
from .data import Demonstration, Prompt, Sampling
from .desk import LabelDesk
from .logprobs import in_micro_batches
from .meter import Meter
from .rewards import RewardModel
from .shared_options import AdamWOptions
from .team import ALONE, Team
from .tokens import Batch, Tokens
from .training import Role

if TYPE_CHECKING:
    from .reuse import Reuse
    from .stages.preferences import LabelledPair


@dataclass
class Supplies:
    """What was prepared for a method. Lists are empty, and `rewards` None, where the method did not ask."""

    start: nn.Module  # the start checkpoint, frozen
    tokens: Tokens
    prompts: Sequence[Prompt] = ()
    pairs: Sequence[LabelledPair] = ()
    demonstrations: Sequence[Demonstration] = ()
    rewards: Callable[[], list[RewardModel]] | None = None
    verifier: Verifier | None = None
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


def metered(role: Role, batch: Batch, bench: Bench) -> Tensor:
    """Compute a role's output (B, K, T) in micro-batches without gradients, and count it to the current phase."""

    def count(part: Batch) -> None:
        bench.meter.add(flops=role.flops(part))

    return in_micro_batches(role.compute, batch, bench.micro_batch_tokens, count=count, team=bench.team)
