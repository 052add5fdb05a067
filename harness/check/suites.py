"""Proofs on a suite and on a labeller."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from random import Random
from typing import Any

from ..api.contracts import SPLITS
from ..api.participants import participants
from ..api.registry import Registry
from ..api.resolve import Request, resolve
from ..core.data import Prompt, completion_text, prompt_text
from ..core.options import options_of
from ..core.seeds import derive
from ..core.spec import START, RunSpec
from .findings import Finding, Options, attempt
from .verifiers import HOSTILE

READ_BACK = 500  # demonstrations that are read back from their tokens, evenly spaced


def suite_proofs(name: str, registry: Registry, options: Options) -> Iterator[Finding]:
    fixed = {"quick": True, "threads": 1, "model": options.model}
    spec = resolve(Request(START, name, fixed=fixed), registry)
    yield attempt("declares itself", lambda: _suite_declares(spec, registry))
    yield attempt("deterministic", lambda: _suite_repeats(spec, registry))
    yield attempt("splits are disjoint", lambda: _splits_disjoint(spec, registry))
    yield attempt("demonstrations survive the tokenizer", lambda: _survives(spec, registry))
    yield attempt("judge is fair", lambda: _judge_fair(spec, registry))
    yield attempt("verifier is pure and bounded", lambda: _verifier_bounded(spec, registry))
    options.say("a quick run of the start checkpoint")
    yield attempt("runs", lambda: _suite_runs(spec, registry, options))


def _suite_declares(spec: RunSpec, registry: Registry) -> str:
    suite = participants(spec, registry).suite
    assert (type(suite).__doc__ or "").strip(), "it has no docstring"
    mute = [o.name for o in options_of(type(suite)).values() if not o.help]
    assert not mute, f"the options {', '.join(mute)} have no help: write a comment behind the field"
    sizes = {split: suite.size(split) for split in SPLITS}
    assert min(sizes["test"], sizes["validation"]) >= 2 and suite.demonstrations(), (
        f"too little data: {sizes}"
    )
    return ", ".join(f"{split} {n}" for split, n in sizes.items())


def _suite_repeats(spec: RunSpec, registry: Registry) -> str:
    one, two, other = (
        participants(s, registry).suite
        for s in (spec, spec, dataclasses.replace(spec, shared_seed=1))
    )
    for split in ("train", "test"):
        assert one.prompts(split) == two.prompts(split), (
            f"two instances give other prompts of the {split} split"
        )
    assert one.demonstrations() == two.demonstrations(), "two instances give other demonstrations"
    same = one.prompts("train") == other.prompts("train")
    return "two instances agree" + (
        "; shared_seed changes nothing: its data are fixed" if same else ""
    )


def _splits_disjoint(spec: RunSpec, registry: Registry) -> str:
    suite = participants(spec, registry).suite
    if getattr(suite, "enumerable", False):
        return "one closed set of prompts by design: nothing there is to generalise to"
    kept = {
        split: {str(p.text) for p in suite.prompts(split)}
        for split in ("train", "validation", "test")
    }
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = kept[a] & kept[b]
        assert not shared, (
            f"{len(shared)} prompts are in both {a} and {b}, {min(shared)[:60]!r} for one"
        )
    return f"no text in two of {', '.join(kept)}"


def _survives(spec: RunSpec, registry: Registry) -> str:
    """Read demonstrations back from their tokens: the trained text must be the written text."""
    from ..models.chat import ChatOptions
    from ..models.loading import load_tokenizer
    from ..models.tokens import Tokens

    suite = participants(spec, registry).suite
    base = spec.model or suite.base_model()
    if base is None:
        return "it brings no model, so there is no tokenizer; name one with --model"
    tokens = Tokens(load_tokenizer(base), chat=ChatOptions.of(suite))
    every = [*suite.demonstrations(), *suite.demonstrations("validation")]
    demos = every[:: -(-len(every) // READ_BACK)]
    unknown = tokens.tokenizer.unk_token_id
    for demo in demos:
        ids = tokens.completion_ids(demo.prompt.text, demo.completion)
        text, read = completion_text(demo.completion), tokens.decode(ids)
        assert unknown is None or unknown not in [*tokens.prompt_ids(demo.prompt.text), *ids], (
            f"the tokenizer does not know a word of {prompt_text(demo.prompt.text)[-60:]!r} or of"
            f" {text[:60]!r}"
        )
        calls = not isinstance(demo.completion, str) and demo.completion[0].get("tool_calls")
        assert calls or "".join(text.split()) in "".join(read.split()), (
            f"{text[:60]!r} is read back as {read[:60]!r}"
        )
    posed = "by the chat template" if tokens.conversation(demos[0].prompt.text) else "as plain text"
    return f"{len(demos)} demonstrations, posed {posed}, are read back as they were written"


def _judge_fair(spec: RunSpec, registry: Registry) -> str:
    built = participants(spec, registry)
    suite, judge = built.suite, built.judge
    judge.prepare(suite, None)
    demos = suite.demonstrations("validation")[:256]
    prompts, texts = [d.prompt for d in demos], [completion_text(d.completion) for d in demos]
    try:
        right, again = judge.score(prompts, texts), judge.score(prompts, texts)
    except AttributeError:
        return "a judge that is trained first: not asked here"
    wrong = judge.score(prompts, texts[1:] + texts[:1])
    assert all(math.isfinite(s) for s in right), "a score is not finite"
    assert right == again, "the same completions scored twice differ"
    if getattr(suite, "enumerable", False):  # its demonstrations are drawn, good or bad
        swapped = judge.score(prompts[1:] + prompts[:1], texts)
        assert swapped != right, "a completion has one score for all prompts: it ignores the prompt"
        return f"{len(demos)} drawn completions score otherwise for other prompts"
    assert sum(right) > sum(wrong), (
        "demonstrations score no better than those of other prompts: it ignores the prompt"
    )
    n = len(right)
    return f"demonstrations score {sum(right) / n:.3f}, those of other prompts {sum(wrong) / n:.3f}"


def _verifier_bounded(spec: RunSpec, registry: Registry) -> str:
    suite = participants(spec, registry).suite
    verifier = suite.make_verifier()
    if verifier is None:
        return "it has none"
    prompt = suite.prompts("validation")[0]
    began = time.perf_counter()
    for text in HOSTILE:
        case = ([prompt], [text], [prompt.answer], [True])
        verdict = verifier.verify(*case)
        assert verdict[0] is None or math.isfinite(verdict[0]), f"{text[:20]!r} gets {verdict}"
        assert verdict == verifier.verify(*case), (
            f"{text[:20]!r} is scored differently the second time"
        )
    seconds = time.perf_counter() - began
    own = getattr(verifier, "time_limit", getattr(verifier, "seconds", 0.0))
    assert seconds < 2 * len(HOSTILE) * (0.2 + own), f"hostile answers took {seconds:.1f} s"
    return f"{len(HOSTILE)} hostile answers, twice, in {seconds:.2f} s"


def _suite_runs(spec: RunSpec, registry: Registry, options: Options) -> str:
    from ..experiments.prepare import RunOptions
    from ..experiments.run import execute

    evaluation = execute(
        spec, registry, RunOptions(options.results, warn=options.say, say=options.say)
    ).result["evaluation"]
    # a judge that is not shown to be better than a coin gives no scores
    gold = f"gold {evaluation['gold']['mean']:.3f}" if "gold" in evaluation else "no gold"
    return f"{gold} after a quick SFT, {evaluation['eos_rate']:.0%} of answers end"


def labeller_proofs(name: str, registry: Registry, options: Options) -> Iterator[Finding]:
    suite = options.suite or next(
        n for n, c in registry.classes["suites"].items() if c.labeller_name
    )
    fixed = {"labeller": name, "quick": True, "threads": 1}
    spec = resolve(Request(START, suite, labeller_settings=options.settings, fixed=fixed), registry)
    yield attempt(f"labels the demonstrations of {suite}", lambda: _labels(spec, registry))


def _labels(spec: RunSpec, registry: Registry) -> str:
    built = participants(spec, registry)
    suite, judge, labeller = built.suite, built.judge, built.learns_from
    assert labeller is not None
    judge.prepare(suite, None)
    labeller.prepare(suite, judge)
    demos = suite.demonstrations("validation")[:200]
    agreed, pairs = 0, 0
    for one, other in zip(demos, demos[1:], strict=False):
        texts = [completion_text(one.completion), completion_text(other.completion)]
        labels = [_say(labeller, one.prompt, texts) for _ in range(2)]
        assert labels[0] == labels[1], (
            "the same question with the same seed is answered differently"
        )
        for c in labels[0]:
            assert {c.first, c.second} == {
                0,
                1,
            } and 0 <= c.p <= 1, f"{c} is no opinion on completions 0 and 1"
            gold = judge.score([one.prompt] * 2, texts)
            pairs, agreed = pairs + 1, agreed + ((c.p > 0.5) == (gold[c.first] > gold[c.second]))
    assert pairs, "it has no opinion on any pair"
    agreement = f"prefers what the judge scores higher in {agreed / pairs:.0%} of {pairs} pairs"
    assert agreed / pairs > 0.5, f"{agreement}: no better than a coin"
    return agreement


def _say(labeller: Any, prompt: Prompt, texts: list[str]) -> Any:
    return labeller.compare(
        prompt, texts, [len(t.split()) for t in texts], Random(derive("check", prompt.id))
    )
