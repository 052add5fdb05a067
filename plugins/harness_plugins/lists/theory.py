"""All lists of K independent draws, where every completion can be listed. Training uses nothing of
it.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from harness import torch

if TYPE_CHECKING:
    from torch import Tensor

    from harness import Enumerated

LISTED = 200_000  # lists of all prompts together that are enumerated


def all_lists(problem: Enumerated, k: int) -> tuple[Tensor, Tensor] | None:
    """Return every list of k completions by number (M, k), and how often the start checkpoint draws
    it (P, M); None for too many lists.
    """
    p, n = problem.ref.shape
    if p * n**k > LISTED:
        return None
    lists = torch.tensor(list(product(range(n), repeat=k)))
    return lists, problem.ref[:, lists].prod(-1)
