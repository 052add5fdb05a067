"""Hinge loss on normalised likelihoods: hinge-norm (Liu et al. 2023, RSO)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..population import hinge
from .base import RatioLoss, Side
from .theory import least


@dataclass
class HingeNorm(RatioLoss):
    """Keep the log-ratio of the chosen completion a margin above that of the rejected one.

    SLiC's hinge with a reference and no likelihood term. RSO's sampling of the pairs by rejection
    is not part of it: pairs are the suite's.
    """

    name, paper = "hinge_norm", "https://arxiv.org/abs/2309.06657"

    beta: float = 0.1  # the paper's gamma: the margin is 1 / beta nats

    def pair_loss(self, w: Side, l: Side):
        """max(0, 1 - gamma (s_w - s_l)); gamma is `beta` here, as in TRL."""
        return torch.relu(1 - self.beta * (w.ratio - l.ratio))

    def optimum(self, problem):
        """The loss of all pairs, minimised; None where several distributions are as good."""

        def loss(s_w, s_l, softness):
            return hinge(1 + self.beta * (s_l - s_w), softness)

        return None if self.shuffle_labels else least(loss, problem)


@hookimpl
def register_methods(register):
    register(HingeNorm)
