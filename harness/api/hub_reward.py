"""`--reward-model`: which runs may take a reward model of the hub in place of a trained one."""

from __future__ import annotations

from ..core.errors import UsageError
from ..core.settings import RewardOptions
from ..core.spec import RunSpec
from .participants import Participants


def check_reward_model(spec: RunSpec, built: Participants) -> None:
    """Refuse `--reward-model` where it would have no effect, or where the model is trained.

    Raises:
        UsageError: The method uses no reward model, learns its own, or trains it further.
    """
    if spec.reward_model is None:
        return
    method, named = built.method, f"--reward-model {spec.reward_model}"
    if "reward" not in method.required():
        raise UsageError(
            f"{named}: {spec.method} uses no reward model with these options. Leave --reward-model"
            " out, or name a method that uses one: ppo, grpo, rloo, best_of_n, raft."
        )
    if built.own_labeller is not None:
        raise UsageError(
            f"{named}: {spec.method} learns its reward from the labels of"
            f" {built.own_labeller.name}. Leave --reward-model out."
        )
    inner = getattr(method, "inner", None)
    works = inner() if callable(inner) else method
    if isinstance(works, RewardOptions) and works.reward_refresh:
        raise UsageError(
            f"{named}: a reward model of the hub is not trained further. Leave reward_refresh out."
        )
    if isinstance(works, RewardOptions) and works.reward_members > 1:
        raise UsageError(
            f"{named}: reward_members={works.reward_members} is an ensemble of reward models that"
            " are trained here. Leave reward_members out."
        )
