"""Process rewards as an option: a reward for each step of an answer, not one for the whole."""

from __future__ import annotations

from dataclasses import dataclass

from harness import OnPolicyOptions


@dataclass
class StepOptions(OnPolicyOptions):
    """A mixin for methods of advantages per token."""

    rewards: str = "outcome"  # of a whole answer, or process: the verifier's, of each of its steps

    def check_steps(self) -> None:
        """Raise ValueError for process rewards that cannot be had."""
        if self.rewards not in ("outcome", "process"):
            raise ValueError(f"rewards is outcome or process, not {self.rewards!r}")
        if self.rewards == "outcome":
            return
        if self.reward != "verifier":
            raise ValueError("rewards=process: a verifier checks the steps: set reward=verifier")
        if self.length_penalty or self.missing_eos_penalty:
            raise ValueError(
                "rewards=process has no reward of the whole answer, from which length_penalty and"
                " missing_eos_penalty could be taken: set them to 0"
            )

    def required(self) -> frozenset[str]:
        """Return what this instance needs."""
        return super().required() | ({"steps"} if self.rewards == "process" else frozenset())
