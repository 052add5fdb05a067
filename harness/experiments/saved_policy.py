"""What a run keeps of its trained policy: the whole model, its adapter, or nothing.

`policy/` in a run folder holds a whole model in hub format, `adapter/` an adapter in PEFT's format.
The weights of a fully trained policy are hard links to those of the policy's artifact. Saving comes
after the result is written: a failure costs the saved policy, not the evaluation, and the same
command saves it later.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import run_folder
from ..core.digests import combined_digest
from ..core.errors import Refused
from ..core.files import NoSpace, link_folder, write_text
from ..core.records import read_object, rerun
from ..core.settings import AdamWOptions
from ..core.spec import RunSpec, saved_kind
from .model_card import Saved, model_card
from .trained_policy import MODEL, Training

if TYPE_CHECKING:
    from torch import nn

    from ..api.contracts import Policy

FOLDERS = {"policy": "policy", "adapter": "adapter"}
PENDING, FAILED, NONE = "pending", "failed", "none"
NOT_WANTED = "--save none"


def waits(result: Mapping[str, Any], spec: RunSpec) -> bool:
    """Return whether a finished run still has to save its policy, as it was asked to."""
    saved = result.get("policy", {}).get("saved")
    if saved in (PENDING, FAILED):
        return saved_kind(spec) != NONE
    kinds = set(FOLDERS) & {spec.save}  # auto takes what is there, and none removes nothing
    there = set(result.get("policy", {}).get("folders", ()))
    wrapper = saved == NONE and result["policy"]["reason"] != NOT_WANTED
    return saved is not None and not wrapper and not kinds <= there


def save_policy(
    folder: Path, training: Training, policy: Policy, result: Mapping[str, Any]
) -> dict[str, Any]:
    """Write what a run keeps of its policy; return what its record says of it, failures too."""
    spec, kind = training.spec, saved_kind(training.spec)
    if kind == NONE:
        return {"saved": NONE, "reason": NOT_WANTED}
    if policy.provenance:
        return {"saved": NONE, "reason": f"the model lies at {policy.provenance['name']}"}
    model = policy.model if policy.kl_estimator is None else None
    if model is None:  # a wrapper
        return {"saved": NONE, "reason": f"{spec.method} answers with no model of its own"}
    try:
        digest = _write(folder / FOLDERS[kind], kind, training, model)
        dtype = _dtype_in(folder / FOLDERS[kind])
        start = training.method_inputs.start.source
        card = model_card(spec, result, start, Saved(kind, dtype, command_of(folder)))
        write_text(folder / FOLDERS[kind] / "README.md", card)
    except Exception as error:
        shutil.rmtree(folder / FOLDERS[kind], ignore_errors=True)
        if isinstance(error, NoSpace | Refused):
            return {"saved": FAILED, "reason": str(error)}
        write_text(folder / run_folder.TRACEBACK, "".join(traceback.format_exception(error)))
        return {"saved": FAILED, "reason": f"{type(error).__name__}: {error}"}
    (folder / run_folder.TRACEBACK).unlink(missing_ok=True)
    before = result.get("policy", {}).get("folders", ())
    return {
        "saved": kind,
        "folders": sorted({*before, FOLDERS[kind]}),
        "dtype": dtype,
        "digest": digest,
        "artifact": training.stored.folder.name if training.stored else None,
    }


def _write(target: Path, kind: str, training: Training, model: nn.Module) -> str:
    """Write a policy or an adapter to a folder; return the digest of its weights."""
    from ..models.initial_checkpoint import merged
    from ..models.loading import save_causal
    from ..models.lora import adapted
    from ..models.lora_weights import save_adapter
    from ..models.sharding import root_of

    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    spec, inputs, artifact = training.spec, training.method_inputs, training.stored
    dtype = "" if spec.save_dtype == "auto" else spec.save_dtype
    if kind == "adapter":
        save_adapter(model, _absolute(inputs.start.source), work, dtype)
        inputs.tokens.tokenizer.save_pretrained(work)
    elif artifact is not None and (artifact.folder / MODEL).is_dir():
        link_folder(artifact.folder / MODEL, work)
    elif root_of(model) is not None and not adapted(model):
        raise Refused(
            "its artifact is missing, and the main process alone cannot gather sharded weights"
        )
    else:
        whole = merged(model, inputs.start)
        save_causal(whole, inputs.tokens.tokenizer, work, dtype)
    shutil.rmtree(target, ignore_errors=True)
    work.replace(target)
    return combined_digest(sorted(target.glob("*.safetensors")))


def _dtype_in(folder: Path) -> str:
    """Return the dtype of the first weights in a folder."""
    from safetensors import safe_open

    with safe_open(sorted(folder.glob("*.safetensors"))[0], framework="pt") as tensors:
        first = tensors.get_tensor(sorted(tensors.keys())[0])
    return str(first.dtype).removeprefix("torch.")


def _absolute(model: str) -> str:
    """Return the absolute path of a model's folder; a hub id as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def command_of(folder: Path) -> list[str]:
    """Return the command that made a run, as its provenance has it."""
    provenance = read_object(folder / run_folder.PROVENANCE, rerun(folder))
    program, *arguments = (str(part) for part in provenance["command"])
    return ["harness" if program == "__main__.py" else program, *arguments]


def check_there(training: Training, folder: Path) -> None:
    """Raise Refused where neither an artifact nor a checkpoint holds a finished run's policy.

    A method without a training, as best-of-n, is asked for its policy again.
    """
    if not isinstance(training.method, AdamWOptions):
        return
    if training.find() is None and not any((folder / "checkpoint").glob("turn-*")):
        raise Refused(
            f"The policy of {folder} cannot be saved any more: neither its artifact nor a"
            " checkpoint is there. Delete that folder, and run the same command again."
        )
