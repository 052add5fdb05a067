"""Model folders in Hugging Face format, read without torch: adapters, their bases, their files.

A folder with `adapter_config.json` holds a PEFT adapter: matrices that belong to a base model. The
harness merges such an adapter into its base when it loads the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .digests import combined_digest
from .errors import UsageError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_SUFFIXES = (".json", ".safetensors", ".model", ".jinja", ".txt")
_VIRTUAL_TOKENS = {  # PEFT methods that put trained vectors before the prompt
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
}


@dataclass(frozen=True)
class AdapterFolder:
    """A folder or hub id that holds a PEFT adapter instead of a model."""

    name: str
    base: str  # a folder or a hub id
    kind: str  # PEFT's name of the method: LORA, LOHA, ...

    def __str__(self) -> str:
        """Return one sentence for a user."""
        return f"{self.name} is a {self.kind} adapter of {self.base}: it is merged into its base."


def _check_regular(folder: Path) -> None:
    """Raise UsageError for a pipe, socket or device: reading it would never end."""
    for file in folder.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UsageError(
                f"{file} is no regular file but a pipe, a socket or a device. Remove it from the"
                " model's folder, or put a file in its place."
            )


def adapter_in(name: str | Path) -> AdapterFolder | None:
    """Return the adapter in a local folder, or None where the name is no folder or holds a model.

    Raises:
        UsageError: The folder's adapter cannot be merged, it also holds a whole model, or something
            in the folder is no regular file.
    """
    folder = Path(name)
    if folder.is_dir():
        _check_regular(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    whole = [f.name for pattern in ("model*", "pytorch_model*") for f in folder.glob(pattern)]
    weights = sorted(n for n in whole if n.endswith((".safetensors", ".bin")))
    if weights:
        raise UsageError(
            f"The model {name} is ambiguous: it holds whole weights ({weights[0]}) and an adapter"
            f" ({ADAPTER_CONFIG}). Move one of the two to a folder of its own."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UsageError(
            f"The adapter {name} has no {ADAPTER_WEIGHTS}. Only safetensors are read: save the"
            " adapter again with safe_serialization=True."
        )
    config = _read_config(folder / ADAPTER_CONFIG)
    return described(str(name), config, _base_of(folder, config))


def described(name: str, config: Mapping[str, Any], base: str) -> AdapterFolder:
    """Return an adapter by its configuration; raise UsageError where it cannot be merged."""
    kind, task = str(config.get("peft_type")), config.get("task_type")
    if kind in _VIRTUAL_TOKENS:
        raise UsageError(
            f"The adapter {name} cannot be used: {kind} has no weights that can be merged into its"
            " base model. Use a LoRA adapter, or a whole model."
        )
    if task not in (None, "CAUSAL_LM"):
        raise UsageError(
            f"The adapter {name} is of the task {task}; a causal language model (CAUSAL_LM) was"
            " expected."
        )
    return AdapterFolder(name, base, kind)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
        raise UsageError(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} is not a JSON object.")
    return config


def _base_of(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the base of an adapter: a folder, seen from here or from the adapter, or a hub id."""
    base = config.get("base_model_name_or_path")
    remedy = f"Write its folder or hub id to base_model_name_or_path in {folder / ADAPTER_CONFIG}."
    if not isinstance(base, str) or not base:
        raise UsageError(f"The adapter {folder} does not name its base model. {remedy}")
    for candidate in (Path(base), folder / base):
        if candidate.is_dir():
            if candidate.resolve() == folder.resolve():
                raise UsageError(f"The adapter {folder} names itself as its base model. {remedy}")
            return str(candidate)
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise UsageError(
            f"The base model of the adapter {folder} is not there: {base} is no folder. {remedy}"
        )
    return base


def adapters_in(name: str | Path) -> list[AdapterFolder]:
    """Return the adapters between a folder and its whole model, the outermost first.

    Raises:
        UsageError: As `adapter_in`, or the adapters name each other as their bases.
    """
    adapters: list[AdapterFolder] = []
    while (adapter := adapter_in(adapters[-1].base if adapters else name)) is not None:
        if len(adapters) > 8:
            raise UsageError(f"The adapter {name} has no end of bases: they name each other.")
        adapters.append(adapter)
    return adapters


def model_files(folder: Path) -> list[Path]:
    """Return the files that decide the outputs of a model folder, including an adapter's base."""
    adapters = adapters_in(folder)
    folders = [folder, *(Path(adapter.base) for adapter in adapters)]
    return [file for part in folders if part.is_dir() for file in _own_files(part)]


def _own_files(folder: Path) -> list[Path]:
    return [
        f for f in sorted(folder.iterdir()) if f.suffix in _SUFFIXES and f.name != "training.json"
    ]


def model_digest(folder: Path) -> str:
    """Return the digest of the files that decide the outputs of a model folder."""
    return combined_digest(model_files(folder))


def holder_of(name: str | Path, files: tuple[str, ...]) -> str:
    """Return where files of a model are read: its own folder if it has one, else its base's."""
    for adapter in adapters_in(name):
        if any((Path(adapter.name) / file).is_file() for file in files):
            return adapter.name
        name = adapter.base
    return str(name)


def model_record(name: str | Path) -> dict[str, Any]:
    """Return the entry of a model in a record: its name and digest, and the base of an adapter."""
    adapter, folder = adapter_in(name), Path(name)
    record: dict[str, Any] = {"name": str(name)}
    if folder.is_dir():
        record["digest"] = combined_digest(_own_files(folder))
    if adapter is not None:
        record |= {"adapter": adapter.kind, "base": model_record(adapter.base)}
    return record
