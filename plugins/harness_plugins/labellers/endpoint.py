"""An annotator behind an OpenAI-compatible endpoint.

Answers are cached on disk. The number of requests is bounded. Cost and refusals are counted. The
key comes from an environment variable, is sent in one request header, and is never stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from harness import HarnessError, hookimpl, read_secret, redact

from .annotator import WritingAnnotator
from .verdicts import REFUSED, probability

LARGEST = 1 << 22  # bytes of an answer that are read
LARGEST_ERROR = 1 << 14  # bytes of an error response that are read
DIGITS = re.compile(r"[0-9]{1,6}")
SHOWN = 300  # characters of an error response in a message
JITTER = random.Random()  # of its own: retries do not change the random numbers of the process


class TransientError(Exception):
    """An error that a retry may resolve: a rate limit, a server error, a lost or broken answer."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait  # seconds that the server asked for


@dataclass
class EndpointAnnotator(WritingAnnotator):
    """An annotator that asks an OpenAI-compatible HTTP endpoint which completion is better."""

    name = "endpoint"

    url: str = ""  # address without /chat/completions, for example https://host/v1
    model: str = ""  # the endpoint's name of the model
    key_variable: str = "HARNESS_API_KEY"  # the environment variable that holds the key
    top_logprobs: int = 0  # log-probabilities to request for a soft label; 0 reads the text
    max_tokens: int = 16  # of a verdict
    max_revision_tokens: int = 512  # longest critique or revision in tokens
    max_requests: int = 100000  # cost cap: requests sent, failed attempts included
    timeout: float = 60.0  # seconds for each phase of an attempt: connect, send, read
    answer_timeout: float = 300.0  # seconds for a whole attempt, however slowly it arrives
    retries: int = 5  # attempts after the first one, where an error is transient
    backoff: float = 1.0  # seconds before the first retry, doubled for each further one, jittered
    workers: int = 4  # concurrent requests
    cache: str | None = None  # folder of answers; none: alignment-harness in the user's cache

    def check(self):
        super().check()
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not self.model:
            raise ValueError(
                "the labeller endpoint needs --labeller-set url=https://HOST/v1 and model=NAME"
            )
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "url carries no user, password or query: the key belongs into the environment"
            )
        if (
            min(self.max_requests, self.max_tokens, self.max_revision_tokens, self.workers) < 1
            or min(self.timeout, self.answer_timeout) <= 0
        ):
            raise ValueError(
                "max_requests, max_tokens, max_revision_tokens, workers, timeout and"
                " answer_timeout must be above 0"
            )
        if min(self.retries, self.backoff, self.top_logprobs) < 0:
            raise ValueError("retries, backoff and top_logprobs must not be negative")

    def identity(self):
        """Return the options that determine the answers; those of requests and cache do not."""
        machinery = (
            "key_variable",
            "max_requests",
            "timeout",
            "answer_timeout",
            "retries",
            "backoff",
            "workers",
            "cache",
        )
        return {k: v for k, v in super().identity().items() if k not in machinery}

    def is_judge(self, judge):
        """Return whether the judge names the same model."""
        return getattr(judge, "model", None) == self.model

    def prepare(self, suite, judge):
        """Take the constitution, and open the connections.

        Raises:
            UsageError: The environment variable of the key is empty.
        """
        super().prepare(suite, judge)
        self.open("The labeller endpoint")

    def open(self, purpose):
        """Read the key from the environment and open a connection pool.

        Args:
            purpose: The user of the key for messages: `The labeller endpoint`.

        Raises:
            UsageError: The environment variable of the key is empty.
        """
        import httpx

        self._key, self._purpose = read_secret(self.key_variable, purpose), purpose
        self._end = ""  # the error that ended all requests
        self._lock = Lock()
        self._client = httpx.Client(
            timeout=self.timeout,
            follow_redirects=False,  # a redirect would carry the key to another host
            limits=httpx.Limits(max_connections=self.workers),
        )
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._folder = Path(self.cache) if self.cache else home / "alignment-harness" / "endpoint"
        self._folder.mkdir(parents=True, exist_ok=True)

    # -- questions -------------------------------------------------------------------------------

    def answer(self, prompt, questions, rng):
        """Return for each question the probability of the first verdict.

        It is None for a refusal or an unreadable answer.
        """
        bodies = [
            self._body(self.question_text(prompt, question), self.max_tokens)
            for question in questions
        ]
        if self.top_logprobs:
            bodies = [
                body | {"logprobs": True, "top_logprobs": self.top_logprobs} for body in bodies
            ]
        with ThreadPoolExecutor(self.workers) as pool:
            choices = list(pool.map(self.ask, bodies))
        probabilities = [
            probability(choice, self.verdicts, self.top_logprobs > 0) for choice in choices
        ]
        self.counts["refusals"] += sum(p is REFUSED for p in probabilities)
        self.counts["unparsed"] += sum(p is None for p in probabilities)
        return [None if p is REFUSED else p for p in probabilities]

    def write(self, text):
        """Return the model's answer to a text, or None if it is empty."""
        return (
            self.ask(self._body(text, self.max_revision_tokens))["message"].get("content") or ""
        ).strip() or None

    def _body(self, text, max_tokens):
        messages = [{"role": "user", "content": text}]
        return {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,
        }

    # -- requests --------------------------------------------------------------------------------

    def ask(self, body) -> dict:
        """Return the first choice of the endpoint's answer, from the cache if it is there."""
        data = json.dumps(body, sort_keys=True).encode()
        file = self._folder / f"{hashlib.sha256(self.url.encode() + data).hexdigest()}.json"
        try:
            choice = choice_of(file.read_bytes())
            self._count("cached")
        except (OSError, TransientError):  # missing from the cache, or damaged
            answer = self._persist(data)
            choice = choice_of(answer)
            write_whole(file, answer)
        return choice

    def _persist(self, data) -> bytes:
        """Return an answer. After a permanent error, waiting requests are not sent."""
        if self._end:
            raise HarnessError(self._end)
        try:
            return self._send_with_retries(data)
        except HarnessError as error:
            self._end = str(error)
            raise

    def _send_with_retries(self, data) -> bytes:
        """Send a request until an answer arrives or no retry is left."""
        for attempt in range(self.retries + 1):
            try:
                return self._send(data)
            except TransientError as failure:
                self._count("failed_tries")
                if attempt == self.retries:
                    message = (
                        f"The endpoint {self.url} failed {attempt + 1} times, last with:"
                        f" {failure}. "
                    )
                    raise HarnessError(
                        message + "Its answers so far are kept; run again to go on."
                    ) from None
                # jitter: clients that failed together retry at different times
                time.sleep(max(failure.wait, self.backoff * 2**attempt * JITTER.uniform(0.5, 1.0)))
        raise AssertionError("unreachable")

    def _send(self, data) -> bytes:
        """Return the body of a well-formed answer to one request."""
        import httpx

        self._count("requests", self.max_requests)
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self._key}",
            "Accept-Encoding": "identity",
        }
        url = f"{self.url.rstrip('/')}/chat/completions"
        deadline = time.monotonic() + self.answer_timeout
        try:
            with self._client.stream("POST", url, content=data, headers=headers) as response:
                if not response.is_success:
                    raise self._failure(response, deadline)
                answer = read_at_most(response, LARGEST, deadline)
        except httpx.RequestError as error:  # no connection, a timeout, a truncated body
            raise TransientError(redact(f"{type(error).__name__}: {error}")) from None
        answer = redact(answer.decode("utf-8", "replace")).encode()
        choice_of(answer)
        usage = json.loads(answer).get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            n = usage.get(name) if isinstance(usage, dict) else None
            self._count(name, n=n if isinstance(n, int) else 0)
        return answer

    def _failure(self, response, deadline) -> Exception:
        """Return the error of an HTTP status: transient for 408, 429 and 5xx, else permanent."""
        status = response.status_code
        if status in (408, 429) or status >= 500:
            seconds = response.headers.get("Retry-After", "")
            return TransientError(
                f"HTTP {status}", min(60.0, float(seconds)) if DIGITS.fullmatch(seconds) else 0.0
            )
        body = read_at_most(response, LARGEST_ERROR, deadline).decode("utf-8", "replace")
        shown = redact(body)[:SHOWN].strip() or response.reason_phrase
        return HarnessError(f"The endpoint {self.url} refused with HTTP {status}: {shown}")

    def _count(self, name, limit=None, n=1) -> None:
        with self._lock:
            if limit is not None and self.counts[name] >= limit:
                raise HarnessError(
                    f"{self._purpose} sent {limit} requests, its max_requests. Its answers are"
                    " kept: run again with more."
                )
            self.counts[name] += n


def read_at_most(response, limit: int, deadline: float) -> bytes:
    """Return the beginning of a response's body, at most `limit` bytes.

    Raises:
        TransientError: The body is incomplete at the deadline, on the clock of `time.monotonic`.
    """
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if time.monotonic() > deadline:
            raise TransientError(f"an answer that was not whole in time ({len(body)} bytes came)")
        if len(body) >= limit:
            break
    return bytes(body[:limit])


def choice_of(answer: bytes) -> dict:
    """Return the first choice of an answer.

    Raises:
        TransientError: The answer is not a chat completion.
    """
    try:
        choice = json.loads(answer)["choices"][0]
        content = choice["message"].get("content")
        if content is not None and not isinstance(content, str):
            raise TypeError
        return choice
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise TransientError(
            f"an answer that is no chat completion ({len(answer)} bytes)"
        ) from None


def write_whole(file: Path, data: bytes) -> None:
    """Write a file atomically; another process may write the same file at the same time."""
    handle, part = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    os.replace(part, file)


@hookimpl
def register_labellers(register):
    register(EndpointAnnotator)
