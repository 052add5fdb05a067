"""Learned rewards: a scalar model with pooling and normalisation, and combinations of an
ensemble.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.data import Comparison
from ..core.errors import UsageError
from ..core.files import write_json
from ..core.progress import LOADING, activity
from ..models.batches import Batch
from ..models.capabilities import made_up
from ..models.initial_checkpoint import InitialCheckpoint
from ..models.loading import ScalarModel, load_tensors, plain_scalar, save_tensors, scalar_beside
from ..models.logprobs import completion_scores, ordered_right
from ..models.lora import Lora, base_of, learn, load_own, lora_on, own_state
from ..models.micro_batches import in_micro_batches
from ..models.model_state import ModelState
from .trainer import Role

if TYPE_CHECKING:
    from .runtime import Runtime


class RewardModel:
    """A trained reward model.

    The score is (raw - mean) / scale. Demonstrations then score 0 on average, and samples of the
    start checkpoint have a standard deviation of 1.
    """

    def __init__(
        self,
        model: ScalarModel,
        pooling: str,
        name: str = "reward_model",
        mean: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        self.model, self.pooling, self.name = model, pooling, name
        self.mean, self.scale = mean, scale
        self.held_out: dict[str, float] = {}  # accuracy on held-out pairs, where it is known
        self.role = Role(
            name.replace("_model", ""),
            model,
            lambda batch: completion_scores(model, batch, pooling),
        )
        # reads a whole model of the same weights: one that is sharded cannot be copied
        self.read: Callable[[], ScalarModel] | None = None

    def score(self, batch: Batch, runtime: Runtime) -> Tensor:
        """Return (B, K) normalised scores, metered in the current phase."""
        self.role.hold(runtime.meter)
        raw = self.raw(batch, runtime)
        runtime.meter.add(reward_queries=raw.numel())
        return (raw - self.mean) / self.scale

    def raw(self, batch: Batch, runtime: Runtime) -> Tensor:
        """Return (B, K) scores before normalisation."""

        def count(part: Batch) -> None:
            runtime.meter.add(flops=self.role.flops(part))

        return in_micro_batches(
            self.role.compute,
            batch,
            runtime.micro_batch_tokens,
            False,
            count,
            runtime.distributed,
            runtime.sizes,
        )

    def state(self) -> ModelState:
        """Return the state that later ones are compared with."""

        def scores(model: nn.Module) -> Tensor:
            with torch.no_grad():
                raw = self.role.compute(made_up(self.model.trunk))
            return (raw - self.mean) / self.scale

        return ModelState(self.model, scores)

    def for_critic(self, lora: Lora | None, apart: bool) -> ScalarModel:
        """Return a network for a critic to start from, which computes the same as this model.

        Args:
            lora: The critic's adapter. None trains a copy of all weights.
            apart: Whether this model is trained further: its weights cannot serve as a base.

        Returns:
            An adapter over the weights of this model. Where this model is an adapter itself, the
            critic's is another one over the same base, with equal values and rank.
        """
        mine = lora_on(self.model)
        if lora is None:
            return self._plain()
        if mine is not None:
            critic = scalar_beside(base_of(self.model), replace(mine, role=lora.role))
            load_own(critic, own_state(self.model))
            return critic
        return scalar_beside(self._plain() if apart else self.model, lora)

    def _plain(self) -> ScalarModel:
        """Return a copy of this model, with its adapter merged."""
        return plain_scalar(self.model) if self.read is None else self.read()

    def save(self, folder: Path) -> None:
        """Write the weights (or an adapter and the head) and the normalisation."""
        save_tensors(own_state(self.model), folder / "model.safetensors")
        lora = lora_on(self.model)
        settings = {
            "pooling": self.pooling,
            "name": self.name,
            "mean": self.mean,
            "scale": self.scale,
            "lora": None if lora is None else [lora.rank, lora.alpha],
        }
        write_json(folder / "reward.json", settings)

    @staticmethod
    def load(folder: Path, start: InitialCheckpoint) -> RewardModel:
        """Read a reward model.

        `start` gives the architecture of its trunk and need not be in memory. It is the base of an
        adapter, and then stays in memory.
        """
        settings = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
        lora = settings.pop("lora")
        with activity(LOADING, "loading a reward model"):
            file = folder / "model.safetensors"
            if lora is None:
                model = learn(_whole(file, start), False)
                start.sharded(model)
            else:
                role = settings["name"].replace("_model", "")
                model = scalar_beside(start.model(), Lora(lora[0], lora[1], 0, role))
                load_own(model, load_tensors(file))
        learn(model.eval(), False)
        reward = RewardModel(model, **settings)
        if start.shards() is not None:
            reward.read = partial(_whole, file, start) if lora is None else _refuse_copy
        return reward


def _whole(file: Path, start: InitialCheckpoint) -> ScalarModel:
    """Read a scalar model with weights of its own.

    Where this run shards models, the weights stay in the memory of the mapped file.
    """
    model = start.scalar()
    if start.shards() is None:
        load_own(model, load_tensors(file))
    else:
        model.load_state_dict(load_tensors(file), assign=True)
    return model.eval()


def _refuse_copy() -> ScalarModel:
    raise UsageError(
        "--shard full: a critic with weights of its own cannot start from a reward model that is an"
        " adapter. Add --set lora_rank=16 to the method, or leave out"
        " --stage-set reward_model.lora_rank."
    )


def combine(scores: Tensor, how: str, variance_coef: float) -> Tensor:
    """Return (B, K) from the members' scores (M, B, K): their mean, their worst, or mean - coef *
    variance.

    Coste et al. 2023 (2310.02743), eq. 2-4; the variance is the population's (their best-of-n code;
    their PPO code divides by M - 1). Members are normalised before they come here, or the worst
    would be the one with the lowest zero.
    """
    if how == "worst":
        return scores.min(0).values
    mean = scores.mean(0)
    if how == "uncertainty":
        return mean - variance_coef * scores.var(0, correction=0)
    return mean


def bradley_terry_loss(scores: Tensor, preferred: Tensor) -> Tensor:
    """Return (B,) losses: per prompt the mean of -p log sigma(r_i - r_j) - (1-p) log sigma(r_j -
    r_i) over its pairs.

    InstructGPT (2203.02155), eq. 1, with soft labels: `scores` (B, K); `preferred` (B, K, K) as of
    `preferred_of`. The mean is over the pairs that were compared; a prompt without any gives 0.
    """
    margins = scores[:, :, None] - scores[:, None, :]
    losses = torch.nn.functional.softplus(-margins) * preferred
    return losses.sum((1, 2)) / preferred.sum((1, 2)).clamp(min=1)


def preferred_of(comparisons: Sequence[Sequence[Comparison]], k: int) -> Tensor:
    """Return (B, K, K): p at [i, j] and 1 - p at [j, i] for each compared pair, 0 elsewhere."""
    preferred = torch.zeros(len(comparisons), k, k)
    for table, row in zip(preferred, comparisons, strict=True):
        for c in row:
            table[c.first, c.second], table[c.second, c.first] = c.p, 1 - c.p
    return preferred


def label_loss(scores: Tensor, label: Tensor) -> Tensor:
    """Return (B,) losses of single completions: -y log sigma(r) - (1 - y) log sigma(-r).

    The logistic loss of a classifier of desirable completions; `scores` and `label` are (B, 1).
    """
    return torch.nn.functional.binary_cross_entropy_with_logits(
        scores, label, reduction="none"
    ).mean(1)


def label_accuracy(scores: Tensor, label: Tensor) -> float:
    """Return the share of labels (B, 1) that the signs of the scores predict, a tie being half."""
    return float(ordered_right(scores * (label - 0.5).sign()).double().mean())


def ranking_loss(scores: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return (B,) Bradley-Terry losses of scores (B, K) of a batch with a column `preferred` (B, K
    K), or those of `label_loss` with a column `label`.

    The column `preferred` is `preferred_of` laid flat: three dimensions are for what each token
    has.
    """
    if "label" in batch:
        return label_loss(scores, batch["label"])
    return bradley_terry_loss(scores, batch["preferred"].view(-1, scores.shape[1], scores.shape[1]))


def pair_accuracy(scores: Tensor, preferred: Tensor) -> tuple[float, int]:
    """Return the number of pairs that the scores order rightly (a tie counts half) and of all
    pairs with a preference.
    """
    better = preferred > 0.5
    right = ordered_right(scores[:, :, None] - scores[:, None, :])
    return float(right[better].sum()), int(better.sum())
