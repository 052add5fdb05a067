"""The covariance of a token's log-probability and its advantage, which drives the entropy down."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import logprobs

from .base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from harness import Batch, Lab


@dataclass
class Covariance(Surrogate):
    """A method that treats the tokens of the largest covariance apart.

    They are chosen among all tokens of an update before it, by one forward pass more.
    """

    @abstractmethod
    def chosen(self, lab: Lab, covariance: Tensor, logp: Tensor, part: Batch) -> Tensor:
        """Return (B, K, T), 1 for the tokens to treat apart, from their covariance (B, K, T)."""

    def parts(self, lab: Lab, batch: Batch) -> Iterator[Batch]:
        """Yield the parts of a rollout with their chosen tokens."""
        for number, part in enumerate(super().parts(lab, batch)):
            # before the first update the policy is the one that sampled
            logp = lab.policy.logp(part) if number else part["old_logp"]
            covariance = covariances(logp, part["advantages"], part["mask"])
            chosen = self.chosen(lab, covariance, logp, part)
            lab.log(covariance=logprobs.masked_mean(covariance, part["mask"]))
            yield part.with_columns(chosen=chosen.to(logp))


def covariances(logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return (log pi - mean) (A - mean) of each token (B, K, T), means over all tokens."""
    spread = advantages[..., None].expand_as(logp)
    apart = [x - logprobs.masked_mean(x, mask) for x in (logp, spread)]
    return apart[0] * apart[1] * mask
