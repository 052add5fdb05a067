"""The runtime of stages: device, engine, artifacts, and the plugins that judge and label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ...api.contracts import Judge, Labeller, Suite
from ...core.artifacts import Artifact, Artifacts, Make, artifact_name
from ...core.data import Sampling
from ...core.distributed import ALONE, DistributedContext
from ...core.errors import UsageError
from ...core.execution import NOT_SHARDED, Execution
from ...core.global_state import enforce, set_threads
from ...core.meter import Meter, PhasePeak
from ...core.run_folder import processor
from ...core.save_schedule import SaveCosts, SaveInterval
from ...core.spec import RunSpec
from ...models.engine import Engine
from ...models.initial_checkpoint import InitialCheckpoint, Shard
from ...models.loading import Arithmetic
from ...models.memory import DECODING, SCORING, TRAINING, BatchSizes
from ...models.sharding import shard
from ...models.tokens import Tokens
from ..loop import Loop
from ..runtime import RolloutCheck, Runtime, Tell
from ..trainer import Trainer

Progress = Callable[[str, int, int, Mapping[str, float]], None]  # phase, step, total, metrics


@dataclass
class StageRuntime:
    """The runtime of stages: the part of a run that depends on the machine."""

    artifacts: Artifacts
    engine_cls: Callable[[set[int]], Engine]
    accelerator: Any
    device: torch.device
    progress: Progress
    checkpoint_every: SaveInterval
    execution: Execution  # the settings in use
    distributed: DistributedContext = ALONE
    check: RolloutCheck | None = None  # check every rollout
    sampling: Sampling = field(default_factory=Sampling)  # the suite's
    eos: set[int] = field(default_factory=set)
    trainer_cls: type[Trainer] = Trainer
    save_costs: SaveCosts = field(default_factory=SaveCosts)  # applies to all checkpoints
    tell: Tell = lambda text: None  # passes notes on to the user
    sizes: BatchSizes = field(default_factory=BatchSizes)  # halved when memory runs out
    # settings of parts of the run, by artifact name, artifact kind, TRAINING or EVALUATION: a
    # reproduction computes each part as it was computed
    plan: Mapping[str, Execution] = field(default_factory=dict)
    say: Tell = lambda text: None  # tells what is read and made; not a note
    data: Mapping[str, Any] | None = None  # the record of what was read of the user's data
    # the engines of this run, by what makes them, their end tokens and the size of their batches
    engines: dict[tuple[Any, ...], Engine] = field(default_factory=dict)

    def close(self) -> None:
        """End what the engines of this run have started."""
        while self.engines:
            self.engines.popitem()[1].close()

    def engine_record(self) -> dict[str, Any]:
        """Return what a record holds of the engine that draws for the start checkpoint's ends."""
        return self._engine().record()

    @property
    def micro_batch_tokens(self) -> int:
        """The number of tokens that a forward pass takes at once."""
        return self.execution.micro_batch_tokens

    def execution_record(self) -> dict[str, Any]:
        """Return the settings by which something is computed, as manifests and records hold them.

        Batches that were halved when memory ran out have their present size.
        """
        cuda = self.device.type == "cuda"
        planned = self.execution
        return {
            **asdict(planned),
            "micro_batch_tokens": min(
                self.sizes.tokens(kind, planned.micro_batch_tokens) for kind in (SCORING, TRAINING)
            ),
            "decode_batch_tokens": self.sizes.tokens(DECODING, planned.decode_batch_tokens),
            "hardware": torch.cuda.get_device_name(self.device) if cuda else processor(),
        }

    def get_or_make(self, kind: str, inputs: Mapping[str, Any], make: Make) -> Artifact:
        """Return an artifact; make it with the settings in use if it is missing."""
        with self.planned(artifact_name(kind, inputs), kind):
            return self.artifacts.get_or_make(kind, inputs, make, self.execution_record)

    @contextmanager
    def planned(self, *parts: str) -> Iterator[None]:
        """Compute with the settings that are planned for the first of these parts that has any."""
        enforce()
        before = self.execution, self.distributed
        wanted = next((self.plan[part] for part in parts if part in self.plan), self.execution)
        alone = wanted.processes == 1 < self.distributed.size
        self.distributed = self.distributed.alone() if alone else self.distributed
        self._use(replace(wanted, device=self.device.type, processes=self.distributed.size))
        try:
            yield
        finally:
            self.distributed = before[1]
            self._use(before[0])

    def shards(self) -> Shard | None:
        """Return what shards models over the processes; None where they are not sharded."""
        if self.execution.shard == NOT_SHARDED or self.distributed.size == 1:
            return None
        return partial(shard, device=self.device)

    def _use(self, execution: Execution) -> None:
        if execution.processes == 1:
            execution = replace(execution, shard=NOT_SHARDED)
        if execution.threads != self.execution.threads and self.device.type == "cpu":
            set_threads(execution.threads)
        self.execution = execution

    def meter(self) -> Meter:
        """Return a meter for this device."""
        return Meter(accelerator_peak(self.device)) if self.device.type == "cuda" else Meter()

    def trainer(self, options: Any, meter: Meter) -> Trainer:
        """Return a trainer with these options."""
        return self.trainer_cls(
            options,
            self.accelerator,
            meter,
            self.micro_batch_tokens,
            self.distributed,
            self.execution.activation_checkpointing,
            self.sizes,
        )

    def runtime(self, meter: Meter, seed: int) -> Runtime:
        """Return the runtime of models: the suite's sampling, a seed, and a meter."""
        return Runtime(
            self._engine(),
            self.sampling,
            self.eos,
            seed,
            meter,
            self.micro_batch_tokens,
            self.device,
            self.distributed,
            self.check,
            self.tell,
            self.sizes,
            self._engines(),
        )

    def _engine(self) -> Engine:
        """Return the engine for the start checkpoint's end tokens."""
        return self._engines()(self.eos)

    def _engines(self) -> Callable[[set[int]], Engine]:
        """Return what makes an engine for a set of end tokens, once for each. It holds no other
        part of the run.
        """
        wanted = self.execution.decode_batch_tokens
        return partial(_kept_engine, self.engines, self.engine_cls, self.sizes, wanted)


def _kept_engine(
    engines: dict[tuple[Any, ...], Engine],
    engine_cls: Callable[[set[int]], Engine],
    sizes: BatchSizes,
    tokens: int,
    ends: set[int],
) -> Engine:
    """Return the engine for these end tokens and this size of batches; make it at first."""
    key = engine_cls, frozenset(ends), tokens
    if key not in engines:
        engines[key] = _engine(engine_cls, sizes, tokens, ends)
    engines[key].sizes = sizes
    return engines[key]


def _engine(
    engine_cls: Callable[[set[int]], Engine], sizes: BatchSizes, tokens: int, ends: set[int]
) -> Engine:
    """Return the engine with the run's batch sizes.

    Args:
        engine_cls: Makes the engine.
        sizes: Of the run.
        tokens: The value of --decode-batch-tokens.
        ends: Every token that ends a completion.

    Raises:
        UsageError: A batch size is given, and the engine chooses its own.
    """
    engine = engine_cls(ends)
    engine.sizes = sizes
    if tokens == Execution.decode_batch_tokens:
        return engine
    if not engine.takes_batch_tokens:
        raise UsageError(
            f"--decode-batch-tokens: the engine {engine.name} decides by itself how many tokens it"
            " holds. Leave the option out, or use --engine hf."
        )
    engine.batch_tokens = tokens
    return engine


def accelerator_peak(device: torch.device) -> PhasePeak:
    """Return a function that reads (and may reset) the peak memory of tensors on a GPU."""

    def peak(reset: bool) -> int:
        value = int(torch.cuda.max_memory_allocated(device))
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return value

    return peak


class StageContext(Protocol):
    """What a stage may use of earlier stages and of the run. `Stages` implements it."""

    spec: RunSpec
    suite: Suite
    stage_runtime: StageRuntime
    judge: Judge
    labeller: Labeller | None
    own_labeller: Labeller | None

    @property
    def base(self) -> Path | str:
        """The base model: a folder or a hub id."""

    @property
    def arithmetic(self) -> Arithmetic:
        """The dtypes of forward passes and of weights."""

    @property
    def tokens(self) -> Tokens:
        """The tokenizer of the base model, with the harness's rules."""

    @property
    def checkpoint(self) -> InitialCheckpoint:
        """The start checkpoint; its weights are read when they are needed."""

    @property
    def start(self) -> nn.Module:
        """The start checkpoint, frozen."""

    def loop(self, options: Any, meter: Meter, scratch: Path, phase: str) -> Loop:
        """Return a resumable loop with its trainer."""
