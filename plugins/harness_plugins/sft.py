"""The start checkpoint itself as a row: a second sample of answers, besides the baseline's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import Method, Policy, hookimpl

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class Start(Method):
    """Train nothing: the start checkpoint answers as it is, fine-tuned on the demonstrations."""

    name, kind, paper = "start", "baseline", "https://arxiv.org/abs/2203.02155"

    def train(self, lab: Lab) -> Policy:
        """Return the start checkpoint."""
        return lab.start


@hookimpl
def register_methods(register):
    register(Start)
