"""A hostile method looks for judge, suite, labeller and test prompts, with a walker that is shown
to find them.
"""

import functools
import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.api.contracts import Judge
from harness.check.reachability import reachable
from harness.core.data import Prompt

from ..helpers.tools import command, fresh, on_small, plugin, results

HOSTILE = '''
"""A method that looks for what it must not have."""

import json
import os
import sys
from dataclasses import dataclass

from harness import Method, Policy, hookimpl
from harness.check.reachability import reachable


def report(where, *roots):
    found, looked_at = reachable(*roots, test_ids={f"test/{i}" for i in range(200)})
    path = os.environ["FOUND"]
    told = json.load(open(path)) if os.path.exists(path) else {}
    told[where] = {"found": found, "looked_at": looked_at}
    json.dump(told, open(path, "w"))


class Spy(Policy):
    """Looks around again while it is evaluated."""

    def __init__(self, start):
        self.model, self.start = start.model, start

    def answer(self, prompts, sampler):
        report("answer", sampler, sys._getframe())
        return self.start.answer(prompts, sampler)


@dataclass
class Hostile(Method):
    """Asks for everything, uses it, and looks behind it."""

    name = "hostile"
    needs = frozenset({"prompts", "pairs", "demonstrations", "reward"})

    leak: bool = False  # the negative control: the lab holds a judge and a suite

    def train(self, lab):
        for prompts in lab.prompts(1, batch_size=2):
            batch = lab.rollout(prompts)
            lab.reward(batch), lab.reference.logp(batch), lab.critic()
            lab.policy, lab.demonstrations(2)
        if self.leak:
            from harness_suites.summarization import SummaryGold, Summarization

            judge = SummaryGold()
            judge.prepare(Summarization(), None)
            lab._runtime.meter._peak = lambda reset, judge=judge: 0
        report("lab", lab)
        report("frames", sys._getframe())
        return Spy(lab.start)


@hookimpl
def register_methods(register):
    register(Hostile)
'''


@pytest.fixture(scope="module")
def hostile():
    return plugin(fresh("plugins"), "hostile", HOSTILE)


def found_by(hostile, *more):
    """What the hostile method found, by where it looked."""
    file = fresh("found") / "found.json"
    done = command(
        *on_small("hostile", "-p", hostile, *more, results=results()), env={"FOUND": str(file)}
    )
    assert done.code == 0, done.text
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def found(hostile):
    return found_by(hostile)


@pytest.mark.parametrize("where", ["lab", "frames"])
def test_method_reaches_no_judge_suite_labeller_or_test_prompt(found, where):
    assert (
        found[where]["looked_at"] > 1000
    )  # it did walk: models, data, the trainer, the command line
    assert found[where]["found"] == []


def test_policy_that_is_evaluated_reaches_no_judge_or_suite(found):
    assert found["answer"]["looked_at"] > 100
    assert [name for name in found["answer"]["found"] if not name.startswith("prompt ")] == []


def test_negative_control_a_leaked_judge_is_found(hostile):
    leaked = found_by(hostile, "--set", "leak=true")
    for where in ("lab", "frames"):
        assert "harness_suites.summarization.SummaryGold" in leaked[where]["found"]
        assert (
            "harness_suites.summarization.Summarization" in leaked[where]["found"]
        )  # behind the judge's bound method


# -- the walker itself -----------------------------------------------------------------------------


class Gold(Judge):
    name = "gold"

    def score(self, prompts, completions):
        return []


def closure(judge):
    return lambda: judge


def generator(judge):
    yield judge


class Slotted:
    __slots__ = ("held",)

    def __init__(self, judge):
        self.held = judge


WAYS = {
    "attribute": lambda j: types.SimpleNamespace(a=types.SimpleNamespace(b=j)),
    "slot": Slotted,
    "closure": closure,
    "bound method": lambda j: j.score,
    "default": lambda j: lambda x=j: x,
    "partial": lambda j: functools.partial(print, j),
    "containers": lambda j: {"a": [({1: frozenset({j})},)]},
    "dict key": lambda j: {j: 1},
    "generator": generator,
    "iterator": lambda j: iter([j]),
    "map": lambda j: map(print, [j]),
    "wrapped": lambda j: functools.cache(functools.partial(print, j)),
    "property of an instance": lambda j: vars(types.SimpleNamespace(x=j)).values(),
}


@pytest.mark.parametrize("way", WAYS)
def test_walker_finds_a_judge_however_it_is_hidden(way):
    found, _ = reachable(WAYS[way](Gold()))
    assert len(found) == 1 and found[0].endswith("Gold")


def test_walker_finds_locals_of_callers():
    def caller():
        judge = Gold()
        return callee(), judge

    def callee():
        return reachable(sys._getframe())[0]

    with ThreadPoolExecutor(
        1
    ) as thread:  # whose callers are few: not the test runner's, with all that they hold
        found, _ = thread.submit(caller).result()
    assert len(found) == 1 and found[0].endswith("Gold")


def test_walker_finds_test_prompts_only():
    held = [Prompt("train/1", "a"), Prompt("test/2", "b")]
    assert reachable(held, test_ids=["test/2"])[0] == ["prompt test/2"]
    assert reachable(held[:1], test_ids=["test/2"])[0] == []
