"""A language model as judge: a local one, or one behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from harness import Judge, PairVerdict, Prompt, UsageError, hookimpl, prompt_text

from ..labellers.annotator import digest
from ..labellers.endpoint import EndpointAnnotator
from ..labellers.lm import LMAnnotator
from .templates import TEMPLATES, UNPARSED, Template, read_template

NO_VERDICT = math.nan
MACHINERY = (  # options that change how verdicts are requested, not the verdicts
    *("key_variable", "max_requests", "timeout", "answer_timeout", "retries", "backoff"),
    *("workers", "cache", "batch_size", "device"),
)


@dataclass
class LLMJudge(Judge):
    """A language model that compares two answers, each pair in both orders.

    Its verdict on a pair is the mean over both orders. A pair with a refusal or an unreadable reply
    in one of them has no verdict: one order alone carries the position bias.
    """

    name, costly = "llm_judge", True

    model: str = ""  # the endpoint's name of the model; without url a folder or a hub id
    url: str = ""  # an endpoint, up to and without /chat/completions; empty: a local model
    template: str = "alpaca_eval"  # alpaca_eval, mt_bench, arena_hard, or a TOML file of your own
    top_logprobs: int = 5  # log-probabilities to request for a soft verdict; 0 reads the text
    repeats: int = 1  # replies to each question; two or more give self-agreement
    temperature: float = 0.0  # sampling temperature of an endpoint's replies
    max_tokens: int = 0  # longest reply in tokens; 0 takes the template's
    key_variable: str = "HARNESS_API_KEY"  # the environment variable that holds the key
    max_requests: int = 100000  # cost cap: requests sent, failed attempts included
    timeout: float = 60.0  # seconds for each phase of an attempt: connect, send, read
    answer_timeout: float = 300.0  # seconds for a whole attempt, however slowly it arrives
    retries: int = 5  # attempts after the first one, where an error is transient
    backoff: float = 1.0  # seconds before the first retry, doubled for each further one, jittered
    workers: int = 4  # concurrent requests
    cache: str | None = None  # folder of replies; none: alignment-harness in the user's cache
    batch_size: int = 8  # questions per forward pass of a local model
    device: str = "cpu"  # where a local model runs

    def check(self):
        """Raise ValueError for options that are invalid, alone or together."""
        if not self.model:
            raise ValueError(
                "the judge llm_judge needs a model: --judge-set model=FOLDER_OR_HUB_ID, or"
                " --judge-set url=https://HOST/v1 --judge-set model=NAME"
            )
        if self.repeats < 1 or min(self.max_tokens, self.temperature, self.top_logprobs) < 0:
            raise ValueError(
                "repeats is at least 1; max_tokens, temperature and top_logprobs are not negative"
            )
        if not self.url and (self.temperature or self.repeats > 1):
            raise ValueError("a local model replies greedily: leave temperature and repeats out")
        self._client().check()  # the options of an endpoint or a local model

    def _client(self) -> EndpointAnnotator | LMAnnotator:
        tokens = self.max_tokens or 1
        if not self.url:
            return LMAnnotator(
                model=self.model,
                batch_size=self.batch_size,
                device=self.device,
                max_revision_tokens=tokens,
            )
        names = ("url", "model", *MACHINERY[:8], "top_logprobs")
        return EndpointAnnotator(max_tokens=tokens, **{n: getattr(self, n) for n in names})

    @cached_property
    def wording(self) -> Template:
        """The template."""
        return read_template(self.template)

    @cached_property
    def asker(self) -> EndpointAsker | LocalAsker:
        """The client of the endpoint or the local model."""
        return (EndpointAsker if self.url else LocalAsker)(self, self.wording)

    def prepare(self, suite, stages):
        """Read the template, and the key of an endpoint or a local model."""
        self.asker.open()

    def data_files(self):
        """Return the template's file, and the files of a local model's folder."""
        own = [] if self.template in TEMPLATES else [Path(self.template)]
        if own and not own[0].is_file():
            read_template(self.template)  # raises the message
        return own + ([] if self.url else self._client().data_files())

    def identity(self):
        """Return the options that determine verdicts, the template's words, and the weights of a
        local model.
        """
        options = {k: v for k, v in super().identity().items() if k not in MACHINERY}
        words = self.wording
        options["template"] = digest([words.system, words.user, dict(words.verdicts)])
        options["max_tokens"] = self.max_tokens or words.max_tokens
        if not self.url:
            options["weights"] = self.asker.client.weights
            options["model"] = Path(self.model).name
        return options

    def usage(self):
        """Return requests, cached replies, failed tries, tokens, and FLOPs of a local model."""
        return {name: float(n) for name, n in self.asker.client.counts.items()}

    def verdicts(self, prompts, a, b):
        """Ask about each pair of different answers in both orders."""
        texts = [(x.text, y.text) for x, y in zip(a, b, strict=True)]
        rows = [i for i, (x, y) in enumerate(texts) if x != y]
        questions = [
            (prompts[i], self.wording.question(prompt_text(prompts[i].text), *order), repeat)
            for i in rows
            for order in (texts[i], texts[i][::-1])
            for repeat in range(self.repeats)
        ]
        replies = iter(self.asker.replies(questions))
        judged = {}
        for i in rows:
            orders = [[next(replies) for _ in range(self.repeats)] for _ in range(2)]
            judged[i] = self._verdict(orders)
        return [judged.get(i, PairVerdict(0.5, {"equal": True})) for i in range(len(texts))]

    def _verdict(self, orders: list[list[float | str]]) -> PairVerdict:
        """Return the verdict from the replies in both orders."""
        problems = [reply for replies in orders for reply in replies if isinstance(reply, str)]
        known = [[reply for reply in replies if not isinstance(reply, str)] for replies in orders]
        answers = [fmean(replies) if replies else None for replies in known]
        note: dict[str, object] = {"answers": answers}
        if problems:
            note["problems"] = problems
        if self.repeats > 1:
            note["repeats"] = [replies for replies in known if replies]
        one, two = answers
        p = NO_VERDICT if one is None or two is None else (one + 1 - two) / 2
        return PairVerdict(p, note)


class EndpointAsker:
    """Asks an endpoint; replies are cached on disk, and counted."""

    def __init__(self, judge: LLMJudge, template: Template) -> None:
        self.judge, self.template = judge, template
        self.client: EndpointAnnotator = judge._client()
        self.client.counts = Counter()

    def open(self) -> None:
        """Read the key and open connections.

        Raises:
            UsageError: The environment variable of the key is empty.
        """
        self.client.open("The judge llm_judge")

    def replies(self, questions) -> list[float | str]:
        """Return for each question P(first is better), or the problem with its reply."""
        bodies = [self._body(text, repeat) for _, text, repeat in questions]
        with ThreadPoolExecutor(self.judge.workers) as pool:
            choices = list(pool.map(self.client.ask, bodies))
        soft = self.judge.top_logprobs > 0
        return [self.template.read(choice, soft) for choice in choices]

    def _body(self, text: str, repeat: int) -> dict[str, object]:
        system = [{"role": "system", "content": self.template.system}] * bool(self.template.system)
        body = {
            "model": self.judge.model,
            "messages": [*system, {"role": "user", "content": text}],
            "temperature": self.judge.temperature,
            "max_tokens": self.judge.max_tokens or self.template.max_tokens,
        }
        if self.judge.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.judge.top_logprobs}
        return body | ({"seed": repeat} if repeat else {})


class LocalAsker:
    """Asks a local model: reads the probabilities of its verdict tokens, or its text."""

    def __init__(self, judge: LLMJudge, template: Template) -> None:
        self.judge, self.template = judge, template
        self.client: LMAnnotator = judge._client()
        self.client.max_revision_tokens = judge.max_tokens or template.max_tokens
        self.client.counts = Counter()
        self.forms: list[list[int]] | None = None

    def open(self) -> None:
        """Find the tokens of the verdicts if the verdicts are words and soft.

        Raises:
            UsageError: The verdicts are not single tokens of the model.
        """
        if self.judge.top_logprobs and not self.template.marked:
            shown = self._whole(self.template.question("x", "y", "z"))
            self.forms = self.client.token_forms(shown, list(self.template.verdicts))
            if self.forms is None:
                raise UsageError(
                    f"The verdicts {' and '.join(self.template.verdicts)} are not single tokens of"
                    f" {self.judge.model}. Use --judge-set top_logprobs=0, or another template."
                )

    def replies(self, questions) -> list[float | str]:
        """Return for each question P(first is better), or the problem with its reply."""
        texts = [(prompt, self._whole(text)) for prompt, text, _ in questions]
        if self.forms is None:
            return [self._written(text) for _, text in texts]
        probabilities: list[float | str] = []
        for start in range(0, len(texts), self.judge.batch_size):
            probabilities += self._soft(texts[start : start + self.judge.batch_size])
        return probabilities

    def _whole(self, text: str) -> str:
        """Return the template's instructions and a question as one message."""
        return f"{self.template.system}\n\n{text}" if self.template.system else text

    def _soft(self, texts: list[tuple[Prompt, str]]) -> list[float | str]:
        rows = [self.client._ids(text) for _, text in texts]
        self.client.counts["requests"] += len(rows)
        self._count(sum(map(len, rows)))
        logp = self.client.label_logp(texts[0][0], rows, self.forms)
        values = list(self.template.verdicts.values())
        return [
            sum(v * p for v, p in zip(values, row, strict=True))
            for row in logp.softmax(-1).tolist()
        ]

    def _written(self, text: str) -> float | str:
        written = self.client.write(text)
        self._count(len(self.client._ids(text)))
        return UNPARSED if written is None else self.template.read_text(written)

    def _count(self, tokens: int) -> None:
        """Count tokens, and two FLOPs for each parameter and token."""
        parameters = sum(p.numel() for p in self.client.loaded[0].parameters())
        self.client.counts["prompt_tokens"] += tokens
        self.client.counts["flops"] += 2 * parameters * tokens


@hookimpl
def register_judges(register):
    register(LLMJudge)
