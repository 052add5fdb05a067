"""A reward model of the hub or a folder as the reward: it scores texts in its own tokens.

It is never trained here. Its scores are normalised by a stage, so that answers of the start
checkpoint have a mean of 0 and a standard deviation of 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.artifacts import EXECUTION
from ..core.errors import HarnessError
from ..core.files import write_json
from ..core.progress import LOADING, STAGES, activity
from ..models.batches import Batch
from ..models.generation import Sampler
from ..models.loading import size_of
from ..models.model_state import ModelState
from ..models.sequence_scorer import SequenceScorer
from ..models.tokens import Tokens
from .runtime import Runtime

if TYPE_CHECKING:
    from .stages.runtime import StageContext

FILE = "hub_reward.json"
NORMALISED_ON = 256  # prompts whose answers give the mean and the standard deviation


class HubReward:
    """A sequence classifier as a reward: (logit - mean) / scale.

    Args:
        scorer: The classifier with its own tokenizer and chat template.
        tokens: The start checkpoint's tokenizer: it reads the completions of a batch.
        mean: Of the logits of the start checkpoint's answers.
        scale: Their standard deviation.
    """

    name = "reward_model"

    def __init__(
        self, scorer: SequenceScorer, tokens: Tokens, mean: float = 0.0, scale: float = 1.0
    ) -> None:
        self.scorer, self.tokens, self.mean, self.scale = scorer, tokens, mean, scale

    @property
    def model(self) -> nn.Module:
        """The classifier."""
        return self.scorer.model

    def score(self, batch: Batch, runtime: Runtime) -> Tensor:
        """Return (B, K) normalised scores, metered in the current phase."""
        runtime.meter.hold("reward", *size_of(self.model))
        raw = self.raw(batch, runtime)
        runtime.meter.add(reward_queries=raw.numel())
        return (raw - self.mean) / self.scale

    def raw(self, batch: Batch, runtime: Runtime) -> Tensor:
        """Return (B, K) logits. Every process computes all of them."""
        b, k, _ = batch.shape
        prompts = [prompt.text for prompt in batch.prompts.prompts for _ in range(k)]
        texts = [text for row in self.tokens.texts(batch) for text in row]
        scored = self.scorer.score(prompts, texts)
        runtime.meter.add(flops=scored.flops)
        return torch.tensor(scored.scores, device=batch["mask"].device).view(b, k)

    def state(self) -> ModelState:
        """Return the state that later ones are compared with."""
        ids = torch.arange(8, device=self.scorer.device)[None] % _vocabulary(self.model)

        def logits(model: nn.Module) -> Tensor:
            with torch.no_grad():
                found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            return found

        return ModelState(self.model, logits)

    @staticmethod
    def load(folder: Path, model: str, tokens: Tokens, device: str) -> HubReward:
        """Read the model that a stage normalised.

        Args:
            folder: Of the stage's output.
            model: The folder or hub id of the model.
            tokens: The start checkpoint's tokenizer.
            device: Where the model runs.

        Raises:
            HarnessError: Its weights are not those that were normalised.
        """
        settings = json.loads((folder / FILE).read_text(encoding="utf-8"))
        with activity(LOADING, "loading the reward model"):
            scorer = SequenceScorer(model, device)
        if scorer.digest != settings["weights"]:
            raise HarnessError(
                f"The reward model {model} was changed while the run was under way."
                " Run the same command again."
            )
        return HubReward(scorer, tokens, settings["mean"], settings["scale"])


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.vocab_size)


def normalise(stages: StageContext, scorer: SequenceScorer, out: Path) -> tuple[Any, Any]:
    """Score answers of the start checkpoint to training prompts, and write their mean and standard
    deviation; return (info, cost).
    """
    meter = stages.stage_runtime.meter()
    runtime = stages.stage_runtime.runtime(meter, stages.spec.shared_seed)
    seed = (stages.spec.shared_seed, "hub_reward")
    sampler = Sampler(
        runtime.engine, runtime.sampling, meter, runtime.eos, seed, runtime.distributed
    )
    sampler.phase = "reward_model"
    prompts = stages.suite.prompts("train")[:NORMALISED_ON]
    with activity(STAGES, "reward model: answers of the start checkpoint"):
        posed = stages.tokens.prompt_batch(prompts, runtime.device)
        batch = sampler.draw(stages.start, posed, 1)
    reward = HubReward(scorer, stages.tokens)
    with meter.phase("reward_model"), activity(STAGES, "reward model: normalisation"):
        meter.hold("reward", *size_of(scorer.model))
        raw = reward.raw(batch, runtime).double()
    figures = {"mean": float(raw.mean()), "scale": max(1e-6, float(raw.std()))}
    write_json(out / FILE, {"weights": scorer.digest, **figures})
    info = {"weights": scorer.digest, "answers": len(prompts), **figures}
    return info | {EXECUTION: [stages.stage_runtime.execution_record()]}, meter.snapshot()
