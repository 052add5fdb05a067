"""Runs with weights in nf4: every model that such a run trains is an adapter."""

from __future__ import annotations

from ..core.errors import UsageError
from ..core.settings import AdamWOptions
from ..core.spec import NF4, START_SFT, RunSpec
from .participants import Participants

RANK = 16  # in the advice


def check_adapters(spec: RunSpec, built: Participants) -> None:
    """Refuse a run whose weights are in nf4 and that would train a model without an adapter.

    Raises:
        UsageError: The message has every option that is missing.
    """
    if spec.weights != NF4:
        return
    missing = []
    if isinstance(built.method, AdamWOptions) and not spec.options.get("lora_rank"):
        missing.append(f"--set lora_rank={RANK}")
    if spec.start == START_SFT and not spec.stages["sft"]["lora_rank"]:
        missing.append(f"--stage-set sft.lora_rank={RANK}")
    if _learns_scores(spec, built) and not spec.stages["reward_model"]["lora_rank"]:
        missing.append(f"--stage-set reward_model.lora_rank={RANK}")
    if missing:
        raise UsageError(
            "--weights nf4: weights in nf4 are not trained, so every model that this run trains"
            f" needs an adapter. Add {' '.join(missing)}, or use --weights bfloat16."
        )


def _learns_scores(spec: RunSpec, built: Participants) -> bool:
    """Return whether a run trains a reward model or a judge."""
    if spec.reward_model is not None:
        return built.judge.learns
    watched = built.suite.proxy and built.can_prefer
    return watched or built.judge.learns or "reward" in built.method.required()
