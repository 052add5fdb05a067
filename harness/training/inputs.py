"""The inputs of a method: the data and models that were prepared for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..api.contracts import Verifier
from ..core.data import Demonstration, Prompt
from ..core.settings import AdamWOptions
from ..models.initial_checkpoint import InitialCheckpoint
from ..models.model_state import ModelState
from ..models.tokens import Tokens
from .hub_reward import HubReward
from .label_server import LabelClient
from .reward_model import RewardModel

if TYPE_CHECKING:
    from ..core.data import LabelledCompletion, LabelledPair, RankedCompletions
    from .reference_cache import ReferenceCache


@dataclass
class MethodInputs:
    """The data and models that were prepared for a method.

    Lists are empty, and `rewards` is None, where the method does not need them.
    """

    start: InitialCheckpoint  # the start checkpoint, in memory while it is referred to
    tokens: Tokens
    prompts: Sequence[Prompt] = ()
    pairs: Sequence[LabelledPair] = ()
    demonstrations: Sequence[Demonstration] = ()
    lists: Sequence[RankedCompletions] = ()
    rewards: Callable[[], Sequence[RewardModel | HubReward]] | None = None
    verifier: Verifier | None = None
    labels: int = 0  # that making these inputs took
    label_client: Callable[[], LabelClient] | None = None  # labels fresh samples
    closing: list[Callable[[], None]] = field(default_factory=list)  # what ends with the run
    # how the reward model is trained on them
    refresh: AdamWOptions = field(default_factory=AdamWOptions)
    # what the start checkpoint says, made once and shared; None computes all of it
    reference_cache: ReferenceCache | None = None
    reference: InitialCheckpoint | None = None  # None: the start checkpoint is the reference
    read: Callable[[str], InitialCheckpoint] | None = None  # reads a model of another origin
    labelled: Sequence[LabelledCompletion] = ()  # empty: those of the pairs, where asked for
    # the reward models in memory that do not go on learning, and what they were when they were read
    reward_states: list[tuple[RewardModel | HubReward, ModelState]] = field(default_factory=list)

    def close(self) -> None:
        """End what was started for the method."""
        while self.closing:
            self.closing.pop()()
