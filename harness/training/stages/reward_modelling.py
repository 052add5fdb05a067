"""The reward model: Bradley-Terry on rankings, with all pairs of a prompt in one batch element;
normalised afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...core.artifacts import EXECUTION
from ...core.errors import UsageError
from ...core.progress import STAGES, activity
from ...core.seeds import derive, endless_order
from ...core.settings import RewardModelOptions
from ...models.batches import Batch
from ...models.initial_checkpoint import lora_of
from ...models.loading import scalar_beside, scalar_on
from ...models.lora import learn
from ..reward_model import RewardModel, label_accuracy, pair_accuracy, preferred_of, ranking_loss
from ..runtime import Runtime
from ..trainer import Term
from .preferences import Row, comparisons_of, prompt_of

if TYPE_CHECKING:
    from .runtime import StageContext

SCALE_ROWS = 512  # rankings whose completions give the standard deviation of the score


def make(
    stages: StageContext,
    name: str,
    rankings: Mapping[str, list[Row]],
    options: RewardModelOptions,
    out: Path,
    scratch: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a reward model, normalise it, measure it on held-out rankings, write it; return (info,
    cost).

    The members of an ensemble and the judge differ in `name`, which seeds head and order.
    """
    check_labels(name, rankings["train"])
    meter = stages.stage_runtime.meter()
    seed = derive(stages.spec.shared_seed, name)
    lora = lora_of(options, seed, "reward")
    model = (
        scalar_on(stages.checkpoint.copy())
        if lora is None
        else scalar_beside(stages.checkpoint.model(), lora)
    )
    learn(model.initialise(seed).eval())
    stages.checkpoint.sharded(model)
    reward = RewardModel(model, options.pooling, name)
    reward.role.hold(meter)
    train = rankings["train"]
    size = options.batch_size
    steps = max(1, round(options.epochs * len(train) / size))
    with meter.phase("reward_model"):
        loop = stages.loop(options, meter, scratch, name)
        loop.trainer.add("reward", model)
        for turn in loop.turns(steps):
            rows = endless_order(len(train), turn * size, size, seed, "rankings")
            batch = _batch(stages, [train[i] for i in rows])
            loop.log(loop.trainer.step([Term(ranking_loss, batch, reward.role)], loop.progress))
        runtime = stages.stage_runtime.runtime(meter, seed)
        with activity(STAGES, f"{name.replace('_', ' ')}: scores"):
            _normalise(reward, stages, train[:SCALE_ROWS], options, runtime)
            accuracy, pairs = _accuracy(reward, stages, rankings["heldout"], runtime)
    reward.save(out)
    info = {
        "steps": steps,
        "heldout_accuracy": accuracy,
        "heldout_pairs": pairs,
        "mean": reward.mean,
        "scale": reward.scale,
        EXECUTION: loop.executions,
    }
    return info, meter.snapshot()


def check_labels(name: str, rows: Sequence[Row]) -> None:
    """Raise UsageError for labelled answers that are all of one kind: a model of them would learn
    to give every answer the same score.
    """
    labels = {row.get("label") for row in rows}
    if len(labels) == 1 and (label := labels.pop()) is not None:
        kind = "desirable" if label else "undesirable"
        raise UsageError(
            f"{name.replace('_', ' ')}: all {len(rows)} labelled answers that it would be trained"
            f" on are {kind}, so it can tell none apart. Give answers of both labels, or name a"
            " judge or reward model that needs no training (--judge, --reward-model)."
        )


def _batch(stages: StageContext, rows: list[Row]) -> Batch:
    batch = stages.tokens.batch(
        [prompt_of(row) for row in rows],
        [row["completion_ids"] for row in rows],
        stages.stage_runtime.device,
    )
    device = stages.stage_runtime.device
    if rows[0].get("label") is not None:
        return batch.with_columns(label=torch.tensor([[row["label"]] for row in rows]).to(device))
    preferred = preferred_of([comparisons_of(row) for row in rows], batch.shape[1])
    return batch.with_columns(preferred=preferred.flatten(1).to(device))


def _normalise(
    reward: RewardModel,
    stages: StageContext,
    rows: list[Row],
    options: RewardModelOptions,
    runtime: Runtime,
) -> None:
    """Centre on the validation demonstrations; divide by the standard deviation over samples of the
    start checkpoint.
    """
    demos = stages.suite.demonstrations("validation")
    if not demos:
        raise UsageError(
            f"The suite {stages.spec.suite_name} has no good answer in its validation split, on"
            " which the reward model is centred. Raise validation_share."
        )
    ids = [[stages.tokens.completion_ids(d.prompt.text, d.completion)] for d in demos]
    centred = reward.raw(
        stages.tokens.batch([d.prompt for d in demos], ids, runtime.device), runtime
    )
    reward.mean = float(centred.double().mean())
    if options.unit_scale:
        reward.scale = max(1e-6, float(reward.raw(_batch(stages, rows), runtime).double().std()))


def _accuracy(
    reward: RewardModel, stages: StageContext, rows: list[Row], runtime: Runtime
) -> tuple[float | None, int]:
    """Return the share of held-out pairs in the right order, or of labels that the scores
    predict, and how many there are; None without any.
    """
    if not rows:
        return None, 0
    batch = _batch(stages, rows)
    if "label" in batch:
        return round(label_accuracy(reward.raw(batch, runtime), batch["label"]), 4), len(rows)
    k = batch.shape[1]
    right, pairs = pair_accuracy(reward.raw(batch, runtime), batch["preferred"].view(-1, k, k))
    return (round(right / pairs, 4) if pairs else None), pairs
