"""Rounds: after each the reference moves to the policy, and the next one starts from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import GradientMethod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Lab


@dataclass
class Rounds(GradientMethod):
    """A mixin for methods that train in rounds, each against the policy that the last one left."""

    rounds: int = 3  # after each but the last the reference moves to the policy

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.rounds < 1:
            raise ValueError("rounds must be at least 1")

    def steps_in_all(self) -> int:
        """Return the steps of all rounds together; 0 where epochs decide."""
        return int(getattr(self, "steps", 0))

    def steps_of_rounds(self) -> list[int]:
        """Return the steps of each round; 0 where epochs decide."""
        total = self.steps_in_all()
        rounds = min(self.rounds, total or self.rounds)
        return [total // rounds + (number < total % rounds) for number in range(rounds)]

    def in_rounds(self, lab: Lab, stream: Callable[[int], Iterator]) -> Iterator:
        """Yield the turns of all rounds; `stream(steps)` opens one round's.

        Earlier rounds have one step more where the steps cannot be divided equally. With fewer
        steps than rounds, each round has one step.
        A restart goes through finished rounds again, whose streams are empty then. The number of
        rounds that the reference has seen is therefore kept in `lab.state`.
        """
        lab.state.setdefault("rounds", 0)
        for number, steps in enumerate(self.steps_of_rounds()):
            if number > lab.state["rounds"]:
                lab.move_reference()
                lab.state["rounds"] = number
            yield from stream(steps)
