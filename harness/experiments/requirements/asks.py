"""The models and batches that a method uses of its lab, read from its source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

from ...api.contracts import Method
from ...api.methods import TeacherOptions
from ...core.settings import RewardOptions


@dataclass(frozen=True)
class Asks:
    """The models and batches of a method.

    Attributes:
        reference: Whether it holds the reference.
        apart: Whether its reference is moved, and so has weights of its own.
        critic: Whether it has a critic with weights, or an adapter, of its own.
        rewards: Reward models.
        start: Whether it draws from the start checkpoint beside the policy.
        trains: Whether it takes optimiser steps.
        each: Completions of a prompt in a batch.
        rows: Prompts of an update.
        drawn: Prompts of a rollout; 0 where nothing is drawn.
        updates: Passes over each rollout.
        teaches: Whether a teacher is held beside the policy.
        teacher: The folder or hub id of a teacher that it holds; empty without one.
        mixed: Whether it draws from a mixture of two models.
    """

    reference: bool
    apart: bool
    critic: bool
    rewards: int
    start: bool
    trains: bool
    each: int
    rows: int
    drawn: int
    updates: int
    mixed: bool = False
    teacher: str = ""
    teaches: bool = False


OUTSIDE = "outside"  # the lab's interface for trainers of other libraries


def asks_of(method: Method) -> Asks:
    """Return what a method uses. A method that works through another one (`inner`) uses what that
    one does. Code that only some options reach counts as well, except a reference with beta = 0 and
    a critic on the policy's trunk.
    """
    inner = getattr(method, "inner", None)
    works: Any = inner() if callable(inner) else method
    names, needs = _names(type(works)) | _names(type(method)), method.required()
    if OUTSIDE in names:  # another library takes steps, and draws where prompts are needed
        names |= {"step", "reference", "rollout"}
    online = "rollout" in names and ("prompts" in needs or "demonstrated" in names)
    rows = int(getattr(works, "batch_size", 0) or 32)
    parts = int(getattr(works, "num_minibatches", 0) or 1)
    part = int(getattr(works, "minibatch_size", 0) or 0) or -(-rows // parts)
    passes = getattr(works, "num_ppo_epochs", getattr(works, "num_iterations", 1)) or 1
    members = works.reward_members if isinstance(works, RewardOptions) else 1
    return Asks(
        reference="reference" in names and getattr(works, "beta", 1.0) != 0,
        apart="move_reference" in names,
        critic="critic" in names and not getattr(works, "shared_critic", False),
        rewards=members if "reward" in needs else 0,
        start="start" in names,
        trains="step" in names,
        each=_each(works, needs),
        rows=min(part, rows),
        drawn=rows if online else 0,
        updates=int(passes),
        mixed="mixed_with=" in names,
        teaches=isinstance(works, TeacherOptions),
        teacher=works.teacher if isinstance(works, TeacherOptions) else "",
    )


def _each(method: Any, needs: frozenset[str]) -> int:
    for name in ("num_generations", "num_candidates", "n"):
        if needs & {"prompts", "lists"} and getattr(method, name, None):
            return int(getattr(method, name))
    joined = getattr(method, "completions_per_row", None)  # beside each other in a batch
    if joined:
        return int(joined)
    return 1 if "labelled" in needs or "pairs" not in needs else 2


def _names(cls: type) -> set[str]:
    """Return the attributes of a lab that the methods of a class use, and the names of arguments
    that they pass to it.
    """
    names: set[str] = set()
    for name, _ in inspect.getmembers(cls, inspect.isfunction):
        for function in _called(cls, name):
            names |= _names_in(function)
    return names


@cache  # methods of one family share most of their functions
def _names_in(function: FunctionType) -> frozenset[str]:
    """Return what `_names` returns, of one function."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source, or a part of a line: a lambda
        return frozenset()
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    names = {node.attr for node in attributes if _of_lab(node)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    of_lab = [c for c in calls if isinstance(c.func, ast.Attribute) and _of_lab(c.func)]
    return frozenset(names | {f"{word.arg}=" for call in of_lab for word in call.keywords})


def _called(cls: type, name: str) -> Iterator[FunctionType]:
    """Yield the functions of this name that can see a lab: the class's, and those that it reaches
    by `super()`.
    """
    for base in cls.__mro__:
        function = vars(base).get(name)
        if isinstance(function, FunctionType):
            code = function.__code__
            if "lab" in (*code.co_names, *code.co_varnames, *code.co_cellvars):
                yield function
            if "super" not in code.co_names:
                return


def _of_lab(node: ast.Attribute) -> bool:
    of = node.value
    return (isinstance(of, ast.Name) and of.id == "lab") or (
        isinstance(of, ast.Attribute) and of.attr == "lab"
    )
