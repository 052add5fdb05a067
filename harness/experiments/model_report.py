"""What a user may ask of a model before a run: its size, its limits, and the paths it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def model_report(name: str | Path) -> list[tuple[str, str]]:
    """Return (what, value) of the model in a folder or behind a hub id.

    Raises:
        UsageError: The model cannot be loaded, or padding changes its output.
    """
    from ..models.capabilities import find_out
    from ..models.hub_format import load_tokenizer, notes_on
    from ..models.loading import load_causal, size_of

    model, tokenizer = load_causal(name), load_tokenizer(name)
    find_out(model, sharing=True)
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    positions = getattr(config, "max_position_embeddings", None)
    scoring, decoding = paths(model)
    rows = [
        ("architecture", type(model).__name__),
        ("parameters", f"{size_of(model)[0]:,}"),
        ("positions", str(positions) if positions else "no limit in its configuration"),
        ("vocabulary", f"{config.vocab_size} embeddings, {len(tokenizer)} tokens"),
        ("chat template", "yes" if tokenizer.chat_template else "none"),
        ("scoring", scoring),
        ("decoding", decoding),
        ("--weights nf4", weights_in_nf4(model)),
    ]
    return rows + [("note", note) for note in notes_on(name)]


def described(name: str | Path) -> str:
    """Return what `harness show` prints of a model."""
    return "\n".join(f"{label:<14} {value}" for label, value in model_report(name))


def weights_in_nf4(model: Any) -> str:
    """Return what the weights take in 4 bits, or why they cannot be converted."""
    from importlib.util import find_spec

    from ..core.errors import UsageError
    from ..models.loading import size_of, trunk_of
    from ..models.nf4 import packed_size

    plain = size_of(model)[0] * 2
    try:
        size = packed_size(model.bfloat16(), trunk_of(model))
    except UsageError as error:
        return f"not possible: {str(error).removeprefix('--weights nf4: ')}"
    needs = "" if find_spec("bitsandbytes") else "; needs pip install 'alignment-harness[nf4]'"
    return f"{size / 2**20:.0f} MiB, with {plain / 2**20:.0f} MiB in bfloat16{needs}"


def paths(model: Any) -> tuple[str, str]:
    """Return how a probed model scores and decodes, with the reason where that is not fast."""
    from ..models.capabilities import window_of
    from ..models.loading import trunk_of

    trunk = trunk_of(model)
    why = _reason(model)
    scoring = "each prompt once, without padding" if trunk.share_prompt else f"padded rows: {why}"
    if trunk.share_prompt and not trunk.plain_head:
        scoring += "; all logits are made, because the head scales or caps them"
    window = window_of(model)
    if window and trunk.share_prompt:
        scoring += f"; longer sequences with a mask for the window of {window} tokens"
    if trunk.share_cache:
        return scoring, "each prompt's cache once for all its completions"
    if trunk.keeps_cache:
        return scoring, f"the model's own cache, one per completion: {why}"
    return scoring, "no cache: each token reads all before it again"


def _reason(model: Any) -> str:
    from ..models.capabilities import other_layers

    kinds = other_layers(model)
    if kinds:
        return f"its configuration has layers of other kinds ({kinds})"
    return "the fast path gave other numbers, or the architecture does not allow it"
