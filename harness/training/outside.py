"""Training by another library, on the data, order and budget of a run, counted from outside.

Each step of the library is a turn of the run. Nothing can be saved in the middle: an interrupted
run begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import is_grad_enabled, nn

from ..core.save_schedule import SaveInterval
from ..models.batches import Batch, PromptBatch
from ..models.flops import pass_flops
from ..models.loading import size_of, trunk_of
from .loop import Loop
from .runtime import Runtime

if TYPE_CHECKING:
    from ..core.meter import Meter

OFF = SaveInterval(off=True)
BACKWARD = 2.0  # FLOPs of a backward pass, in forward passes


class OutsideTraining:
    """The turns of a training by another library.

    Args:
        loop: Of the run.
        runtime: Of the run.
        batches: What each turn takes, in the order of all methods: a batch, or prompts.
        kind: What a batch takes: pairs, labelled or prompts.
    """

    def __init__(
        self, loop: Loop, runtime: Runtime, batches: Sequence[Batch | PromptBatch], kind: str
    ) -> None:
        self.batches, self._loop, self._runtime, self._kind = batches, loop, runtime, kind
        self.temperature, self.seed = runtime.sampling.temperature, runtime.seed
        self.tell = runtime.tell
        first = batches[0]
        self._size = len(first.prompts)  # rows of a turn
        self._turns: Iterator[int] = iter(())

    @contextmanager
    def turns(self) -> Iterator[bool]:
        """Open the turns; False where training ended before, and its policy was read."""
        self._loop.checkpoints.schedule.interval = OFF
        self._turns = self._loop.turns(len(self.batches), self._kind, self._size)
        with self._runtime.meter.phase("update"):
            yield next(self._turns, None) is not None
            self._turns.close()  # type: ignore[attr-defined]  # a generator

    def step(self, metrics: Mapping[str, float]) -> bool:
        """Count a step of the library; return whether another one is within the budget."""
        pairs = self._size // (2 if self._kind == "labelled" else 1)
        self._runtime.meter.add(steps=1, pairs=0 if self._kind == "prompts" else pairs)
        self._loop.trainer.steps += 1
        self._loop.log(metrics)
        return next(self._turns, None) is not None

    def generated(self, completions: Sequence[Sequence[int]]) -> None:
        """Count completions that the library sampled."""
        with self._runtime.meter.phase("rollout"):
            self._runtime.meter.add(
                samples=len(completions), tokens_generated=sum(map(len, completions))
            )

    @contextmanager
    def counted(self, **models: nn.Module | None) -> Iterator[None]:
        """Count the FLOPs of every forward and backward pass of models, by role.

        The head is counted for every token: a library may compute fewer positions.
        """
        with ExitStack() as hooks:
            for role, model in models.items():
                if model is not None:
                    self._runtime.meter.hold(role, *size_of(model))
                    hooks.callback(count(model, self._runtime.meter, role == "reference").remove)
            yield


def count(model: nn.Module, meter: Meter, frozen: bool) -> Any:
    """Return the hook that counts each pass through a model's layers."""

    def passed(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        rows, width = output.last_hidden_state.shape[:2]
        cache = getattr(output, "past_key_values", None)
        keys = cache.get_seq_length() if cache is not None else width
        flops = pass_flops(model, rows, width, keys)
        learns = is_grad_enabled() and not frozen
        phase = "reference" if frozen else "update" if learns else "rollout"
        with meter.phase(phase):
            meter.add(
                flops=flops * (1 + BACKWARD) if learns else flops,
                tokens_trained=rows * width if learns else 0,
            )

    return trunk_of(model).register_forward_hook(passed, with_kwargs=True)
