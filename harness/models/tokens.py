"""Token ids of prompts and completions.

Prompt and completion are tokenised separately and joined as ids, as in a rollout. `batches.py`
holds the padded batches that are made of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch

from ..core.data import Message, Prompt, Text, completion_text, message_text
from ..core.errors import UsageError
from ..core.transcripts import is_transcript, later_turns, messages_of
from .batches import Batch as Batch
from .batches import PromptBatch as PromptBatch
from .chat import FRAME, Chat, ChatOptions, answer_of
from .special_tokens import SpecialTokens


class Tokens:
    """A tokenizer with the harness's rules.

    Conversations are rendered by the chat template. With `chat`, plain text is rendered too: the
    prompt as a user's message, the completion as its answer. Longer texts are cut to `max_prompt`
    and `max_completion` tokens, and counted.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_prompt: int | None = None,
        max_completion: int | None = None,
        other_ends: Iterable[int] = (),
        chat: ChatOptions | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UsageError(
                "The tokenizer has no end-of-sequence token; completions could never end. Set"
                " eos_token."
            )
        self.tokenizer = tokenizer
        self.chat_options = chat or ChatOptions()
        self.chat = self.chat_options.chat(tokenizer)
        self.eos: int = tokenizer.eos_token_id
        self.turn_end = self._turn_end()  # what ends an answer in the chat template
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.ends = {self.eos, self.turn_end, *other_ends}  # all tokens that end a completion
        self.max_prompt, self.max_completion = max_prompt, max_completion
        self.cut_prompts = self.cut_completions = 0
        self._last_head: tuple[str, list[int]] = ("", [])

    def counting_afresh(self) -> Tokens:
        """Return a copy with counters at 0, so that each stage counts its own cuts."""
        return Tokens(
            self.tokenizer, self.max_prompt, self.max_completion, self.ends, self.chat_options
        )

    def conversation(self, text: Text) -> list[Message] | None:
        """Return a prompt as the messages to render; None for text that is used without a template.

        That is the case without a chat template, if the suite turns it off, and if the text was
        rendered by a template already.
        """
        if not isinstance(text, str):
            return text
        if self.chat is None or self._is_rendered(text):
            return None
        return messages_of(text) if is_transcript(text) else [{"role": "user", "content": text}]

    def count_cut(self, prompts: Iterable[Text]) -> int:
        """Return how many prompts exceed `max_prompt`; `cut_prompts` counts every cut instead."""
        counting = self.counting_afresh()
        for text in prompts:
            counting.prompt_ids(text)
        return counting.cut_prompts

    def prompt_ids(self, text: Text) -> list[int]:
        """Return a prompt's ids, with exactly one start token where the tokenizer has one.

        A prompt over `max_prompt` is shortened at its beginning, because the answer follows its
        end. A conversation loses whole turns after its system message. The start token stays.
        """
        messages = self.conversation(text)
        ids = self._plain_ids(str(text)) if messages is None else self._chat_ids(messages)
        if self.max_prompt and len(ids) > self.max_prompt:
            self.cut_prompts += 1
            return (
                self._cut_text(str(text)) if messages is None else self._cut_conversation(messages)
            )
        return ids

    def completion_ids(self, prompt: Text, completion: Text) -> list[int]:
        """Return a completion's ids with one token that ends it, or none if it was cut.

        A completion from data is rendered like its prompt; for sampled text use `answer_ids`.
        """
        messages = self.conversation(prompt)
        if messages is not None:
            answer = answer_of(completion)
            ids = self._answer_ids(messages, answer)
        else:
            text = completion if isinstance(completion, str) else self._answer_text(completion)
            ids = self._ids_within(text)
        return self._ended(ids, self._is_chat(prompt))

    def answer_ids(self, prompt: Text, text: str) -> list[int]:
        """Return the ids of text that a model wrote or might have written after a prompt.

        The text is what follows the prompt, so no template is applied to it.
        """
        return self._ended(self._encode(text), self._is_chat(prompt))

    def check_prompt(self, text: Text) -> None:
        """Raise UsageError for a prompt that cannot be rendered, or cut to `max_prompt` tokens, or
        that holds a special token as text.

        Text that was rendered by a template before may hold special tokens.
        """
        messages = self.conversation(text)
        if messages is None:
            if not self._is_rendered(str(text)):
                self.special.check(str(text), "the prompt")
            return
        if isinstance(text, str):
            self.special.check_rendered(text)
        for message in messages:
            self.special.check(message_text(message), f"the message of the {message['role']}")
        rendered = self._need_chat().prompt(messages)
        longest = max((len(m["content"] or "") for m in messages if m["role"] == "user"), default=0)
        if self.max_prompt and len(rendered) - longest > self.max_prompt:  # else any cut fits
            self.prompt_ids(messages)

    def check_answer(self, prompt: Text, completion: Text) -> None:
        """Raise UsageError for an answer that cannot be rendered after its prompt, or that holds a
        special token as text; an end token at its end is one.
        """
        self.special.check_answer(completion_text(completion))
        messages = self.conversation(prompt)
        if messages is not None:
            self._need_chat().answered(messages, answer_of(completion))
        elif not isinstance(completion, str):
            self._answer_text(completion)

    @cached_property
    def special(self) -> SpecialTokens:
        """The search for special tokens in text."""
        return SpecialTokens(self.tokenizer, self.ends, self.chat)

    def form_of(self, texts: Sequence[Text]) -> str:
        """Return a description of how prompts are rendered."""
        if self.chat is None:
            reason = (
                "chat_template is false" if self.chat_options.template is False else "no template"
            )
            return f"plain text ({reason})"
        as_they_are = sum(self.conversation(text) is None for text in texts)
        if as_they_are == len(texts):
            return "text that a chat template rendered before"
        clock = f", whose clock shows {self.chat.date}" if self.chat.clock else ""
        some = f" ({as_they_are} were rendered before)" if as_they_are else ""
        return f"rendered by the chat template{clock}{some}"

    def rendering(self) -> dict[str, Any]:
        """Return the settings that decide how text becomes tokens, besides the tokenizer's
        files.
        """
        if self.chat is None:
            return {"chat_template": None}
        clock = {"date": self.chat.date} if self.chat.clock else {}
        return {"chat_template": self.chat.digest[:16], **clock, **self.chat.options}

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of completion ids, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def texts(self, batch: Batch) -> list[list[str]]:
        """Return the completions of a batch as text, K per prompt."""
        if batch.written is not None:
            return [list(row) for row in batch.written]
        b, k, _ = batch.shape
        ids, lengths = batch["completion_ids"].tolist(), batch.lengths.tolist()
        return [[self.decode(ids[i][j][: lengths[i][j]]) for j in range(k)] for i in range(b)]

    def prompt_batch(
        self, prompts: Sequence[Prompt], device: torch.device | str = "cpu"
    ) -> PromptBatch:
        """Return prompts as a left-padded batch."""
        rows = [self.prompt_ids(prompt.text) for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device
        )
        return PromptBatch(list(prompts), ids, mask)

    def batch(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Sequence[int]]],
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
    ) -> Batch:
        """Return prompts with K tokenised completions each as a batch at `temperature`."""
        width = max(len(ids) for group in completions for ids in group)
        ids = [[[*c, *[self.pad] * (width - len(c))] for c in group] for group in completions]
        mask = [[[1.0] * len(c) + [0.0] * (width - len(c)) for c in group] for group in completions]
        columns = {
            "completion_ids": torch.tensor(ids, device=device),
            "mask": torch.tensor(mask, device=device),
        }
        return Batch(self.prompt_batch(prompts, device), columns, temperature)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ids_within(self, text: str) -> list[int]:
        """Return the ids of text that follows other text.

        A tokenizer with a space marker before every text, such as Llama 2's, would write a space
        that is not there, or a second one.
        """
        if not self._marks_beginnings:
            return self._encode(text)
        if text[:1] == " ":
            return self._encode(text[1:] if self._doubles_spaces else text)
        before, whole = self._encode("\n"), self._encode(f"\n{text}")
        return whole[len(before) :] if whole[: len(before)] == before else self._encode(text)

    @cached_property
    def _marks_beginnings(self) -> bool:
        """Whether the tokenizer writes a space marker before the beginning of a text."""
        alone, before, whole = map(self._encode, ("a", "\n", "\na"))
        return whole[: len(before)] == before and whole[len(before) :] != alone

    @cached_property
    def _doubles_spaces(self) -> bool:
        """Whether the marker is written before a text that begins with a space, too."""
        return self._encode(" a") != self._encode("a")

    def _plain_ids(self, text: str) -> list[int]:
        """Return the ids of text that no template renders, with one start token and no end."""
        bare, start = self._encode(text), self.tokenizer.bos_token_id
        if self.chat is not None and self._is_rendered(text):
            needed = self._encode(self.chat.opening)[:1] == [start] != bare[:1]
            return self._with_one_start([start, *bare] if needed else bare)
        ids = list(self.tokenizer(text)["input_ids"])
        if ids and ids[-1] == self.eos and ids[len(ids) - 1 - len(bare) : -1] == bare:
            ids = ids[:-1]  # the end that the tokenizer adds
        return self._with_one_start(ids) or [self.eos if start is None else start]

    def _with_one_start(self, ids: list[int]) -> list[int]:
        """Return ids with one start token where text holds the one that the tokenizer adds, or
        holds it twice. A template may use it for every turn, so a second turn keeps its own.
        """
        start = self.tokenizer.bos_token_id
        while ids[:2] == [start, start]:
            ids = ids[1:]
        return ids

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(self._need_chat().prompt(messages))

    def _answer_ids(self, messages: Sequence[Message], answer: Message) -> list[int]:
        """Return the ids that the chat template adds for an answer."""
        head, rest = self._need_chat().answered(messages, answer)
        if head != self._last_head[0]:  # both answers of a pair have the same head
            self._last_head = (head, self._encode(head))
        start, whole = self._last_head[1], self._encode(head + rest)
        if whole[: len(start)] == start:
            return whole[len(start) :]
        return self._ids_within(rest)  # a token would span prompt and answer

    def _ended(self, ids: list[int], chat: bool) -> list[int]:
        """Return a completion up to its first end token, which is added if there is none."""
        first = next((i for i, token in enumerate(ids) if token in self.ends), None)
        end = self.turn_end if chat else self.eos
        ids = [*ids, end] if first is None else ids[: first + 1]
        if self.max_completion and len(ids) > self.max_completion:
            self.cut_completions += 1
            ids = ids[: self.max_completion]
        return ids

    def _is_chat(self, prompt: Text) -> bool:
        return not isinstance(prompt, str) or self.chat is not None

    def _is_rendered(self, text: str) -> bool:
        """Return whether text begins as the rendering of a template does.

        A rendering begins with a special token, or with the template's own text before a first
        question if that is more than a word.
        """
        start = text.lstrip()
        opening = self.chat.opening if self.chat else ""
        opening = opening.removeprefix(self.tokenizer.bos_token or "").strip()
        is_frame = bool(opening) and not opening.replace(" ", "").isalnum()
        return start.startswith(self._marks) or (is_frame and start.startswith(opening))

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        """The special tokens that a rendered text may begin with."""
        added = self.tokenizer.added_tokens_decoder.values()
        marks = {str(token) for token in added if token.special} | {self.tokenizer.bos_token}
        return tuple(mark for mark in sorted(marks - {None, self.tokenizer.unk_token}) if mark)

    def _turn_end(self) -> int:
        """Return the special token that the chat template writes behind an answer, or the eos."""
        ids = self._encode(self.chat.ending.lstrip()) if self.chat else []
        special = self.tokenizer.added_tokens_decoder
        return ids[0] if ids and ids[0] in special and special[ids[0]].special else self.eos

    def _answer_text(self, completion: Sequence[Message]) -> str:
        """Return the words of an answer to a prompt that was rendered already."""
        if self.chat is None:
            self._need_chat()
        return message_text(answer_of(list(completion)))

    def _need_chat(self) -> Chat:
        if self.chat is not None:
            return self.chat
        if self.chat_options.template is False:
            raise UsageError(
                "The data are conversations and chat_template is false, so nothing can render"
                " them. Remove chat_template = false, or give plain-text prompts and completions."
            )
        raise UsageError(
            "The data are conversations but the tokenizer has no chat template. Use a chat"
            " model's tokenizer, name a Jinja file (chat_template = FILE), or give plain-text"
            " prompts and completions."
        )

    # -- prompts that are too long -----------------------------------------------------------------

    def _cut_text(self, text: str) -> list[int]:
        """Return the start token and the end of a plain prompt. A dialogue is cut before a whole
        turn, other text before any token.
        """
        assert self.max_prompt
        for rest in later_turns(text) if is_transcript(text) else ():
            ids = self._plain_ids(rest)
            if len(ids) <= self.max_prompt:
                return ids
        ids = self._plain_ids(text)
        if ids[0] != self.tokenizer.bos_token_id or self.max_prompt == 1:
            return ids[-self.max_prompt :]
        return [ids[0], *ids[1 - self.max_prompt :]]

    def _cut_conversation(self, messages: list[Message]) -> list[int]:
        """Return the ids of a conversation's system message and its turns from a later user message
        on.

        If the last turn alone is too long, its user message loses its beginning.
        """
        assert self.max_prompt
        frame = [m for m in messages if m["role"] in FRAME]
        talk = [m for m in messages if m["role"] not in FRAME]
        questions = [i for i, m in enumerate(talk) if m["role"] == "user"]
        for first in questions[1:]:
            ids = self._chat_ids([*frame, *talk[first:]])
            if len(ids) <= self.max_prompt:
                return ids
        last = talk[questions[-1] :] if questions else talk
        question = last[0]["content"] or "" if questions else ""
        ids = self._longest_fitting(frame, last, question)
        if not ids:
            raise UsageError(
                f"max_prompt_tokens = {self.max_prompt} is too short for the conversation that"
                f" ends {message_text(last[-1])[-40:]!r}: the template's own text, the system"
                " message and the last turn without its question are longer."
            )
        return ids

    def _longest_fitting(
        self, frame: list[Message], last: list[Message], question: str
    ) -> list[int]:
        """Return the ids with the longest end of the question that fits; none if no end does."""
        assert self.max_prompt
        low, high, fitting = 1, len(question), list[int]()
        while low <= high:  # how many characters of the question are kept
            middle = (low + high) // 2
            ids = self._chat_ids([*frame, {**last[0], "content": question[-middle:]}, *last[1:]])
            if len(ids) <= self.max_prompt:
                low, fitting = middle + 1, ids
            else:
                high = middle - 1
        return fitting
