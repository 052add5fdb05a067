"""Make the shared stages of a run, and nothing else.

A study on a cluster makes them first, in a job that its runs wait for: see `study/work.py`.
"""

from __future__ import annotations

from ..api.participants import participants
from ..api.registry import Registry
from ..core.artifacts import Artifact
from ..core.progress import WallClock, running
from ..core.spec import RunSpec
from .data import report_data
from .observers import Observers
from .prepare import RunOptions, open_stage_runtime, open_stages


def make_shared_stages(spec: RunSpec, registry: Registry, settings: RunOptions) -> list[Artifact]:
    """Return the start checkpoint, preferences and reward model that all methods share.

    They are made where they are not stored. What only one method needs is not made.
    """
    observe = Observers(registry, spec, settings.warn)
    with running(WallClock(settings.started, observe.activity)):
        stage_runtime = open_stage_runtime(spec, registry, settings, observe)
        try:
            stages = open_stages(spec, participants(spec, registry), stage_runtime)
            report_data(spec, stages)
            artifacts = [stages.start_artifact]
            if stages.has_proxy() and spec.reward_model is None:
                artifacts.append(stages.preferences)
            if stages.has_proxy():
                artifacts.append(stages.reward_artifact(0))
        finally:
            stage_runtime.close()
    return artifacts
