"""Memory of the moments of a stage: what models it holds, and what a pass needs beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ...core.execution import NOT_SHARDED
from ...core.spec import BFLOAT16, NF4, RunSpec
from ...evaluation.kl import expectations
from ...models.initial_checkpoint import lora_of
from ...models.loading import (
    Arithmetic,
    ScalarModel,
    learning,
    scalar_beside,
    scalar_on,
    size_of,
    trunk_of,
)
from ...models.lora import adapted, base_of, beside, learn, own
from ...models.memory import total_memory
from ...models.nf4 import convertible, packed_size
from ...models.sequence_scorer import meta_scorer
from .live_memory import peak_bytes
from .passes import (
    Shape,
    checkpointed,
    decoding_memory,
    masters_of,
    outline_of,
    padded_layout,
    predictions_of,
    scoring_memory,
    states_of,
    training_memory,
)
from .sharded import Parts, Processes, Whole


@dataclass(frozen=True)
class Moment:
    """Bytes that are held at one moment of a stage.

    Attributes:
        name: What is computed.
        weights: Bytes of the weights by role; shared ones once.
        gradients: Of all trained parameters.
        optimiser: The two moments of AdamW, and float32 copies of bfloat16 weights.
        activations: Of one micro-batch: at the peak of its pass, what is beside the gradients.
        logits: What the head adds to them.
        cache: Keys and values of decoding.
        gathered: Weights that a sharded run has whole for a pass, and their gradients.
    """

    name: str
    weights: Mapping[str, int] = field(default_factory=dict)
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        parts = (self.gradients, self.optimiser, self.activations, self.logits, self.cache)
        return sum(self.weights.values()) + sum(parts) + self.gathered


@dataclass(frozen=True)
class Machine:
    """The memory of one device, of which decoding takes a quarter at most."""

    memory: int


def machine_of(device: str) -> Machine:
    """Return the machine that a run with `--device` would use; without a GPU its own memory."""
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    there = torch.device(device if device.startswith("cuda") else "cuda" if gpu else "cpu")
    if there.type == "cuda" and not torch.cuda.is_available():
        there = torch.device("cpu")
    return Machine(total_memory(there))


class Trained:
    """A model that is trained: its parameters, and what an optimizer holds of them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = learn(model)
        self.parameters = [p for p in own(model).values() if p.requires_grad]
        self.masters, copies, moments = masters_of(self.parameters)
        self.optimiser = copies + moments
        self.gradients = sum(4 * p.numel() for p in self.parameters)
        self.adapter = adapted(model)
        size = sum(p.nbytes for p in self.parameters)
        self.bytes = Whole(size) if self.adapter else size


class Models:
    """The models of a run, without weights: each made when it is first asked for."""

    def __init__(self, spec: RunSpec, base: Any, machine: Machine) -> None:
        self.spec, self.base, self.machine = spec, base, machine
        self.dtype = Arithmetic(spec.dtype, spec.weights).read
        self.computes = torch.bfloat16 if spec.dtype == BFLOAT16 else torch.float32

    def outline(self) -> nn.Module:
        """Return a causal model of its own, frozen."""
        return outline_of(self.base, self.spec.prompt_sharing).to(self.dtype)

    @cached_property
    def start(self) -> nn.Module:
        """The start checkpoint, frozen."""
        return self.outline()

    @cached_property
    def bytes(self) -> int:
        """Bytes of the causal model in memory."""
        if self.spec.weights == NF4:
            return packed_size(self.start, trunk_of(self.start))
        return size_of(self.start)[1]

    @cached_property
    def restored(self) -> int:
        """Bytes of the largest matrix in nf4 when a pass restores it; 0 where none is in nf4."""
        if self.spec.weights != NF4:
            return 0
        layers = convertible(trunk_of(self.start)).values()
        return max(layer.weight.numel() for layer in layers) * self.computes.itemsize

    @cached_property
    def parameters(self) -> int:
        """How many weights the causal model has."""
        return size_of(self.start)[0]

    @cached_property
    def scorer(self) -> nn.Module:
        """The model of `--reward-model`, frozen."""
        return meta_scorer(self.spec.reward_model or "")

    @cached_property
    def scalar_bytes(self) -> int:
        """Bytes of a scalar model with weights of its own."""
        return size_of(scalar_on(self.start))[1]

    def causal(self, options: Any) -> Trained:
        """Return a causal model that is trained, all of it or an adapter."""
        lora = lora_of(options, 0)
        if lora is None:
            return Trained(learning(self.outline()))
        return Trained(beside(self.outline(), lora))

    def scalar(self, options: Any, role: str) -> Trained:
        """Return a scalar model that is trained, all of it or an adapter."""
        lora = lora_of(options, 0, role)
        outline = self.outline()
        model = scalar_on(outline) if lora is None else scalar_beside(outline, lora)
        return Trained(model.to(self.dtype) if lora is None else model)


class Passes:
    """The memory of passes in a run, with its micro-batches."""

    def __init__(self, models: Models) -> None:
        self.models, self.spec = models, models.spec
        execution = models.spec.execution
        self.tokens, self.checkpoints = (
            execution.micro_batch_tokens,
            execution.activation_checkpointing,
        )
        self.processes = Processes(execution.processes, execution.shard != NOT_SHARDED)

    def update(self, name: str, weights: Mapping[str, int], shape: Shape, *of: Trained) -> Moment:
        """Return the moment of an optimizer step over `shape`, one term for each trained model."""
        if self.processes.shards:
            return self._sharded_update(name, weights, shape, *of)
        optimiser, gradients = sum(t.optimiser for t in of), sum(t.gradients for t in of)
        best, before = (0, 0, 0), 0  # activations, logits, gradients
        for trained in of:
            acts, logits = self._term(trained, shape)
            now = (max(0, acts - trained.gradients), logits, before + trained.gradients)
            best = max(best, now, key=sum)
            before += trained.gradients
        casts = sum(self._casts(t.model) for t in of[:1])
        return Moment(name, weights, max(best[2], gradients), optimiser, best[0] + casts, best[1])

    def _sharded_update(
        self, name: str, weights: Mapping[str, int], shape: Shape, *of: Trained
    ) -> Moment:
        """Return the moment of an optimizer step in one process of a sharded run.

        The peak is in the backward pass of the largest term, or when the gradients of embeddings
        and head are summed at its end: no activations are held then.
        """
        held = self.processes.weights(weights)
        own = [t.gradients if t.adapter else self.processes.part(t.gradients) for t in of]
        moments = [t.optimiser if t.adapter else self.processes.part(t.optimiser) for t in of]
        best, casts = (0, 0, 0), sum(self._casts(t.model) for t in of[:1])
        for trained in of:
            acts, logits = self._term(trained, shape, held=True)
            parts = Parts.of(trained.model)
            sums = 0 if trained.adapter else parts.rest + parts.layer
            inside = (acts, logits, parts.gathered + sums)
            ending = (0, 0, parts.rest + 2 * (0 if trained.adapter else parts.rest))
            best = max(best, inside, ending, key=sum)
        return Moment(
            name, held, sum(own), sum(moments), best[0] + casts, best[1], gathered=best[2]
        )

    def _term(self, trained: Trained, shape: Shape, held: bool = False) -> tuple[int, int]:
        """Return the bytes of activations, gradients included, and of logits of one term.

        Args:
            trained: The model.
            shape: Of the batch.
            held: The gradients are there before the pass, and are not included.
        """
        micro = shape.micro(self.tokens)
        several = held or micro.rows < shape.rows
        model = checkpointed(trained.model, self.checkpoints)
        for p in trained.masters.parameters:  # gradients are summed here: float32 copies have them
            p.grad = torch.empty_like(p) if several else None
        memory = training_memory(model, micro)
        for p in trained.masters.parameters:
            p.grad = None
        extra = 0 if held else several * trained.gradients
        return memory.activations + extra, memory.logits

    def scoring(self, name: str, weights: Mapping[str, int], shape: Shape, model: Any) -> Moment:
        """Return the moment of a pass without gradients."""
        memory = scoring_memory(model, shape.micro(self.tokens))
        return Moment(
            name,
            self.processes.weights(weights),
            gathered=Parts.of(model).gathered if self.processes.shards else 0,
            activations=memory.activations + self._casts(model),
            logits=memory.logits,
        )

    def decoding(self, name: str, weights: Mapping[str, int], shape: Shape, model: Any) -> Moment:
        """Return the moment of drawing completions."""
        tokens = self.spec.execution.decode_batch_tokens
        shape = self.processes.rows(shape)
        memory = decoding_memory(model, shape, tokens, self.models.machine.memory)
        return Moment(
            name,
            self.processes.weights(weights),
            gathered=self.models.bytes if self.processes.shards else 0,
            activations=memory.activations + self._casts(model),
            logits=memory.logits,
            cache=memory.cache,
        )

    def kl(self, name: str, weights: Mapping[str, int], shape: Shape) -> Moment:
        """Return the moment of the KL of two models over the vocabulary."""
        model, micro = self.models.start, shape.micro(self.tokens)

        def both() -> Any:
            outputs = [predictions_of(model, states_of(model, micro)) for _ in range(2)]
            ids = torch.empty(len(outputs[0].states), dtype=torch.long, device="meta")
            return expectations(outputs[0], outputs[1], ids)

        with torch.no_grad():
            whole = peak_bytes(both)
            bare = peak_bytes(lambda: [states_of(model, micro) for _ in range(2)])
        gathered = 2 * Parts.of(model).gathered if self.processes.shards else 0
        acts, logits = min(bare, whole), max(0, whole - bare)
        held = self.processes.weights(weights)
        return Moment(name, held, activations=acts, logits=logits, gathered=gathered)

    def _casts(self, model: Any) -> int:
        """Return the bytes of weights in another form during a pass: all matrices of a model that
        autocast converts, or one that nf4 restores.
        """
        if self.spec.weights == NF4:
            return self.models.restored
        if self.models.computes == self.models.dtype:
            return 0
        whole = base_of(model) if not isinstance(model, ScalarModel) else model
        return sum(2 * p.numel() for p in whole.parameters() if p.dim() > 1)


def largest(moments: Sequence[Moment]) -> Moment:
    """Return the moment that takes the most memory."""
    return max(moments, key=lambda moment: moment.total)


def padded(make: Callable[[], Trained]) -> Trained:
    """Return a trained model whose passes are padded."""
    trained = make()
    padded_layout(trained.model)
    return trained
