"""Read a cell of a data set as text or as a conversation, in any of the public forms.

A conversation becomes messages with `role` and `content` (and `tool_calls`, where an answer calls
tools). The two answers of a row become the prompt that they share, and one message of the assistant
each. ValueError gives the reason if a cell cannot be read.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from harness import message_text
from harness.core.data import TOOLS, Message, Text
from harness.core.transcripts import ANSWER, has_turns, is_transcript, messages_of

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
    "function_call": "assistant",
}
KEPT = ("tool_call_id", "name", "reasoning_content", "thinking")  # further keys that templates read
# keys of a message that may say that an answer is not to be trained on: OpenAI's and ShareGPT's,
# Axolotl's, ms-swift's
TRAINED = ("weight", "train", "training", "loss")
CLOSED = set(":?!>])}\"'") | set("\u3002\uff1a\uff1f\uff01\u201d\u300d")  # ends of a prompt
# the beginning of messages as JSON, or in Python's notation: a whole message, or a list of them
_SERIALISED = re.compile(
    r"""\s*(\[\s*)?\{\s*["'](role|from|content|value)["']\s*:.*\}\s*\]?\s*\Z""", re.S
)
IDEOGRAPHS = 0x2E80  # from this code point on, scripts have no spaces between words


def read_text(cell: object) -> Text:
    """Return a cell as text, or as a conversation of at least one message.

    Text that is a message or a list of messages in JSON is that conversation.
    """
    if isinstance(cell, str):
        cell.encode()  # ValueError for a lone surrogate, which has no tokens
        cell = from_json(cell)
    if isinstance(cell, str):
        return cell
    messages = [cell] if isinstance(cell, dict) else cell
    if not isinstance(messages, list) or not messages:
        raise ValueError(
            f"expected text or a list of messages with role and content, not {_short(cell)}"
        )
    return [_message(message) for message in messages]


def from_json(text: str) -> Any:
    """Return the messages that a text holds as JSON; the text itself if it holds none.

    Raises:
        ValueError: It looks like messages but is not JSON.
    """
    if not _SERIALISED.match(text):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            "a text looks like a list of messages, but is not JSON (Python's notation, perhaps)"
        ) from error


def read_tools(cell: object) -> list[Message]:
    """Return the functions that a row offers as one message; no message if it offers none."""
    if isinstance(cell, str):
        cell = _parsed(cell, "the column of tools") if cell.strip() else None
    tools = _without_none(cell)
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise ValueError(f"expected a list of functions as JSON schemas, not {_short(cell)}")
    return [{"role": TOOLS, "content": json.dumps(tools, ensure_ascii=False, sort_keys=True)}]


def read_system(cell: object) -> list[Message]:
    """Return a row's system message; no message for blank text."""
    if isinstance(cell, str) and not cell.strip():
        return []
    messages = as_messages(read_text(cell), "system")
    if any(m["role"] != "system" for m in messages):
        roles = ", ".join(m["role"] for m in messages)
        raise ValueError(f"the column of the system message holds messages of {roles}")
    return messages


def read_history(turns: Sequence[object]) -> list[Message]:
    """Return the earlier turns of a row: pairs of a question and its answer, or messages."""
    if turns and all(isinstance(turn, dict) for turn in turns):
        return list(read_text(turns))  # type: ignore[arg-type]
    messages: list[Message] = []
    for turn in turns:
        if not (isinstance(turn, list | tuple) and list(map(type, turn)) == [str, str]):
            raise ValueError(
                f"history holds pairs of a question and its answer, not {_short(turn)}"
            )
        messages += [
            {"role": "user", "content": turn[0]},
            {"role": "assistant", "content": turn[1]},
        ]
    return messages


def as_messages(text: Text, role: str) -> list[Message]:
    """Return a conversation as it is, and text as one message of a role.

    A question that is a transcript becomes its messages.
    """
    if not isinstance(text, str):
        return text
    if role == "user" and is_transcript(text):
        return messages_of(text)
    return [{"role": role, "content": text.lstrip() if role == "assistant" else text}]


def divide(
    prompt: Text | None, chosen: Text, rejected: Text, ending: str
) -> tuple[Text, Text, Text]:
    """Return the prompt and the two answers of a row. Both answers may repeat the prompt.

    Args:
        prompt: The prompt; None if both answers begin with it.
        chosen: The better answer, or the conversation that ends with it.
        rejected: The worse answer, in the same form.
        ending: The text that ends the prompt of two texts; empty for their common beginning.

    Raises:
        ValueError: The row has no prompt, or an answer is not one message of the assistant.
    """
    if all(isinstance(t, str) for t in (chosen, rejected)) and (
        prompt is None or isinstance(prompt, str)
    ):
        return _divide_texts(prompt, str(chosen), str(rejected), ending)
    whole = [as_messages(t, "assistant") for t in (chosen, rejected)]
    known = None if prompt is None else as_messages(prompt, "user")
    if known is None or (isinstance(prompt, str) and any(map(_asks, whole))):
        head = _shared_turns(whole)
        if known is not None and head:
            check_contains(head, str(prompt))
        answers = [turns[len(head) :] if _asks(turns) else turns for turns in whole]
    else:
        head, answers = known, [_behind(known, turns) for turns in whole]
    if not head:
        raise ValueError("chosen and rejected share no beginning, so there is no prompt")
    return head, _one_answer(answers[0], "chosen"), _one_answer(answers[1], "rejected")


def divide_one(prompt: Text, answer: Text) -> tuple[Text, Text]:
    """Return a prompt and its one answer, where the answer may repeat the prompt."""
    if isinstance(prompt, str) and isinstance(answer, str):
        return prompt, answer
    turns = as_messages(answer, "assistant")
    if isinstance(prompt, str) and _asks(turns):
        head, last = last_answer(turns)
        check_contains(head, prompt)
        return head, last
    known = as_messages(prompt, "user")
    return known, _one_answer(_behind(known, turns), "completion")


def last_answer(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Return a conversation as its prompt and its last answer."""
    if messages[-1]["role"] != "assistant":
        raise ValueError(
            f"the conversation ends with a message of the {messages[-1]['role']}, not with an"
            " answer of the assistant"
        )
    if not _asks(messages[:-1]):
        raise ValueError("no message precedes the assistant's answer")
    if messages[-2]["role"] == "assistant":
        raise ValueError("the conversation ends with two messages of the assistant in a row")
    return list(messages[:-1]), [messages[-1]]


def earlier_answers(prompt: Text) -> list[tuple[list[Message], list[Message]]]:
    """Return each earlier answer in a conversation's prompt, with the messages before it."""
    if isinstance(prompt, str):
        return []
    answers = [i for i, m in enumerate(prompt[:-1]) if m["role"] == "assistant"]
    return [
        (prompt[:i], [prompt[i]]) for i in answers if _asks(prompt[:i]) and is_trained(prompt[i])
    ]


def is_trained(message: Message) -> bool:
    """Return whether no key of an answer says that it is not to be trained on."""
    return not any(key in message and not message[key] for key in TRAINED)


def first_turn(prompt: Text) -> Text:
    """Return a conversation up to its first question."""
    if isinstance(prompt, str):
        return prompt
    first = next((i for i, m in enumerate(prompt) if m["role"] == "user"), len(prompt))
    return prompt[: first + 1]


def check_answer(answer: Text) -> None:
    """Raise ValueError for an answer without words."""
    if not has_words(answer):
        raise ValueError("an empty completion")


def has_words(text: Text) -> bool:
    """Return whether a text, or a message of a conversation, holds more than blanks and characters
    that cannot be seen.
    """
    if not isinstance(text, str):
        return any(has_words(message_text(m)) for m in text if m["role"] != TOOLS)
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)


def _divide_texts(prompt: str | None, chosen: str, rejected: str, ending: str):
    if prompt is None:
        prompt = chosen[: _shared_text(chosen, rejected, ending)]
        if not prompt:
            raise ValueError("chosen and rejected share no beginning, so there is no prompt")
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif prompt.strip() and chosen.startswith(prompt) and rejected.startswith(prompt):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if is_transcript(prompt) and (has_turns(chosen) or has_turns(rejected)):
        raise ValueError("chosen and rejected differ before their last answer")
    return prompt, chosen, rejected


def _shared_text(chosen: str, rejected: str, ending: str) -> int:
    """Return the length of the prompt that two texts share, in characters: up to the last shared
    `ending`, or to the last end of a word.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not ending and is_transcript(
        chosen[:shared][: chosen.rfind(ANSWER, 0, shared) + len(ANSWER)]
    ):
        ending = ANSWER
    if ending:
        end = chosen.rfind(ending, 0, shared)
        if end < 0:
            raise ValueError(f"chosen and rejected share no beginning with {ending!r}")
        return end + len(ending)
    while shared and not _parts_words(chosen, rejected, shared):
        shared -= 1
    if shared and chosen[shared - 1] == " ":
        shared -= 1  # the space belongs to the first word of the answer
    return shared


def _parts_words(one: str, other: str, at: int) -> bool:
    """Return whether both texts can be cut at a position without cutting a word."""
    before, behind = one[at - 1], {text[at : at + 1] for text in (one, other)}
    return (
        before.isspace()
        or before in CLOSED
        or all(not c or c.isspace() for c in behind)
        or all(ord(c) >= IDEOGRAPHS for c in {before, *behind} - {""})
    )


def _shared_turns(whole: Sequence[Sequence[Message]]) -> list[Message]:
    """Return the messages that both conversations begin with, without the last of either.

    A text in place of a conversation is an answer alone; its prompt is that of the other
    conversation.
    """
    full = [turns for turns in whole if _asks(turns)]
    if len(full) < len(whole):
        return list(full[0][:-1]) if full else []
    one, other = full
    shared = 0
    while shared < min(len(one), len(other)) - 1 and one[shared] == other[shared]:
        shared += 1
    return list(one[:shared])


def _behind(prompt: Sequence[Message], turns: list[Message]) -> list[Message]:
    """Return a conversation without the end of the prompt that it begins with."""
    for k in range(min(len(prompt), len(turns)), 0, -1):
        if list(prompt[-k:]) == turns[:k] and _asks(turns[:k]):
            return turns[k:]
    begun, question = prompt[-1], list(prompt[:-1])
    if (
        begun["role"] == "assistant"
        and turns[: len(question)] == question
        and turns[len(question) :]
    ):
        return _behind_prefill(begun, turns[len(question) :])
    return turns


def _behind_prefill(begun: Message, turns: list[Message]) -> list[Message]:
    """Return an answer without the part that the prompt already holds."""
    start, content = begun.get("content") or "", turns[0].get("content") or ""
    if turns[0]["role"] != "assistant" or not content.startswith(start):
        raise ValueError("the answer does not begin with the beginning that the prompt gives it")
    return [{**turns[0], "content": content[len(start) :]}, *turns[1:]]


def _one_answer(turns: Sequence[Message], name: str) -> list[Message]:
    """Return the part of a conversation after its prompt: one message of the assistant."""
    if len(turns) == 1 and turns[0]["role"] == "assistant":
        return list(turns)
    if not turns:
        raise ValueError("an empty completion")
    roles = ", ".join(m["role"] for m in turns)
    raise ValueError(
        f"behind the prompt, {name} is not one answer of the assistant but {roles}: chosen and"
        " rejected must differ in their last answer only"
    )


def _asks(turns: Sequence[Message]) -> bool:
    """Return whether a message is from another role than the assistant."""
    return any(m["role"] in ("user", "tool") for m in turns)


def check_contains(turns: Sequence[Message], prompt: str) -> None:
    """Raise ValueError for a conversation that does not contain the prompt beside it."""
    if not any(prompt.strip() in message_text(m) for m in turns):
        raise ValueError(
            f"the conversation does not contain the prompt {_short(prompt)}. To leave it out, set"
            ' prompt_column = ""'
        )


def _message(message: object) -> Message:
    """Return a message with the usual names: `from` and `value` are role and content."""
    if not isinstance(message, dict):
        raise ValueError(f"expected a message with role and content, not {_short(message)}")
    speaker = message.get("role", message.get("from"))
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(
            f"expected a message with role and content, not {_short(message)}; the roles are"
            f" {', '.join(sorted(set(ROLES.values())))} and their usual other names"
        )
    content = message["content"] if "content" in message else message.get("value")
    calls = _calls(message, str(speaker).lower(), content)
    called = str(speaker).lower() == "function_call"
    text = None if called else _content(content, role)
    if text is None and not calls:
        raise ValueError(f"expected text as content, not {_short(message)}")
    result: Message = {"role": role, "content": text}
    result |= {key: message[key] for key in KEPT if isinstance(message.get(key), str)}
    if role == "assistant":
        result |= {key: 0 for key in TRAINED if message.get(key) in (0, False)}
    if calls:
        result["tool_calls"] = calls
    json.dumps(result, ensure_ascii=False).encode()  # ValueError for a lone surrogate
    return result


def _content(content: object, role: str) -> str | None:
    """Return content as text; the parts of a list are joined as templates write them."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, str | dict) for p in content):
        if all(isinstance(p, str) or "type" in p for p in content):
            return "".join(_part(part) for part in content)
    if role == "tool" and isinstance(content, list | dict):
        return json.dumps(content, ensure_ascii=False)
    raise ValueError(f"expected text as content, not {_short(content)}")


def _part(part: str | Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text")
    if part["type"] not in ("text", "input_text", "output_text") or not isinstance(text, str):
        raise ValueError(f"a content part of type {part['type']!r}: only text can be read")
    return text


def _calls(message: Mapping[str, Any], role: str, content: object) -> list[dict[str, Any]]:
    """Return the tool calls of a message in OpenAI's form; arguments are objects."""
    calls = message.get("tool_calls") or ()
    if isinstance(calls, str):
        calls = _parsed(calls, "a list of tool calls")
    if message.get("function_call"):
        calls = [message["function_call"]]
    if role == "function_call":
        calls = _parsed(content, "a tool call") if isinstance(content, str) else content
        calls = calls if isinstance(calls, list) else [calls]
    return [_call(call) for call in calls]


def _call(call: object) -> dict[str, Any]:
    plain = _without_none(call)
    function = plain.get("function", plain) if isinstance(plain, dict) else {}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"expected a tool call with the name of a function, not {_short(call)}")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except json.JSONDecodeError:
            read = arguments
        arguments = read if isinstance(read, dict) else arguments
    number = {"id": plain["id"]} if isinstance(plain.get("id"), str) else {}
    return {
        **number,
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {_short(text)}") from error


def _without_none(value: Any) -> Any:
    """Return JSON without the empty keys that a columnar file gives to every row."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def _short(cell: object) -> str:
    return repr(str(cell)[:40])
