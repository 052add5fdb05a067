"""Read a model, its tokenizer and its end tokens from a folder or hub id in Hugging Face format.

A PEFT adapter is merged into its base model. Only safetensors are read, and no code from the hub is
executed.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..core import hub
from ..core.errors import UsageError
from ..core.model_folder import (
    ADAPTER_WEIGHTS,
    TOKENIZER_FILES,
    AdapterFolder,
    adapter_in,
    adapters_in,
    described,
    holder_of,
)
from ..core.progress import LOADING, activity

HUB_HINT = (
    "A folder in Hugging Face format (config.json, *.safetensors, tokenizer files) or a hub id was"
    " expected."
)
GENERATION_CONFIG = "generation_config.json"
MERGE_TOLERANCE = 1e-3  # nats by which a merged model may differ from its adapter, in float32
# what reading a model or its configuration may raise
FAILURES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    ImportError,
    SafetensorError,
    StrictDataclassError,  # a configuration that contradicts itself
)


def load_tokenizer(name: str | Path) -> Any:
    """Return the tokenizer of a folder or hub id. No code from the hub is executed."""
    tokenizer = _tokenizer(name)
    if _pads_beyond(tokenizer, name):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer(name: str | Path) -> Any:
    from transformers import AutoTokenizer

    holder = holder_of(name, TOKENIZER_FILES)
    offline = hub.offline(holder)
    try:
        return AutoTokenizer.from_pretrained(holder, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        problem = f"The model {name}: no tokenizer could be loaded."
        raise UsageError(f"{problem} {_why(holder, error, offline)}") from error


def _pads_beyond(tokenizer: Any, name: str | Path) -> bool:
    """Return whether a model has no embedding for the padding token of its tokenizer."""
    rows = limits_of(name).vocabulary
    pad = tokenizer.pad_token_id
    return pad is not None and rows is not None and pad >= rows


@dataclass(frozen=True)
class ModelLimits:
    """What a model's configuration allows; None where it does not say."""

    positions: int | None = None  # tokens of a prompt and its completion
    vocabulary: int | None = None  # tokens that have an embedding; None for an adapter


def limits_of(name: str | Path) -> ModelLimits:
    """Return how long a text and how large a vocabulary a model takes, from its configuration."""
    from transformers import AutoConfig

    adapters = adapters_in(name)
    whole = adapters[-1].base if adapters else str(name)
    hub.offline(whole)
    try:
        config = AutoConfig.from_pretrained(whole, trust_remote_code=False).get_text_config()
    except FAILURES:  # the message appears when the model is read
        return ModelLimits()
    positions = getattr(config, "max_position_embeddings", None)
    return ModelLimits(positions, None if adapters else getattr(config, "vocab_size", None))


def read_model(name: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the causal language model of a folder or hub id; adapters are merged, in float32.

    Args:
        name: The folder or hub id.
        dtype: Of the weights in memory.

    Raises:
        UsageError: It cannot be loaded, its weights are quantised, or its adapter cannot be merged.
    """
    adapter = adapter_in(name) or _adapter_of_hub(name)
    if adapter is None:
        return _read_whole(name, dtype)
    merged = _merged(adapter)
    for parameter in merged.parameters():  # buffers, such as rotary frequencies, stay float32
        parameter.data = parameter.data.to(dtype)
    merged.config.dtype = dtype
    return merged


def end_tokens(name: str | Path) -> set[int]:
    """Return the end tokens that a model's generation config names; empty where it has none."""
    from transformers import GenerationConfig

    hub.offline(name)
    try:
        ends = GenerationConfig.from_pretrained(holder_of(name, (GENERATION_CONFIG,))).eos_token_id
    except OSError:  # no generation_config.json
        return set()
    except (ValueError, TypeError):
        ends = _token_ids(holder_of(name, (GENERATION_CONFIG,))).get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    return {end for end in listed if isinstance(end, int) and not isinstance(end, bool)}


def check_alike(start: str | Path, reference: str | Path) -> None:
    """Refuse a reference that cannot score the tokens of the start checkpoint.

    Args:
        start: Folder or hub id of the model that methods start from.
        reference: Folder or hub id of the model that `--reference` names.

    Raises:
        UsageError: The vocabularies, or the names or shapes of the weights, differ.
    """
    same_words = load_tokenizer(start).get_vocab() == load_tokenizer(reference).get_vocab()
    if not same_words:
        raise UsageError(
            f"--reference {reference}: its tokenizer has another vocabulary than that of {start}."
            " A reference scores the same tokens: name a model with the same tokenizer."
        )
    ours, theirs = _weight_shapes(start), _weight_shapes(reference)
    name = next((n for n in sorted({*ours, *theirs}) if ours.get(n) != theirs.get(n)), None)
    if name is not None:
        raise UsageError(
            f"--reference {reference}: its architecture is not that of {start}: the weight {name}"
            f" has shape {theirs.get(name)} there and {ours.get(name)} here."
        )


def _weight_shapes(name: str | Path) -> dict[str, list[int]]:
    """Return the shapes of a model's weights by name, from its configuration alone."""
    adapters = adapters_in(name)
    model = meta_model(adapters[-1].base if adapters else name)
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def meta_model(name: str | Path) -> nn.Module:
    """Return a causal model without weights, on the device "meta", from its configuration alone.

    Raises:
        UsageError: There is no configuration of a language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    offline = hub.offline(name)
    try:
        config = AutoConfig.from_pretrained(str(name), trust_remote_code=False)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)
    except FAILURES as error:
        raise UsageError(
            f"The model {name} could not be loaded. {_why(name, error, offline)}"
        ) from error
    return model


def notes_on(name: str | Path) -> list[str]:
    """Return messages on how a model is read: adapters, and configurations that are ignored."""
    from transformers import GenerationConfig

    notes = [str(adapter) for adapter in adapters_in(name)]
    if _pads_beyond(_tokenizer(name), name):
        notes.append(
            "The model has no embedding for its padding token, so the end token is used for"
            " padding. Padding is masked, so no figure changes."
        )
    holder = holder_of(name, (GENERATION_CONFIG,))
    try:
        GenerationConfig.from_pretrained(holder)
    except OSError as error:
        if (Path(holder) / GENERATION_CONFIG).is_file():
            notes.append(f"{GENERATION_CONFIG} is left out: {_first_line(error)}")
    except (ValueError, TypeError) as error:
        kept = ", ".join(_token_ids(holder)) or "nothing"
        notes.append(f"{GENERATION_CONFIG} is invalid; {kept} is kept of it: {_first_line(error)}")
    return notes


def _why(name: str | Path, error: Exception, offline: bool) -> str:
    """Return why a model could not be loaded, and what is expected instead."""
    return hub.advice(name) if offline else f"{HUB_HINT} ({_first_line(error)})"


def _read_whole(name: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    with activity(LOADING, f"loading the model {Path(name).name}"):
        return _weights_of(name, dtype)


def _weights_of(name: str | Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    offline = hub.offline(name)
    try:
        config = AutoConfig.from_pretrained(str(name), trust_remote_code=False)
        _refuse_quantised(name, config)
        model, loading = AutoModelForCausalLM.from_pretrained(
            str(name),
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            generation_config=_generation_config(name),
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except FAILURES as error:
        raise UsageError(
            f"The model {name} could not be loaded. {_why(name, error, offline)}"
        ) from error
    _refuse_parts(name, loading)
    _refuse_not_finite(name, model)
    whole: nn.Module = model
    return whole


def _refuse_parts(name: str | Path, loading: Any) -> None:
    """Refuse a model whose files and configuration do not hold the same tensors.

    `loading` is what transformers reports; a head that is tied to the embedding is in none of its
    lists.
    """
    for kind, problem in (
        ("missing_keys", "has no {}, which would be random"),
        ("mismatched_keys", "has a {} of another shape than its configuration says"),
        ("unexpected_keys", "has a {} that its configuration has no place for"),
    ):
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in loading.get(kind) or ())
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UsageError(
                f"The model {name} is not a complete causal language model: it"
                f" {problem.format(names[0])}{more}. {HUB_HINT}"
            )


def _refuse_not_finite(name: str | Path, model: nn.Module) -> None:
    """Refuse a model with a weight that is NaN or infinite."""
    for key, tensor in model.named_parameters():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UsageError(
                f"The model {name} has a value in {key} that is not finite. Its file is damaged, or"
                " its training diverged: use another checkpoint."
            )


def _refuse_quantised(name: str | Path, config: Any) -> None:
    quantisation = getattr(config, "quantization_config", None)
    if quantisation:
        plain = quantisation if isinstance(quantisation, dict) else vars(quantisation)
        raise UsageError(
            f"The model {name} has quantised weights ({plain.get('quant_method', 'unknown kind')})."
            " They cannot be trained or compared here: use the model in float32, bfloat16 or"
            " float16."
        )


def _generation_config(name: str | Path) -> Any:
    """Return a config of token ids alone in place of one that transformers refuses, else None.

    Sampling here never reads a generation config, so an invalid one does not stop a run.
    """
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(str(name))
    except OSError:
        return None
    except (ValueError, TypeError):
        return GenerationConfig(**_token_ids(name))
    return None


def _token_ids(name: str | Path) -> dict[str, Any]:
    file = Path(name) / GENERATION_CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kept = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: values[key] for key in kept if key in values} if isinstance(values, dict) else {}


# -- adapters --------------------------------------------------------------------------------------


def _adapter_of_hub(name: str | Path) -> AdapterFolder | None:
    """Return the adapter behind a hub id, or None where it holds a whole model."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if Path(name).is_dir():
        return None
    hub.offline(name)
    try:
        file = find_adapter_config_file(str(name))
    except (OSError, ValueError):  # an error in the name is reported when the model is read
        return None
    if file is None:
        return None
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    return described(str(name), config, str(config.get("base_model_name_or_path")))


def _merged(adapter: AdapterFolder) -> nn.Module:
    """Return the base of an adapter with the adapter merged into its weights."""
    if find_spec("peft") is None:
        raise UsageError(
            f"{adapter} That needs the package peft: pip install 'alignment-harness[lora]'."
        )
    base = read_model(adapter.base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _merge(base, adapter)
        except UsageError:
            raise
        except (*FAILURES, RuntimeError, NotImplementedError, AttributeError) as error:
            raise UsageError(
                f"The adapter {adapter.name} ({adapter.kind}) could not be merged into"
                f" {adapter.base}. ({_first_line(error)})"
            ) from error


def _merge(base: nn.Module, adapter: AdapterFolder) -> nn.Module:
    from peft import PeftConfig, PeftModel, PeftType

    if adapter.kind not in PeftType.__members__:
        raise UsageError(
            f"The adapter {adapter.name} is of the kind {adapter.kind}, which the installed peft"
            " does not know."
        )
    config = PeftConfig.from_pretrained(adapter.name)
    shapes = _shapes(adapter)
    _fit_vocabulary(base, shapes)
    wrapped: Any = PeftModel(base, config, autocast_adapter_dtype=False)
    loaded = wrapped.load_adapter(adapter.name, "default", autocast_adapter_dtype=False)
    _check_complete(adapter, config, loaded, shapes)
    expected = _probe(wrapped.eval())
    model: nn.Module = wrapped.merge_and_unload(safe_merge=True)
    vars(model).pop("peft_config", None)
    off = float((_probe(model) - expected).abs().max())
    if not off < MERGE_TOLERANCE:
        raise UsageError(
            f"The adapter {adapter.name} ({adapter.kind}) cannot be merged: the merged model's"
            f" log-probabilities differ by {off:.2g} nats."
        )
    return model


def _shapes(adapter: AdapterFolder) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's tensors; empty for a hub id, whose files PEFT reads."""
    file = Path(adapter.name) / ADAPTER_WEIGHTS
    if not file.is_file():
        return {}
    with safe_open(file, framework="pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118


def _fit_vocabulary(base: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Give the base as many embeddings as an adapter that was trained with more of them."""
    named = {id(module): name for name, module in base.named_modules()}
    for module in (base.get_input_embeddings(), base.get_output_embeddings()):
        ending = f"{named.get(id(module), '-').rpartition('.')[2]}.weight"
        rows = {shape[0] for key, shape in shapes.items() if key.endswith(f".{ending}")}
        if rows and module.weight.shape[0] not in rows:
            base.resize_token_embeddings(max(rows), mean_resizing=False)


def _check_complete(
    adapter: AdapterFolder, config: Any, loaded: Any, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Raise UsageError where a tensor of an adapter has no place, or one is missing."""
    wanted = getattr(config, "modules_to_save", None) or []
    absent = [n for n in wanted if shapes and not any(f".{n}." in key for key in shapes)]
    without_place = [key for key in loaded.unexpected_keys if _plain(key) not in shapes]
    missing = [*loaded.missing_keys, *absent]
    if without_place:
        raise UsageError(
            f"The adapter {adapter.name} does not fit {adapter.base}: its tensor"
            f" {without_place[0]} has no place there."
        )
    if missing:
        raise UsageError(f"The adapter {adapter.name} is incomplete: {missing[0]} is missing.")


def _plain(key: str) -> str | None:
    """Return the other name that PEFT stores a copy of a resized embedding under, else None."""
    for part in (".modules_to_save.", ".original_module."):
        if part in key:
            return key.replace(part, ".")
    return None


@torch.no_grad()
def _probe(model: nn.Module) -> Tensor:
    """Return log-probabilities after a few tokens."""
    config: Any = model.config
    ids = torch.arange(24).remainder(config.get_text_config().vocab_size).view(2, 12)
    logits: Tensor = model(input_ids=ids.to(next(model.parameters()).device)).logits
    return logits.float().log_softmax(-1)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, and the second where the first ends in ":"."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]
