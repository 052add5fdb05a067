"""Proofs on a method."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.contracts import NEEDS, Method
from ..api.participants import participants
from ..api.registry import Registry
from ..api.resolve import Request, resolve
from ..core.errors import HarnessError
from ..core.options import options_of
from .findings import FAILED, SKIPPED, Finding, Options, attempt
from .two_processes import together

if TYPE_CHECKING:
    from .trials import Trials

NEAR = 0.05  # total variation from the optimum that a method states

BARRED = (  # modules through which gold can be reached; a test imports each of them
    "harness_suites",
    "harness.api.registry",
    "harness.experiments.run",
    "harness.training.stages.stages",
    "harness.evaluation.evaluate",
    "gc",
    "harness.experiments.prepare",
    "harness.api.resolve",
)


def method_proofs(name: str, registry: Registry, options: Options) -> Iterator[Finding]:
    cls = registry.get("methods", name)
    yield attempt("declares itself", lambda: _declares(cls))
    suites = [options.suite] if options.suite else serving(cls, registry, options.settings)
    if not suites:
        yield Finding(
            "runs",
            FAILED,
            "no embedded suite gives what its `needs` ask for; name one with --suite",
        )
        return
    opened: list[Trials] = []
    try:
        ran = yield from _on_small_stages(name, suites[0], registry, options, opened)
    finally:
        for trials in opened:
            trials.close()
    if ran and options.full:
        options.say(f"a run of full size on {suites[0]}")
        yield attempt(
            f"beats the baseline on {suites[0]}",
            lambda: _beats_start(name, suites[0], registry, options),
        )
        yield from _reaches_optimum(cls, name, registry, options)


def _on_small_stages(
    name: str, suite: str, registry: Registry, options: Options, opened: list[Trials]
) -> Generator[Finding, None, bool]:
    """Yield the findings on small stages, which are put into `opened` once they are made; return
    whether the method ran.
    """

    def first() -> str:
        from .trials import Trials

        opened.append(Trials(name, suite, registry, options))
        return opened[0].runs()

    runs = attempt("runs", first)
    yield runs
    if runs.status == FAILED:
        return False
    trials = opened[0]
    for proof, run in proofs_of(trials).items():
        options.say(proof)
        yield attempt(proof, run)
    if options.processes and trials.whole.rows:
        options.say("two processes")
        rows = partial(together, [(name, suite)], registry, options)
        yield attempt("process-count invariant", lambda: trials.two_processes(rows()[name]))
    return True


def proofs_of(trials: Trials) -> dict[str, Callable[[], str]]:
    """Return the proofs on small stages for a method that runs."""
    if not trials.whole.rows:  # it trains nothing
        return {"deterministic": trials.deterministic, "sees no gold": trials.sees_no_gold}
    return {
        "deterministic": trials.deterministic,
        "resumable": trials.resumable,
        "starts at the reference": trials.starts_at_the_reference,
        "trains the end": trials.trains_the_end,
        "micro-batch invariant": trials.micro_batches,
        "checkpointing invariant": trials.activation_checkpointing,
        "padding invariant": trials.padding,
        "order invariant": trials.order,
        "layout invariant": trials.layout,
        "keeps to a budget": trials.keeps_to_a_budget,
        "shared models untouched": trials.leaves_shared_models,
        "process untouched": trials.leaves_the_process,
        "sees no gold": trials.sees_no_gold,
    }


def _declares(cls: Any) -> str:
    assert Method in cls.__mro__, "it is not a harness.Method"
    assert "__dataclass_fields__" in vars(cls), (
        "it is not a dataclass: put @dataclass above it, so that its fields are options"
    )
    assert (cls.__doc__ or "").strip() and not cls.__doc__.startswith(f"{cls.__name__}("), (
        "it has no docstring"
    )
    assert cls.needs <= NEEDS, (
        f"needs {sorted(cls.needs - NEEDS)} do not exist: there are {', '.join(sorted(NEEDS))}"
    )
    assert cls.paper, "`paper` is empty: link what it implements"
    mute = [o.name for o in options_of(cls).values() if not o.help]
    assert not mute, f"the options {', '.join(mute)} have no help: write a comment behind the field"
    odd = sorted(set(cls.tuning_space) - set(options_of(cls)))
    assert not odd, f"tuning_space names {', '.join(odd)}, which are no options of it"
    gold = sorted(_gold_imports(cls))
    assert not gold, (
        f"it imports {', '.join(gold)}: a method must not see suites, judges or the registry"
    )
    return (
        f"{len(options_of(cls))} options with help, needs"
        f" {', '.join(sorted(cls.needs)) or 'nothing'}"
    )


def _gold_imports(cls: Any) -> set[str]:
    """Return the imports of a method's module through which gold could be reached."""
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    if not file:
        return set()
    barred = set()
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        barred |= {n for n in names if any(n == b or n.startswith(f"{b}.") for b in BARRED)}
    return barred


def serving(cls: type[Method], registry: Registry, settings: tuple[str, ...] = ()) -> list[str]:
    """Return the names of suites with an embedded base model that provide what a method needs."""
    names = []
    for name, suite_cls in sorted(registry.classes["suites"].items(), reverse=True):
        try:
            spec = resolve(Request(cls.name, name, settings, fixed={"quick": True}), registry)
            built = participants(spec, registry)
            suite, labels = built.suite, built.learns_from is not None
            if suite.base_model() is None:
                continue
            prefers = suite.preferences() is not None or labels
            gives = {"prompts", "demonstrations"} | (
                {"pairs", "labelled", "reward"} if prefers else set()
            )
            gives |= {"labels"} if labels else set()
            verifier = suite.make_verifier()
            gives |= {"verifier"} if verifier is not None else set()
            gives |= {"steps"} if verifier is not None and verifier.has_steps else set()
            if built.method.required() <= gives and not getattr(suite_cls, "enumerable", False):
                names.append(name)
        except HarnessError:
            continue
    return names


def _full(
    name: str, suite: str, registry: Registry, options: Options, *more: str
) -> dict[str, Any]:
    """Return the result of a run of full size; `more` settings override the others."""
    from ..experiments.prepare import RunOptions
    from ..experiments.run import execute

    own = {setting.partition("=")[0] for setting in more}
    kept = tuple(s for s in options.settings if s.partition("=")[0] not in own)
    spec = resolve(Request(name, suite, (*kept, *more)), registry)
    return execute(
        spec, registry, RunOptions(options.results, warn=options.say, say=options.say)
    ).result


def _beats_start(name: str, suite: str, registry: Registry, options: Options) -> str:
    result = _full(name, suite, registry, options)
    assert "win_rate" in result["evaluation"], result["evaluation"]["judge"]["no_win_rate"]
    win, seconds = result["evaluation"]["win_rate"], result["cost"]["method"]["seconds"]
    win_text = (
        f"win-rate {win['mean']:.3f} [{win['low']:.3f}, {win['high']:.3f}] on {win['n']} prompts"
    )
    assert win["low"] > 0.5, f"{win_text}: not shown to be above one half"
    return (
        f"{win_text}, KL {result['evaluation']['kl']['mean']:.2f} nats, {seconds:.0f} s of its own"
    )


def _reaches_optimum(
    cls: Any, name: str, registry: Registry, options: Options
) -> Iterator[Finding]:
    """Compare with the optimum that the method states, on a suite that can list its completions."""
    if cls.optimum is Method.optimum:
        reason = (
            "it does not say what it converges to: define `optimum` (docs/plugins.md, State your"
            " optimum)"
        )
        yield Finding("reaches its optimum", SKIPPED, reason)
        return
    for suite in sorted(
        n for n, c in registry.classes["suites"].items() if getattr(c, "enumerable", False)
    ):
        options.say(f"its optimum on {suite}")
        yield attempt(
            f"reaches its optimum on {suite}", partial(_near, name, suite, registry, options)
        )


def _near(name: str, suite: str, registry: Registry, options: Options) -> str:
    result = _full(name, suite, registry, options, *options.optimum_settings)
    figures, steps = result["evaluation"].get("suite", {}), result["cost"]["method"]["steps"]
    distance = figures.get("tv")
    if distance is None and "optimum_win_rate" in figures:
        return _answers_like_optimum(result["evaluation"], figures)
    assert distance is not None, "the suite reports no distance to it"
    measured = (
        f"total variation {distance:.4f} after {steps} optimiser steps, from"
        f" {figures['start_tv']:.3f} at the start"
    )
    assert distance < NEAR, (
        f"{measured}; below {NEAR} was expected. Either the stated optimum is wrong, or training"
        " was too short or too coarse: try --optimum-set steps=..., batch_size=...,"
        " learning_rate=..."
    )
    return measured


def _answers_like_optimum(evaluation: dict[str, Any], figures: dict[str, float]) -> str:
    """Compare the answers of a policy without log-probabilities with those of its optimum."""
    distances = []
    for name, label, of_optimum in (
        ("gold", "reward", "optimum_reward"),
        ("win_rate", "win-rate", "optimum_win_rate"),
    ):
        seen, due = evaluation[name], figures[of_optimum]
        text = (
            f"{label} {seen['mean']:.3f} [{seen['low']:.3f}, {seen['high']:.3f}] where theory says"
            f" {due:.3f}"
        )
        assert abs(seen["mean"] - due) <= seen["high"] - seen["low"], (
            f"{text}: more than two half-widths off"
        )
        distances.append(text)
    return "it has no probabilities of its own; " + ", ".join(distances)
