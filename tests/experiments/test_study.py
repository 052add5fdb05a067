"""Studies: files, cells, states, estimates, tuning, launchers; killed, amended, parallel."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from harness_plugins.launcher_local import Local
from harness_suites.exact import Exact

from harness.api.registry import installed, load_file
from harness.api.resolve import Request, resolve
from harness.cli.app import cli
from harness.core.errors import UsageError
from harness.core.files import make_folder
from harness.core.jobs import Job, Resources
from harness.core.options import build, options_of, toml_module
from harness.core.records import write_sealed
from harness.core.run_folder import write_rows
from harness.experiments.study.cells import expand
from harness.experiments.study.file import read_study
from harness.experiments.study.spaces import check_times, draw, read_space
from harness.experiments.study.state import (
    DONE,
    FAILED,
    LEFT,
    REFUSED,
    Estimates,
    cells_json,
    shipped,
    state_of,
)
from harness.experiments.study.tune import (
    TRIAL_SEED,
    choose,
    searches,
    trial_seeds,
    tune_json,
    tuned,
)
from harness.experiments.study.work import load_plugins, plan
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.tables import comparison

from ..helpers.faulty_method import FAULTY
from ..helpers.registries import METHODS
from ..helpers.studies import FORKED, method, results_of, write
from ..helpers.tools import ENV, command, failure, fresh, plugin, record, samples, small_suite

# options of `run` that say how, and not what
HOW = (
    "results",
    "checkpoint_every",
    "check_rollouts",
    "answer_timeout",
    "only_stages",
    "dry_run",
    "track",
    "track_group",
    "track_project",
)


def opened(file):
    """A study file and a registry with its plugins."""
    study, registry = read_study(file), installed.__wrapped__()
    load_plugins(study, registry)
    return study, registry


def cells(tmp_path, text, **more):
    return expand(*opened(write(tmp_path, text, **more)))


DPO = method("dpo")

# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seds = 3\n" + DPO, "There is no key 'seds'. Did you mean 'seeds'?"),
        ("seeds = 0\n" + DPO, "seeds = 0: expected a number above 0"),
        ("seeds = [1, 1]\n" + DPO, "a list of different seeds"),
        ("seeds = [-1]\n" + DPO, "a list of different seeds"),
        ("", "expected one [[methods]] or more"),
        ("methods = 3", "expected one [[methods]] or more"),
        ("name = '../x'\n" + DPO, "expected letters, digits"),
        ("x = ", "not a TOML file"),
        ("x = " + "[" * 5000, "nested too deeply"),
        ("quick = 3\n" + DPO, "not a TOML file"),  # given twice
        ("snapshots = 'many'\n" + DPO, "snapshots = 'many': expected int"),
        ("dtype = 'float16'\n" + DPO, "--dtype float16: expected float32 or bfloat16"),
        ("budget = 'step=3'\n" + DPO, "Did you mean 'steps'?"),
        ("set = 3\n" + DPO, "set = 3: expected a table"),
        (DPO + "[resources]\ngpu = 1", "There is no option 'gpu'. Did you mean 'gpus'?"),
        (DPO + "[resources]\ngpus = -1", "may not be negative"),
        (DPO + "[resources]\nnodes = 0", "nodes must be at least 1"),
        (method("dpo", "resources = {memory = 'much'}"), "memory = 'much': expected float"),
        (method("dpo", "resources = 3"), "resources = 3: expected a table"),
        (
            "device = 'cpu'\n" + method("dpo", "resources = {gpus = 2}"),
            "resources.gpus = 2 and device = 'cpu'",
        ),
        (method("dpo", "swep = {beta = [1]}"), "There is no key 'swep'. Did you mean 'sweep'?"),
        (method("dpo", "sweep = {beta = 1}"), "beta = 1: expected a list of values"),
        (method("dpo", "sweep = {beta = []}"), "expected a list of values"),
        (method("dpo", "set = {bta = 1}"), "There is no option 'bta'. Did you mean 'beta'?"),
        (
            method("dpo", "set = {'siute.x' = 1}"),
            "There is no sort of option 'siute'. Did you mean 'suite'?",
        ),
        (
            method("dpo", "set = {stage.sft.step = 1}"),
            "There is no option 'step'. Did you mean 'steps'?",
        ),
        (method("dpo", "set = {run.sed = 1}"), "There is no option 'sed'"),
        (method("pp0"), "There is no method 'pp0'. Did you mean 'ppo'?"),
        (DPO + DPO, "two of the [[methods]] are 'dpo'"),
        (method("dpo", "suites = ['smal']"), "There is no suite 'smal'"),
        (method("dpo", "suites = ['gone.toml']"), "gone.toml: there is no such file"),
        ("tune = 3\n" + DPO, "[tune] = 3: expected a table"),
        (DPO + "[tune]\ntrials = 1", "trials must be at least 2"),
        (DPO + "[tune]\ntrial = 2", "Did you mean 'trials'?"),
        (DPO + "[tune]\ntrials = 2\nselect = 'loss'", "select is win_rate"),
        (DPO + "[tune]\ntrials = 2\nleave = ['dpo']\nspace.dpo.beta = [1]", "leave one out"),
        (DPO + "[tune]\ntrials = 2\nspace.dop.beta = [1]", "Did you mean 'dpo'?"),
        (DPO + "[tune]\ntrials = 2\nspace.dpo = {}", "is empty"),
        (DPO + "[tune]\ntrials = 2\nspace.dpo.beta = {log = [0, 1]}", "above 0"),
        (DPO + "[tune]\ntrials = 2\nspace.dpo.beta = {uniform = [2, 1]}", "the lower first"),
        (DPO + "[tune]\ntrials = 2\nspace.dpo.steps = {int = [1, 2.5]}", "two whole numbers"),
        (DPO + "[tune]\ntrials = 2\nspace.dpo.beta = 3", "expected a list, or one of"),
        (
            DPO + "[tune]\ntrials = 4\nspace.dpo.beta = [0.1, 0.2]",
            "different settings, the untuned ones included",
        ),
        (
            method("dpo", "set = {stage.evaluation.split = 'test'}")
            + "[tune]\ntrials = 2\nspace.dpo.beta = [1]",
            "set",
        ),
        (
            method("dpo", "sweep = {beta = [1]}") + "[tune]\ntrials = 2\nspace.dpo.beta = [1]",
            "dpo has a sweep",
        ),
    ],
)
def test_study_files_that_cannot_work(tmp_path, text, told):
    with pytest.raises(UsageError) as error:
        plan(*opened(write(tmp_path, text)), tmp_path / "results")
    assert told in str(error.value), error.value


def test_wrong_file_ends_in_one_message_and_nothing_is_written(tmp_path):
    file = write(tmp_path, "seds = 3\n" + DPO)
    for arguments, told in (
        ([file], "Did you mean 'seeds'?"),
        (["gone.toml"], "there is no such file"),
        (
            [write(tmp_path, DPO, "good"), "--launcher", "lokal"],
            "There is no launcher 'lokal'. Did you mean 'local'?",
        ),
        (
            [tmp_path / "good.toml", "--launcher-set", "job=2"],
            "There is no option 'job'. Did you mean 'jobs'?",
        ),
    ):
        done = command("study", *arguments, "--results", tmp_path / "results", cwd=tmp_path)
        assert done.code == 2 and told in done.err and "Traceback" not in done.text, done.text
    assert not (tmp_path / "results").exists()


# -- cells -----------------------------------------------------------------------------------------


def test_methods_seeds_and_sweeps_are_multiplied(tmp_path):
    found = cells(
        tmp_path,
        "seeds = 2\n"
        + method("start", "seeds = [7]")
        + method("dpo", "sweep = {beta = [0.1, 0.3]}"),
    )
    assert [(c.label, c.spec.seed) for c in found] == [
        ("start", 7),
        ("dpo (beta=0.1)", 0),
        ("dpo (beta=0.1)", 1),
        ("dpo (beta=0.3)", 0),
        ("dpo (beta=0.3)", 1),
    ]
    assert [c.spec.options.get("beta") for c in found] == [None, 0.1, 0.1, 0.3, 0.3]
    assert (
        all(c.spec.quick and c.spec.execution.threads == 1 for c in found)
        and len({c.fingerprint for c in found}) == 5
    )


def test_same_run_under_two_names_is_one(tmp_path):
    beta = cells(tmp_path, DPO)[0].spec.options["beta"]
    found = cells(tmp_path, DPO + method("dpo", f"label = 'again'\nset = {{beta = {beta}}}"))
    assert [(c.label, c.also) for c in found] == [("dpo", ("again",))]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (method("dpo", "sweep = {'run.micro_batch_tokens' = [512, 4096]}"), "micro_batch_tokens"),
        (method("dpo", "sweep = {'run.save' = ['policy', 'none']}"), "save"),
        (
            DPO + method("dpo", "label = 'slow'\nset = {'run.activation_checkpointing' = true}"),
            "activation_checkpointing",
        ),
    ],
)
def test_one_run_computed_in_two_ways_is_refused(tmp_path, text, name):
    """A setting that changes no result gives all its values one fingerprint."""
    with pytest.raises(UsageError, match=rf"are one run, with {name}=.*changes no result"):
        cells(tmp_path, text)


def test_one_method_may_be_computed_otherwise_than_the_others(tmp_path):
    small = method("ipo", "set = {'run.micro_batch_tokens' = 512}")
    assert [c.spec.execution.micro_batch_tokens for c in cells(tmp_path, DPO + small)] == [
        16384,
        512,
    ]


def test_run_asked_for_twice_is_told(tmp_path):
    beta = cells(tmp_path, DPO)[0].spec.options["beta"]
    twice = DPO + method("dpo", f"label = 'again'\nsweep = {{beta = [{beta}, 0.7]}}")
    done = command(
        "study",
        write(tmp_path, "seeds = 2\n" + twice),
        "--dry-run",
        "--results",
        tmp_path / "results",
    )
    told = (
        f"again (beta={beta}) on small, seed 0, 1: the same run as dpo, carried out once and in"
        " tables under that"
    )
    assert done.code == 0 and told in done.out and "4 runs: 4 left." in done.out, done.text
    done = command(
        "study",
        write(tmp_path, "seeds = 2\n" + DPO),
        "--dry-run",
        "--results",
        tmp_path / "results",
    )
    assert "the same run" not in done.out


def test_what_cannot_be_served_is_known_before(tmp_path):
    found = cells(tmp_path, DPO + method("rlvr"), suite="summarization")
    assert [(c.spec.method, bool(c.refused)) for c in found] == [("dpo", False), ("rlvr", True)]
    assert "verifier" in found[1].refused and state_of(found[1], tmp_path).status == REFUSED
    assert not any(
        c.refused for c in cells(tmp_path, method("rlvr"))
    )  # the small suite has a verifier


def test_every_method_runs_with_every_seed_on_every_ground(tmp_path):
    found = cells(
        tmp_path, "seeds = 2\nshared_seeds = [0, 3]\n" + DPO + method("start", "seeds = 1")
    )
    runs = {(c.label, c.spec.shared_seed, c.spec.seed) for c in found}
    assert runs == {
        *(("dpo", ground, seed) for ground in (0, 3) for seed in (0, 1)),
        *(("start", ground, 0) for ground in (0, 3)),
    }
    assert len({c.spec.recipe() for c in found}) == 4
    assert len({c.spec.recipe(any_ground=True) for c in found}) == 2
    other = next(c for c in found if c.spec.shared_seed == 3 and c.label == "dpo")
    assert other.arguments[other.arguments.index("--shared-seed") + 1] == "3"
    assert other.name == "dpo on small, seed 0, shared seed 3"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shared_seeds = 0\n" + DPO, "shared_seeds = 0: expected a number above 0"),
        ("shared_seeds = 2\nshared_seed = 1\n" + DPO, "leave one out"),
        (method("dpo", "sweep = {run.shared_seed = [0, 1]}"), "Write shared_seeds = "),
    ],
)
def test_grounds_that_are_named_twice_or_swept_over_are_refused(tmp_path, text, told):
    with pytest.raises(UsageError, match=told):
        cells(tmp_path, text)


def test_resources_are_the_study_s_and_the_method_s_own(tmp_path):
    text = (
        DPO
        + method("ppo", "resources = {gpus = 4, minutes = 90}")
        + method("ipo", "set = {run.device = 'cuda:1'}")
        + "[resources]\nmemory = 40\ncpus = 2\n"
    )
    dpo, ppo, ipo = (cell.resources for cell in cells(tmp_path, text))
    assert dpo == Resources(memory=40.0, cpus=2)
    assert ppo == Resources(memory=40.0, cpus=2, gpus=4, minutes=90)
    assert ipo == replace(dpo, gpus=0)  # its GPU is named: none is given to it


def test_command_line_of_a_cell_asks_for_the_same_run(tmp_path):
    text = (
        "shared_seed = 3\nbudget = 'steps=2,flops=1e9'\nsnapshots = 2\nprompt_sharing = false\n"
        + method(
            "dpo",
            "set = {robust = true, label_smoothing = 0.1, suite.labeller_bias = 0.12,"
            " stage.sft.steps = 5}",
        )
        + method(
            "rlaif", "set = {optimiser = 'dpo'}\nsweep = {run.budget = ['steps=1', 'steps=2']}"
        )
    )
    found = cells(tmp_path, text)
    assert len(found) == 3 and [str(c.spec.budget.steps) for c in found] == ["2", "1", "2"]
    for cell in found:
        context = cli.commands["run"].make_context("run", list(cell.arguments[1:]))
        p = {k: v for k, v in context.params.items() if k not in HOW}
        registry = installed.__wrapped__()
        for file in p.pop("files"):
            load_file(registry, file)
        named = [
            p.pop(k)
            for k in (
                "method",
                "suite",
                "settings",
                "suite_settings",
                "stage_settings",
                "budget",
                "labeller_settings",
                "judge_settings",
                "engine_settings",
            )
        ]
        spec = resolve(Request(*named, fixed=p), registry)
        assert spec.fingerprint() == cell.fingerprint and spec.asked == cell.spec.asked


def test_first_comes_one_of_each_that_make_stages_of_their_own(tmp_path):
    text = "seeds = 2\n[sweep]\nsuite.labeller_bias = [0.0, 0.12]\n" + DPO
    assert [
        (c.spec.suite_options["labeller_bias"], c.spec.seed) for c in cells(tmp_path, text)
    ] == [(0.0, 0), (0.12, 0), (0.0, 1), (0.12, 1)]


def test_paths_are_taken_from_where_the_file_lies(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "small.py").write_text(small_suite().read_text())
    (tmp_path / "mine" / "s.toml").write_text('suites = ["small"]\nplugins = ["small.py"]\n' + DPO)
    monkeypatch.chdir(tmp_path)
    (cell,) = expand(*opened(Path("mine/s.toml")))
    assert str(tmp_path / "mine" / "small.py") in cell.arguments


# -- how far, and what it may cost -----------------------------------------------------------------


def finish(results, cell, win=0.6, cpu=11.0):
    """Write the record of a finished run of a cell."""
    told = record(
        cell.spec.method, cell.spec.seed, win, suite=cell.spec.suite_name, recipe=cell.spec.recipe()
    )
    told["quick"], told["cost"]["method"]["cpu_seconds"] = cell.spec.quick, cpu
    told["cost"]["evaluation"] = {"cpu_seconds": 1.0, "flops": 1e9}
    write_sealed(make_folder(results / cell.spec.folder) / "result.json", told)


def fail(results, cell, status):
    why = "It went wrong."
    told = failure(cell.spec.method, cell.spec.seed, why, status=status, suite="small")
    write_sealed(make_folder(results / cell.spec.folder) / "failure.json", told)


def test_dry_run_tells_states_and_costs_and_writes_nothing(tmp_path):
    file, results = write(tmp_path, "seeds = 4\n" + DPO + method("start")), tmp_path / "results"
    done = command("study", file, "--dry-run", "--results", results)
    assert (
        done.code == 0 and "8 runs: 8 left." in done.out and "8 runs of unknown cost" in done.out
    ), done.text
    assert not results.exists()
    found = expand(*opened(file))
    finish(results, found[0], cpu=11.0)
    fail(results, found[1], "diverged")
    assert [state_of(c, results).status for c in found] == [DONE, FAILED, *[LEFT] * 6]
    done = command("study", file, "--dry-run", "--results", results)
    assert (
        "8 runs: 1 done, 1 failed (1 diverged), 6 left." in done.out
        and "It went wrong." in done.out
    )
    assert "24 CPU seconds and 6e+12 FLOP, and 4 runs of unknown cost" in done.out, (
        done.out
    )  # two runs like the first
    assert "other code" not in done.out
    folder = results / found[0].spec.folder
    folder.rename(folder.with_name("seed0-of-other-code"))
    assert (
        "1 of those left lie here finished by other code"
        in command("study", file, "--dry-run", "--results", results).out
    )


def test_on_a_fresh_machine_costs_are_those_of_the_harness_s_own_study(tmp_path):
    known = shipped()
    methods, suites = ({key[i] for key in known} for i in (0, 1))
    assert suites == {"summarization", "helpfulness", "arithmetic"}
    main = Path(__file__).parents[2] / "results" / "main.toml"
    asked = toml_module().loads(main.read_text(encoding="utf-8"))["methods"]
    assert {m["name"] for m in asked} <= methods
    text = "suites = ['summarization']\nseeds = 2\n" + method("ppo") + method("dpo", "seeds = 1")
    (tmp_path / "fresh.toml").write_text(text)
    done = command("study", tmp_path / "fresh.toml", "--dry-run", "--results", tmp_path / "results")
    ppo, dpo = (known[name, "summarization"] for name in ("ppo", "dpo"))
    assert (
        f"~{ppo.cpu_seconds:.0f} " in done.out and "~ marks the cost of the method in" in done.out
    ), done.text
    assert (
        f"may take {2 * ppo.cpu_seconds + dpo.cpu_seconds:.0f} CPU seconds" in done.out
        and "unknown" not in done.out
    )
    (tmp_path / "fresh.toml").write_text("quick = true\n" + text)
    done = command("study", tmp_path / "fresh.toml", "--dry-run", "--results", tmp_path / "results")
    assert "3 runs of unknown cost" in done.out and "~" not in done.out


def test_dry_run_tells_what_runs_request(tmp_path):
    text = "[resources]\ngpus = 1\nmemory = 40\n" + DPO
    text += method("ppo", "seeds = 2\nresources = {gpus = 8, nodes = 2, minutes = 90}")
    done = command("study", write(tmp_path, text), "--dry-run", "--results", tmp_path / "none")
    assert "1 of those left request each: 1 GPU, 40 GiB." in done.out, done.text
    told = "2 nodes of 8 GPUs, 40 GiB, at most 90 min"
    assert f"2 of those left request each: {told}." in done.out, done.text


def test_estimates_prefer_the_same_recipe(tmp_path):
    a, b = cells(tmp_path, method("dpo", "sweep = {beta = [0.1, 0.3]}"))
    finish(tmp_path, a, cpu=9.0)
    estimates = Estimates(tmp_path)
    assert estimates.of(a.spec).cpu_seconds == estimates.of(b.spec).cpu_seconds == 10.0
    finish(tmp_path, b, cpu=19.0)
    estimates = Estimates(tmp_path)
    assert (estimates.of(a.spec).cpu_seconds, estimates.of(b.spec).cpu_seconds) == (10.0, 20.0)
    (other,) = cells(tmp_path, method("ipo"))
    assert estimates.of(other.spec) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [("failed", "error"), ("diverged", "diverged"), ("out of memory", "out of memory")],
)
def test_failures_have_a_class(tmp_path, status, kind):
    (cell,) = cells(tmp_path, DPO)
    fail(tmp_path, cell, status)
    assert state_of(cell, tmp_path).kind == kind


def test_what_is_refused_is_told_in_the_table_and_is_not_left(tmp_path):
    """Negative control: the run that is really left is still told."""
    text = "seeds = 2\n" + method("start") + method("dpo") + method("rlvr")
    study, registry = opened(write(tmp_path, text, suite="summarization"))
    planned = plan(study, registry, tmp_path)
    assert {cell.label for cell in planned.cells if cell.refused} == {"rlvr"}
    for cell in planned.cells:
        if not cell.refused and cell.spec.seed == 0:
            put_answers(tmp_path, cell)
    write_sealed(make_folder(tmp_path / "studies" / "s") / "cells.json", cells_json(planned.cells))
    notes = comparison(select(tmp_path, Filter(study="s"))).notes
    assert [note for note in notes if "rlvr" in note] == [
        "Refused: rlvr: the suite cannot give what the method needs: verifier."
    ]
    assert any("left out: 2 runs (dpo seed1-" in note and "start seed1-" in note for note in notes)


# -- tuning ----------------------------------------------------------------------------------------

TUNED = (
    method("start")
    + method("dpo")
    + method("ipo")
    + "[tune]\ntrials = {trials}\nleave = ['start']\n"
    "space.dpo = {{beta = {{log = [0.01, 1.0]}}, steps = {{int = [2, 9]}}}}\n"
    "space.ipo.beta = {{uniform = [0.1, 0.9]}}\n"
)


def test_every_method_gets_the_same_number_of_trials_on_the_validation_split(tmp_path):
    study, registry = opened(write(tmp_path, "seeds = 2\n" + TUNED.format(trials=5)))
    found = searches(study, study.tune, registry)
    assert [(s.entry.label, len(s.cells)) for s in found] == [("dpo", 5), ("ipo", 5)]
    trials = [c for s in found for c in s.cells]
    assert all(c.trial and c.spec.stages["evaluation"]["split"] == "validation" for c in trials)
    assert len({c.fingerprint for c in trials}) == 10
    # none of the reported seeds: what is chosen is trained anew, and nothing twice
    assert {c.spec.seed for c in trials} == {TRIAL_SEED}
    assert trial_seeds(replace(study.entries[0], seeds=(TRIAL_SEED, 0))) == (TRIAL_SEED + 1,)
    assert dict(found[0].points[0]) == {}  # the settings as they are
    assert all(0.01 <= p["beta"] <= 1 and 2 <= p["steps"] <= 9 for p in found[0].points[1:])
    finals = [c for c in plan(study, registry, tmp_path).cells if not c.trial]
    assert len(finals) == 6 and all(c.spec.stages["evaluation"]["split"] == "test" for c in finals)
    more, registry = opened(write(tmp_path, "seeds = 2\n" + TUNED.format(trials=7)))
    again = searches(more, more.tune, registry)
    assert [c.fingerprint for c in again[0].cells[:5]] == [
        c.fingerprint for c in found[0].cells
    ]  # trials can be added


# -- search spaces that methods declare ------------------------------------------------------------


def test_tuning_uses_the_methods_own_space_and_says_so(tmp_path):
    text = DPO + method("simpo") + method("start")
    text += "[tune]\ntrials = 6\nleave = ['start']\nspace.simpo.beta = {log = [1, 4]}\n"
    study, registry = opened(write(tmp_path, text))
    own, given = searches(study, study.tune, registry)
    untuned = own.cells[0].spec.options
    assert own.shipped and not given.shipped and set(own.points[1]) == {"learning_rate", "beta"}
    for point in own.points[1:]:
        for key in point:
            assert 0.2 * untuned[key] <= 1.001 * point[key] <= 1.002 * 5 * untuned[key]
    assert len({point["beta"] for point in own.points[1:]}) == 5
    done = command("study", study.path, "--dry-run", "--results", tmp_path / "results")
    told = "dpo is tuned over its method's own space (learning_rate: 0.2 to 5 times the untuned"
    assert told in done.out and "simpo is tuned" not in done.out, done.text
    stored = tune_json(study.tune, [choose(own, study.tune, tmp_path)], own.cells)["searches"][0]
    assert stored["shipped"] and stored["space"]["beta"] == "0.2 to 5 times the untuned value"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (method("start"), "declares no search space.*put 'start' into `leave`"),
        (method("rlvr", "set = {beta = 0.0}"), None),
        (
            method("rlvr", "set = {beta = 0.0}") + "[tune.space.rlvr]\nbeta = {times = [0.5, 2]}\n",
            "times multiplies the untuned value, which is 0.0",
        ),
    ],
)
def test_spaces_that_cannot_be_searched_are_refused(tmp_path, text, told):
    text = (
        text.replace("[tune.space", "[tune]\ntrials = 2\n[tune.space")
        if "[tune" in text
        else (text + "[tune]\ntrials = 2\n")
    )
    study, registry = opened(write(tmp_path, text))
    if told is None:
        assert len(searches(study, study.tune, registry)) == 1
        return
    with pytest.raises(UsageError, match=told):
        searches(study, study.tune, registry)


NOT_TUNED = {"start", "checkpoint"}  # they have no setting


@pytest.mark.parametrize("name", sorted({*METHODS, "checkpoint", "trl_dpo", "trl_grpo", "trl_kto"}))
def test_every_registered_method_has_a_space_of_its_own_options(name):
    """Its points are settings that the method accepts, with every embedded suite's settings."""
    cls = installed().get("methods", name)
    assert bool(cls.tuning_space) == (name not in NOT_TUNED)
    assert set(cls.tuning_space) <= set(options_of(cls))
    space, rng = read_space(cls.tuning_space, name) if cls.tuning_space else {}, Random(0)
    for suite in ["exact"] if name in Exact.settings else ["summarization"]:
        untuned = resolve(Request(name, suite), installed()).options if space else {}
        check_times(space, untuned, name)
        for _ in range(4 if space else 0):
            build(cls, {**untuned, **draw(space, rng, untuned)}, name)


def test_best_trial_is_chosen_once_all_have_ended(tmp_path):
    study, registry = opened(write(tmp_path, "seeds = 2\n" + TUNED.format(trials=4)))
    search = searches(study, study.tune, registry)[0]
    for cell, win in zip(search.cells[:3], (0.5, 0.7, 0.7), strict=True):
        finish(tmp_path, cell, win)
    choice = choose(search, study.tune, tmp_path)
    assert choice.open and choice.chosen is None and tuned(study, registry, choice) == []
    fail(tmp_path, search.cells[3], "diverged")
    choice = choose(search, study.tune, tmp_path)
    assert (
        choice.chosen == 1 and not choice.open
    )  # the earlier of two that are equal; what failed never is
    runs = tuned(study, registry, choice)
    assert [(c.label, c.spec.seed) for c in runs] == [("dpo (tuned)", 0), ("dpo (tuned)", 1)]
    assert runs[0].spec.options["beta"] == search.points[1]["beta"]
    assert runs[0].spec.stages["evaluation"]["split"] == "test"
    finish(tmp_path, search.cells[0], 0.9)
    labels = [
        c.label
        for c in plan(study, registry, tmp_path).cells
        if c.spec.method == "dpo" and not c.trial
    ]
    assert labels == ["dpo (default, tuned)"] * 2


def tuned_table(results, *wins, seeds=1, text=TUNED):
    """The table of a study whose trials had such win-rates on the validation split; what has None
    diverged.
    """
    study, registry = opened(
        write(results, f"seeds = {seeds}\n" + text.format(trials=len(wins)), "tuned")
    )
    for search in searches(study, study.tune, registry):
        for cell, win in zip(search.cells, wins, strict=True):
            finish(results, cell, win) if win is not None else fail(results, cell, "diverged")
    planned = plan(study, registry, results)
    for cell in planned.cells:
        if not cell.trial:
            put_answers(results, cell)
    folder = make_folder(results / "studies" / "tuned")
    write_sealed(folder / "cells.json", cells_json(planned.cells))
    write_sealed(folder / "tune.json", tune_json(study.tune, planned.choices, planned.cells))
    return comparison(select(results, Filter(study="tuned")))


def put_answers(results, cell):
    told = record(
        cell.spec.method, cell.spec.seed, suite=cell.spec.suite_name, recipe=cell.spec.recipe()
    )
    told["quick"], folder = cell.spec.quick, make_folder(results / cell.spec.folder)
    write_rows(folder / "samples.jsonl", samples(told))
    write_sealed(folder / "spec.json", {"options": told["options"], "stages": {}, "budget": {}})
    write_sealed(folder / "provenance.json", {"versions": {}, "code": {}})
    write_sealed(folder / "result.json", told)


def footnotes_of(made):
    marks = {row[0].text: row[1].marks for row in made.rows}
    return {
        name: [made.footnotes[mark].partition(" (random")[0] for mark in own]
        for name, own in marks.items()
    }


LEFT_ALONE = "Tuned, settings unchanged: the best of 3 trials"


@pytest.mark.parametrize(
    ("wins", "row", "told"),
    [
        ((0.7, 0.6, 0.5), "dpo (default, tuned) quick", LEFT_ALONE),
        ((0.5, None, 0.6), "dpo (tuned) quick", "Tuned: the best of 3 trials"),
        ((None, None, None), "dpo quick", "Tuned, settings unchanged: all 3 trials failed"),
    ],
)
def test_what_was_tuned_has_a_footnote(tmp_path, wins, row, told):
    found = footnotes_of(tuned_table(tmp_path, *wins))
    assert found.pop(row) == found.pop(row.replace("dpo", "ipo")) == [told]
    assert "start quick" in found and not any(found.values())


def test_footnote_on_tuning_stays_where_rows_are_runs_or_named_by_their_entry(tmp_path):
    tuned_table(tmp_path, 0.7, 0.6, seeds=2)
    each = footnotes_of(comparison(select(tmp_path, Filter(study="tuned", each=True))))
    assert sum(bool(told) for told in each.values()) == 4 and len(each) == 6
    named = footnotes_of(comparison(select(tmp_path, Filter(study="tuned", where={"beta": "0.1"}))))
    assert {name for name, told in named.items() if told} == {"dpo quick", "ipo quick"}


def test_settings_that_another_entry_has_as_they_are_keep_its_name(tmp_path):
    """One entry's search comes to what another, that nobody tuned, is from the start: it was not
    tuned.
    """
    usual, mild = (
        f"label = '{label}'\nset = {{{{beta = {beta}}}}}"
        for label, beta in (("dpo", 0.1), ("mild", 0.3))
    )
    text = (
        method("dpo", usual)
        + method("dpo", mild)
        + "[tune]\ntrials = {trials}\nleave = ['dpo']\nspace.mild.beta = [0.1, 0.5]\n"
    )
    study, registry = opened(write(tmp_path, text.format(trials=3)))
    (search,) = searches(study, study.tune, registry)
    ahead = next(i for i, point in enumerate(search.points) if point.get("beta") == 0.1)
    found = footnotes_of(
        tuned_table(tmp_path, *(0.5 + 0.1 * (i == ahead) for i in range(3)), text=text)
    )
    assert found == {
        "dpo quick": ["Tuned, as mild (tuned): the best of 3 trials"],
        "mild quick": [],
    }


def test_tuned_study_from_nothing(tmp_path, forked):
    text = (
        DPO
        + "[tune]\ntrials = 2\nselect = 'gold'\nspace.dpo.learning_rate = {log = [1e-4, 1e-3]}\n"
    )
    file = write(tmp_path, text + '[launcher]\nname = "forked"\n', "tuned", plugins=[forked])
    done = command("study", file, "--results", tmp_path)
    assert done.code == 0, done.text
    told = json.loads((tmp_path / "studies" / "tuned" / "tune.json").read_text())
    (search,) = told["searches"]
    golds = [t["gold"] for t in search["trials"]]
    assert search["chosen"] == golds.index(max(golds)) and "validation split" in told["rule"]
    splits = {}
    for folder in (tmp_path / "runs" / "small" / "dpo").iterdir():
        split = json.loads((folder / "result.json").read_text())["evaluation"]["split"]
        splits[split] = splits.get(split, 0) + 1
    assert splits == {
        "validation": 2,
        "test": 1 + (search["chosen"] > 0),
    }  # the test split once per final run
    made = comparison(select(tmp_path, Filter(study="tuned")))
    rows = [row[0].text for row in made.rows]
    wanted = (
        ["dpo quick", "dpo (tuned) quick"] if search["chosen"] else ["dpo (default, tuned) quick"]
    )
    assert sorted(rows) == sorted(wanted)
    assert [name for name, notes in footnotes_of(made).items() if notes] == [wanted[-1]]
    with pytest.raises(UsageError, match="--study"):
        comparison(
            select(tmp_path, Filter())
        )  # negative control: trials and finals are not of one ground


# -- carried out -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forked():
    return plugin(fresh("launcher"), "forked", FORKED)


@pytest.fixture(scope="module")
def faulty():
    return plugin(fresh("faulty"), "faulty_method", FAULTY)


@pytest.fixture(scope="module")
def failing(forked, faulty):
    """A study in which everything goes wrong that can, carried out: (folder, file's writer, what
    was said).
    """
    where = fresh("study")

    def study(seeds=1, more=""):
        text = (
            f"seeds = {seeds}\n"
            + method("start")
            + method(
                "faulty",
                "set = {fault = 'nan'}\nsweep = {fault = ['nan', 'bug', 'memory', 'usage']}",
            )
            + method("dpo")
        )
        return write(where, text + more + '[launcher]\nname = "forked"\n', plugins=[forked, faulty])

    done = command("study", study(), "--results", where, "--launcher-set", "kill=dpo")
    return where, study, done


def test_failures_are_classified_and_shown(failing):
    where, _, done = failing
    assert done.code == 1 and "Traceback" not in done.text, done.text
    assert "1 done, 5 failed (1 diverged, 2 error, 1 killed, 1 out of memory)" in done.out
    line = next(
        line for line in done.out.splitlines() if "diverged " in line and "fault=nan" in line
    )
    assert "step 2" in line and "harness table --study study" in done.out
    logged = next(line for line in done.err.splitlines() if "fault=bug" in line and "See " in line)
    log = Path(logged.rpartition("See ")[2].rstrip("."))
    assert (
        "a bug of the method" in log.read_text()
        and log.parent == where / "studies" / "study" / "logs"
    )


def test_again_only_what_was_killed_is_run_and_failed_ones_when_asked(failing):
    where, study, _ = failing
    done = command("study", study(), "--results", where)
    assert (
        done.code == 1
        and "begin  dpo on small, seed 0" in done.err
        and done.err.count("begin") == 1
    ), done.text
    assert "2 done, 4 failed" in done.out
    done = command("study", study(), "--results", where)
    assert done.code == 1 and "begin" not in done.err and "--retry-failed" in done.err
    done = command("study", study(), "--results", where, "--retry-failed")
    assert done.code == 1 and done.err.count("begin") == 4 and "2 done, 4 failed" in done.out, (
        done.text
    )


def test_amended_only_what_is_new_is_run(failing):
    where, study, _ = failing
    command("study", study(), "--results", where)
    before = {f: f.stat().st_mtime_ns for f in where.glob("runs/*/*/*/result.json")}
    text = study().read_text().replace("seeds = 1", "seeds = 1\nbudget = ''")
    text = (
        text[: text.index('[[methods]]\nname = "faulty"')]
        + '[[methods]]\nname = "dpo"\nseeds = 2\nbudget = "steps=9"\n'
    )
    file = where / "study.toml"
    file.write_text(text + '[launcher]\nname = "forked"\n')
    done = command("study", file, "--results", where)
    assert done.code == 0 and done.err.count("begin") == 2 and "3 done" in done.out, done.text
    assert all(f.stat().st_mtime_ns == at for f, at in before.items())
    assert "dpo on small ended by itself before its budget: 3 steps left" in done.out
    rows = comparison(select(where, Filter(study="study"))).rows
    assert [[cell.text for cell in row[:2]] for row in rows] == [
        ["start quick", "1"],
        ["dpo quick", "2"],
    ]
    (folder,) = {
        c["folder"]
        for c in json.loads((where / "studies/study/cells.json").read_text())["cells"]
        if c["seed"] == 1
    }
    cost = json.loads((where / folder / "result.json").read_text())["cost"]
    assert cost["budget_used"]["steps"] == 6 and cost["budget_left"] == {"steps": 3}


def test_study_that_does_not_exist(tmp_path):
    done = command("table", "--study", "gone", "--results", tmp_path)
    assert (
        done.code == 2 and "There is no study 'gone'" in done.err and "Traceback" not in done.text
    )


# -- processes -------------------------------------------------------------------------------------

SLEEPY = "import sys, time\nprint('asleep', file=sys.stderr, flush=True)\ntime.sleep(300)\n"
LAUNCH = """
import signal
import sys
from pathlib import Path
from harness.core.jobs import Job, Resources
from harness.core.options import build, options_of
from harness_plugins.launcher_local import Local
jobs = [Job(str(i), ("list", "-p", sys.argv[1]), Path(sys.argv[2]) / f"{i}.log") for i in range(3)]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background runner ignores it
Local(jobs=2).run(jobs, lambda job: print("began", job.name, flush=True), print)
"""


def sleepers(file):
    """The processes that sleep in a plugin file."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"list" in words and str(file).encode() in words:
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and needs prctl")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_no_process_outlives_its_launcher(tmp_path, sent):
    file = plugin(tmp_path, "sleepy", SLEEPY)
    child = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(file), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ENV},
        text=True,
    )
    deadline = time.monotonic() + 60
    while (
        sum("asleep" in log.read_text() for log in tmp_path.glob("*.log")) < 2
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert len(sleepers(file)) == 2  # and the third waits
    os.kill(child.pid, sent)
    assert child.wait(30) != 0
    while sleepers(file) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sleepers(file) == [] and child.stdout.read() == "began 0\nbegan 1\n"


def test_local_launcher_tells_how_jobs_end(tmp_path):
    jobs = [Job("a", ("--version",), tmp_path / "a"), Job("b", ("rnu",), tmp_path / "b")]
    ended = {}
    Local(jobs=2).run(jobs, lambda job: None, lambda job, code: ended.update({job.name: code}))
    assert ended == {"a": 0, "b": 2} and "alignment-harness" in (tmp_path / "a").read_text()


PAIRED = "seeds = 2\n" + method("start") + method("dpo", "set = {steps = 4}")


@pytest.mark.slow
def test_killed_and_in_parallel_a_study_ends_in_the_bytes_of_a_serial_one(tmp_path, forked):
    serial, parallel = tmp_path / "serial", tmp_path / "parallel"
    file = write(tmp_path, PAIRED, "pair", plugins=[forked])
    done = command("study", file, "--results", serial, "--launcher", "forked")
    assert done.code == 0, done.text
    asked = [
        sys.executable,
        "-m",
        "harness",
        "study",
        str(file),
        "--results",
        str(parallel),
        "--jobs",
        "1",
    ]
    child = subprocess.Popen(
        asked, start_new_session=True, env={**os.environ, **ENV}, stderr=subprocess.DEVNULL
    )
    logs, deadline = parallel / "studies" / "pair" / "logs", time.monotonic() + 120
    while (
        not any(" sft " in log.read_text() for log in logs.glob("*.log"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait(30) == -signal.SIGKILL and not list(parallel.glob("runs/*/*/*/result.json"))
    done = command("study", file, "--results", parallel, "--jobs", 2)
    assert done.code == 0 and "4 done" in done.out, done.text
    assert results_of(parallel) == results_of(serial)
    assert (
        len(set(results_of(serial)[1])) == 4
    )  # negative control: what is compared tells runs apart
    tables = [comparison(select(where, Filter(study="pair"))) for where in (parallel, serial)]
    told = [
        i for i, name in enumerate(tables[0].columns) if name not in ("train s / CPU s", "peak MiB")
    ]
    tables = [[[row[i] for i in told] for row in table.rows] for table in tables]
    assert tables[0] == tables[1] and len(tables[0]) == 2 and len(told) > 8


def test_two_of_one_study_at_a_time_are_refused(tmp_path):
    from harness.core.files import lock

    file = write(tmp_path, DPO, "busy")
    with lock(make_folder(tmp_path / "studies" / "busy"), "x", wait=False):
        done = command("study", file, "--results", tmp_path)
    assert (
        done.code == 3 and "The study busy is in use by" in done.err and "begin" not in done.err
    ), done.text


def test_run_that_is_refused_when_it_starts_is_left_for_later(tmp_path, forked):
    from harness.core.files import lock

    file = write(tmp_path, DPO, "busy", plugins=[forked])
    (cell,) = expand(*opened(file))
    with lock(make_folder(tmp_path / cell.spec.folder), "x", wait=False):
        done = command("study", file, "--results", tmp_path, "--launcher", "forked")
    assert done.code == 1 and "1 failed (1 refused)" in done.out and "is in use by" in done.out, (
        done.text
    )
    assert state_of(cell, tmp_path).status == LEFT


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [("raise KeyError('queue')", 1, "The launcher bad failed: KeyError"), ("pass", 1, "1 left")],
)
def test_launcher_that_does_not_do_its_work(tmp_path, body, code, told):
    bad = (
        FORKED.replace("Forked", "Bad")
        .replace('"forked"', '"bad"')
        .replace("for job in jobs:", f"{body}\n        for job in []:")
    )
    file = write(tmp_path, DPO, plugins=[plugin(tmp_path, "bad", bad)])
    done = command("study", file, "--results", tmp_path, "--launcher", "bad")
    assert done.code == code and told in done.text and "Traceback" not in done.text, done.text


def test_specs_are_plain_values(tmp_path):
    (cell,) = cells(tmp_path, DPO)
    json.dumps(dataclasses.asdict(cell.spec))
