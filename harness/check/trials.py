"""The trials of `harness check`: small stages, made once, on which a method is trained
repeatedly.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..api.participants import participants
from ..api.registry import Registry, new_registry
from ..api.resolve import Request, resolve
from ..core.artifacts import Artifacts
from ..core.data import Budget
from ..core.distributed import ALONE
from ..core.execution import NOT_SHARDED, SETTINGS, SHARDED
from ..core.global_state import Reported
from ..core.save_schedule import SaveInterval
from ..experiments.observers import Observers
from ..experiments.prepare import RunOptions, open_stage_runtime, prepare
from ..experiments.trained_policy import Training
from ..models.batches import Batch
from ..models.loading import trunk_of
from ..models.sharded_tensors import gathered
from ..training.checkpoints import Checkpoints
from ..training.lab import Lab
from ..training.loop import Loop
from ..training.trainer import Trainer
from .findings import Options
from .random_numbers import seed_global_generators
from .reachability import reachable
from .variations import FEW_TOKENS, GRADIENT, Looking, Varying, doubled, plain_layouts, widening

# relative difference of the first turns' metrics that float32 rounding may cause
ROUNDING = 2e-3
A_DRAW = 5e-2  # the same where rounding may have changed a draw
# A gap of gradients that rounding may cause where a loss is steep: double precision has none.
STEEP = 1e-4
# How far it may differ with weights and states in double precision; log-probabilities stay
# float32.
EXACT = 1e-6
AT_START = 1e-4  # nats by which two computations of the same log-probability may differ
LENGTHS = (
    "steps",
    "epochs",
)  # settings of a run of full size, which small stages ignore
STEP = ("loss", "grad_norm")  # metrics of every step
UNBOUND = 10**12  # optimiser steps: a limit that no training reaches
Rows = Sequence[Mapping[str, float]]  # metrics, one dict per turn


@dataclass
class Trained:
    """The result of a training: the weights as one vector (None where the policy is no model of its
    own) and the metrics.
    """

    weights: Tensor | None
    rows: list[dict[str, float]]
    used: Mapping[str, float]
    trainer: Trainer


class Killed(BaseException):
    """Stands for `kill -9`: no exception handler of a method catches it."""


class Trials:
    """Small stages and a method to train on them.

    The first of several processes makes the stages, and the others share them.
    """

    def __init__(
        self,
        name: str,
        suite: str,
        registry: Registry,
        options: Options,
        shard: str = NOT_SHARDED,
    ) -> None:
        fixed = {"quick": True, "threads": 1, "device": "cpu", "shard": shard}
        short = tuple(s for s in options.settings if s.partition("=")[0] not in LENGTHS)
        self.spec = resolve(Request(name, suite, short, fixed=fixed), registry)
        self.registry, self.results = registry, options.results
        self.benches = Path(
            tempfile.mkdtemp(prefix="benches-", dir=options.results)
        )  # no checkpoint is found there
        settings = RunOptions(
            self.results, checkpoint_every=SaveInterval(0.0), warn=_silent, say=_silent
        )
        stage_runtime = open_stage_runtime(
            self.spec, registry, settings, Observers(new_registry(), self.spec, settings.warn)
        )
        self.distributed = stage_runtime.distributed
        if shard != SHARDED:  # sharded models are made by all processes together
            stage_runtime = dataclasses.replace(
                stage_runtime, distributed=ALONE, artifacts=Artifacts(self.results / "artifacts")
            )
        self.stage_runtime = stage_runtime
        self.method_inputs, _ = prepare(
            self.spec, participants(self.spec, registry), registry.files, self.stage_runtime
        )
        self._runs = 0
        Reported.settings.pop(f"The method {name}", None)  # of other trials in this process

    def close(self) -> None:
        """Close what was started for the method."""
        self.method_inputs.close()
        self.stage_runtime.close()

    @cached_property
    def whole(self) -> Trained:
        """One training without variations."""
        return self.train()

    def train(self, kill: int = 0, folder: Path | None = None, **changes: Any) -> Trained:
        """Train with changes to the stage runtime (distributed, trainer_cls, ...), its execution
        settings, the budget, or the method's inputs (tokens).
        """
        self._runs += 1
        seed_global_generators(self._runs)

        def progress(phase: str, step: int, total: int, row: Mapping[str, float]) -> None:
            if kill and row["step"] == kill:
                raise Killed

        names = {f.name for f in dataclasses.fields(self.stage_runtime)}
        settings = {k: v for k, v in changes.items() if k in SETTINGS}
        stage_runtime = dataclasses.replace(
            self.stage_runtime,
            progress=progress,
            execution=dataclasses.replace(self.stage_runtime.execution, **settings),
            **{k: v for k, v in changes.items() if k in names},
        )
        method_inputs = dataclasses.replace(
            self.method_inputs, **{k: v for k, v in changes.items() if k == "tokens"}
        )
        spec = dataclasses.replace(self.spec, **{k: v for k, v in changes.items() if k == "budget"})
        method = participants(spec, self.registry).method
        where = folder or self.benches / str(self._runs)
        where.mkdir(parents=True, exist_ok=True)
        training = Training(spec, stage_runtime, method, method_inputs, {})
        policy, loop = training.train(stage_runtime.meter(), where)
        model = policy.model if policy.kl_estimator is None else None
        weights = (
            None
            if model is None
            else torch.nn.utils.parameters_to_vector(map(gathered, model.parameters())).clone()
        )
        return Trained(weights, loop.rows, loop.used(), loop.trainer)

    # -- proofs: each returns what it measured, or raises AssertionError ---------------------------

    def runs(self) -> str:
        """Train once."""
        turns = len(self.whole.rows)
        return (
            f"{turns} turns of a quick run on {self.spec.suite_name}" if turns else "trains nothing"
        )

    def deterministic(self) -> str:
        """Train again: the same bytes."""
        same_bytes(self.train(), self.whole, "a second training with the same seed")
        return "trained twice with one seed: the same weights and metrics, to the bit"

    def resumable(self) -> str:
        """Kill at several turns, resume: the same bytes."""
        turns = len(self.whole.rows)
        points = sorted({1, (turns + 1) // 2, turns})
        for kill in points:
            folder = self.benches / f"killed-{kill}"
            try:
                self.train(kill=kill, folder=folder)
            except Killed:
                pass
            same_bytes(
                self.train(folder=folder),
                self.whole,
                f"a training killed in turn {kill} and resumed",
            )
        return (
            f"killed in turn {', '.join(map(str, points))} of {turns} and resumed: the same weights"
            " and metrics"
        )

    def starts_at_the_reference(self) -> str:
        """Compare the log-probabilities that the first losses receive with the policy's own, before
        it has moved.
        """
        seen: set[str] = set()
        worst = 0.0
        for part, logp, _ in self._first_losses:
            for name in ("logp", "ref_logp"):
                if name in part and part[name].shape == logp.shape:
                    off = float(((part[name] - logp) * part["mask"]).abs().max())
                    assert off < AT_START, (
                        f"before the first step the loss receives {name} that differ from the"
                        f" policy's by {off:.2g} nats: another temperature, another shift, dropout,"
                        " or other weights"
                    )
                    worst, seen = max(worst, off), seen | {name}
        if not seen:
            return "its losses receive no former log-probabilities (columns logp, ref_logp)"
        return (
            f"{' and '.join(sorted(seen))} are the policy's own before the first step, to"
            f" {worst:.0e} nats"
        )

    def trains_the_end(self) -> str:
        """Follow the gradient of the first losses to the last token of completions that ended by
        themselves.
        """
        ends = torch.tensor(sorted(self.method_inputs.tokens.ends))
        moved = reached = 0
        for part, _, gradient in self._first_losses:
            last = (part.lengths - 1).clamp(min=0)[..., None]
            ended = torch.isin(part["completion_ids"].gather(-1, last)[..., 0], ends) & (
                part.lengths > 1
            )
            touched = ended & (gradient.scatter(-1, last, 0.0).abs().amax(-1) > 0)
            moved += int(touched.sum())
            reached += int((touched & (gradient.gather(-1, last)[..., 0] != 0)).sum())
        assert reached == moved, (
            f"in {moved - reached} of {moved} completions that ended the loss moves other tokens"
            " and not the end-of-sequence token: the policy cannot learn when to stop"
        )
        return (
            f"the gradient reaches the end-of-sequence token in all {moved} ended completions it"
            " moves"
        )

    def micro_batches(self) -> str:
        """Train with micro-batches of a few rows: the same numbers."""
        other = self.train(micro_batch_tokens=FEW_TOKENS)
        return self._same("micro-batches", other.rows, f"micro-batches of {FEW_TOKENS} tokens")

    def activation_checkpointing(self) -> str:
        """Train with layers computed again in the backward pass: the same bytes."""
        other = self.train(activation_checkpointing=True)
        same_bytes(other, self.whole, "a training with activation checkpointing")
        return "trained with activation checkpointing: the same weights and metrics, to the bit"

    def padding(self) -> str:
        """Train on batches with unnecessary padding: the same numbers.

        Only the trainer itself removes the padding.
        """
        other = self.train(tokens=widening(self.method_inputs.tokens))
        return f"metrics differ by at most {self._same_numbers(other.rows, 'more padding'):.0e}"

    def order(self) -> str:
        """Compute every gradient with the rows in reverse order too: the same."""
        loss, gap = self._nearly("order", "rows in reverse order")
        return f"losses differ by at most {loss:.0e}, gradients by {gap:.0e} of their norm"

    def layout(self) -> str:
        """Compute every gradient with a prompt per completion instead of shared prompts, and train
        so: the same.
        """
        if not getattr(trunk_of(self.method_inputs.start.outline), "share_prompt", False):
            return "the base model has the padded layout only: there is nothing to compare"
        _, gap = self._within(doubled("layout"), "the padded layout in double precision", EXACT)
        with plain_layouts(self.method_inputs.start):
            other = self.train()
        difference = self._same("layout", other.rows, "the padded layout")
        return f"{difference}; in double precision gradients by {gap:.0e}"

    def two_processes(self, together: Rows) -> str:
        """Compare with a training in two processes."""
        return f"metrics differ by at most {self._same_numbers(together, 'two processes'):.0e}"

    def keeps_to_a_budget(self) -> str:
        """Train with half the optimiser steps."""
        per_turn = self.whole.used["steps"] / len(self.whole.rows)
        limit = max(1, int(self.whole.used["steps"] // 2))
        used = self.train(budget=Budget(steps=limit)).used["steps"]
        assert used < limit + per_turn, (
            f"a budget of {limit} steps was given, {used:.0f} were taken"
        )
        return f"given {limit} optimiser steps it took {used:.0f}, a turn having {per_turn:.0f}"

    def leaves_shared_models(self) -> str:
        """Train with a budget that binds nothing, for which nothing is looked up: the same numbers.

        Every training here ends in a comparison of the shared models with what was read.
        """
        rows = self.train(budget=Budget(steps=UNBOUND)).rows
        # shares of signs, such as an accuracy, turn by rounding where the policy is the reference
        pairs = zip(self.whole.rows, rows, strict=True)
        steps = [own | {n: row[n] for n in STEP if n in row} for own, row in pairs]
        gap = self._same_numbers(steps, "log-probabilities computed instead of looked up")
        summary = "start checkpoint, reference and reward models are as they were read; without"
        return f"{summary} look-ups losses and gradient norms differ by at most {gap:.0e}"

    def leaves_the_process(self) -> str:
        """Look at what was put back after the trainings so far."""
        changed = Reported.settings.get(f"The method {self.spec.method}", [])
        assert not changed, f"it changes {', '.join(changed)}; a run puts that back"
        return (
            "threads, dtypes, seeds, working directory, environment and signal handlers are as they"
            " were after each training"
        )

    def sees_no_gold(self) -> str:
        """Search everything that can be reached from the inputs of a method."""
        meter, built = self.stage_runtime.meter(), participants(self.spec, self.registry)
        method, suite = built.method, built.suite
        where = Checkpoints(self.benches / "walked", SaveInterval(3600.0))
        loop = Loop(
            self.stage_runtime.trainer(method, meter), where, meter, lambda step, total, row: None
        )
        apart = {p.id for p in suite.prompts("test")} - {p.id for p in suite.prompts("train")}
        del built, suite
        names, looked_at = reachable(
            Lab(method, self.method_inputs, self.stage_runtime.runtime(meter, 0), loop),
            test_ids=apart,
        )
        assert not names, f"reachable from the lab: {', '.join(names)}"
        return (
            f"no suite, judge, labeller or test prompt among {looked_at} objects reachable from"
            " the lab"
        )

    @cached_property
    def _first_losses(self) -> list[tuple[Batch, Tensor, Tensor]]:
        trainer = self.train(trainer_cls=Looking).trainer
        assert isinstance(trainer, Looking)
        return trainer.seen

    @cached_property
    def _gaps(self) -> dict[str, tuple[float, float]]:
        trainer = self.train(trainer_cls=Varying).trainer
        assert isinstance(trainer, Varying)
        return trainer.gaps

    def _same(self, variation: str, rows: Rows, what: str) -> str:
        """Return how far a step's gradient and the metrics change under an irrelevant variation."""
        (loss, gap), off = self._nearly(variation, what), self._same_numbers(rows, what)
        return (
            f"losses differ by at most {loss:.0e}, gradients by {gap:.0e} of their norm, metrics by"
            f" {off:.0e}"
        )

    def _nearly(self, variation: str, what: str) -> tuple[float, float]:
        """Return how far losses and gradients change in float32. Above GRADIENT, up to STEEP, they
        must not change in double precision.
        """
        if self._gaps[variation][1] > GRADIENT:
            self._within(doubled(variation), f"{what} in double precision", EXACT)
        return self._within(variation, what, STEEP)

    def _within(self, variation: str, what: str, allowed: float) -> tuple[float, float]:
        """Return how far losses and gradients of the steps change."""
        loss, gap = self._gaps[variation]
        assert loss <= min(allowed, GRADIENT), (
            f"with {what}, the loss of some step changes by {loss:.2g} of itself"
        )
        assert gap <= allowed, (
            f"with {what}, the gradient of some step changes by {gap:.2g} of its norm"
        )
        return loss, gap

    def _same_numbers(self, rows: Rows, what: str) -> float:
        """Return the largest relative difference of the metrics of two turns; later turns amplify
        rounding.

        The first turn is not enough: where the policy still equals the reference, many faults have
        no effect. Where the policy samples, rounding may have changed a draw by the second turn.
        """
        worst, draws = 0.0, self.whole.used["samples"] > 0
        for turn, (other, row) in enumerate(zip(rows[:2], self.whole.rows[:2], strict=True)):
            for name, value in row.items():
                got = other.get(name, math.nan)
                off = abs(got - value) / max(1.0, abs(value))
                allowed = A_DRAW if turn and draws else ROUNDING
                assert off <= allowed, (
                    f"with {what}, {name} of turn {turn + 1} is {got:.6g} instead of {value:.6g}"
                )
                worst = max(worst, off)
        return worst


def _silent(message: str) -> None:
    """Print nothing: only the finding is reported."""


def same_bytes(ours: Trained, theirs: Trained, what: str) -> None:
    """Raise AssertionError where two trainings differ in anything."""
    assert len(ours.rows) == len(theirs.rows), (
        f"{what} had {len(ours.rows)} turns, not {len(theirs.rows)}"
    )
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        assert not differing, (
            f"{what} differs in {', '.join(differing)} from turn {b['step']:.0f} on"
        )
    same = ours.weights is theirs.weights is None or torch.equal(ours.weights, theirs.weights)  # type: ignore[arg-type]
    assert same, f"{what} has the same metrics and other weights"
