"""The README.md of a saved policy: what it is, what it was made from, and how it was measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.plain_text import markdown
from ..core.spec import NF4, RunSpec

_FIGURES = (  # names in a record, and what a reader knows them as
    ("win_rate", "win-rate against the baseline"),
    ("kl", "KL from the baseline, nats per answer"),
    ("gold", "gold reward"),
    ("accuracy", "accuracy"),
    ("proxy", "proxy reward"),
    ("length", "length, tokens"),
)
_HOW = {
    "policy": (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
    ),
    "adapter": (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "base = AutoModelForCausalLM.from_pretrained(BASE)",
        "model = PeftModel.from_pretrained(base, FOLDER)",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
    ),
}

_NF4 = {  # what a reader has to know of a policy that was trained over 4-bit weights
    "adapter": (
        " It was trained and measured over the base in nf4 (4 bits, double quantisation). Load the"
        " base so to get the figures below: BitsAndBytesConfig(load_in_4bit=True,"
        ' bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True).'
    ),
    "policy": " Its matrices were restored from nf4 (4 bits), and the adapter was added to them.",
}


@dataclass(frozen=True)
class Saved:
    """What lies beside the card, and the command that made it."""

    kind: str  # policy or adapter
    dtype: str
    command: Sequence[str]


def model_card(spec: RunSpec, result: Mapping[str, Any], start: str, saved: Saved) -> str:
    """Return the model card of a saved policy, in Markdown with the hub's heading.

    Args:
        spec: The run.
        result: Its result: figures, digests and the base model.
        start: The folder or hub id of the start checkpoint.
        saved: What lies beside the card.
    """
    name = f"{spec.method} on {spec.suite_name}"
    sections = [
        _heading(spec, saved.kind),
        f"# {markdown(name)}\n\n{_what(spec, result, saved)}",
        _table("Made from", ("part", "value"), _origins(spec, result, start)),
        _table("Measured", ("figure", "value", "95 % interval", "baseline"), _figures(result)),
        _table("Options", ("option", "value"), [(k, str(v)) for k, v in spec.options.items()]),
        "## Command\n\n```sh\n" + shlex.join(saved.command) + "\n```",
        "## Use\n\n```python\n" + "\n".join(_HOW[saved.kind]) + "\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _heading(spec: RunSpec, kind: str) -> str:
    """Return the YAML that the hub reads."""
    lines = [
        f"library_name: {'peft' if kind == 'adapter' else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: [alignment-harness, {json.dumps(spec.method)}]",
    ]
    base = spec.model
    if base and not Path(base).exists():  # a hub id: the hub links to it
        lines.append(f"base_model: {json.dumps(base)}")
    return "---\n" + "\n".join(lines) + "\n---"


def _what(spec: RunSpec, result: Mapping[str, Any], saved: Saved) -> str:
    noun = "A LoRA adapter" if saved.kind == "adapter" else "A causal language model"
    text = f"{noun}, trained with {spec.method} ({result['paper']}) on {spec.suite_name}."
    if spec.quick:
        text += " It comes from a quick run, whose figures mean nothing."
    text += f" The weights are in {saved.dtype}."
    if spec.weights == NF4:
        text += _NF4[saved.kind]
    if saved.dtype != "float32" and saved.kind == "policy" and spec.options.get("lora_rank"):
        text += " It was measured before the merged weights were rounded."
    return text


def _origins(spec: RunSpec, result: Mapping[str, Any], start: str) -> list[tuple[str, ...]]:
    """Return what a policy was made from: models and data, each with its digest."""
    model = result["model"]
    rows: list[tuple[str, ...]] = [("base model", _named(model))]
    if "base" in model:
        rows.append(("its base", _named(model["base"])))
    ground = result["ground"]
    rows += [
        ("start checkpoint and reference", f"{start} ({ground['start_checkpoint']})"),
        ("data", _data(spec)),
        ("judge", ground["judge"]),
        ("seeds", f"method {spec.seed}, shared {spec.shared_seed}"),
        ("run", f"seed{spec.seed}-{spec.fingerprint()}"),
    ]
    return rows


def _data(spec: RunSpec) -> str:
    """Return the suite, the user's own files, and the beginning of their digest."""
    files = spec.suite_options.get("data")
    named = f"{spec.suite_name}: {files}" if files else spec.suite_name
    return f"{named} ({spec.code['data'][:16]})"


def _named(model: Mapping[str, Any]) -> str:
    """Return a model's name, and the beginning of its digest where it is a folder."""
    digest = model.get("digest", "")[:16]
    return f"{model['name']} ({digest})" if digest else str(model["name"])


def _figures(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows of (figure, value, interval, baseline) of an evaluation."""
    evaluation, rows = result["evaluation"], []
    for name, label in _FIGURES:
        figure = evaluation.get(name)
        if isinstance(figure, Mapping):
            baseline = evaluation.get(f"baseline_{name}")
            interval = f"{figure['low']:.4g} to {figure['high']:.4g}"
            shown = "" if baseline is None else f"{baseline:.4g}"
            rows.append((label, f"{figure['mean']:.4g}", interval, shown))
    if reason := evaluation["judge"].get("no_win_rate"):
        rows.append(("win-rate against the baseline", reason, "", ""))
    prompts = f"{evaluation['prompts']} prompts of the {evaluation['split']} split"
    return [*rows, ("measured on", prompts, "", "")]


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = (" | ".join(markdown(cell, cell=True) for cell in row) for row in lines)
    return f"## {title}\n\n" + "\n".join(f"| {row} |" for row in cells)
