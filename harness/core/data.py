"""The records that flow between suite, stages, lab and evaluation. No torch here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# {"role": ..., "content": ...}; for tools also "tool_calls", "tool_call_id" and "name".
Message = dict[str, Any]
Text = str | list[Message]  # plain text, or a conversation that a chat template renders
# Role of a first message without a speaker: its content is the JSON list of functions
TOOLS = "tools"


@dataclass(frozen=True)
class Prompt:
    """A prompt with an id. `answer` is for the verifier; gold rewards are never stored here."""

    id: str
    text: Text
    answer: str | None = None


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a completion worth imitating."""

    prompt: Prompt
    completion: Text


@dataclass(frozen=True)
class Ranked:
    """Completions of one prompt with a score each, the higher the better."""

    prompt: Prompt
    completions: tuple[Text, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, the first preferred.

    `p` is the labeller's probability of that preference. `listed` is the scored list that the pair
    was taken from, at the first pair of each list.
    """

    prompt: Prompt
    chosen: Text
    rejected: Text
    p: float = 1.0
    listed: Ranked | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Labelled:
    """A single completion with a label: 1 for a desirable one, 0 for one that is not."""

    prompt: Prompt
    completion: Text
    label: float


@dataclass(frozen=True)
class Comparison:
    """A labeller's opinion of two completions of a prompt, named by their positions.

    `p` is the probability that `first` is better: 1 and 0 for a plain label, 0.5 for a tie.
    `note` is stored with it.
    """

    first: int
    second: int
    p: float = 1.0
    note: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Principle:
    """A sentence of a constitution, with a score for simulated annotators: higher is better."""

    id: str
    text: str
    check: Callable[[Prompt, str], float]


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. Training samples the full distribution at a temperature.

    `top_p` and `greedy` are of evaluations alone: log-probabilities of truncated samples are not
    those of the model.
    """

    temperature: float = 1.0
    max_new_tokens: int = 128
    top_p: float = 1.0  # the smallest set of tokens with this probability is sampled from
    greedy: bool = False  # the most probable token each time


@dataclass(frozen=True)
class Budget:
    """Limits of a method; None is no limit. Labels include those of its preferences."""

    steps: int | None = None  # optimiser steps
    samples: int | None = None  # completions generated
    tokens: int | None = None  # tokens generated and trained on
    flops: float | None = None
    labels: int | None = None  # comparisons, those of its preferences among them


def completion_text(completion: Text) -> str:
    """Return the text of a completion, without roles."""
    if isinstance(completion, str):
        return completion
    return "\n".join(message_text(message) for message in completion)


def message_text(message: Message) -> str:
    """Return the text of a message: its content, then each of its tool calls as JSON."""
    content, calls = message.get("content") or "", message.get("tool_calls") or ()
    spoken = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    lines = [spoken] * bool(spoken)
    return "\n".join(lines + [json.dumps(c, sort_keys=True, ensure_ascii=False) for c in calls])


def prompt_text(prompt: Text) -> str:
    """Return a prompt as a person reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message_text(message)}" for message in prompt)


@dataclass(frozen=True)
class LabelledCompletion:
    """A single completion as token ids, with its label: see Labelled."""

    prompt: Prompt
    completion: list[int]
    label: float


@dataclass(frozen=True)
class RankedCompletions:
    """Completions of one prompt as token ids, with a score each: see Ranked."""

    prompt: Prompt
    completions: list[list[int]]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class LabelledPair:
    """A preference pair as token ids, and the probability that the first is better."""

    prompt: Prompt
    chosen: list[int]
    rejected: list[int]
    p: float
