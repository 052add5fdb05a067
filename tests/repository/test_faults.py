"""The campaign of faults: a sample of it, and what it would miss if it decided wrongly."""

import json
import shutil
from random import Random
from types import SimpleNamespace

import pytest

from ..helpers.tools import ROOT, command, fresh, plugin

FORGETFUL = """
from harness import hookimpl
from harness.training.trainer import Trainer

Trainer._restore_moments = lambda *_: None  # a resumed run begins with a new optimizer


@hookimpl
def run_started(spec):
    pass
"""
NAMES = [file.stem for file in (ROOT / "benchmarks").glob("fault*.py")]


@pytest.fixture(scope="module")
def campaign():
    """The modules of the campaign by name."""
    import importlib
    import sys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in NAMES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def world(campaign):
    """A world whose commands are forked by the process that forks all commands of the tests."""
    module = campaign["fault_world"]

    class Spawned(module.World):
        def run(self, *arguments, fault="", **how):
            done = command(*arguments, env={"HARNESS_FAULT": fault} if fault else {})
            return module.Done(done.code, done.out, done.err, {}, 0)

    return Spawned(fresh("faults"))


def test_run_that_is_killed_while_a_checkpoint_is_written_ends_in_the_same_bytes(campaign, world):
    trials, runs = campaign["fault_trials"], campaign["fault_runs"]
    verdict = trials.disturbed(world, "dpo", "checkpoint.tensors:2:kill", runs.KILLED)
    assert (verdict.outcome, verdict.identical) == ("passed", True), verdict.reason


def test_full_disk_loses_nothing(campaign, world):
    verdict = campaign["fault_runs"]._full(world, "dpo", "write.written:6:full")
    assert (verdict.outcome, verdict.identical) == ("passed", True), verdict.reason


def test_build_that_forgets_the_optimizer_is_found(campaign, world):
    case = campaign["fault_trials"].Disturbed(world, "dpo")
    world.train("dpo", case.results, fault="step.end:3:kill")
    verdict = case.resumed("-p", plugin(case.results, "forgetful", FORGETFUL))
    assert (verdict.outcome, verdict.identical) == ("wrong", False)
    assert "policy/model.safetensors" in verdict.reason or "metrics.jsonl" in verdict.reason


def test_build_that_loses_an_earlier_result_is_found(campaign, world):
    case = campaign["fault_trials"].Disturbed(world, "dpo")
    assert case.shown().outcome == "passed"
    shutil.rmtree(next(case.results.glob("runs/exact/start/*")))
    verdict = case.shown()
    assert verdict.outcome == "lost" and "samples.jsonl" in verdict.reason + str(case.before)


def test_table_counts_each_outcome_and_leaves_skips_out(campaign):
    faults = campaign["faults"]
    outcomes = ("passed", "passed", "lost", "wrong", "failed", "skipped")
    rows = [
        {
            "seed": i % 2,
            "commit": "abc1234",
            "kind": "kill",
            "trial": str(i),
            "outcome": outcome,
            "reason": "why\nmore",
            "identical": (True, None, False)[i % 3],
            "seconds": 3600.0,
        }
        for i, outcome in enumerate(outcomes)
    ]
    assert "| kill | 5 | 2 | 1 | 1 | 1 |" in faults.table(rows)
    assert faults.headline(rows) == (
        "5 faults injected, 1 results lost, 1 wrong results shown, resume byte-identical in 2 of 3."
    )
    page = faults.page(rows, True)
    assert "- kill, 2: lost, why\n" in page and "- kill: why" in page
    assert "--seed 0`, commit abc1234: 1 of 3 passed, 3.0 hours." in page
    assert "--seed 1`, commit abc1234: 1 of 2 passed, 2.0 hours." in page
    assert faults.PARTIAL in faults.page(rows, False) and faults.PARTIAL not in page


def test_campaign_goes_on_after_the_outcomes_that_it_has(campaign, tmp_path, monkeypatch, capsys):
    faults, trials = campaign["faults"], campaign["fault_trials"]
    made = []

    def two(world, rng):
        for name in ("first", "second"):
            yield trials.Trial(name, lambda: made.append(1) or trials.Verdict("passed"))

    def broken(world, rng):
        yield trials.Trial("third", lambda: 1 / 0)

    two.__module__ = broken.__module__ = "fault_runs"
    kinds = {"two": ("1", two), "broken": ("2", broken)}
    monkeypatch.setattr(trials.Kinds, "all", kinds)
    file = tmp_path / "outcomes.jsonl"
    known = {"seed": 0, "kind": "two", "trial": "first", "outcome": "passed"}
    file.write_text(json.dumps(known) + '\n{"seed": 0, "ki')

    class Nothing:
        def forget(self):
            """Nothing to remove."""

    assert faults.carry_out(Nothing(), file, 0, "", 1.0)
    rows = faults.read(file, 0)
    assert [row["trial"] for row in rows] == ["first", "third", "second"] and made == [1]
    assert rows[1]["outcome"] == "failed" and "ZeroDivisionError" in rows[1]["reason"]
    assert faults.read(file, 1) == []
    assert not faults.carry_out(Nothing(), file, 1, "two", -1.0)
    assert "the same command goes on" in capsys.readouterr().err


def test_method_whose_run_fails_without_a_fault_is_one_failed_trial(campaign, monkeypatch):
    runs = campaign["fault_runs"]
    monkeypatch.setattr(runs, "methods", lambda: ["broken", "start"])

    class World:
        def whole(self, method):
            if method == "broken":
                raise RuntimeError("a command ended with 2:\nwhy it ended")
            return None, SimpleNamespace(counts={})

    trials = list(runs.kills_at_points(World(), Random(0)))
    assert [trial.name for trial in trials] == ["broken without a fault"]
    verdict = trials[0].make()
    assert (verdict.outcome, verdict.reason) == ("failed", "why it ended")


def test_headline_of_the_documents_is_that_of_the_campaign():
    page = (ROOT / "results" / "faults.md").read_text(encoding="utf-8")
    headline = next(line for line in page.splitlines() if " faults injected, " in line)
    for name in ("docs/reliability.md", "README.md"):
        assert headline in (ROOT / name).read_text(encoding="utf-8").splitlines(), name
