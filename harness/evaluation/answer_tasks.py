"""A policy that only answers, such as best-of-n, as a model of lm-evaluation-harness.

It does tasks that generate text. Tasks that need likelihoods have no outcome.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..api.contracts import Policy
from ..core.data import Prompt
from ..models.generation import Sampler
from ..models.tokens import Tokens
from ..training.lab import Runtime

MISSING = "this policy only answers: it gives no likelihoods of texts"
MAX_TOKENS = 256  # of an answer, where a task has no limit: the default of lm-evaluation-harness
ROWS = 32  # prompts that are answered at once


def answering(policy: Policy, tokens: Tokens, runtime: Runtime) -> Any:
    """Return a model of lm-evaluation-harness whose texts are a policy's answers.

    Answers are drawn as in the evaluation of a suite: greedy decoding would give best-of-n n equal
    answers.
    """
    from lm_eval.api.model import LM

    class Answering(LM):  # type: ignore[misc]
        only_answers = True

        def generate_until(self, requests: Any) -> list[str]:
            return [text for part in _parts(requests) for text in _answers(part)]

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError(MISSING)

        def loglikelihood_rolling(self, requests: Any) -> Any:
            raise NotImplementedError(MISSING)

        def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
            return str(
                tokens.tokenizer.apply_chat_template(
                    history, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )

        @property
        def tokenizer_name(self) -> str:
            return "start"

    def _answers(requests: list[Any]) -> list[str]:
        limits = {int(r.args[1].get("max_gen_toks", MAX_TOKENS)) for r in requests}
        sampling = replace(runtime.sampling, max_new_tokens=max(limits))
        sampler = Sampler(
            runtime.engine,
            sampling,
            runtime.meter,
            runtime.eos,
            ("evaluation", "tasks", runtime.seed),
            runtime.distributed.alone(),
            shaped=True,
        )
        sampler.phase = "evaluate"
        prompts = [Prompt(f"{r.task_name}/{r.doc_id}/{r.idx}", r.args[0]) for r in requests]
        batch = policy.answer(tokens.prompt_batch(prompts, runtime.device), sampler)
        texts = [row[0] for row in tokens.texts(batch)]
        return [_cut(text, r.args[1]) for text, r in zip(texts, requests, strict=True)]

    return Answering()


def _parts(requests: list[Any]) -> list[list[Any]]:
    return [requests[i : i + ROWS] for i in range(0, len(requests), ROWS)]


def _cut(text: str, arguments: dict[str, Any]) -> str:
    """Return a text up to the first of its stop strings."""
    until = arguments.get("until") or []
    for mark in [until] if isinstance(until, str) else until:
        text = text.split(mark)[0] if mark else text
    return text
