"""What `harness show FILE.toml` prints: sources, splits, settings and the first example."""

from __future__ import annotations

from typing import Any

from ..api.registry import Registry
from ..api.resolve import suite_class
from ..core.data import Demonstration, completion_text, prompt_text
from ..core.options import build
from ..core.plain_text import visible
from ..core.suite_file import read_suite_file

PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 1200, 800


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
    return "\n".join([*lines, *_example(suite, examples[0], model)] if examples else lines) + "\n"


def _example(suite: Any, example: Demonstration, model: str | None) -> list[str]:
    """Return the first example: as tokens are made of it, or as text with roles."""
    if model is None:
        prompt, answer = prompt_text(example.prompt.text), completion_text(example.completion)
        how = "the first demonstration (--model MODEL renders it)"
    else:
        from ..models.chat import ChatOptions
        from ..models.hub_format import load_tokenizer
        from ..models.tokens import Tokens

        limits = getattr(suite, "max_prompt_tokens", None), suite.max_new_tokens
        tokens = Tokens(load_tokenizer(model), *limits, chat=ChatOptions.of(suite))
        prompt = tokens.tokenizer.decode(tokens.prompt_ids(example.prompt.text))
        ids = tokens.completion_ids(example.prompt.text, example.completion)
        answer, how = tokens.tokenizer.decode(ids), f"the first demonstration, for {model}"
    shown = (prompt[-PROMPT_CHARACTERS:], answer[:COMPLETION_CHARACTERS])
    prompt, answer = map(visible, shown)
    return ["", how, "--- prompt", prompt, "--- answer", answer]
