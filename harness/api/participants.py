"""The plugins that take part in a phase of a run: suite, method, judges and labellers.

A run has several phases, and each builds its participants anew: while a method trains, no suite
and no judge exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.global_state import put_back
from ..core.options import build
from ..core.spec import START_MODEL, RunSpec
from .adapters import make
from .contracts import Judge, Labeller, Method, Suite
from .registry import Registry


@dataclass(frozen=True)
class Participants:
    """The plugins of a spec, none of them prepared yet."""

    suite: Suite
    method: Method
    judge: Judge  # scores the evaluation
    labelling_judge: Judge  # of a simulated annotator: the suite's own, never `--judge`
    labeller: Labeller | None  # labels the preferences that all methods share
    own_labeller: Labeller | None = None  # labels for this method instead: AI feedback

    @property
    def learns_from(self) -> Labeller | None:
        """The labeller that this method learns from."""
        return self.own_labeller or self.labeller

    @property
    def can_prefer(self) -> bool:
        """Whether there are preferences, as far as is known without reading data."""
        fixed = type(self.suite).preferences is not Suite.preferences
        return fixed or self.learns_from is not None


def participants(spec: RunSpec, registry: Registry) -> Participants:
    """Build all participants of a spec, each once.

    Raises:
        UsageError: A plugin does not exist, or an option is invalid.
    """
    method = _method(spec, registry)
    suite = _suite(spec, registry, method)
    shared, own = spec.labeller or suite.labeller_name, method.labeller()
    return Participants(
        suite,
        method,
        judge=_judge(spec.judge or suite.judge_name, spec.judge_options, registry),
        labelling_judge=_judge(suite.judge_name, {}, registry),
        labeller=_labeller(shared, {} if own else spec.labeller_options, registry),
        own_labeller=_labeller(own, spec.labeller_options, registry),
    )


def _method(spec: RunSpec, registry: Registry) -> Method:
    cls = registry.get("methods", spec.method)
    with put_back(f"The method {spec.method}"):
        method: Method = build(cls, spec.options, f"method {spec.method}")
    return method


def _suite(spec: RunSpec, registry: Registry, method: Method) -> Suite:
    """Return a suite that knows the seed, the model and whether its answers are learned from.

    These are instance attributes over the class's defaults.
    """
    cls: type[Suite] = registry.get("suites", spec.suite_kind or spec.suite)
    with put_back(f"The suite {spec.suite_name}"):
        suite: Suite = build(cls, spec.suite_options, f"suite {spec.suite}")
    suite.shared_seed, suite.model = spec.shared_seed, spec.model  # type: ignore[misc]
    suite.answers_train = _answers_train(spec, suite, method)  # type: ignore[misc]
    return suite


def _answers_train(spec: RunSpec, suite: Suite, method: Method) -> bool:
    """Return whether a run learns from the suite's answers, and not from its prompts alone."""
    learnt = {"demonstrations", "pairs", "labelled", "reward", "labels"}
    labeller = spec.labeller or suite.labeller_name
    fixed = type(suite).preferences is not Suite.preferences
    watched = suite.proxy and (bool(labeller) or fixed)  # a reward model is trained to be watched
    return spec.start != START_MODEL or watched or bool(learnt & method.required())


def _judge(name: str, options: Mapping[str, Any], registry: Registry) -> Judge:
    with put_back(f"The judge {name}"):
        judge: Judge = make("judges", name, options, registry)
    return judge


def _labeller(name: str | None, options: Mapping[str, Any], registry: Registry) -> Labeller | None:
    if not name:
        return None
    with put_back(f"The labeller {name}"):
        labeller: Labeller = make("labellers", name, options, registry)
    return labeller
