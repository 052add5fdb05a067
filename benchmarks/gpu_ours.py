"""The harness's side of the GPU benchmark."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from gpu_world import (
    ADAM,
    BATCH,
    COMPLETION,
    GROUP,
    MICRO_TOKENS,
    PAIRS,
    SIDES,
    Clock,
    build,
    hash_of,
    or_out_of_memory,
    pairs,
    prompts,
)


def ours(size: str, works: list[str], steps: int, engine: str) -> dict[str, Any]:
    """Return what the harness takes for each work, and the FLOPs needed."""
    import torch

    from harness.models.capabilities import enable_shared_cache, enable_sharing
    from harness.models.loading import frozen

    model, tokenizer = build(size, Path("random"))
    model.base_model.compute_dtype = torch.bfloat16
    frozen(model)
    sharing = enable_sharing(model), enable_shared_cache(model)
    costs: dict[str, Any] = {"sharing": sharing}
    for work in works:
        costs[work] = or_out_of_memory(_ours, work, model, tokenizer, steps, engine)
    return costs


def _ours(work: str, model: Any, tokenizer: Any, steps: int, engine: str) -> dict[str, Any]:
    """Return what the harness takes for a work."""
    from harness.api.registry import installed
    from harness.models.tokens import Tokens

    tokens = Tokens(tokenizer, None, COMPLETION)
    draws = installed().get("engines", engine)(tokens.ends)
    if work == "rollout":
        return _our_rollout(draws, model, tokens, steps)
    return _our_training(work, draws, model, tokens, steps)


def _prompts() -> list[Any]:
    """Return the prompts of a step as the harness has them."""
    from harness.core.data import Prompt

    return [Prompt(str(i), p) for i, p in enumerate(prompts(BATCH // GROUP))]


def _our_rollout(draws: Any, model: Any, tokens: Any, steps: int) -> dict[str, Any]:
    """Return what the harness takes to sample completions."""
    import torch

    from harness.core.data import Sampling

    clock = Clock()
    batch = tokens.prompt_batch(_prompts(), "cuda")
    clock.tick()
    for turn in range(steps):
        generator = torch.Generator().manual_seed(turn)
        noise = torch.rand(BATCH, COMPLETION, generator=generator).to("cuda")
        draws.generate(model, batch, GROUP, Sampling(1.0, COMPLETION), noise)
        clock.tick()
    return clock.read()


def _our_training(work: str, draws: Any, model: Any, tokens: Any, steps: int) -> dict[str, Any]:
    """Return what a method of the harness takes, and the FLOPs it needs."""
    import torch
    from accelerate import Accelerator

    from harness.core.data import Sampling
    from harness.core.meter import Meter
    from harness.core.save_schedule import SaveInterval
    from harness.training.checkpoints import Checkpoints
    from harness.training.lab import Lab, Runtime
    from harness.training.loop import Loop
    from harness.training.trainer import Trainer

    meter, clock, method = Meter(), Clock(), _our_method(work, steps)
    runtime = Runtime(
        draws, Sampling(1.0, COMPLETION), tokens.ends, 0, meter, MICRO_TOKENS, torch.device("cuda")
    )
    method_inputs = _our_inputs(model, tokens)
    trainer = Trainer(method, Accelerator(mixed_precision="no"), meter, MICRO_TOKENS)
    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(trainer, Checkpoints(Path(scratch), SaveInterval(1e9)), meter, clock.tick)
        clock.tick()
        method.train(Lab(method, method_inputs, runtime, loop))
    costs = clock.read()
    del trainer, loop
    return costs | {"flops": meter.total().flops / steps, "phases": meter.snapshot()}


def _our_method(work: str, steps: int) -> Any:
    """Return the method of a work with its options."""
    from harness.api.registry import installed

    options: dict[str, Any] = {"batch_size": PAIRS, "beta": 0.1}
    if work == "grpo":
        options = {"batch_size": BATCH // GROUP, "num_generations": GROUP, "beta": 0.0}
        options["reward"] = "verifier"
    return installed().get("methods", work)(**ADAM, **options, steps=steps)


def _our_inputs(model: Any, tokens: Any) -> Any:
    """Return prompts, pairs and a verifier, as a method of the harness gets them."""
    from harness.api.contracts import Verifier
    from harness.core.data import LabelledPair, Prompt
    from harness.models.initial_checkpoint import InitialCheckpoint
    from harness.training.lab import MethodInputs

    class Words(Verifier):
        name = "words"

        def verify(self, prompts, completions, golds, ended):
            return [float(hash_of(text)) for text in completions]

    labelled = [
        LabelledPair(
            Prompt(str(i), r["prompt"]),
            *(tokens.completion_ids(r["prompt"], r[k]) for k in SIDES),
            1.0,
        )
        for i, r in enumerate(pairs(PAIRS))
    ]
    start = InitialCheckpoint.of(model)
    return MethodInputs(start, tokens, prompts=_prompts(), pairs=labelled, verifier=Words())
