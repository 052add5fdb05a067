"""A plugin that changes the state of the process changes no result, and is named."""

import json
import shutil

import pytest

from harness.api import registry
from harness.core.global_state import Reported

from ..helpers.tools import (
    command,
    finished,
    fresh,
    on_small,
    only_run,
    outputs,
    plugin,
    results,
)

MEDDLING = '''
"""Plugins that change the state of the process."""

import os
import random
from dataclasses import dataclass

import numpy
from harness import hookimpl, torch
from harness_plugins.dpo import DPO
from harness_suites.summarization import SummaryGold

random.seed(0)


def meddle():
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.manual_seed(5)
    numpy.random.seed(5)
    os.chdir("/")
    os.umask(0)
    os.environ["HARNESS_MEDDLED"] = "1"


@dataclass
class Meddling(DPO):
    """DPO that changes the state of the process at each step."""

    name = "meddling"

    def loss(self, logp, batch):
        value = super().loss(logp, batch)
        meddle()
        return value

    def train(self, lab):
        meddle()
        return super().train(lab)


class MeddlingJudge(SummaryGold):
    """The suite's judge, after changes of the state of the process."""

    name = "meddling_judge"

    def score(self, prompts, completions):
        meddle()
        return super().score(prompts, completions)


@hookimpl
def register_methods(register):
    register(Meddling)


@hookimpl
def register_judges(register):
    register(MeddlingJudge)


@hookimpl
def step_logged(step):
    meddle()
'''
CALM = '''
"""The same method, and nothing else."""

from dataclasses import dataclass

from harness import hookimpl
from harness_plugins.dpo import DPO


@dataclass
class Calm(DPO):
    """DPO under another name."""

    name = "calm"


@hookimpl
def register_methods(register):
    register(Calm)
'''


@pytest.fixture(scope="module")
def folder():
    """Results with shared stages."""
    finished("dpo")
    made = fresh("meddling")
    shutil.copytree(results() / "artifacts", made / "artifacts")
    return made


def test_run_with_meddling_plugins_equals_a_clean_one(folder):
    file = plugin(folder, "meddling", MEDDLING)
    more = ("-p", file, "--judge", "meddling_judge", "--results", "relative")
    done = command(*on_small("meddling", *more, results=folder), cwd=folder)
    assert done.code == 0, done.text
    (run,) = (folder / "relative").glob("runs/small/meddling/*")
    clean = command(*on_small("calm", "-p", plugin(folder, "calm", CALM), results=folder))
    assert clean.code == 0, clean.text
    assert outputs(run) == outputs(only_run(folder, "small", "calm"))
    told = json.loads((run / "result.json").read_text())["runtime"]["put_back"]
    for name in ("The method meddling", "The judge meddling_judge", "The plugin meddling.py"):
        assert name in told and done.err.count(f"{name} changed ") >= 1, done.err
    assert "the working directory" in told["The judge meddling_judge"]


def test_built_in_plugins_change_nothing_when_they_are_loaded(monkeypatch):
    messages = []
    monkeypatch.setattr(registry, "BUILT_IN", "")
    monkeypatch.setattr(Reported, "warn", messages.append)
    assert registry.installed.__wrapped__().classes["methods"] and not messages


def test_built_in_plugins_change_nothing_in_a_run():
    told = json.loads((finished("dpo") / "result.json").read_text())["runtime"]["put_back"]
    assert told == {}
