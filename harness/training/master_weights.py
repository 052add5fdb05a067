"""Float32 copies of weights in bfloat16, which the optimizer steps on.

A step of AdamW is often smaller than the distance between two bfloat16 numbers, and would be lost.
So the optimizer steps on a float32 copy, and the weights are that copy, rounded (Micikevicius et
al. 2017, 1710.03740, sect. 3.1). Gradients of micro-batches are summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class MasterWeights:
    """The weights that an optimizer steps on: float32 weights themselves, and float32 copies of
    bfloat16 ones.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.parameters: list[nn.Parameter] = []
        self._copies: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # index: weight, its copy
        for index, weight in enumerate(weights):
            if weight.dtype == torch.float32:
                self.parameters.append(weight)
                continue
            copy = nn.Parameter(weight.detach().float())
            weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda p, copy=copy: _move_gradient(p, copy)
            )
            self._copies[index] = weight, copy
            self.parameters.append(copy)

    def clear_gradients(self) -> None:
        """Drop the gradients of an unfinished backward pass."""
        for weight, copy in self._copies.values():
            weight.grad = copy.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Set the weights to their copies, rounded."""
        for weight, copy in self._copies.values():
            weight.copy_(copy)

    def state(self) -> dict[str, Tensor]:
        """Return the copies by index, for a checkpoint."""
        return {str(index): copy.detach() for index, (_, copy) in self._copies.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set the copies to those of a checkpoint."""
        for index, tensor in state.items():
            self._copies[int(index)][1].copy_(tensor)


def _move_gradient(weight: nn.Parameter, copy: nn.Parameter) -> None:
    """Add a weight's gradient to that of its copy, in float32, and free it."""
    assert weight.grad is not None
    gradient = weight.grad.float()
    weight.grad = None
    copy.grad = gradient if copy.grad is None else copy.grad.add_(gradient)
