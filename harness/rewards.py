"""Learned rewards: a scalar model with its pooling and its normalisation, and how an ensemble is combined."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .files import write_json
from .logprobs import completion_scores, in_micro_batches
from .models import ScalarModel, load_tensors, save_tensors, scalar_from
from .tokens import Batch
from .training import Role

if TYPE_CHECKING:
    from .lab import Bench


class RewardModel:
    """A trained reward model: score = (raw - mean) / scale, so demonstrations score 0 and samples spread by 1."""

    def __init__(
        self, model: ScalarModel, pooling: str, name: str = "reward_model", mean: float = 0.0, scale: float = 1.0
    ) -> None:
        self.model, self.pooling, self.name = model, pooling, name
        self.mean, self.scale = mean, scale
        self.role = Role(name.replace("_model", ""), model, lambda batch: completion_scores(model, batch, pooling))

    def score(self, batch: Batch, bench: Bench) -> Tensor:
        """Return (B, K) normalised scores, metered in the current phase."""
        self.role.hold(bench.meter)
        raw = self.raw(batch, bench)
        bench.meter.add(reward_queries=raw.numel())
        return (raw - self.mean) / self.scale

    def raw(self, batch: Batch, bench: Bench) -> Tensor:
        """Return (B, K) scores as the model gives them."""

        def compute(part: Batch) -> Tensor:
            bench.meter.add(flops=self.role.flops(part))
            return self.role.compute(part)

        return in_micro_batches(compute, batch, bench.micro_batch_tokens)

    def fresh_copy(self) -> ScalarModel:
        """Return a copy of the network, for a critic to start from."""
        return copy.deepcopy(self.model)

    def save(self, folder: Path) -> None:
        """Write weights and normalisation."""
        save_tensors(self.model.state_dict(), folder / "model.safetensors")
        settings = {"pooling": self.pooling, "name": self.name, "mean": self.mean, "scale": self.scale}
        write_json(folder / "reward.json", settings)

    @staticmethod
    def load(folder: Path, start: nn.Module) -> RewardModel:
        """Read a reward model; `start` gives the architecture of its trunk."""
        settings = json.loads((folder / "reward.json").read_text())
        model = scalar_from(start)
        model.load_state_dict(load_tensors(folder / "model.safetensors"))
        model.eval().requires_grad_(False)
        return RewardModel(model, **settings)


def combine(scores: Tensor, how: str, variance_coef: float) -> Tensor:
    """Return (B, K) from the members' scores (M, B, K): their mean, their worst, or mean - coef * variance.

    Coste et al. 2023 (2310.02743), eq. 2-4; the variance is the population's (their best-of-n code; their PPO code
    divides by M - 1). Members are normalised before they come here, or the worst would be the one with the lowest zero.
    """
    if how == "worst":
        return scores.min(0).values
    mean = scores.mean(0)
    if how == "uncertainty":
        return mean - variance_coef * scores.var(0, correction=0)
    return mean


def bradley_terry_loss(scores: Tensor, ranks: Tensor) -> Tensor:
    """Return (B,) losses: per prompt the mean of -log sigma(r_w - r_l) over its strictly ordered pairs.

    InstructGPT (2203.02155), eq. 1: `scores` (B, K), `ranks` (B, K) with 0 the best. Ties give no pair; the mean is
    over the pairs used, and a prompt without any gives 0.
    """
    better = (ranks[:, :, None] < ranks[:, None, :]).to(scores.dtype)  # (B, K, K): i before j
    margins = scores[:, :, None] - scores[:, None, :]
    losses = torch.nn.functional.softplus(-margins) * better
    return losses.sum((1, 2)) / better.sum((1, 2)).clamp(min=1)


def pair_accuracy(scores: Tensor, ranks: Tensor) -> tuple[int, int]:
    """Return how many strictly ordered pairs the scores order rightly (a tie is wrong), and how many there are."""
    better = ranks[:, :, None] < ranks[:, None, :]
    right = better & (scores[:, :, None] > scores[:, None, :])
    return int(right.sum()), int(better.sum())
