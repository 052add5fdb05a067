"""The built-in methods, and a registry that has the suite `small`."""

import pytest

from harness.api.registry import Registry, installed, load_file

from .tools import small_suite

# `checkpoint` is none without the name of a model; the methods of TRL have tests of their own
# two need the name of a model, and have tests of their own
METHODS = sorted(
    name
    for name in set(installed().classes["methods"]) - {"checkpoint", "gkd"}
    if not name.startswith("trl_")
)
# one method of a kind; long tests take the others only in `pytest -m slow`
ONE_OF_A_KIND = ("best_of_n", "dpo", "grpo", "ppo", "raft", "start")


def sampled(names=METHODS, of=ONE_OF_A_KIND):
    """Return parameters of which all but some are slow."""
    assert set(of) & set(names)
    return [name if name in of else pytest.param(name, marks=pytest.mark.slow) for name in names]


def small_registry() -> Registry:
    """Return a registry of its own with the built-in plugins and the suite `small`."""
    registry = installed.__wrapped__()
    load_file(registry, str(small_suite()))
    return registry
