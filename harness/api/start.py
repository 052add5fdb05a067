"""Which model the methods start from: the base model itself, or the base model after SFT."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.errors import UsageError
from ..core.model_folder import TOKENIZER_FILES, holder_of
from ..core.spec import START_MODEL, START_SFT, STARTS, RunSpec
from .contracts import Suite


def start_of(start: str | None, model: str | None) -> str:
    """Return the start of a run: as asked, or by the model.

    Args:
        asked: `model`, `sft`, or None for the default.
        model: What `--model` names; None for the model that a suite brings.

    Returns:
        `model` for a model whose tokenizer has a chat template, because it was fine-tuned before;
        `sft` for any other.

    Raises:
        UsageError: `asked` is neither of them.
    """
    if start is None:
        return START_MODEL if model and has_chat_template(model) else START_SFT
    if start not in STARTS:
        raise UsageError(f"--start {start}: expected model or sft.")
    return start


def has_chat_template(model: str | Path) -> bool:
    """Return whether the tokenizer of a model folder or hub id has a chat template."""
    folder = Path(holder_of(model, TOKENIZER_FILES))  # an adapter may lie beside its base
    if not folder.is_dir():
        from ..models.hub_format import load_tokenizer

        return bool(load_tokenizer(model).chat_template)
    if any((folder / f"chat_template.{ending}").is_file() for ending in ("jinja", "json")):
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the stages name what is missing when they load the tokenizer
        return False
    return bool(settings.get("chat_template"))


def start_warning(spec: RunSpec, suite: Suite) -> str | None:
    """Return a warning where a raw base model would be start and reference of a run."""
    model = spec.model or suite.base_model()
    if spec.start != START_MODEL or spec.reference or model is None or has_chat_template(model):
        return None
    return (
        f"--start model: the tokenizer of {model} has no chat template, so it is probably a base"
        " model that was never fine-tuned. It becomes the baseline, and KL keeps methods near it."
        " --start sft fine-tunes it on the suite's demonstrations first."
    )
