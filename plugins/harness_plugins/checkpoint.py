"""A model that was trained elsewhere, as a row beside the methods: a folder, or an endpoint."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import Method, Policy, UsageError, derive, hookimpl
from harness.core.model_folder import ADAPTER_CONFIG, adapter_in, model_files
from harness.core.transcripts import is_transcript, messages_of

from .labellers.endpoint import EndpointAnnotator

if TYPE_CHECKING:
    from harness import Lab

SEEDS = 2**31  # endpoints take seeds below this


class Served(Policy):
    """A model behind an OpenAI-compatible endpoint. Its replies are cached on disk."""

    no_kl = "an endpoint gives no log-probabilities of all tokens"

    def __init__(self, lab: Lab, client: EndpointAnnotator) -> None:
        self.lab, self.client = lab, client
        self.provenance = {"name": client.model, "url": client.url}

    def answer(self, prompts, sampler):
        """Return the endpoint's replies, in tokens of the start checkpoint."""
        from harness.training.guests import written

        from_main = sampler.distributed.broadcast_from_main
        choices = from_main(self._choices(prompts, sampler) if sampler.distributed.main else [])
        messages = [choice["message"] for choice in choices]
        texts = [m.get("content") or m.get("refusal") or "" for m in messages]
        ended = [choice.get("finish_reason") != "length" for choice in choices]
        batch = written(self.lab.tokens, prompts, texts, ended)
        batch.temperature = sampler.sampling.temperature
        with sampler.meter.phase(sampler.phase):
            sampler.meter.add(samples=len(texts), tokens_generated=int(batch.lengths.sum()))
        return batch

    def _choices(self, prompts, sampler):
        bodies = [self._body(prompt, sampler) for prompt in prompts.prompts]
        with ThreadPoolExecutor(self.client.workers) as pool:
            return list(pool.map(self.client.ask, bodies))

    def _body(self, prompt, sampler):
        sampling, greedy = sampler.sampling, sampler.sampling.greedy
        body = {
            "model": self.client.model,
            "messages": messages(prompt.text),
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if greedy else sampling.temperature,
        }
        if greedy:
            return body
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        return body | {"seed": derive(*sampler.noise_key, prompt.id) % SEEDS}


def messages(text):
    """Return a prompt as the messages of a chat: plain text becomes a user's message."""
    if not isinstance(text, str):
        return [dict(message) for message in text]
    return messages_of(text) if is_transcript(text) else [{"role": "user", "content": text}]


@dataclass
class Checkpoint(Method):
    """Train nothing: evaluate a model that was trained elsewhere.

    Its training cost is unknown, and left blank.
    """

    name, kind = "checkpoint", "trained elsewhere"

    path: str = ""  # a folder in Hugging Face format, an adapter's folder, or a hub id
    url: str = ""  # an endpoint instead of a path, up to and without /chat/completions
    model: str = ""  # the endpoint's name of the model
    key_variable: str = "HARNESS_API_KEY"  # the environment variable that holds the endpoint's key
    max_requests: int = 100000  # cost cap of an endpoint: requests, failed attempts included
    retries: int = 5  # attempts after the first one, where an error of the endpoint is transient
    workers: int = 4  # concurrent requests to the endpoint
    cache: str | None = None  # folder of replies; none: alignment-harness in the user's cache

    def check(self) -> None:
        """Raise ValueError unless there is one model to evaluate."""
        if bool(self.path) == bool(self.url or self.model):
            raise ValueError(
                "the method checkpoint needs a model: --set path=FOLDER_OR_HUB_ID, or --set"
                " url=https://HOST/v1 --set model=NAME"
            )
        if self.path:
            check_there(self.path)
        else:
            self._client().check()

    def _client(self) -> EndpointAnnotator:
        names = ("url", "model", "key_variable", "max_requests", "retries", "workers", "cache")
        return EndpointAnnotator(**{name: getattr(self, name) for name in names})

    def data_files(self):
        """Return the files of the model's folder, those of an adapter's base included."""
        return model_files(Path(self.path)) if self.path and Path(self.path).is_dir() else []

    def train(self, lab: Lab) -> Policy:
        """Return the model as a policy."""
        if self.path:
            return lab.guest(self.path)
        client = self._client()
        client.counts = Counter()
        client.open("The method checkpoint")
        return Served(lab, client)


def check_there(path: str) -> None:
    """Raise ValueError for a path that is neither a model's folder nor a possible hub id."""
    folder = Path(path)
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise ValueError(f"path={path}: there is no such folder. Name a model's folder.")
        return
    try:
        adapter = adapter_in(folder)
    except UsageError as error:
        raise ValueError(str(error)) from None
    if adapter is None and not (folder / "config.json").is_file():
        raise ValueError(
            f"path={path}: the folder holds neither config.json of a model nor {ADAPTER_CONFIG} of"
            " an adapter."
        )


@hookimpl
def register_methods(register):
    register(Checkpoint)
