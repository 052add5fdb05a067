"""Options on the entropy of each token: a bonus, and training on uncertain tokens alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import torch

if TYPE_CHECKING:
    from torch import Tensor

    from harness import Batch, Lab


@dataclass
class EntropyOptions:
    """A mixin for methods with a loss per token."""

    entropy_coef: float = 0.0  # weight of the entropy bonus, which is averaged as the loss is
    # share of an update's tokens, those of the highest entropy, whose gradient counts; 1: all. The
    # 80/20 rule (2506.01939) has 0.2
    top_entropy: float = 1.0

    def check_entropy(self) -> None:
        """Raise ValueError for options that make no sense."""
        if self.entropy_coef < 0 or not 0 < self.top_entropy <= 1:
            raise ValueError("entropy_coef must not be negative, and top_entropy lies in (0, 1]")

    def marked(self, lab: Lab, part: Batch) -> Batch:
        """Return an update's completions with a column of the tokens to train on, if not all.

        They are chosen over the whole update before it, by one forward pass more.
        """
        if self.top_entropy == 1:
            return part
        entropy = lab.policy.entropy(part)
        return part.with_columns(uncertain=highest(entropy, part["mask"], self.top_entropy))

    def counted(self, loss: Tensor, batch: Batch) -> Tensor:
        """Return a loss (B, K, T), 0 for the tokens that are not trained on.

        Means stay those over all tokens, as in the paper.
        """
        return loss * batch["uncertain"] if "uncertain" in batch else loss

    def updating(self, lab: Lab, part: Batch, reduction: str | float) -> Any:
        """Return the term of an update: the method's loss, less the bonus."""
        part = self.marked(lab, part)
        if not self.entropy_coef:
            return lab.term(self.loss, part, reduction=reduction)
        return lab.term(self.with_bonus, part, of=lab.policy.with_entropy, reduction=reduction)

    def with_bonus(self, both: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss less entropy_coef times the entropy, per token (B, K, T).

        `both` (B, K, T, 2) holds log-probabilities and entropies.
        """
        logp, entropy = both.unbind(-1)
        loss, metrics = self.loss(logp, batch)
        bonus = self.counted(self.entropy_coef * entropy, batch)
        return loss - bonus, metrics | {"policy_entropy": entropy}


def highest(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """Return (B, K, T), 1 for the tokens whose entropy is in the highest `share` of all, ties
    included.
    """
    threshold = torch.quantile(entropy[mask > 0].float(), 1 - share)
    return ((entropy >= threshold) & (mask > 0)).to(mask)
