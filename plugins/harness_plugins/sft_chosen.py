"""SFT on the chosen: imitate the preferred completion of each pair.

A control for methods that learn from pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import PairOptions, Policy, hookimpl, torch

from .population import ordered_pairs

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class SFTChosen(PairOptions):
    """Imitate the chosen completions and ignore the rejected ones: a control without the contrast
    of pairs.
    """

    name, kind, paper = "sft_chosen", "control", "https://arxiv.org/abs/2305.18290"
    needs = frozenset({"pairs"})

    def loss(self, logp, batch):
        """-log pi(y_w|x) per token ("Preferred-FT", sect. 6), (B, 2, T). A label `p` below 1 weighs
        both completions.

        The mean is over the tokens of both, which gives about half the scale of a loss on the
        chosen alone. AdamW compensates for the scale.
        """
        return -logp * torch.stack([batch["p"], 1 - batch["p"]], 1)[..., None]

    def train(self, lab: Lab) -> Policy:
        """Take one step on each batch of pairs."""
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs)
        return lab.policy

    def optimum(self, problem):
        """The distribution of the chosen: each completion as often as it wins a pair."""
        return None if self.shuffle_labels else ordered_pairs(problem).sum(2)


@hookimpl
def register_methods(register):
    register(SFTChosen)
