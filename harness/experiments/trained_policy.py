"""The trained policy of a run: trained once, kept as an artifact, and found again.

Its name holds what decides the training. It holds no judge, no evaluation option and no code of the
evaluation. So a run with another judge evaluates again and trains nothing.

The artifact is the last checkpoint of training without the optimizer's moments. A method is given
this checkpoint as if it had been interrupted after its last step: it takes no step and returns its
policy. So wrapper policies need no format of their own. The weights of a whole model lie in the
artifact in hub format, and run folders link to them (saved_policy.py).
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
from ..core.global_state import put_back
from ..core.live_rows import LiveFiles, LiveRows
from ..core.run_folder import METRICS, ROLLOUTS
from ..core.save_schedule import SaveInterval
from ..core.settings import AdamWOptions
from ..core.spec import BFLOAT16, RunSpec, saved_kind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..api.contracts import Policy
    from ..core.meter import Meter
    from ..training.inputs import MethodInputs
    from ..training.loop import Loop
    from ..training.stages.runtime import StageRuntime

STATE, SNAPSHOTS, MODEL = "state", "snapshots", "model"
WEIGHTS = "policy/weight/"  # what the names of the policy's weights in a checkpoint begin with
OFF = SaveInterval(off=True)
ARTIFACT, CHECKPOINT = "artifact", "checkpoint"  # what holds a policy after its training


@dataclass
class Training:
    """The training of one run: what decides it, and what it is carried out with."""

    spec: RunSpec
    stage_runtime: StageRuntime
    method: Method
    method_inputs: MethodInputs
    shared: Mapping[str, Artifact]  # the stages behind what the method is given
    reused: bool = False  # whether the policy was found, not trained
    stored: Artifact | None = None  # the trained policy
    _trained: nn.Module | None = None  # the module that the trainer called the policy

    def close(self) -> None:
        """End what was started for the method, and its engines."""
        self.method_inputs.close()
        self.stage_runtime.close()

    def check_trained(self) -> None:
        """Raise Refused where the policy would have to be trained."""
        if self.find() is not None or not isinstance(self.method, AdamWOptions):
            return
        if self.spec.save == "none":
            raise Refused(
                f"The run of {self.spec.suite_name}/{self.spec.method} kept no policy (--save"
                " none), so it cannot be evaluated again. Train it with: harness run."
            )
        raise Refused(
            f"The trained policy of {self.spec.suite_name}/{self.spec.method} is not in"
            f" {self.stage_runtime.artifacts.root}: it was deleted, or code or data that decide"
            " training have changed. Nothing was trained. Train it with: harness run."
        )

    def policy(self, meter: Meter, folder: Path) -> tuple[Policy, Loop]:
        """Return the trained policy, and the loop with its metrics, costs and snapshots."""
        trained = self.stored = self.find()
        self.reused = trained is not None
        if trained is None:
            kept = CHECKPOINT if saved_kind(self.spec) == "none" else ARTIFACT
            return self.train(meter, folder, kept)
        if (trained.folder / ROLLOUTS).is_file() and self.stage_runtime.distributed.main:
            shutil.copy(trained.folder / ROLLOUTS, folder / ROLLOUTS)
        return self._run(meter, trained.folder / STATE, trained.folder / SNAPSHOTS, OFF)

    def find(self) -> Artifact | None:
        """Return the artifact of the trained policy, or None where there is none to go on from."""
        if self.stage_runtime.check is not None:  # a check of rollouts needs rollouts
            return None
        return self.stage_runtime.artifacts.find("policy", self.name())

    def train(self, meter: Meter, folder: Path, kept: str = "") -> tuple[Policy, Loop]:
        """Train the policy, or go on from the checkpoints below `folder`.

        Args:
            meter: Counts the training.
            folder: Of the run.
            kept: What holds the policy while it is evaluated: ARTIFACT, CHECKPOINT, or nothing.
        """
        every, main = self.stage_runtime.checkpoint_every, self.stage_runtime.distributed.main
        files = LiveFiles(*(LiveRows(folder / name, main) for name in (METRICS, ROLLOUTS)))
        places = folder / "checkpoint", folder / "snapshots"
        return self._run(meter, *places, every, kept, files)

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
        kept: str = "",
        files: LiveFiles | None = None,
    ) -> tuple[Policy, Loop]:
        with self.stage_runtime.planned(TRAINING):
            return self._train(meter, checkpoints, snapshots, every, kept, files)

    def _train(
        self,
        meter: Meter,
        checkpoints: Path,
        snapshots: Path,
        every: SaveInterval,
        kept: str,
        files: LiveFiles | None,
    ) -> tuple[Policy, Loop]:
        from ..training.lab import Lab
        from ..training.shared_models import SharedModels

        spec, stage_runtime, method = self.spec, self.stage_runtime, self.method
        loop = self._loop(meter, checkpoints, snapshots, every, files)
        if self.method_inputs.reference_cache is not None:
            self.method_inputs.reference_cache.pins = loop.pins
        loop.trainer.saved |= self._weights()
        trained = meter.snapshot() if self.reused else None
        shared = SharedModels(method.name, self.method_inputs)
        lab = Lab(method, self.method_inputs, stage_runtime.runtime(meter, spec.seed), loop)
        with put_back(f"The method {method.name}"):
            policy = method.train(lab)
        del lab  # it holds models that are freed below
        shared.check()
        self.method_inputs.reward_states.clear()  # they hold reward models: free these, too
        if not hasattr(policy, "answer"):
            raise HarnessError(
                f"`train` returned {type(policy).__name__}, not a Policy: end it with `return"
                " lab.policy`"
            )
        self._round(loop)
        loop.finish()
        if kept and loop.rows:
            self._keep(kept, policy, loop)
        if trained is not None:
            meter.restore(trained)  # asking for the policy again costs nothing of its training
        loop.trainer.let_go()
        gc.collect()  # the lab has reference cycles: free critic and reference before evaluation
        stage_runtime.distributed.barrier()
        return policy, loop

    def _loop(
        self,
        meter: Meter,
        checkpoints: Path,
        snapshots: Path,
        every: SaveInterval,
        files: LiveFiles | None,
    ) -> Loop:
        """Return the loop of the training, at its last checkpoint."""
        from ..training.checkpoints import Checkpoints, Snapshots
        from ..training.loop import Loop

        spec, stage_runtime, method = self.spec, self.stage_runtime, self.method
        options = method if isinstance(method, AdamWOptions) else AdamWOptions()
        progress = stage_runtime.progress
        writes = stage_runtime.distributed.main and not self.reused
        return Loop(
            stage_runtime.trainer(options, meter),
            Checkpoints(checkpoints, every, writes, self._contents(), stage_runtime.save_costs),
            meter,
            lambda step, total, row: progress(spec.method, step, total, row),
            spec.budget,
            Snapshots(snapshots, spec.snapshots, writes) if spec.snapshots else None,
            self.method_inputs.labels,
            stage_runtime.execution_record,
            files,
        )

    def _round(self, loop: Loop) -> None:
        """Round the trained policy where less than its own precision is kept of it."""
        from ..models.lora_weights import rounded

        self._trained = loop.trainer.modules.get("policy")
        if self._trained is not None and self.spec.save_dtype != "auto":
            rounded(self._trained, self.spec.save_dtype)

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights of the policy's artifact; none where its checkpoint holds them."""
        if self.stored is None or not (self.stored.folder / MODEL).is_dir():
            return {}
        import torch

        from ..models.hub_format import read_model

        dtype = torch.bfloat16 if self.spec.weights == BFLOAT16 else torch.float32
        weights = read_model(self.stored.folder / MODEL, dtype).state_dict()
        return {f"{WEIGHTS}{name}": tensor for name, tensor in weights.items()}

    def _keep(self, kept: str, policy: Policy, loop: Loop) -> None:
        """Keep the trained policy on disk. A full disk costs that, not the run."""
        try:
            if kept == ARTIFACT:
                self._publish(policy, loop)
            else:
                weights = weights_of(loop.trainer.tensors())
                loop.checkpoints.save(len(loop.rows), weights, loop.saved_state())
        except OSError as error:
            self.stage_runtime.tell(
                f"The trained policy could not be kept on disk: {error}. The run goes on. If its"
                " evaluation fails, or for another evaluation, it must be trained again."
            )

    def _publish(self, policy: Policy, loop: Loop) -> None:
        """Write the last checkpoint, without moments, and the snapshots as an artifact."""
        from ..models.loading import save_causal
        from ..models.lora import adapted
        from ..training.checkpoints import Checkpoints

        state = loop.saved_state()
        model = policy.model
        same = model is not None and model is self._trained and not adapted(model)
        whole = model if same else None
        weights = {} if same else weights_of(loop.trainer.tensors())
        dtype = "" if self.spec.save_dtype == "auto" else self.spec.save_dtype

        def make(output: Path, _: Path) -> tuple[dict[str, Any], dict[str, Any]]:
            writes = self.stage_runtime.distributed.main
            Checkpoints(output / STATE, OFF, writes, self._contents()).save(
                len(loop.rows), weights, state
            )
            if whole is not None and (writes or loop.trainer.sharded):
                tokenizer = self.method_inputs.tokens.tokenizer
                save_causal(whole, tokenizer, output / MODEL, dtype, writes)
            self._copy_snapshots(loop, output / SNAPSHOTS)
            if loop.files is not None and loop.files.rollouts.path.exists():
                shutil.copy(loop.files.rollouts.path, output / ROLLOUTS)
            info = {"method": self.spec.method, "steps": len(loop.rows), EXECUTION: loop.executions}
            return info, loop.meter.snapshot()

        self.stored = self.stage_runtime.get_or_make("policy", self.name(), make)

    def _copy_snapshots(self, loop: Loop, target: Path) -> None:
        if loop.snapshots is not None:
            shutil.copytree(loop.snapshots.folder, target, dirs_exist_ok=True)


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy's weights among the tensors of a checkpoint."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)}
