"""Chat templates: how a conversation becomes the text that is tokenised.

What the template renders is what is trained. A conversation is refused if the template refuses it,
changes it or leaves out a part of it; no other rendering replaces it. Templates that ask for
today's date get the date of the spec. This module does not import torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.data import TOOLS, Message, Text
from ..core.digests import digest_of
from ..core.errors import UsageError

CLOCK = "2024-07-26"  # the date that Llama 3's template uses if it has no clock
AUTO = "auto"
LEAVES_OUT = "it leaves out"
FRAME = ("system", "developer", TOOLS)  # roles that stay when a prompt is cut
_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
_THOUGHTS = {"<think>", "</think>"}  # the role of an answer
_PROBE: list[Message] = [{"role": "user", "content": "what"}]
_REPLY: Message = {"role": "assistant", "content": "this"}


@dataclass(frozen=True)
class ChatOptions:
    """Whether and how text is rendered by a chat template."""

    template: bool | str = AUTO  # auto, True (needed), False (plain text), or a Jinja file
    date: str = CLOCK  # the day that the template's clock shows
    options: tuple[str, ...] = ()  # NAME=VALUE of the template's own options
    folder: str = "."  # the folder that a template's path is relative to

    @classmethod
    def of(cls, suite: Any) -> ChatOptions:
        """Return the chat options of a suite."""
        return cls(
            suite.chat_template,
            suite.chat_date,
            tuple(suite.chat_options),
            getattr(suite, "folder", "."),
        )

    def check(self) -> None:
        """Raise ValueError for options that cannot be used."""
        try:
            datetime.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"chat_date is a day such as {CLOCK}, not {self.date!r}") from error
        if isinstance(self.template, str) and self.template != AUTO and not self.file.is_file():
            raise ValueError(
                f"chat_template is auto, true, false or a Jinja file; there is no {self.file}"
            )
        self.values()

    @property
    def file(self) -> Path:
        """The path of the template, if it is a file."""
        return Path(self.folder, str(self.template))

    def values(self) -> dict[str, Any]:
        """Return the template's own options; a value is JSON, or else text."""
        parsed: dict[str, Any] = {}
        for pair in self.options:
            name, sep, value = pair.partition("=")
            if not sep or not name.strip().isidentifier():
                raise ValueError(f"chat_options holds NAME=VALUE, not {pair!r}")
            try:
                parsed[name.strip()] = json.loads(value)
            except json.JSONDecodeError:
                parsed[name.strip()] = value.strip()
        return parsed

    def chat(self, tokenizer: Any) -> Chat | None:
        """Return how conversations are rendered, or None for plain text.

        Raises:
            UsageError: A template is asked for, and the tokenizer has none.
        """
        if self.template is False:
            return None
        own = None if self.template in (AUTO, True) else self.file.read_text(encoding="utf-8")
        if own is None and not tokenizer.chat_template:
            if self.template is True:
                raise UsageError(
                    "chat_template = true, but the tokenizer has no chat template. Name a Jinja"
                    " file, or set chat_template = false."
                )
            return None
        return Chat(tokenizer, own, self.date, self.values())


class Chat:
    """A tokenizer's chat template, or one in its place, with a fixed clock."""

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        date: str = CLOCK,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.date, self.options = date, dict(options or {})
        source = json.dumps(template or tokenizer.chat_template)
        self.clock = "strftime_now" in source
        self.digest = digest_of([source, self.options, date if self.clock else ""])

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text of a prompt: with the header of the answer behind it.

        If the last message is the assistant's, it is the beginning of the answer and is not closed.
        """
        if messages[-1]["role"] == "assistant":
            return self._text(messages, continue_final_message=True)
        return self._text(messages, add_generation_prompt=True)

    def answered(self, messages: Sequence[Message], answer: Message) -> tuple[str, str]:
        """Return a prompt's text, and what the template adds for the assistant's answer.

        Raises:
            UsageError: The rendering of both does not begin with that of the prompt.
        """
        head, whole = self.prompt(messages), self._text(joined(messages, answer))
        if not whole.startswith(head):
            raise UsageError(
                "The chat template renders the prompt differently when an answer follows:"
                f" {head[-40:]!r} becomes {_where_they_part(head, whole)!r}. {_advice(head)}"
            )
        return head, whole[len(head) :]

    @cached_property
    def opening(self) -> str:
        """The text that the template writes before a first user message; empty if it cannot be
        determined.
        """
        return self._probe(_PROBE, "what", before=True)

    @cached_property
    def ending(self) -> str:
        """The text that the template writes after an answer; empty if it cannot be determined."""
        return self._probe([*_PROBE, _REPLY], "this", before=False)

    @cached_property
    def marks(self) -> set[str]:
        """The markers that the template writes around turns, such as `<|user|>` or `[INST]`; empty
        if they cannot be determined.
        """
        try:
            text = self._text([*_PROBE, _REPLY, *_PROBE])
        except UsageError:
            return set()
        return set(_MARK.findall(text)) - _THOUGHTS

    def _probe(self, messages: Sequence[Message], word: str, before: bool) -> str:
        try:
            text = self._text(messages)
        except UsageError:
            return ""
        start, _, end = text.rpartition(word)
        return start if before else end

    def _text(self, messages: Sequence[Message], **how: bool) -> str:
        """Return the rendering of the messages, in the first form that the template accepts."""
        offered = [m for m in messages if m["role"] == TOOLS]
        tools = json.loads(offered[0]["content"]) if offered else None
        talk = [m for m in messages if m["role"] != TOOLS]
        reasons: list[str] = []
        for form in _forms(talk):
            try:
                text = self._apply(form, tools, how)
            except _template_errors() as error:
                reasons.append(_first_line(error))
                continue
            lost = _left_out(form, tools or (), text)
            if not lost:
                return text
            reasons.append(lost)
        first = str(talk[0].get("content"))[:40] if talk else ""
        lost = next((r for r in reversed(reasons) if r.startswith(LEAVES_OUT)), reasons[0])
        raise UsageError(
            f"The chat template cannot render the conversation that begins {first!r}: {lost}."
        )

    def _apply(self, form: Sequence[Message], tools: Any, how: Mapping[str, bool]) -> str:
        with _clock_at(self.date) if self.clock else nullcontext():
            text: str = self.tokenizer.apply_chat_template(
                list(form),
                tools=tools,
                chat_template=self.template,
                tokenize=False,
                **how,
                **self.options,
            )
        return text


def answer_of(completion: Text) -> Message:
    """Return a completion as the one message of the assistant that it must be."""
    if isinstance(completion, str):
        return {"role": "assistant", "content": completion.lstrip()}
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in completion) or "no message"
        raise UsageError(f"A completion is one message of the assistant, not {roles}.")
    return completion[0]


def joined(messages: Sequence[Message], answer: Message) -> list[Message]:
    """Return a conversation with its answer; an answer that was begun is continued."""
    last = messages[-1]
    if last["role"] != "assistant":
        return [*messages, answer]
    whole = (last.get("content") or "") + (answer.get("content") or "")
    return [*messages[:-1], {**last, **answer, "content": whole}]


def _forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the forms in which templates expect messages, the usual one first.

    Templates differ in three ways: how a message without content is written, whether the arguments
    of a call are an object or JSON text, and whether content is text or a list of parts.
    """
    as_is = list(messages)
    yield as_is
    filled = [{**m, "content": m.get("content") or ""} for m in messages]
    calls = any(m.get("tool_calls") for m in messages)
    if filled != as_is:
        yield filled
    if calls:
        yield [_with_text_arguments(m) for m in as_is]
        yield [_with_text_arguments(m) for m in filled]
    yield [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in filled]


def _with_text_arguments(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_call_with_text(call) for call in calls]}


def _call_with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": function} if "function" in call else function


def _left_out(messages: Sequence[Message], tools: Sequence[Any], text: str) -> str:
    """Return what the rendering leaves out of a conversation; empty if nothing.

    The thoughts of earlier answers may be missing: text before `</think>` is not checked.
    """
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            if str(content) in text:
                return "it prints the parts of a message as a list"
            content = content[0]["text"]
        piece = content.rsplit("</think>", 1)[-1].strip()
        escaped = json.dumps(piece, ensure_ascii=False)[1:-1]
        if piece not in text and not (message["role"] == "tool" and escaped in text):
            return f"{LEAVES_OUT} the message of the {message['role']} {piece[:40]!r}"
        for call in message.get("tool_calls") or ():
            name = (call.get("function") or call).get("name")
            if str(name) not in text:
                return f"{LEAVES_OUT} the call of the tool {name!r}"
    for tool in tools:
        name = (tool.get("function") or tool).get("name")
        if str(name) not in text:
            return f"{LEAVES_OUT} the tool {name!r} that the row offers"
    return ""


@contextmanager
def _clock_at(date: str) -> Iterator[None]:
    """Have `strftime_now` of every template show one day, at midnight."""
    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils
    real = module.datetime

    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Fixed:
            return cls.fromisoformat(date)

    module.datetime = Fixed
    try:
        yield
    finally:
        module.datetime = real


def _template_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a template raises for a conversation that it refuses."""
    from jinja2.exceptions import TemplateError

    return (
        TemplateError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        ArithmeticError,
    )


def _where_they_part(head: str, whole: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), 0)
    return whole[max(0, same - 20) : same + 40]


def _advice(head: str) -> str:
    if "<think>" in head[-20:]:
        return (
            "It opens a thought before every answer, so each answer must begin with <think> and"
            " the template must keep that. Turn thoughts off by an option of the template"
            ' (chat_options = ["enable_thinking=false"]), or name a template for training'
            " (chat_template = FILE.jinja)."
        )
    return "Name a template that does not change earlier turns: chat_template = FILE.jinja."


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__
