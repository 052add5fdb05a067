"""Proofs on a method."""

from __future__ import annotations

import ast
import copy
import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contracts import NEEDS, Method
from ..data import Budget
from ..errors import HarnessError
from ..options import options_of
from ..registry import Registry, new_registry
from ..spec import Request, make_labeller, make_method, make_suite, resolve
from .findings import FAILED, PASSED, SKIPPED, Finding, Options, attempt

if TYPE_CHECKING:
    import torch

    from ..lab import Supplies
    from ..stages import Workshop

ROUNDING = 2e-3  # by how much the first turns' metrics may differ, relative to their size, for float32's rounding


@dataclass
class Trained:
    """What training left: weights as one vector (None where the policy is not a model of its own) and metrics."""

    weights: torch.Tensor | None
    rows: list[dict[str, float]]
    used: Mapping[str, float]


class _Killed(BaseException):
    """Stands for `kill -9`: no handler of a method catches it."""


def method_proofs(name: str, registry: Registry, options: Options) -> Iterator[Finding]:
    cls = registry.get("methods", name)
    yield attempt("declares itself", lambda: _declares(cls))
    suites = [options.suite] if options.suite else serving(cls, registry, options.settings)
    if not suites:
        yield Finding("runs", FAILED, "no embedded suite gives what its `needs` ask for; name one with --suite")
        return
    bench = _Bench(name, suites[0], registry, options)
    first = attempt("runs", bench.run)
    yield first
    if first.status == PASSED:
        for proof, run in bench.proofs().items():
            options.say(proof)
            yield attempt(proof, run)
    bench.close()
    if first.status == PASSED and options.full:
        options.say(f"a run of full size on {suites[0]}")
        yield attempt(f"beats SFT on {suites[0]}", lambda: _beats_start(name, suites[0], registry, options))
        yield from _reaches_optimum(cls, name, registry, options)


def _declares(cls: Any) -> str:
    assert Method in cls.__mro__, "it is not a harness.Method"
    assert "__dataclass_fields__" in vars(cls), (
        "it is not a dataclass: put @dataclass above it, so that its fields are options"
    )
    assert (cls.__doc__ or "").strip() and not cls.__doc__.startswith(f"{cls.__name__}("), "it has no docstring"
    assert cls.needs <= NEEDS, f"needs {sorted(cls.needs - NEEDS)} do not exist: there are {', '.join(sorted(NEEDS))}"
    assert cls.paper, "`paper` is empty: link what it implements"
    mute = [o.name for o in options_of(cls).values() if not o.help]
    assert not mute, f"the options {', '.join(mute)} have no help: write a comment behind the field"
    gold = sorted(_gold_imports(cls))
    assert not gold, f"it imports {', '.join(gold)}: a method must not see suites, judges or the registry"
    return f"{len(options_of(cls))} options with help, needs {', '.join(sorted(cls.needs)) or 'nothing'}"


def _gold_imports(cls: Any) -> set[str]:
    """Return what the module of a method imports that gold could be reached by."""
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    if not file:
        return set()
    barred = (
        "harness_suites",
        "harness.registry",
        "harness.run",
        "harness.stages",
        "harness.evaluation.evaluate",
        "gc",
    )
    found = set()
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        found |= {n for n in names if any(n == b or n.startswith(f"{b}.") for b in barred)}
    return found


def serving(cls: type[Method], registry: Registry, settings: tuple[str, ...] = ()) -> list[str]:
    """Return the suites with a base model of their own that give what a method needs, by name."""
    found = []
    for name, suite_cls in sorted(registry.classes["suites"].items(), reverse=True):
        try:
            spec = resolve(Request(cls.name, name, settings, fixed={"quick": True}), registry)
            suite, method = make_suite(spec, registry), make_method(spec, registry)
            if suite.base_model() is None:
                continue
            prefers = suite.preferences() is not None or make_labeller(spec, suite, registry) is not None
            gives = {"prompts", "demonstrations"} | ({"pairs", "reward"} if prefers else set())
            gives |= {"labels"} if make_labeller(spec, suite, registry) is not None else set()
            gives |= {"verifier"} if suite.verifier() is not None else set()
            if method.required() <= gives and not getattr(suite_cls, "enumerable", False):
                found.append(name)
        except HarnessError:
            continue
    return found


class _Bench:
    """A method at a small bench, whose stages are made once and which it is trained at again and again."""

    def __init__(self, name: str, suite: str, registry: Registry, options: Options) -> None:
        fixed = {"quick": True, "threads": 1}
        self.spec = resolve(Request(name, suite, options.settings, fixed=fixed), registry)
        self.registry, self.folder = registry, options.results
        self.benches = Path(tempfile.mkdtemp(prefix="benches-", dir=options.results))  # no checkpoint is found there
        self.shop: Workshop | None = None
        self.supplies: Supplies | None = None
        self.whole: Trained | None = None
        self._runs = 0

    def run(self) -> str:
        """Make the stages and train once."""
        from ..run import Observers, Settings, open_workshop, prepare

        settings = Settings(self.folder, checkpoint_every=0.0, warn=lambda message: None)
        quiet = Observers(new_registry(), self.spec, settings.warn)
        self.shop = open_workshop(self.spec, self.registry, settings, quiet)
        self.supplies, _ = prepare(self.spec, self.registry, self.shop, make_method(self.spec, self.registry))
        self.whole = self.train()
        turns = len(self.whole.rows)
        return f"{turns} turns of a quick run on {self.spec.suite_name}" if turns else "trains nothing"

    def close(self) -> None:
        """End what was started for the method."""
        if self.supplies is not None:
            self.supplies.close()

    def proofs(self) -> dict[str, Callable[[], str]]:
        """Return what is proven of a method that runs."""
        found = {
            "deterministic": self.deterministic, "resumable": self.resumable,
            "micro-batch invariant": self.micro_batches, "padding invariant": self.padding,
            "keeps to a budget": self.budget, "sees no gold": self.sees_no_gold,
        }  # fmt: skip
        if self.whole is not None and not self.whole.rows:
            found = {"deterministic": self.deterministic, "sees no gold": self.sees_no_gold}
        return found

    def train(self, kill: int = 0, folder: Path | None = None, **changes: Any) -> Trained:
        """Train with changes to the workshop (micro_batch_tokens), the spec (budget) or the supplies (tokens)."""
        import torch

        from ..run import train

        assert self.shop is not None and self.supplies is not None
        self._runs += 1

        def progress(phase: str, step: int, total: int, row: Mapping[str, float]) -> None:
            if kill and row["step"] == kill:
                raise _Killed

        names = {f.name for f in dataclasses.fields(self.shop)}
        shop = dataclasses.replace(self.shop, progress=progress, **{k: v for k, v in changes.items() if k in names})
        supplies = dataclasses.replace(self.supplies, **{k: v for k, v in changes.items() if k == "tokens"})
        spec = dataclasses.replace(self.spec, **{k: v for k, v in changes.items() if k == "budget"})
        method = make_method(spec, self.registry)
        where = folder or self.benches / str(self._runs)
        where.mkdir(parents=True, exist_ok=True)
        policy, loop = train(spec, shop, method, supplies, shop.meter(), where)
        model = policy.model if policy.kl_estimator is None else None
        weights = None if model is None else torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        return Trained(weights, loop.rows, loop.used())

    def deterministic(self) -> str:
        """Train again: the same bytes."""
        _same_bytes(self.train(), self._whole(), "a second training with the same seed")
        return "trained twice with one seed: the same weights and metrics, to the bit"

    def resumable(self) -> str:
        """Kill at several turns, go on: the same bytes."""
        turns = len(self._whole().rows)
        points = sorted({1, (turns + 1) // 2, turns})
        for kill in points:
            folder = self.benches / f"killed-{kill}"
            try:
                self.train(kill=kill, folder=folder)
            except _Killed:
                pass
            _same_bytes(self.train(folder=folder), self._whole(), f"a training killed in turn {kill} and resumed")
        return f"killed in turn {', '.join(map(str, points))} of {turns} and resumed: the same weights and metrics"

    def micro_batches(self) -> str:
        """Train with micro-batches of a few rows: the same numbers."""
        worst = _same_numbers(self.train(micro_batch_tokens=200), self._whole(), "micro-batches of 200 tokens")
        return f"metrics of the first turns differ by at most {worst:.1e}"

    def padding(self) -> str:
        """Train on batches with padding that nobody needs: the same numbers."""
        assert self.supplies is not None
        worst = _same_numbers(self.train(tokens=_widening(self.supplies.tokens)), self._whole(), "more padding")
        return f"metrics of the first turns differ by at most {worst:.1e}"

    def budget(self) -> str:
        """Train with half the optimiser steps."""
        whole = self._whole()
        per_turn = whole.used["steps"] / len(whole.rows)
        limit = max(1, int(whole.used["steps"] // 2))
        used = self.train(budget=Budget(steps=limit)).used["steps"]
        assert used < limit + per_turn, f"a budget of {limit} steps was given, {used:.0f} were taken"
        return f"given {limit} optimiser steps it took {used:.0f}, a turn having {per_turn:.0f}"

    def sees_no_gold(self) -> str:
        """Walk everything that can be reached from what a method is given."""
        from ..lab import Lab
        from ..loop import Checkpoints, Loop
        from ..walk import reachable

        assert self.shop is not None and self.supplies is not None
        method, meter = make_method(self.spec, self.registry), self.shop.meter()
        where = Checkpoints(self.benches / "walked", 3600.0)
        loop = Loop(self.shop.trainer(method, meter), where, meter, lambda step, total, row: None)
        suite = make_suite(self.spec, self.registry)
        apart = {p.id for p in suite.prompts("test")} - {p.id for p in suite.prompts("train")}
        del suite
        found, looked_at = reachable(Lab(method, self.supplies, self.shop.bench(meter, 0), loop), test_ids=apart)
        assert not found, f"reachable from the lab: {', '.join(found)}"
        return f"no suite, judge, labeller or test prompt among {looked_at} objects reachable from the lab"

    def _whole(self) -> Trained:
        assert self.whole is not None
        return self.whole


def _widening(tokens: Any) -> Any:
    """Return the tokenizer's rules with padding on every batch that no row needs."""
    from torch.nn.functional import pad

    from ..tokens import Batch, PromptBatch, Tokens

    class Widening(Tokens):
        def prompt_batch(self, prompts: Any, device: Any = "cpu") -> PromptBatch:
            made = super().prompt_batch(prompts, device)
            return PromptBatch(made.prompts, pad(made.ids, (3, 0), value=self.pad), pad(made.mask, (3, 0)))

        def batch(self, *args: Any, **more: Any) -> Batch:
            made = super().batch(*args, **more)
            columns = {name: pad(column, (0, 2)) for name, column in made.columns.items()}
            return Batch(made.prompts, columns, made.temperature)

    widened = copy.copy(tokens)
    widened.__class__ = Widening
    return widened


def _same_bytes(ours: Trained, theirs: Trained, what: str) -> None:
    import torch

    assert len(ours.rows) == len(theirs.rows), f"{what} had {len(ours.rows)} turns, not {len(theirs.rows)}"
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        assert not differing, f"{what} differs in {', '.join(differing)} from turn {b['step']:.0f} on"
    same = ours.weights is theirs.weights is None or torch.equal(ours.weights, theirs.weights)  # type: ignore[arg-type]
    assert same, f"{what} has the same metrics and other weights"


def _same_numbers(ours: Trained, theirs: Trained, what: str) -> float:
    """Return the largest relative difference of the metrics of two turns; later ones amplify rounding.

    The first turn alone would not do: where the policy still is the reference, many a fault weighs nothing.
    """
    worst = 0.0
    for turn, (other, row) in enumerate(zip(ours.rows[:2], theirs.rows[:2], strict=True), 1):
        for name, value in row.items():
            got = other.get(name, math.nan)
            off = abs(got - value) / max(1.0, abs(value))
            assert off <= ROUNDING, f"with {what}, {name} of turn {turn} is {got:.6g} instead of {value:.6g}"
            worst = max(worst, off)
    return worst


def _full(name: str, suite: str, registry: Registry, options: Options) -> dict[str, Any]:
    """Return the result of a run of full size."""
    from ..run import Settings, execute

    spec = resolve(Request(name, suite, options.settings), registry)
    return execute(spec, registry, Settings(options.results, warn=options.say)).result


def _beats_start(name: str, suite: str, registry: Registry, options: Options) -> str:
    result = _full(name, suite, registry, options)
    win, seconds = result["evaluation"]["win_rate"], result["cost"]["method"]["seconds"]
    told = f"win-rate {win['mean']:.3f} [{win['low']:.3f}, {win['high']:.3f}] on {win['n']} prompts"
    assert win["low"] > 0.5, f"{told}: not shown to be above one half"
    return f"{told}, KL {result['evaluation']['kl']['mean']:.2f} nats, {seconds:.0f} s of its own"


def _reaches_optimum(cls: Any, name: str, registry: Registry, options: Options) -> Iterator[Finding]:
    """Where the method says what it converges to, a suite that can list its completions says how far it got."""
    if cls.optimum is Method.optimum:
        yield Finding("reaches its optimum", SKIPPED, "it does not say what it converges to: see Method.optimum")
        return
    for suite in sorted(n for n, c in registry.classes["suites"].items() if getattr(c, "enumerable", False)):
        options.say(f"its optimum on {suite}")
        yield attempt(f"reaches its optimum on {suite}", partial(_near, name, suite, registry, options))


def _near(name: str, suite: str, registry: Registry, options: Options) -> str:
    figures = _full(name, suite, registry, options)["evaluation"].get("suite", {})
    distance = figures.get("tv")
    assert distance is not None, "the suite reports no distance to it"
    assert distance < 0.05, f"total variation {distance:.3f} from the optimum it states"
    return f"total variation {distance:.4f}"
