"""An annotator behind an OpenAI-compatible endpoint: answers cached on disk, tries bounded, cost
and refusals counted.

The key comes from an environment variable and goes into one request header, nowhere else.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from harness import hookimpl
from harness.core.errors import HarnessError, UsageError

from .annotator import WritingAnnotator
from .verdicts import REFUSED, probability

LARGEST = 1 << 22  # bytes of an answer that are read


class Passing(Exception):
    """What another try may mend: too many requests, a server's error, a lost or broken answer."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait  # seconds the server asked for


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever it points: it is an error instead."""

    def redirect_request(self, *_):
        return None


@dataclass
class EndpointAnnotator(WritingAnnotator):
    """Asks an OpenAI-compatible HTTP endpoint which completion is better."""

    name = "endpoint"

    url: str = ""  # up to and without /chat/completions, for example https://host/v1
    model: str = ""  # the endpoint's name of the model
    key_variable: str = "HARNESS_API_KEY"  # the environment variable that holds the key
    top_logprobs: int = (
        0  # ask for so many log-probabilities and take a soft label from them; 0 reads the text
    )
    max_tokens: int = 16  # of a verdict
    max_revision_tokens: int = 512  # of a critique or a revision
    max_requests: int = 100000  # cost cap: requests sent, tries that failed included
    timeout: float = 60.0  # seconds for one try
    retries: int = 5  # further tries after one that failed in passing
    backoff: float = 1.0  # seconds before the second try, doubled for each further one, with jitter
    workers: int = 4  # requests under way at once
    cache: str | None = (
        None  # folder of answers; none: alignment-harness in the user's cache folder
    )

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
            or self.timeout <= 0
        ):
            raise ValueError(
                "max_requests, max_tokens, max_revision_tokens, workers and timeout must be above 0"
            )
        if min(self.retries, self.backoff, self.top_logprobs) < 0:
            raise ValueError("retries, backoff and top_logprobs must not be negative")

    def identity(self):
        """Return what decides the answers: not how often, how fast or through which cache they are
        asked for.
        """
        machinery = (
            "key_variable",
            "max_requests",
            "timeout",
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
        """Take the key from the environment; without one, refuse before anything is asked."""
        super().prepare(suite, judge)
        self._key = os.environ.get(self.key_variable, "")
        if not self._key:
            raise UsageError(
                "The labeller endpoint needs a key in the environment variable"
                f" {self.key_variable}."
            )
        self._end = ""  # why nothing more is asked
        self._opener, self._lock = urllib.request.build_opener(NoRedirect), Lock()
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._folder = Path(self.cache) if self.cache else home / "alignment-harness" / "endpoint"
        self._folder.mkdir(parents=True, exist_ok=True)

    # -- what is asked -----------------------------------------------------------------------------

    def answer(self, prompt, questions, rng):
        """Return for each question the probability of the first verdict, None for a refusal or an
        unreadable answer.
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
        found = [probability(choice, self.verdicts, self.top_logprobs > 0) for choice in choices]
        self.counts["refusals"] += sum(p is REFUSED for p in found)
        self.counts["unparsed"] += sum(p is None for p in found)
        return [None if p is REFUSED else p for p in found]

    def write(self, text):
        """Return what the model writes."""
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

    # -- how it is asked ---------------------------------------------------------------------------

    def ask(self, body) -> dict:
        """Return the first choice of the endpoint's answer, from the cache where the same was asked
        before.
        """
        data = json.dumps(body, sort_keys=True).encode()
        file = self._folder / f"{hashlib.sha256(self.url.encode() + data).hexdigest()}.json"
        try:
            choice = choice_of(file.read_bytes())
            self._count("cached")
        except (OSError, Passing):  # not asked before, or damaged since
            answer = self._persist(data)
            choice = choice_of(answer)
            write_whole(file, answer)
        return choice

    def _persist(self, data) -> bytes:
        """Return an answer; once there is an end to asking, no request that waits for its turn is
        sent any more.
        """
        if self._end:
            raise HarnessError(self._end)
        try:
            return self._tried(data)
        except HarnessError as error:
            self._end = str(error)
            raise

    def _tried(self, data) -> bytes:
        """Try until an answer is there, or no try is left."""
        for attempt in range(self.retries + 1):
            try:
                return self._send(data)
            except Passing as failure:
                self._count("failed_tries")
                if attempt == self.retries:
                    message = (
                        f"The endpoint {self.url} failed {attempt + 1} times, last with:"
                        f" {failure}. "
                    )
                    raise HarnessError(
                        message + "Its answers so far are kept; run again to go on."
                    ) from None
                # full jitter above half: clients that failed together do not come back together
                time.sleep(max(failure.wait, self.backoff * 2**attempt * random.uniform(0.5, 1.0)))
        raise AssertionError("unreachable")

    def _send(self, data) -> bytes:
        """Return the body of a sound answer to one request."""
        self._count("requests", self.max_requests)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", data, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                answer = response.read(LARGEST)
        except urllib.error.HTTPError as error:
            raise self._failure(error) from None
        except (
            OSError,
            http.client.HTTPException,
        ) as error:  # no connection, a timeout, a body cut short
            raise Passing(f"{type(error).__name__}: {error}") from None
        choice_of(answer)
        usage = json.loads(answer).get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            n = usage.get(name) if isinstance(usage, dict) else None
            self._count(name, n=n if isinstance(n, int) else 0)
        return answer

    def _failure(self, error) -> Exception:
        """Return what an HTTP status means: another try for 408, 429 and 5xx, an end for any other."""
        if error.code in (408, 429) or error.code >= 500:
            asked = error.headers.get("Retry-After", "")
            return Passing(
                f"HTTP {error.code}", min(60.0, float(asked)) if asked.isdigit() else 0.0
            )
        said = error.read(300).decode("utf-8", "replace").replace(self._key, "[key]")
        return HarnessError(
            f"The endpoint {self.url} refused with HTTP {error.code}:"
            f" {said.strip() or error.reason}"
        )

    def _count(self, name, limit=None, n=1) -> None:
        with self._lock:
            if limit is not None and self.counts[name] >= limit:
                raise HarnessError(
                    f"The labeller sent {limit} requests, its max_requests. Its answers are kept:"
                    " run again with more."
                )
            self.counts[name] += n


def choice_of(answer: bytes) -> dict:
    """Return the first choice of an answer; Passing if it is not one."""
    try:
        choice = json.loads(answer)["choices"][0]
        content = choice["message"].get("content")
        if content is not None and not isinstance(content, str):
            raise TypeError
        return choice
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Passing(f"an answer that is no chat completion ({len(answer)} bytes)") from None


def write_whole(file: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whoever else writes the same."""
    handle, part = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    os.replace(part, file)


@hookimpl
def register_labellers(register):
    register(EndpointAnnotator)
