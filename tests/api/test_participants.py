"""One function builds suite, method, judges and labellers: each once in every phase of a run."""

import ast
import dataclasses
from collections import Counter

import pytest

from harness.api import participants as module
from harness.api.participants import participants
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.errors import UsageError
from harness.experiments import run
from harness.experiments.prepare import RunOptions

from ..helpers.registries import small_registry
from ..helpers.tools import ROOT, fresh

KINDS = ("suite", "method", "judge", "labeller")
PHASES = ("_announce", "_prepared", "evaluation_prompts", "assess")


def spec_of(method, **fixed):
    return resolve(Request(method, "summarization", fixed={"quick": True, **fixed}), installed())


def test_participants_are_those_of_the_spec():
    spec = spec_of("dpo", judge="reward_model_judge", shared_seed=3)
    built = participants(spec, installed())
    assert type(built.suite).name == "summarization" and type(built.method).name == "dpo"
    assert built.suite.shared_seed == 3
    assert built.judge.name == "reward_model_judge"
    assert built.labelling_judge.name == built.suite.judge_name != "reward_model_judge"
    assert built.labeller.name == built.suite.labeller_name and built.own_labeller is None
    assert built.learns_from is built.labeller


def test_method_with_ai_feedback_learns_from_a_labeller_of_its_own():
    built = participants(spec_of("rlaif"), installed())
    assert built.own_labeller is not None and built.learns_from is built.own_labeller
    assert type(built.labeller) is not type(built.own_labeller)


def test_plugin_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="no judge 'nosuch'"):
        participants(dataclasses.replace(spec_of("dpo"), judge="nosuch"), installed())


@pytest.fixture
def built(monkeypatch):
    """{phase: how often suites, methods, labellers and judges were built in it}, as a run goes."""
    counts, current = {}, ["before"]

    def note(kind):
        counts.setdefault(current[-1], Counter())[kind] += 1

    def counting(cls, values, where, usual=module.build):
        note(where.partition(" ")[0])
        return usual(cls, values, where)

    def within(name, usual):
        def called(*args):
            current.append(name)
            try:
                return usual(*args)
            finally:
                current.pop()

        return called

    monkeypatch.setattr(module, "build", counting)
    suite = installed().classes["suites"]["summarization"]
    for kind in ("judge", "labeller"):
        cls = installed().classes[f"{kind}s"][getattr(suite, f"{kind}_name")]
        monkeypatch.setattr(cls, "__init__", lambda self, kind=kind: note(kind))
    for name in PHASES:
        monkeypatch.setattr(run, name, within(name, getattr(run, name)))
    return counts


def test_each_phase_of_a_run_builds_its_participants_once(built):
    registry = small_registry()
    spec = resolve(Request("dpo", "small", fixed={"quick": True}), registry)
    run.execute(spec, registry, RunOptions(fresh("participants"), warn=lambda message: None))
    once = {"suite": 1, "method": 1, "labeller": 1, "judge": 2}  # the judge, and the annotator's
    assert {phase: {kind: built[phase][kind] for kind in once} for phase in built} == (
        dict.fromkeys(("before", *PHASES), once)
    )


def constructions(source):
    """The lines of a module that build a suite, a method, a judge or a labeller by its name."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if looked_up(call.func) or built_as(call) or made(call)]


def looked_up(callee):
    """Whether a callee is `registry.get("judges", name)` or another of KINDS."""
    return (
        isinstance(callee, ast.Call)
        and ast.unparse(callee.func).endswith("registry.get")
        and callee.args[0].value in {f"{kind}s" for kind in KINDS}
    )


def made(call):
    """Whether a call is `make("judges", name, options, registry)` or another of KINDS."""
    kinds = [repr(f"{kind}s") for kind in KINDS]
    first = [ast.unparse(argument) for argument in call.args[:1]]
    return ast.unparse(call.func) == "make" and bool(first) and first[0] in kinds


def built_as(call):
    """Whether a call is `build(cls, values, f"suite {name}")` or another of KINDS."""
    if ast.unparse(call.func) != "build" or not isinstance(call.args[-1], ast.JoinedStr):
        return False
    return ast.unparse(call.args[-1])[2:].partition(" ")[0] in KINDS


def test_no_other_module_builds_participants():
    found = {
        str(file.relative_to(ROOT / "harness")): lines
        for file in sorted((ROOT / "harness").rglob("*.py"))
        if (lines := constructions(file.read_text()))
    }
    assert len(found.pop("api/participants.py")) == 4
    assert len(found.pop("api/resolve.py")) == 2  # options, before there is a spec
    assert len(found.pop("cli/show_suite_file.py")) == 1  # a suite file alone: no run, no spec
    assert len(found.pop("check/judges.py")) == 1  # a judge alone: no run, no spec
    assert len(found.pop("check/conformance.py")) == 1  # methods on tensors: no run, no spec
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        'registry.get("judges", name)()',
        'make("judges", name, options, registry)',
        'build(cls, values, f"suite {name}")',
    ],
)
def test_construction_is_seen(source):
    assert constructions(source) == [1]
