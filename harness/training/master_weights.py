"""What the optimizer steps on: the weights, their float32 copies, or a process's rows of them.

A step of AdamW is often smaller than the distance between two bfloat16 numbers, and would be lost.
So the optimizer steps on a float32 copy, and the weights are that copy, rounded (Micikevicius et
al. 2017, 1710.03740, sect. 3.1). Gradients of micro-batches are summed in float32.

Of a sharded weight the optimizer steps on this process's rows, in the memory of the weight. So its
moments are those of these rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..models.sharded_tensors import as_part_of, is_sharded, own_part, part_of


class MasterWeights:
    """The weights that an optimizer steps on: float32 weights themselves, float32 copies of
    bfloat16 ones, and this process's rows of sharded ones.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = list(weights)
        self.parameters: list[nn.Parameter] = []
        self._copies: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # index: weight, its copy
        self._rows: list[tuple[nn.Parameter, nn.Parameter]] = []  # a weight, its rows here
        for weight in self.weights:
            index = len(self.parameters)
            if weight.dtype == torch.float32:
                rows = nn.Parameter(own_part(weight)) if is_sharded(weight) else weight
                self._rows += [(weight, rows)] if is_sharded(weight) else []
                self.parameters.append(rows)
                continue
            copy = nn.Parameter(own_part(weight).detach().float())
            weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda p, copy=copy: _move_gradient(p, copy)
            )
            self._copies[index] = weight, copy
            self.parameters.append(copy)

    @property
    def sharded(self) -> list[nn.Parameter]:
        """What the optimizer steps on of sharded weights: rows that no other process has."""
        pairs = zip(self.weights, self.parameters, strict=True)
        return [stepped for weight, stepped in pairs if is_sharded(weight)]

    def take_gradients(self) -> None:
        """Give what the optimizer steps on the gradients of the sharded weights."""
        for weight, rows in self._rows:
            rows.grad = None if weight.grad is None else own_part(weight.grad)

    def clear_gradients(self) -> None:
        """Drop the gradients of an unfinished backward pass."""
        for weight, stepped in [*self._copies.values(), *self._rows]:
            weight.grad = stepped.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Set the weights to their copies, rounded."""
        for weight, copy in self._copies.values():
            own_part(weight).copy_(copy)

    def state(self) -> dict[str, Tensor]:
        """Return the copies by index, for a checkpoint."""
        return {
            str(index): as_part_of(copy.detach(), weight)
            for index, (weight, copy) in self._copies.items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set the copies to those of a checkpoint."""
        for index, tensor in state.items():
            weight, copy = self._copies[int(index)]
            copy.copy_(part_of(tensor, weight))

    def moment(self, index: int, tensor: Tensor) -> Tensor:
        """Return an optimizer's state of a parameter as a checkpoint holds it, for all rows."""
        stepped, weight = self.parameters[index], self.weights[index]
        return as_part_of(tensor, weight) if tensor.shape == stepped.shape else tensor

    def own_moment(self, index: int, tensor: Tensor) -> Tensor:
        """Return this process's part of an optimizer's state that a checkpoint holds."""
        weight = self.weights[index]
        return part_of(tensor, weight) if tensor.shape == weight.shape else tensor


def _move_gradient(weight: nn.Parameter, copy: nn.Parameter) -> None:
    """Add a weight's gradient to that of its copy, in float32, and free it."""
    assert weight.grad is not None
    gradient = own_part(weight.grad).float()
    weight.grad = None
    copy.grad = gradient if copy.grad is None else copy.grad.add_(gradient)
