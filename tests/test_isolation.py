"""A hostile method looks for judge, suite, labeller and test prompts, with a walker that is shown to find them."""

import functools
import gc
import inspect
import json
import sys
import types

import pytest

from harness.contracts import Judge, Labeller, Suite
from harness.data import Prompt

from .tools import command, fresh, on_small, plugin, results

# -- the walker: its source goes into the hostile plugin ---------------------------------------------------------------


def neighbours(thing):
    """What a thing gives access to; not modules, classes or a function's globals, which any code can import anyway."""
    if isinstance(thing, (type, types.ModuleType, types.CodeType, str, bytes, int, float, complex)):
        return []
    if isinstance(thing, types.FunctionType):
        cells = []
        for cell in thing.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # empty
                pass
        return [*cells, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, types.FrameType):
        return [dict(thing.f_locals), thing.f_back]
    if isinstance(thing, (types.GeneratorType, types.CoroutineType)):
        return [thing.gi_frame] if isinstance(thing, types.GeneratorType) else []
    if isinstance(thing, dict) and "__builtins__" in thing:  # a module's namespace
        return []
    found = [getattr(thing, "__wrapped__", None)] if callable(thing) else []
    return found + [r for r in gc.get_referents(thing) if not isinstance(r, dict) or "__builtins__" not in r]


def secrets(*roots, contracts=(), is_prompt=None, test_ids=("test/",)):
    """The kinds of secret that can be reached from some roots, and how many things were looked at."""
    seen, queue, found = {}, list(roots), []
    while queue:
        thing = queue.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        kind = type(thing)
        if any(isinstance(thing, contract) for contract in contracts):
            found.append(f"{kind.__module__}.{kind.__name__}")
        if is_prompt is not None and isinstance(thing, is_prompt) and thing.id.startswith(tuple(test_ids)):
            found.append(f"prompt {thing.id}")
        queue.extend(neighbours(thing))
    return sorted(set(found)), len(seen)


HOSTILE = '''
"""A method that looks for what it must not have."""

import gc
import json
import os
import sys
import types
from dataclasses import dataclass

from harness import Judge, Labeller, Method, Policy, Prompt, Suite, hookimpl

{walker}


def report(where, *roots):
    found, looked_at = secrets(*roots, contracts=(Judge, Labeller, Suite), is_prompt=Prompt)
    path = os.environ["FOUND"]
    told = json.load(open(path)) if os.path.exists(path) else {{}}
    told[where] = {{"found": found, "looked_at": looked_at}}
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
    needs = frozenset({{"prompts", "pairs", "demonstrations", "reward"}})

    leak: bool = False  # the negative control: a judge and a suite hang at the lab, as if by mistake

    def train(self, lab):
        for prompts in lab.prompts(1, batch_size=2):
            batch = lab.rollout(prompts)
            lab.reward(batch), lab.reference.logp(batch), lab.critic(), lab.policy, lab.demonstrations(2)
        if self.leak:
            from harness_suites.summarization import SummaryGold, Summarization

            judge = SummaryGold()
            judge.prepare(Summarization(), None)
            lab._bench.meter._peak = lambda reset, judge=judge: 0
        report("lab", lab)
        report("frames", sys._getframe())
        return Spy(lab.start)


@hookimpl
def register_methods(register):
    register(Hostile)
'''


@pytest.fixture(scope="module")
def hostile():
    walker = "\n\n".join(inspect.getsource(f) for f in (neighbours, secrets))
    return plugin(fresh("plugins"), "hostile", HOSTILE.format(walker=walker))


def found_by(hostile, *more):
    """What the hostile method found, by where it looked."""
    file = fresh("found") / "found.json"
    done = command(*on_small("hostile", "-p", hostile, *more, results=results()), env={"FOUND": str(file)})
    assert done.code == 0, done.text
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def found(hostile):
    return found_by(hostile)


@pytest.mark.parametrize("where", ["lab", "frames"])
def test_a_method_reaches_no_judge_suite_labeller_or_test_prompt(found, where):
    assert found[where]["looked_at"] > 1000  # it did walk: models, data, the trainer, the command line
    assert found[where]["found"] == []


def test_a_policy_that_is_evaluated_reaches_no_judge_or_suite(found):
    assert found["answer"]["looked_at"] > 100
    assert [name for name in found["answer"]["found"] if not name.startswith("prompt ")] == []


def test_negative_control_a_leaked_judge_is_found(hostile):
    leaked = found_by(hostile, "--set", "leak=true")
    for where in ("lab", "frames"):
        assert "harness_suites.summarization.SummaryGold" in leaked[where]["found"]
        assert "harness_suites.summarization.Summarization" in leaked[where]["found"]  # behind the judge's bound method


# -- the walker itself -------------------------------------------------------------------------------------------------


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
def test_the_walker_finds_a_judge_however_it_is_hidden(way):
    found, _ = secrets(WAYS[way](Gold()), contracts=(Judge, Labeller, Suite))
    assert len(found) == 1 and found[0].endswith("Gold")


def test_the_walker_finds_locals_of_callers():
    def caller():
        judge = Gold()
        return callee(), judge

    def callee():
        return secrets(sys._getframe(), contracts=(Judge,))[0]

    assert caller()[0] and caller()[0][0].endswith("Gold")


def test_the_walker_finds_test_prompts_only():
    held = [Prompt("train/1", "a"), Prompt("test/2", "b")]
    assert secrets(held, is_prompt=Prompt)[0] == ["prompt test/2"]
    assert secrets(held[:1], is_prompt=Prompt)[0] == []
