"""Random numbers of the process, which a method should not draw from."""

from __future__ import annotations

import random

import numpy
import torch

from ..core.global_state import forget_streams


def seed_global_generators(seed: int) -> None:
    """Seed the random numbers of the process anew, so that a method that draws from them differs.

    They are put back after each training. Without this, each training would draw the same ones.
    """
    forget_streams()
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
