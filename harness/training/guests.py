"""Models that were trained elsewhere, as policies: they answer in their own tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..api.contracts import Policy
from ..core.data import Prompt
from ..core.errors import UsageError
from ..core.model_folder import model_record
from ..models.batches import Batch, PromptBatch
from ..models.generation import Sampler
from ..models.hub_format import end_tokens, limits_of
from ..models.initial_checkpoint import InitialCheckpoint
from ..models.loading import load_tokenizer, weights_digest
from ..models.tokens import Tokens
from .inputs import MethodInputs
from .roles import LanguageModel
from .runtime import Runtime

PROBE = "A probe: 3.14, tokens & more.\n"


class GuestTokens:
    """The tokens of a model that was trained elsewhere, beside those of the start checkpoint."""

    def __init__(self, own: Tokens, start: Tokens) -> None:
        self.own, self.start = own, start

    @classmethod
    def read(cls, name: str, start: Tokens, max_new_tokens: int) -> GuestTokens:
        """Read the tokenizer of a folder or hub id.

        Prompts are cut as for the start checkpoint, and to the positions that the model has.

        Raises:
            UsageError: It cannot be read, or the model has no room for prompts.
        """
        positions = limits_of(name).positions
        if positions is not None and positions <= max_new_tokens:
            raise UsageError(
                f"The model {name} has {positions} positions, and answers may have"
                f" {max_new_tokens} tokens: there is no room for a prompt. Lower max_new_tokens."
            )
        room = None if positions is None else positions - max_new_tokens
        limit = min((n for n in (start.max_prompt, room) if n), default=None)
        own = Tokens(load_tokenizer(name), limit, None, end_tokens(name), start.chat_options)
        return cls(own, start)

    def unlike(self) -> str:
        """Return how the tokens differ from those of the start checkpoint; empty if they agree."""
        own, start = self.own, self.start
        if own.tokenizer.get_vocab() != start.tokenizer.get_vocab():
            return "its tokenizer has another vocabulary than the start checkpoint's"
        if own.prompt_ids(PROBE) != start.prompt_ids(PROBE):
            return "its tokenizer or chat template poses prompts as other tokens"
        if own.rendering() != start.rendering():
            return "its chat template is not the start checkpoint's"
        return "" if own.ends == start.ends else "other tokens end its answers"

    def answers(self, prompts: PromptBatch, drawn: Batch) -> Batch:
        """Return drawn answers (B, 1, T) as tokens of the start checkpoint, with their texts."""
        ended = drawn["ended"][:, 0].tolist()
        return written(self.start, prompts, [row[0] for row in self.own.texts(drawn)], ended)


def written(
    tokens: Tokens, prompts: PromptBatch, texts: Sequence[str], ended: Sequence[bool]
) -> Batch:
    """Return texts as a batch (B, 1, T) of the start checkpoint's tokens, however long they are.

    Args:
        tokens: The start checkpoint's.
        prompts: B prompts.
        texts: B answers.
        ended: B flags: whether the answer ended by itself. One that was cut has no end token.
    """
    uncut = Tokens(tokens.tokenizer, tokens.max_prompt, None, tokens.ends, tokens.chat_options)

    def ids(prompt: Prompt, text: str, whole: bool) -> list[int]:
        answer = uncut.answer_ids(prompt.text, text)
        return answer if whole or len(answer) < 2 else answer[:-1]

    rows = [[ids(*row)] for row in zip(prompts.prompts, texts, ended, strict=True)]
    batch = uncut.batch(prompts.prompts, rows, prompts.ids.device)
    batch.written = [[text] for text in texts]
    column = torch.tensor(list(ended), device=prompts.ids.device)
    return batch.with_columns(ended=column[:, None])


class Guest(Policy):
    """A causal language model that was trained elsewhere.

    It is posed by its own chat template, and sampled as the evaluation samples. KL to the start
    checkpoint is known where both read and write the same tokens.
    """

    def __init__(
        self,
        checkpoint: InitialCheckpoint,
        tokens: GuestTokens,
        start: InitialCheckpoint,
        runtime: Runtime,
    ) -> None:
        self._inner = LanguageModel(checkpoint, "policy", "score", runtime)
        self._inner.role.hold(runtime.meter)
        self._tokens, self._runtime = tokens, runtime
        self.no_kl = tokens.unlike() or unlike_outputs(checkpoint, start)
        weights = self._inner.model
        self.model = None if self.no_kl else weights
        name = checkpoint.source
        self.provenance: dict[str, Any] = model_record(name)
        if not Path(name).is_dir():
            self.provenance["digest"] = weights_digest(weights)

    @classmethod
    def read(cls, name: str, inputs: MethodInputs, runtime: Runtime) -> Guest:
        """Read the model of a folder or hub id.

        Raises:
            UsageError: It cannot be read, or it has no room for prompts.
        """
        assert inputs.read is not None, "a run reads models"
        tokens = GuestTokens.read(name, inputs.tokens, runtime.sampling.max_new_tokens)
        return cls(inputs.read(name), tokens, inputs.start, runtime)

    def language_model(self, tokenizer: Any) -> tuple[torch.nn.Module, Any]:
        """Return the model with its own tokenizer."""
        return self._inner.model, self._tokens.own.tokenizer

    def answer(self, prompts: PromptBatch, sampler: Sampler) -> Batch:
        """Draw one completion per prompt: in its own tokens, or in those of the start checkpoint
        where they are not the same.
        """
        if not self._tokens.unlike():
            return self._inner.answer(prompts, sampler)
        own = self._tokens.own
        posed = own.prompt_batch(prompts.prompts, prompts.ids.device)
        drawn = self._inner.answer(posed, self._with_ends(sampler, own.ends))
        batch = self._tokens.answers(prompts, drawn)
        batch.temperature = sampler.sampling.temperature
        return batch

    def _with_ends(self, sampler: Sampler, ends: set[int]) -> Sampler:
        """Return the sampler for a model whose answers end with other tokens."""
        assert self._runtime.engine_for is not None, "a run makes engines"
        own = copy.copy(sampler)
        own.engine, own.eos, own.pool = self._runtime.engine_for(ends), ends, None
        return own


def unlike_outputs(checkpoint: InitialCheckpoint, start: InitialCheckpoint) -> str:
    """Return how the numbers of logits differ; empty where they are the same."""
    ours, theirs = (_outputs(one) for one in (checkpoint, start))
    if ours == theirs:
        return ""
    return f"it has logits of {ours} tokens, and the start checkpoint of {theirs}"


def _outputs(checkpoint: InitialCheckpoint) -> int:
    head: Any = checkpoint.outline.get_output_embeddings()  # type: ignore[operator]
    return int(head.weight.shape[0])
