"""The harness's side: the plugins' own `train` at a lab, or the stages' own step, on the
benchmark's world.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import world
from accelerate import Accelerator
from clock import Clock
from roofline import completions_per_prompt

from harness.api.contracts import Verifier
from harness.api.registry import installed
from harness.core.data import Comparison, LabelledPair, Prompt, Sampling
from harness.core.meter import Meter
from harness.core.save_schedule import SaveInterval
from harness.core.seeds import endless_order
from harness.core.settings import AdamWOptions
from harness.models.batches import Batch
from harness.models.capabilities import enable_shared_cache, enable_sharing
from harness.models.generation import CachedEngine
from harness.models.initial_checkpoint import InitialCheckpoint
from harness.models.loading import load_causal, load_tokenizer, scalar_from, trainable
from harness.models.logprobs import completion_logp, completion_scores
from harness.models.micro_batches import in_micro_batches
from harness.models.tokens import Tokens
from harness.training.checkpoints import Checkpoints
from harness.training.lab import Lab, MethodInputs, Runtime
from harness.training.loop import Loop
from harness.training.reward_model import RewardModel, preferred_of, ranking_loss
from harness.training.stages.sft import nll
from harness.training.trainer import Role, Term, Trainer

ADAM = {"learning_rate": 1e-6, "lr_schedule": "constant", "warmup_ratio": 0.0}
PPO = {"beta": 0.05, "shared_critic": False}  # a critic of its own, as the peer's
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # work -> method, its options
    "grpo": ("grpo", {"beta": 0.0, "reward": "verifier"}),
    "rloo": ("rloo", {"beta": 0.05, "reward": "verifier"}),
    "ppo": ("ppo", PPO | {"num_ppo_epochs": 1}),
    "ppo4": ("ppo", PPO | {"num_ppo_epochs": 4}),
    "dpo": ("dpo", {"beta": 0.1}),
    "dpo_precomputed": ("dpo", {"beta": 0.1}),
    "ipo": ("ipo", {"beta": 0.1}),
    "kto": ("kto", {"beta": 0.1}),
}
Costs = tuple[
    Clock, list[list[int]]
]  # CPU seconds of each step; the lengths of what was drawn in it


class Words(Verifier):
    """The benchmark's reward."""

    name = "words"

    def verify(self, prompts, completions, golds, ended):
        """Return the number of words modulo 7."""
        return [world.reward(text) for text in completions]


class Noting(CachedEngine):
    """The harness's engine, and how long the completions were that it drew."""

    def __init__(self, eos: set[int]) -> None:
        super().__init__(eos)
        self.lengths: list[list[int]] = []

    def generate(self, *arguments: Any) -> Batch:
        """Draw as the engine does."""
        batch = super().generate(*arguments)
        self.lengths.append([int(n) for n in batch.lengths.flatten()])
        return batch


def run(work: str, folder: Path, batch: int, steps: int, shape: dict[str, int]) -> Costs:
    """Take `steps` steps; return CPU seconds of each and the lengths of what was drawn."""
    start = load_causal(folder)
    enable_sharing(start)
    enable_shared_cache(start)
    tokens = Tokens(load_tokenizer(folder), None, shape["completion"])
    engine, clock = Noting(tokens.ends), Clock()
    if work == "rollout":
        _rollout(start, tokens, engine, batch, steps, shape, clock)
    elif work in ("sft", "reward"):
        take = (_sft if work == "sft" else _reward)(start, tokens, batch, shape)
        clock.begin()
        for turn in range(steps):
            take(turn)
            clock.tick()
    else:
        _train(work, start, tokens, engine, batch, steps, shape, clock)
    return clock, engine.lengths


def _rollout(
    start: Any,
    tokens: Tokens,
    engine: Noting,
    batch: int,
    steps: int,
    shape: dict[str, int],
    clock: Clock,
) -> None:
    group = shape["group"]
    prompts = tokens.prompt_batch(
        [Prompt(str(i), p) for i, p in enumerate(world.prompts(batch // group, shape["prompt"]))]
    )
    clock.begin()
    for turn in range(steps):
        noise = torch.rand(
            batch,
            shape["completion"],
            generator=torch.Generator().manual_seed(1000 * shape["seed"] + turn),
        )
        engine.generate(start, prompts, group, Sampling(1.0, shape["completion"]), noise)
        clock.tick()


def _train(
    work: str,
    start: Any,
    tokens: Tokens,
    engine: Noting,
    batch: int,
    steps: int,
    shape: dict[str, int],
    clock: Clock,
) -> None:
    """Let the plugin train; a step is a turn of its stream: of PPO a rollout and all its epochs."""
    method = _method(work, batch, steps, shape)
    method_inputs = _method_inputs(start, tokens, method.required(), batch, shape)
    if work == "dpo_precomputed":
        method.known = _reference(start, tokens, method_inputs.pairs)
    meter = Meter()
    trainer = Trainer(method, Accelerator(cpu=True), meter, 16384)
    runtime = Runtime(
        engine, Sampling(1.0, shape["completion"]), tokens.ends, shape["seed"], meter, 16384
    )
    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(trainer, Checkpoints(Path(scratch), SaveInterval(1e9)), meter, clock.tick)
        clock.begin()
        method.train(Lab(method, method_inputs, runtime, loop))


def _method(work: str, batch: int, steps: int, shape: dict[str, int]) -> Any:
    """Return the plugin; its batch is of prompts, the benchmark's of completions, or of pairs."""
    name, own = METHODS[work.removesuffix("_group")]
    cls: Any = installed().get("methods", name)
    if work == "dpo_precomputed":
        cls = precomputed(cls)
    group = completions_per_prompt(work, shape) if name in ("grpo", "rloo", "ppo") else 0
    more = {"num_generations": group} if group else {}
    method = cls(**ADAM, **own, **more, steps=steps, batch_size=batch // (group or 1))
    method.check()
    return method


def precomputed(cls: Any) -> Any:
    """Return a DPO whose reference's log-probabilities are known beforehand."""

    class Precomputed(cls):  # type: ignore[misc]
        """The plugin, but for where `ref_logp` comes from."""

        def train(self, lab: Lab) -> Any:
            """Take the plugin's steps; `known` is by the id of the prompt."""
            for pairs in self.pairs(lab):
                width = pairs["mask"].shape[-1]
                column = torch.stack([self.known[p.id][:, :width] for p in pairs.prompts.prompts])
                lab.step(self.loss, pairs.with_columns(ref_logp=column))
            return lab.policy

    return Precomputed


def _reference(start: Any, tokens: Tokens, pairs: Any) -> dict[str, torch.Tensor]:
    """Return log-probabilities (2, T) of every pair under the start checkpoint, by the id of its
    prompt.
    """
    whole = tokens.batch([p.prompt for p in pairs], [[p.chosen, p.rejected] for p in pairs])
    logp = in_micro_batches(lambda part: completion_logp(start, part), whole, 16384)
    return {p.prompt.id: row for p, row in zip(pairs, logp, strict=True)}


def _method_inputs(
    start: Any, tokens: Tokens, needs: frozenset[str], batch: int, shape: dict[str, int]
) -> MethodInputs:
    method_inputs = MethodInputs(InitialCheckpoint.of(start), tokens)
    if needs & {"pairs", "labelled"}:  # KTO takes the completions of pairs one by one
        rows = world.pairs(world.DRAWN, shape["prompt"], shape["completion"])
        method_inputs.pairs = [LabelledPair(*_coded(tokens, r), 1.0) for r in rows]
    else:
        method_inputs.prompts = [
            Prompt(str(i), p) for i, p in enumerate(world.prompts(length=shape["prompt"]))
        ]
        method_inputs.verifier = Words()
        method_inputs.rewards = lambda: [RewardModel(scalar_from(start).initialise(0), "last")]
    return method_inputs


def _coded(tokens: Tokens, row: dict[str, str]) -> tuple[Prompt, list[int], list[int]]:
    chosen, rejected = (
        tokens.completion_ids(row["prompt"], row[k]) for k in ("chosen", "rejected")
    )
    return Prompt(row["prompt"], row["prompt"]), chosen, rejected


def _stepper(module: Any, batch: int) -> Trainer:
    trainer = Trainer(AdamWOptions(**ADAM, batch_size=batch), Accelerator(cpu=True), Meter(), 16384)
    trainer.add("policy", module)
    return trainer


def _sft(start: Any, tokens: Tokens, batch: int, shape: dict[str, int]) -> Callable[[int], None]:
    model = trainable(start)
    role = Role("policy", model, lambda part: completion_logp(model, part))
    rows = world.pairs(world.DRAWN, shape["prompt"], shape["completion"])
    coded = [
        (Prompt("", r["prompt"]), [tokens.completion_ids(r["prompt"], r["chosen"])]) for r in rows
    ]
    trainer = _stepper(model, batch)

    def take(turn: int) -> None:
        rows = endless_order(len(coded), turn * batch, batch, shape["seed"])
        chosen = [coded[i] for i in rows]
        with trainer.meter.phase("sft"):
            trainer.step(
                [Term(nll, tokens.batch([c[0] for c in chosen], [c[1] for c in chosen]), role)], 0.5
            )

    return take


def _reward(start: Any, tokens: Tokens, batch: int, shape: dict[str, int]) -> Callable[[int], None]:
    model = scalar_from(start).initialise(0).requires_grad_(True)
    role = Role("reward", model, lambda part: completion_scores(model, part, "last"))
    rows = world.pairs(world.DRAWN, shape["prompt"], shape["completion"])
    coded = [
        (
            Prompt("", r["prompt"]),
            [tokens.completion_ids(r["prompt"], r[k]) for k in ("chosen", "rejected")],
        )
        for r in rows
    ]
    preferred = preferred_of([[Comparison(0, 1, 1.0)]] * batch, 2).flatten(1)
    trainer = _stepper(model, batch)

    def take(turn: int) -> None:
        rows = endless_order(len(coded), turn * batch, batch, shape["seed"])
        chosen = [coded[i] for i in rows]
        rankings: Batch = tokens.batch([c[0] for c in chosen], [c[1] for c in chosen]).with_columns(
            preferred=preferred
        )
        with trainer.meter.phase("reward_model"):
            trainer.step([Term(ranking_loss, rankings, role)], 0.5)

    return take
