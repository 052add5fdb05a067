"""One optimiser step for any loss: micro-batches, reduction by global counts, clipping, AdamW,
metering.

A loss receives tensors and returns one value per example (B,), per completion (B, K) or per token
(B, K, T). The trainer reduces it with counts over the whole batch, so the step does not depend on
the micro-batch size or the padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ..core.distributed import ALONE, DistributedContext, merged
from ..core.errors import Diverged
from ..core.fault_points import fault_point, fault_value
from ..core.global_state import enforce
from ..core.meter import Meter
from ..core.settings import AdamWOptions
from ..models.activation_checkpointing import enable_activation_checkpointing
from ..models.batches import Batch
from ..models.flops import ModelFlops
from ..models.loading import size_of
from ..models.lora import adapted, base_of, load_own, own, own_state, size_of_own
from ..models.memory import TRAINING, BatchSizes
from ..models.micro_batches import micro_batches, smallest_row
from ..models.sharded_tensors import is_sharded
from . import sampler_correction
from .master_weights import MasterWeights

Loss = Callable[[Tensor, Mapping[str, Tensor]], "Tensor | tuple[Tensor, dict[str, Tensor]]"]
BASE = "base"  # the role of weights that several adapters share
REDUCTIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")


@dataclass(frozen=True)
class Role:
    """A model in a role: its differentiable output on a batch, and its cost."""

    name: str
    module: nn.Module
    compute: Callable[[Batch], Tensor]  # (B, K, T) log-probabilities or values, or (B, K) scores
    is_base: Callable[[], bool] = lambda: False  # whether it is the base of adapters
    base_role: str = BASE  # the role that counts the weights below its adapter

    def hold(self, meter: Meter) -> None:
        """Note in the meter that this model is resident; a base below adapters is held once."""
        if not adapted(self.module) and not self.is_base():
            meter.hold(self.name, *size_of(self.module))
            return
        meter.hold(self.base_role, *size_of(base_of(self.module)))
        meter.hold(self.name, *size_of_own(self.module))

    def flops(self, batch: Batch) -> float:
        """Return the FLOPs of one forward pass over the batch."""
        return self._counted.forward(batch)

    def update_flops(self, batch: Batch) -> float:
        """Return the FLOPs of a forward and a backward pass, without frozen weights' gradients."""
        return self._counted.forward(batch) + self._counted.backward(batch)

    @cached_property
    def _counted(self) -> ModelFlops:
        return ModelFlops(self.module)


@dataclass(frozen=True)
class Term:
    """One term of a step's objective: a loss of a role's output on a batch, its weight and its
    reduction.

    `reduction` applies to a per-token loss: `token-mean` over the whole batch,
    `seq-mean-token-mean`, `seq-mean-token-sum`, or a number that divides the sum over tokens.
    """

    loss: Loss
    batch: Batch
    of: Role
    weight: float = 1.0
    reduction: str | float = "token-mean"


class Trainer:
    """AdamW over one or more roles, which take their steps together."""

    def __init__(
        self,
        options: AdamWOptions,
        accelerator: Any,
        meter: Meter,
        micro_batch_tokens: int,
        distributed: DistributedContext = ALONE,
        activation_checkpointing: bool = False,
        sizes: BatchSizes | None = None,
    ) -> None:
        self.options, self.accelerator, self.meter = options, accelerator, meter
        self.micro_batch_tokens, self.distributed = micro_batch_tokens, distributed
        self.activation_checkpointing = activation_checkpointing
        self.sizes = sizes or BatchSizes()
        self.saved: dict[
            str, Tensor
        ] = {}  # of a checkpoint: each module takes its part when it is added
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.masters: dict[str, MasterWeights] = {}  # the weights that the optimizers step on
        self.learning_rates: dict[str, float] = {}
        self.steps = 0
        self._sampled_at = -1  # the step after which the policy sampled last

    def sampled(self) -> None:
        """Note that the policy samples with its present weights."""
        self._sampled_at = self.steps

    def add(self, name: str, module: nn.Module, learning_rate: float | None = None) -> None:
        """Train a module from now on, at the options' learning rate or at its own."""
        parameters = [p for p in own(module).values() if p.requires_grad]
        if self.activation_checkpointing:
            enable_activation_checkpointing(module)
        self.modules[name] = module
        self.learning_rates[name] = (
            self.options.learning_rate if learning_rate is None else learning_rate
        )
        self.masters[name] = MasterWeights(parameters)
        self.optimizers[name] = torch.optim.AdamW(
            self.masters[name].parameters,
            lr=self.learning_rates[name],
            betas=(0.9, self.options.adam_beta2),
            weight_decay=self.options.weight_decay,
            fused=True,
        )
        self._restore(name)

    def keep(self, name: str, module: nn.Module) -> None:
        """Save an untrained module with every checkpoint, and restore it after a restart."""
        self.modules[name] = module
        self._restore(name)

    def has_saved(self, name: str) -> bool:
        """Return whether the checkpoint of this training holds a module."""
        return any(key.startswith(f"{name}/weight/") for key in self.saved)

    def step(self, terms: Sequence[Term], progress: float) -> dict[str, float]:
        """Take one optimiser step at `progress` in [0, 1) of training; return loss, gradient norms
        and metrics.
        """
        for term in terms:
            self._count(term)
        row = min(smallest_row(term.batch) for term in terms)
        sums = self.sizes.attempt(
            TRAINING, self.micro_batch_tokens, row, partial(self._gradients, terms)
        )
        totals: dict[str, float] = {"loss": 0.0}
        for part in sums:
            for name, value in merged(self.distributed.gather(part)).items():
                if name != "loss" and name in totals:
                    raise ValueError(f"two terms of a step report a metric {name!r}")
                totals[name] = totals.get(name, 0.0) + value
        totals["loss"] = fault_value("step.loss", totals["loss"])
        if not math.isfinite(totals["loss"]):
            raise Diverged(f"The loss is {totals['loss']} at optimiser step {self.steps + 1}.")
        totals |= self._apply(schedule(self.options, progress))
        self.steps += 1
        self.meter.add(steps=1)
        fault_point("step.end")
        return totals

    def _gradients(self, terms: Sequence[Term], max_tokens: int) -> list[dict[str, float]]:
        """Compute the gradients of all terms; return this process's sums of each."""
        for name, optimizer in self.optimizers.items():
            optimizer.zero_grad(set_to_none=True)
            self.masters[name].clear_gradients()
        return [self._accumulate(term, max_tokens) for term in terms]

    def _accumulate(self, term: Term, max_tokens: int) -> dict[str, float]:
        """Run forward and backward over this process's micro-batches of a term; return its sums.

        Micro-batches are split further where `max_tokens` is below the options' value. Every
        process takes equally many passes: one without a micro-batch of its own takes a pass of
        weight 0.
        """
        sums: dict[str, float] = {}
        for rows, mine in self.distributed.rounds(
            micro_batches(term.batch, self.micro_batch_tokens)
        ):
            whole = term.batch.select(rows)
            smaller = [whole]
            if max_tokens < self.micro_batch_tokens:
                smaller = [whole.select(some) for some in micro_batches(whole, max_tokens)]
            for part in smaller:
                self._backward(term, part, sums if mine else None)
        return sums

    def _backward(self, term: Term, part: Batch, sums: dict[str, float] | None) -> None:
        """Add the gradients of one micro-batch, and its share of the loss and metrics to `sums`.

        Without `sums` its weight is 0: the gradients get zeros.
        """
        with torch.enable_grad():  # a plugin may have switched it off, for its loss included
            output = term.of.compute(part)
            returned = term.loss(output, part)
        enforce()
        losses, metrics = returned if isinstance(returned, tuple) else (returned, {})
        metrics = {**metrics, **self._disagreement(term, output, part)}
        if "loss" in metrics:
            raise ValueError(
                "a metric cannot be called 'loss': that is what the lab calls the reduced loss"
            )
        with torch.enable_grad():
            if term.of.name == "policy":
                losses = sampler_correction.weighted(losses, part)
            share = term.weight * reduce_share(losses, part, term.batch, term.reduction)
            self.accelerator.backward(share if sums is not None else 0.0 * share)
        if sums is None:
            return
        sums["loss"] = sums.get("loss", 0.0) + float(share.detach())
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(
                reduce_share(value.detach(), part, term.batch, "token-mean")
            )

    def _disagreement(self, term: Term, output: Tensor, part: Batch) -> dict[str, Tensor]:
        """Return how far the engine's log-probabilities are from the policy's, per token, where
        the policy still has the weights that sampled.
        """
        if term.of.name != "policy" or self._sampled_at != self.steps:
            return {}
        gap = sampler_correction.gap(output, part)
        return {} if gap is None else {"sampler_gap": gap}

    def _count(self, term: Term) -> None:
        """Count the FLOPs and tokens of a term, in micro-batches of the options' size."""
        for rows in micro_batches(term.batch, self.micro_batch_tokens):
            part = term.batch.select(rows)
            b, k, _ = part.shape
            tokens = int(part["mask"].sum()) + k * int(part.prompts.mask.sum())
            trained = (
                tokens if term.of.name == "policy" else 0
            )  # a critic beside the policy reads the same tokens
            self.meter.add(flops=term.of.update_flops(part), tokens_trained=trained)

    def _apply(self, scale: float) -> dict[str, float]:
        """Clip, step and clear every optimiser; return the gradient norms."""
        norms = {}
        for name, optimizer in self.optimizers.items():
            self.masters[name].take_gradients()
            parameters = self._with_gradients(name)
            if not parameters:  # no term of this step concerns it
                continue
            norm = self._clip(parameters, self.masters[name].sharded)
            if not math.isfinite(norm):
                raise Diverged(
                    f"The gradient of the {name} is {norm} at optimiser step {self.steps + 1}."
                )
            norms["grad_norm" if name == "policy" else f"grad_norm_{name}"] = norm
            optimizer.param_groups[0]["lr"] = self.learning_rates[name] * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.masters[name].write_back()
            for weight in self.masters[name].weights:
                increment_version(weight)  # the fused optimizer does not; engines read the versions
            self.masters[name].clear_gradients()
        return norms

    def _with_gradients(self, name: str) -> list[nn.Parameter]:
        """Sum gradients over processes, but of sharded weights, which have been; return the
        parameters of an optimizer that have one.
        """
        parameters, summed = self.masters[name].parameters, set(self.masters[name].sharded)
        self.distributed.all_reduce_gradients(p for p in parameters if p not in summed)
        return [p for p in parameters if p.grad is not None]

    def _clip(self, parameters: list[nn.Parameter], sharded: list[nn.Parameter]) -> float:
        """Clip gradients on their norm over all processes, and return that norm."""
        limit = self.options.max_grad_norm or math.inf
        if not sharded:
            return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        apart = set(sharded)
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        for p in parameters:
            assert p.grad is not None
            parts[p not in apart].append(p.grad)
        here, everywhere = (torch.nn.utils.get_total_norm(g).double() ** 2 for g in parts)
        self.distributed.all_reduce(here)
        norm = (here + everywhere).sqrt().float()
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a restart needs: weights, their float32 copies, and AdamW
        moments.
        """
        saved: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            saved |= {f"{name}/weight/{key}": value for key, value in own_state(module).items()}
            if name not in self.optimizers:
                continue
            saved |= {f"{name}/master/{key}": t for key, t in self.masters[name].state().items()}
            moment = self.masters[name].moment
            for index, state in self.optimizers[name].state_dict()["state"].items():
                saved |= {f"{name}/moment/{index}/{k}": moment(index, t) for k, t in state.items()}
        return saved

    @property
    def sharded(self) -> bool:
        """Whether tensors of a checkpoint are sharded: all processes then write it together."""
        return any(is_sharded(p) for m in self.modules.values() for p in m.parameters())

    def let_go(self) -> None:
        """Release the models and the moments after training; they are saved, or the caller holds
        them.
        """
        self.saved, self.modules, self.optimizers, self.masters = {}, {}, {}, {}

    def _restore(self, name: str) -> None:
        weights, moments = (_taken(self.saved, f"{name}/{what}/") for what in ("weight", "moment"))
        if weights:
            load_own(self.modules[name], weights)
            if name in self.optimizers:
                self.masters[name].load(_taken(self.saved, f"{name}/master/"))
                self._restore_moments(name, moments)

    def _restore_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in moments.items():
            index, key = path.split("/")
            own_value = self.masters[name].own_moment(int(index), value)
            state.setdefault(int(index), {})[key] = own_value
        optimizer = self.optimizers[name]
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def reduce_share(values: Tensor, part: Batch, whole: Batch, reduction: str | float) -> Tensor:
    """Return the part's share of the whole batch's reduced value; the shares of all parts sum to
    it.
    """
    b, k, _ = whole.shape
    if not 0 < values.dim() <= 3 or values.shape != part["mask"].shape[: values.dim()]:
        raise ValueError(
            f"a loss returns (B,), (B, K) or (B, K, T) values, here {list(part['mask'].shape)} or"
            f" its beginning, not {list(values.shape)}: leave the mean to the lab, which takes it"
            " over the whole batch"
        )
    if values.dim() < 3:
        return values.sum() / (b if values.dim() == 1 else b * k)
    mask = part["mask"]
    masked = torch.where(mask > 0, values, 0.0)
    if reduction == "token-mean":
        return masked.sum() / whole["mask"].sum().clamp(min=1)  # a batch may have no token
    if reduction == "seq-mean-token-mean":
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / (b * k)
    if reduction == "seq-mean-token-sum":
        return masked.sum() / (b * k)
    if isinstance(reduction, str):
        raise ValueError(
            f"reduction is one of {', '.join(REDUCTIONS)} or a number, not {reduction!r}"
        )
    return masked.sum() / reduction


def schedule(options: AdamWOptions, progress: float) -> float:
    """Return the share of the peak learning rate at `progress` in [0, 1) of training."""
    if progress < options.warmup_ratio:
        # the first step must not have rate 0
        return max(progress, 1e-2 * options.warmup_ratio) / options.warmup_ratio
    if options.lr_schedule == "constant":
        return 1.0
    left = (1 - progress) / (1 - options.warmup_ratio)
    shape = left if options.lr_schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return options.lr_final + (1 - options.lr_final) * shape


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below a prefix, without it, and remove them, so that no copy stays in
    memory.
    """
    return {
        name[len(prefix) :]: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)
    }
