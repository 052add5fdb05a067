"""What `harness show FILE.toml` prints: sources, splits, settings, first example, first batch."""

from __future__ import annotations

from typing import Any

from ..api.registry import Registry
from ..api.resolve import suite_class
from ..core.data import Demonstration, completion_text, prompt_text
from ..core.options import build
from ..core.plain_text import visible
from ..core.suite_file import read_suite_file

PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 1200, 800
BATCH = 2  # pairs of the batch that is shown


def describe_suite_file(path: str, registry: Registry, model: str | None) -> str:
    """Return the description of a suite file; the data are read, and nothing is trained.

    Args:
        path: The suite file.
        registry: The plugins.
        model: A model whose tokenizer renders the example; None shows it as text with roles.
    """
    file, cls = read_suite_file(path), suite_class(path, registry)
    suite: Any = build(cls, file.options, f"suite {path}")
    suite.model = model  # rows that its template refuses are refused here, too
    report = suite.data_report()
    lines = [f"{file.options['title']} (suite file {path}), suite {cls.name}", ""]
    if report is not None:
        lines += [*report.lines(), *report.warnings(), ""]
    lines += [f"{name} = {value!r}" for name, value in file.options.items() if name != "folder"]
    for name, settings in file.settings.items():
        lines += [f"{name}: {key} = {value!r}" for key, value in settings.items()]
    examples = suite.demonstrations()
    lines += _example(suite, examples[0], model) if examples else []
    lines += _batch(suite, model) if model else []
    return "\n".join(lines) + "\n"


def _example(suite: Any, example: Demonstration, model: str | None) -> list[str]:
    """Return the first example: as tokens are made of it, or as text with roles."""
    if model is None:
        prompt, answer = prompt_text(example.prompt.text), completion_text(example.completion)
        how = "the first demonstration (--model MODEL renders it)"
    else:
        tokens = _tokens(suite, model)
        prompt = tokens.tokenizer.decode(tokens.prompt_ids(example.prompt.text))
        ids = tokens.completion_ids(example.prompt.text, example.completion)
        answer, how = tokens.tokenizer.decode(ids), f"the first demonstration, for {model}"
    return ["", how, *_shown("prompt", prompt), *_shown("answer", answer)]


def _batch(suite: Any, model: str) -> list[str]:
    """Return the first pairs as the batch that methods train on, decoded without its padding."""
    pairs = (suite.preferences() or [])[:BATCH]
    if not pairs:
        return []
    tokens = _tokens(suite, model)
    ids = [
        [tokens.completion_ids(pair.prompt.text, one) for one in (pair.chosen, pair.rejected)]
        for pair in pairs
    ]
    batch = tokens.batch([pair.prompt for pair in pairs], ids)
    lines = ["", f"a batch of the first {len(pairs)} pairs, as methods train on them, decoded"]
    for row, lengths in enumerate(batch.lengths.tolist()):
        prompts = batch.prompts
        lines += _shown("prompt", tokens.tokenizer.decode(prompts.ids[row][prompts.mask[row] > 0]))
        for name, one, length in zip(
            ("chosen", "rejected"), batch["completion_ids"][row], lengths, strict=True
        ):
            lines += _shown(name, tokens.tokenizer.decode(one[:length]))
    return lines


def _tokens(suite: Any, model: str) -> Any:
    from ..models.chat import ChatOptions
    from ..models.hub_format import load_tokenizer
    from ..models.tokens import Tokens

    limits = getattr(suite, "max_prompt_tokens", None), suite.max_new_tokens
    return Tokens(load_tokenizer(model), *limits, chat=ChatOptions.of(suite))


def _shown(name: str, text: str) -> list[str]:
    """Return a text under its name; of a long one the end of a prompt, or the beginning."""
    end = text[-PROMPT_CHARACTERS:] if name == "prompt" else text[:COMPLETION_CHARACTERS]
    return [f"--- {name}", visible(end)]
