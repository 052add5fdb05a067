"""Reward models of the hub: sequence classifiers with one output and their own tokenizer.

They are read as published, with their chat template and without code from the hub. Sequences are
never padded, so a score depends on its own text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core import hub
from ..core.data import Text, prompt_text
from ..core.digests import digest_of
from ..core.errors import UsageError
from ..core.transcripts import is_transcript, messages_of
from .chat import ChatOptions
from .hub_format import FAILURES, HUB_HINT, limits_of, load_tokenizer
from .loading import frozen, size_of, weights_digest


@dataclass
class Scored:
    """Scores of texts, and their cost."""

    scores: list[float]
    tokens: int = 0
    cut: int = 0  # texts longer than the model's limit
    flops: float = 0.0


class SequenceScorer:
    """A sequence classifier with one output: a higher logit is a better answer."""

    def __init__(self, name: str, device: str = "cpu", batch_size: int = 8) -> None:
        self.name, self.device, self.batch_size = name, device, batch_size
        self.model = _read(name).to(device)
        self.tokenizer = load_tokenizer(name)
        self.limit = limits_of(name).positions
        self.chat = ChatOptions().chat(self.tokenizer)
        self.parameters = size_of(self.model)[0]

    @property
    def digest(self) -> str:
        """The digest of the weights."""
        return weights_digest(self.model)

    @property
    def rendering(self) -> str:
        """The digest of what turns texts into tokens: the tokenizer and its chat template."""
        tokenizer = self.tokenizer
        return digest_of([tokenizer.get_vocab(), tokenizer.chat_template])

    def score(self, prompts: Sequence[Text], answers: Sequence[str]) -> Scored:
        """Return the logit of each answer to its prompt."""
        scored = Scored([0.0] * len(answers))
        rows: dict[int, list[tuple[int, list[int]]]] = {}
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids, cut = self._ids(prompt, answer)
            scored.cut += cut
            rows.setdefault(len(ids), []).append((i, ids))
        # a batch of one length needs no padding; without a padding token the model takes one row
        config: Any = self.model.config
        size = self.batch_size if config.pad_token_id is not None else 1
        for same in rows.values():
            for start in range(0, len(same), size):
                self._batch(same[start : start + size], scored)
        return scored

    @torch.no_grad()
    def _batch(self, rows: Sequence[tuple[int, list[int]]], scored: Scored) -> None:
        ids = torch.tensor([row for _, row in rows], device=self.device)
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        for (i, _), value in zip(rows, logits[:, 0].float().tolist(), strict=True):
            scored.scores[i] = value
        scored.tokens += ids.numel()
        scored.flops += 2.0 * self.parameters * ids.numel()

    def _ids(self, prompt: Text, answer: str) -> tuple[list[int], bool]:
        """Return the ids of a prompt with its answer, and whether they were cut.

        A text that is too long loses its beginning, after the start token: the answer is at the
        end.
        """
        ids = self._encoded(prompt, answer)
        if self.limit is None or len(ids) <= self.limit:
            return ids, False
        kept = ids[-self.limit :]
        start = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id} - {None}
        return ([ids[0], *kept[1:]] if ids[0] in start else kept), True

    def _encoded(self, prompt: Text, answer: str) -> list[int]:
        if self.chat is not None:
            messages = _messages(prompt)
            reply = {"role": "assistant", "content": answer.lstrip()}
            head, rest = self.chat.answered(messages, reply)
            return list(self.tokenizer(head + rest, add_special_tokens=False)["input_ids"])
        text = prompt_text(prompt)
        if self.tokenizer.sep_token_id is not None:  # an encoder: question and answer as a pair
            return list(self.tokenizer(text, answer)["input_ids"])
        return list(self.tokenizer(text + answer)["input_ids"])


def _messages(prompt: Text) -> list[Any]:
    if not isinstance(prompt, str):
        return list(prompt)
    return messages_of(prompt) if is_transcript(prompt) else [{"role": "user", "content": prompt}]


def _read(name: str) -> nn.Module:
    """Return the classifier of a folder or hub id, frozen.

    Raises:
        UsageError: It cannot be loaded, a weight is missing, or it has more than one output.
    """
    from transformers import AutoModelForSequenceClassification

    offline = hub.offline(name)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except FAILURES as error:
        raise _unreadable(name, offline, error) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UsageError(
            f"The reward model {name} has no {missing[0]}, which would be random: it is not a"
            " trained sequence classifier (AutoModelForSequenceClassification)."
        )
    _check_outputs(name, model.config)
    return frozen(model)


def _check_outputs(name: str, config: Any) -> None:
    if int(config.num_labels) != 1:
        raise UsageError(
            f"The reward model {name} has {config.num_labels} outputs; one score for an answer was"
            " expected."
        )


def meta_scorer(name: str) -> nn.Module:
    """Return a classifier without weights, on the device "meta", from its configuration alone.

    Raises:
        UsageError: There is no configuration of a classifier with one output.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    offline = hub.offline(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        with torch.device("meta"):
            model: nn.Module = AutoModelForSequenceClassification.from_config(config)
    except FAILURES as error:
        raise _unreadable(name, offline, error) from error
    _check_outputs(name, config)
    return model


def _unreadable(name: str, offline: bool, error: BaseException) -> UsageError:
    why = hub.advice(name) if offline else f"{HUB_HINT} ({str(error).splitlines()[0][:300]})"
    return UsageError(f"The reward model {name} could not be loaded. {why}")
