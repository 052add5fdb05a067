"""The harness's side: the plugins' own `train` at a lab, or the stages' own step, on the benchmark's world."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import world
from accelerate import Accelerator

from harness.contracts import Verifier
from harness.data import Prompt, Sampling
from harness.lab import Bench, Lab, Supplies
from harness.logprobs import completion_logp, completion_scores, enable_sharing
from harness.loop import Checkpoints, Loop
from harness.meter import Meter
from harness.models import load_causal, load_tokenizer, scalar_from, trainable
from harness.registry import installed
from harness.rewards import RewardModel, preferred_of, ranking_loss
from harness.rollout import CachedEngine, enable_shared_cache
from harness.shared_options import AdamWOptions
from harness.stages.preferences import LabelledPair
from harness.stages.sft import nll, rows_at
from harness.tokens import Batch, Tokens
from harness.training import Role, Term, Trainer

ADAM = {"learning_rate": 1e-6, "lr_schedule": "constant", "warmup_ratio": 0.0}
METHODS = {  # work -> method, its options; a batch is of completions, or of pairs
    "grpo": ("grpo", {"beta": 0.0, "reward": "verifier"}),
    "rloo": ("rloo", {"beta": 0.05, "reward": "verifier"}),
    "ppo": ("ppo", {"beta": 0.05, "num_generations": 1, "num_ppo_epochs": 1, "shared_critic": False}),
    "ppo4": ("ppo", {"beta": 0.05, "num_generations": 1, "num_ppo_epochs": 4, "shared_critic": False}),
    "dpo": ("dpo", {"beta": 0.1}),
    "ipo": ("ipo", {"beta": 0.1}),
    "kto": ("kto", {"beta": 0.1}),
}


class Words(Verifier):
    """The benchmark's reward."""

    name = "words"

    def verify(self, prompt: Prompt, completion: str) -> float:
        """Return the number of words modulo 7."""
        return world.reward(completion)


def run(work: str, folder: Path, batch: int, steps: int, sharing: bool = True, **shape: int) -> dict[str, Any]:
    """Take `steps` steps; return CPU seconds of each and what was drawn."""
    start = load_causal(folder)
    if sharing:
        enable_sharing(start)
        enable_shared_cache(start)
    tokens = Tokens(load_tokenizer(folder), None, shape["completion"])
    if work == "rollout":
        return _rollout(start, tokens, batch, steps, shape)
    marks = [time.process_time()]
    if work in ("sft", "reward"):
        take = (_sft if work == "sft" else _reward)(start, tokens, batch, shape)
        for turn in range(steps):
            take(turn)
            marks.append(time.process_time())
    else:
        _train(work, start, tokens, batch, steps, shape, lambda *_: marks.append(time.process_time()))
    return {"seconds": [b - a for a, b in zip(marks, marks[1:], strict=False)]}


def _rollout(start: Any, tokens: Tokens, batch: int, steps: int, shape: dict[str, int]) -> dict[str, Any]:
    group = shape["group"]
    prompts = tokens.prompt_batch(
        [Prompt(str(i), p) for i, p in enumerate(world.prompts(batch // group, shape["prompt"]))]
    )
    seconds, drawn = [], []
    for turn in range(steps):
        begun = time.process_time()
        noise = torch.rand(batch, shape["completion"], generator=torch.Generator().manual_seed(turn))
        made = CachedEngine(tokens.ends).generate(start, prompts, group, Sampling(1.0, shape["completion"]), noise)
        seconds.append(time.process_time() - begun)
        drawn.append(int(made["mask"].sum()))
    return {"seconds": seconds, "tokens": drawn}


def _train(
    work: str, start: Any, tokens: Tokens, batch: int, steps: int, shape: dict[str, int], on_step: Callable[..., None]
) -> None:
    name, options = METHODS[work]
    cls: Any = installed().get("methods", name)
    own = {"num_generations": shape["group"]} | dict(options) if name in ("grpo", "rloo") else dict(options)
    size = batch // own.get("num_generations", 1)
    method = cls(**ADAM, **own, steps=steps, batch_size=size)
    method.check()
    supplies = Supplies(start, tokens)
    if "pairs" in method.required():
        rows = world.pairs(max(512, batch), shape["prompt"])
        supplies.pairs = [LabelledPair(*_coded(tokens, r), 1.0) for r in rows]
    else:
        supplies.prompts = [Prompt(str(i), p) for i, p in enumerate(world.prompts(512, shape["prompt"]))]
        supplies.verifier = Words()
        supplies.rewards = lambda: [RewardModel(scalar_from(start).initialise(0), "last")]
    meter = Meter()
    trainer = Trainer(method, Accelerator(cpu=True), meter, 16384)
    bench = Bench(CachedEngine(tokens.ends), Sampling(1.0, shape["completion"]), tokens.ends, 0, meter, 16384)
    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(trainer, Checkpoints(Path(scratch), 1e9), meter, on_step)
        method.train(Lab(method, supplies, bench, loop))


def _coded(tokens: Tokens, row: dict[str, str]) -> tuple[Prompt, list[int], list[int]]:
    chosen, rejected = (tokens.completion_ids(row["prompt"], row[k]) for k in ("chosen", "rejected"))
    return Prompt(row["prompt"], row["prompt"]), chosen, rejected


def _stepper(module: Any, batch: int) -> Trainer:
    trainer = Trainer(AdamWOptions(**ADAM, batch_size=batch), Accelerator(cpu=True), Meter(), 16384)
    trainer.add("policy", module)
    return trainer


def _sft(start: Any, tokens: Tokens, batch: int, shape: dict[str, int]) -> Callable[[int], None]:
    model = trainable(start)
    role = Role("policy", model, lambda part: completion_logp(model, part))
    rows = world.pairs(512, shape["prompt"])
    coded = [(Prompt("", r["prompt"]), [tokens.completion_ids(r["prompt"], r["chosen"])]) for r in rows]
    trainer = _stepper(model, batch)

    def take(turn: int) -> None:
        chosen = [coded[i] for i in rows_at(len(coded), turn, batch, (0,))]
        with trainer.meter.phase("sft"):
            trainer.step([Term(nll, tokens.batch([c[0] for c in chosen], [c[1] for c in chosen]), role)], 0.5)

    return take


def _reward(start: Any, tokens: Tokens, batch: int, shape: dict[str, int]) -> Callable[[int], None]:
    from harness.data import Comparison

    model = scalar_from(start).initialise(0).requires_grad_(True)
    role = Role("reward", model, lambda part: completion_scores(model, part, "last"))
    rows = world.pairs(512, shape["prompt"])
    coded = [
        (Prompt("", r["prompt"]), [tokens.completion_ids(r["prompt"], r[k]) for k in ("chosen", "rejected")])
        for r in rows
    ]
    said = preferred_of([[Comparison(0, 1, 1.0)]] * batch, 2).flatten(1)
    trainer = _stepper(model, batch)

    def take(turn: int) -> None:
        chosen = [coded[i] for i in rows_at(len(coded), turn, batch, (0,))]
        made: Batch = tokens.batch([c[0] for c in chosen], [c[1] for c in chosen]).with_columns(preferred=said)
        with trainer.meter.phase("reward_model"):
            trainer.step([Term(ranking_loss, made, role)], 0.5)

    return take
