"""The trained policy of a run: trained once, kept as an artifact, and found again.

Its name holds what decides the training. It holds no judge, no evaluation option and no code of the
evaluation. So a run with another judge evaluates again and trains nothing.

The artifact is the last checkpoint of training without the optimizer's moments. A method is given
this checkpoint as if it had been interrupted after its last step: it takes no step and returns its
policy. So wrapper policies need no format of their own.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.contracts import Method
from ..core.artifacts import EXECUTION, Artifact
from ..core.errors import HarnessError, Refused
from ..core.execution import TRAINING
from ..core.save_schedule import SaveInterval
from ..core.settings import AdamWOptions
from ..core.spec import RunSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.contracts import Policy
    from ..core.meter import Meter
    from ..training.inputs import MethodInputs
    from ..training.loop import Loop
    from ..training.stages.runtime import StageRuntime

STATE, SNAPSHOTS = "state", "snapshots"
OFF = SaveInterval(off=True)


@dataclass
class Training:
    """The training of one run: what decides it, and what it is carried out with."""

    spec: RunSpec
    stage_runtime: StageRuntime
    method: Method
    method_inputs: MethodInputs
    shared: Mapping[str, Artifact]  # the stages behind what the method is given
    reused: bool = False  # whether the policy was found, not trained
    found: Artifact | None = None  # the trained policy

    def check_trained(self) -> None:
        """Raise Refused where the policy would have to be trained."""
        if self._find() is None and isinstance(self.method, AdamWOptions):
            raise Refused(
                f"The trained policy of {self.spec.suite_name}/{self.spec.method} is not in"
                f" {self.stage_runtime.artifacts.root}: it was deleted, or code or data that decide"
                " training have changed. Nothing was trained. Train it with: harness run."
            )

    def policy(self, meter: Meter, folder: Path) -> tuple[Policy, Loop]:
        """Return the trained policy, and the loop with its metrics, costs and snapshots."""
        trained = self.found = self._find()
        self.reused = trained is not None
        if trained is not None:
            return self._run(meter, trained.folder / STATE, trained.folder / SNAPSHOTS, OFF)
        return self.train(meter, folder, publish=True)

    def _find(self) -> Artifact | None:
        if self.stage_runtime.check is not None:  # a check of rollouts needs rollouts
            return None
        return self.stage_runtime.artifacts.find("policy", self.name())

    def train(self, meter: Meter, folder: Path, publish: bool = False) -> tuple[Policy, Loop]:
        """Train the policy, or go on from the checkpoints below `folder`; `publish`: as an artifact
        too.
        """
        every = self.stage_runtime.checkpoint_every
        return self._run(meter, folder / "checkpoint", folder / "snapshots", every, publish)

    def name(self) -> dict[str, Any]:
        """Return what names the policy's artifact."""
        return {"training": self.spec.training_fingerprint(), "stages": self._contents()}

    def _contents(self) -> dict[str, str]:
        return {kind: artifact.content for kind, artifact in self.shared.items()}

    def _run(
        self,
        meter: Meter,
        checkpoints: Path,
        snapshots: Path,
        every: SaveInterval,
        publish: bool = False,
    ) -> tuple[Policy, Loop]:
        with self.stage_runtime.planned(TRAINING):
            return self._train(meter, checkpoints, snapshots, every, publish)

    def _train(
        self,
        meter: Meter,
        checkpoints: Path,
        snapshots: Path,
        every: SaveInterval,
        publish: bool,
    ) -> tuple[Policy, Loop]:
        from ..training.checkpoints import Checkpoints, Snapshots
        from ..training.lab import Lab
        from ..training.loop import Loop

        spec, stage_runtime, method = self.spec, self.stage_runtime, self.method
        options = method if isinstance(method, AdamWOptions) else AdamWOptions()
        progress = stage_runtime.progress
        writes = stage_runtime.distributed.main and not self.reused
        loop = Loop(
            stage_runtime.trainer(options, meter),
            Checkpoints(checkpoints, every, writes, self._contents(), stage_runtime.save_costs),
            meter,
            lambda step, total, row: progress(spec.method, step, total, row),
            spec.budget,
            Snapshots(snapshots, spec.snapshots, writes) if spec.snapshots else None,
            self.method_inputs.labels,
            stage_runtime.execution_record,
        )
        if self.method_inputs.reference_cache is not None:
            self.method_inputs.reference_cache.pins = loop.pins
        trained = meter.snapshot() if self.reused else None
        policy = method.train(
            Lab(method, self.method_inputs, stage_runtime.runtime(meter, spec.seed), loop)
        )
        if not hasattr(policy, "answer"):
            raise HarnessError(
                f"`train` returned {type(policy).__name__}, not a Policy: end it with `return"
                " lab.policy`"
            )
        loop.finish()
        if publish and loop.rows:
            self._publish(loop)
        if trained is not None:
            meter.restore(trained)  # asking for the policy again costs nothing of its training
        loop.trainer.let_go()
        gc.collect()  # the lab has reference cycles: free critic and reference before evaluation
        stage_runtime.distributed.barrier()
        return policy, loop

    def _publish(self, loop: Loop) -> None:
        """Keep the policy's weights and the snapshots as an artifact: the last checkpoint."""
        from ..training.checkpoints import Checkpoints

        weights, state = weights_of(loop.trainer.tensors()), loop.saved_state()

        def make(output: Path, _: Path) -> tuple[dict[str, Any], dict[str, Any]]:
            writes = self.stage_runtime.distributed.main
            Checkpoints(output / STATE, OFF, writes, self._contents()).save(
                len(loop.rows), weights, state
            )
            self._copy_snapshots(loop, output / SNAPSHOTS)
            info = {"method": self.spec.method, "steps": len(loop.rows), EXECUTION: loop.executions}
            return info, loop.meter.snapshot()

        self.found = self.stage_runtime.get_or_make("policy", self.name(), make)

    def _copy_snapshots(self, loop: Loop, target: Path) -> None:
        if loop.snapshots is not None:
            shutil.copytree(loop.snapshots.folder, target, dirs_exist_ok=True)


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy's weights among the tensors of a checkpoint."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith("policy/weight/")}
