"""The verifier `likelihood`: an answer has enough probability under a language model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness import Verifier, hookimpl

LONGEST = 512  # tokens of an answer that are read
MOST_PROMPT = 2048  # tokens of a prompt


@dataclass
class Likelihood(Verifier):
    """Right if the mean log-probability per token of an answer is at least `least`.

    The model is any causal language model, such as the start checkpoint, and stays in memory. It
    rejects random words. Use it as a gate beside another verifier: see docs/verifiers.md.
    """

    name, lower_bar = "likelihood", True

    model: str = ""  # a folder or hub id
    least: float = -5.0  # nats per token
    chat_template: str = "auto"  # how prompts are rendered: auto, or a Jinja file
    chat_date: str = "2024-07-26"  # the day that the clock of a chat template shows

    def check(self):
        """Raise ValueError for a missing model or an invalid limit."""
        if not self.model:
            raise ValueError("model names no language model: a folder or hub id")
        if not self.least < 0:
            raise ValueError("least is a mean log-probability, below 0")

    def read_gold(self, text):
        """Return nothing: likelihood depends on prompt and answer alone."""
        return ""

    def verify(self, prompts, completions, golds, ended):
        """Return 1.0 or 0.0 per completion, each computed by itself."""
        return [
            float(self.mean(prompt.text, text, end) >= self.least)
            for prompt, text, end in zip(prompts, completions, ended, strict=True)
        ]

    def mean(self, prompt, text: str, end: bool) -> float:
        """Return the mean log-probability per token of an answer, in nats.

        The end token counts if the answer ended by itself. An answer without tokens has minus
        infinity.
        """
        from harness import torch

        tokens, model = _loaded(self.model, self.chat_template, self.chat_date, str(self.folder))
        try:
            text.encode()
        except UnicodeEncodeError:
            return -float("inf")
        answer = tokens.answer_ids(prompt, text[: 8 * LONGEST])
        answer = (answer if end else answer[:-1])[:LONGEST]
        if not answer:
            return -float("inf")
        prompt_ids = tokens.prompt_ids(prompt)[-MOST_PROMPT:]
        row = torch.tensor([prompt_ids + answer], device=model.device)
        with torch.inference_mode():
            keep = len(answer) + 1
            logits = model(input_ids=row, logits_to_keep=keep).logits[0, -keep:-1].float()
        logp = logits.log_softmax(-1).gather(-1, row[0, -len(answer) :, None]).mean()
        return round(float(logp), 4)

    def identity(self):
        """Return the options, and the digest of the model's files."""
        return super().identity() | {"model": _digest(self.model)}


@lru_cache(maxsize=1)
def _loaded(name: str, template: str, date: str, folder: str):
    """Return the tokenizer and the model, on the accelerator if there is one."""
    from harness import torch
    from harness.models.chat import ChatOptions
    from harness.models.hub_format import load_tokenizer
    from harness.models.loading import load_causal
    from harness.models.tokens import Tokens

    tokens = Tokens(load_tokenizer(name), chat=ChatOptions(template, date, (), folder))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tokens, load_causal(name).to(device)


@lru_cache(maxsize=8)
def _digest(name: str) -> str:
    """Return the digest of a model folder's files; a hub id stands for itself."""
    from harness.core.model_folder import model_digest

    return model_digest(Path(name)) if Path(name).is_dir() else name


@hookimpl
def register_verifiers(register):
    register(Likelihood)
