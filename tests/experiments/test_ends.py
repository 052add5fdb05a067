"""Every end is recorded under the name of the plugin behind it, and silent ends are found."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from harness.api.culprits import blamed
from harness.api.registry import load_file, new_registry
from harness.core import interrupts
from harness.core.files import ended_holder, lock
from harness.core.interrupts import asked_for
from harness.core.run_folder import ENDED, runs

from ..helpers.tools import (
    ENV,
    command,
    finished,
    fresh,
    on_small,
    outputs,
    plugin,
    results,
    small_suite,
    with_shared_stages,
)

ENDS = '''
"""Plugins that end the process in many ways."""

import os
from dataclasses import dataclass

from harness import hookimpl
from harness.api.contracts import Judge, Reporter
from harness_plugins.dpo import DPO


class Odd(BaseException):
    """Neither an exception nor an interrupt."""


def end(how):
    if how.isdigit():
        raise SystemExit(int(how))
    if how == "exit":
        os._exit(0)
    if how == "kill":
        os.kill(os.getpid(), 9)
    kinds = (KeyboardInterrupt, GeneratorExit, Odd, ValueError, SystemExit)
    raise {kind.__name__: kind for kind in kinds}[how]


@dataclass
class Ending(DPO):
    """DPO that ends the process after its training."""

    name = "ending"
    how: str = "0"  # the way

    def train(self, lab):
        super().train(lab)
        end(self.how)


class EndingJudge(Judge):
    """A judge that ends the process."""

    name = "ending_judge"
    version = "1"

    def score(self, prompts, completions):
        raise SystemExit(0)


@dataclass
class EndingOptions(DPO):
    """DPO that ends the process when its options are checked."""

    name = "ending_options"

    def check(self):
        raise SystemExit(0)


class EndingFormat(Reporter):
    """A table format that ends the process."""

    name = "ending_format"

    def render(self, table):
        end(os.environ["END_FORMAT"])


@hookimpl
def register_methods(register):
    register(Ending)
    register(EndingOptions)


@hookimpl
def register_reporters(register):
    register(EndingFormat)


@hookimpl
def register_judges(register):
    register(EndingJudge)


@hookimpl
def step_logged(step):
    if os.environ.get("END_OBSERVER"):
        end(os.environ["END_OBSERVER"])
'''
ODD = "class Odd(BaseException):\n    pass\nraise Odd"
WAYS = ("0", "7", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "Odd", "ValueError")


@pytest.fixture(scope="module")
def folder():
    """Results with shared stages."""
    return with_shared_stages("ends")


def ending(folder, how, *more):
    file = plugin(folder, "ends", ENDS)
    return on_small("ending", "-p", file, "--set", f"how={how}", *more, results=folder)


def recorded(folder, method="ending"):
    found = (json.loads(f.read_text()) for f in folder.glob(f"runs/small/{method}/*/failure.json"))
    return sorted(found, key=lambda r: r["options"].get("how", ""))


@pytest.mark.parametrize("how", WAYS)
def test_run_records_every_end_of_a_method(folder, how):
    done = command(*ending(folder, how))
    assert done.code == 1 and "Traceback" not in done.text, done.text
    kind = "SystemExit" if how.isdigit() else how
    assert f"harness: The method ending failed: {kind}" in done.err
    (record,) = [r for r in recorded(folder) if r["options"]["how"] == how]
    assert record["status"] == "failed" and record["failure"].startswith("The method ending failed")


def test_run_records_the_end_of_a_judge_under_its_name(folder):
    done = command(
        *on_small(
            "dpo", "-p", plugin(folder, "ends", ENDS), "--judge", "ending_judge", results=folder
        )
    )
    assert done.code == 1 and "The judge ending_judge failed: SystemExit: 0" in done.err, done.text


def test_run_goes_on_where_an_observer_ends(folder):
    env = {"END_OBSERVER": "0"}
    seed = ("--seed", 3)
    done = command(
        *on_small("dpo", "-p", plugin(folder, "ends", ENDS), *seed, results=folder), env=env
    )
    assert done.code == 0, done.text
    assert done.err.count("step_logged of file:ends.py failed: SystemExit: 0") == 1


@pytest.mark.parametrize(("how", "code"), [("exit", 0), ("kill", -9)])
def test_table_and_run_tell_of_a_run_that_ended_without_a_word(folder, how, code):
    own = fresh("silent")
    shutil.copytree(folder / "artifacts", own / "artifacts")
    assert command(*ending(own, how)).code == code
    ((_, record),) = runs(own)
    assert record["status"] == ENDED and ENDED in record["failure"]
    table = command("table", "--results", own)
    assert table.code == 0 and ENDED in table.out, table.text
    again = command(*ending(own, how))
    assert again.code == code and f"This run {ENDED} before (process" in again.err


@pytest.mark.slow
def test_study_goes_on_after_cells_that_end_their_process(folder):
    own = fresh("study")
    shutil.copytree(folder / "artifacts", own / "artifacts")
    file = plugin(own, "ends", ENDS)
    cells = [
        f"[[methods]]\nname = 'ending'\nlabel = '{how}'\nset = {{how = '{how}'}}\n"
        for how in ("exit", "0", "kill")
    ]
    study = own / "ends.toml"
    head = f"suites = ['small']\nplugins = ['{small_suite()}', '{file}']\nquick = true\n"
    study.write_text(head + "".join(cells) + "[[methods]]\nname = 'dpo'\n")
    done = command("study", study, "--results", own, "-j", 1)
    assert done.code == 1 and "1 done, 3 failed" in done.text, done.text
    assert "left no result" in done.text and "ended by signal 9" in done.text
    assert outputs(next(own.glob("runs/small/dpo/*"))) == outputs(finished("dpo"))


@pytest.mark.parametrize("how", ["0", "KeyboardInterrupt", "Odd", "ValueError"])
def test_table_names_a_format_that_ends_the_process(how):
    finished("dpo")
    file = plugin(fresh("format"), "ends", ENDS)
    more = ("--format", "ending_format", "-p", file, "--results", results(), "--suite", "small")
    done = command("table", *more, env={"END_FORMAT": how})
    kind = "SystemExit: 0" if how == "0" else how
    assert done.code == 1 and "Traceback" not in done.text, done.text
    assert f"harness: The reporter ending_format failed: {kind} (" in done.err
    assert "ends.py, line" in done.err


def test_run_names_a_method_whose_options_end_the_process(tmp_path):
    file = plugin(tmp_path, "ends", ENDS)
    done = command(*on_small("ending_options", "-p", file, results=tmp_path / "r"))
    assert done.code == 1 and "The method ending_options failed: SystemExit: 0" in done.err
    assert not list((tmp_path / "r").glob("runs/*/*/*"))


@pytest.mark.parametrize("end", ["raise SystemExit(0)", "raise KeyboardInterrupt", ODD])
def test_run_refuses_a_plugin_that_ends_the_process_at_import(tmp_path, end):
    file = plugin(tmp_path, "broken", end)
    done = command(*on_small("dpo", "-p", file, results=tmp_path / "r"))
    assert done.code == 2 and "Traceback" not in done.text, done.text
    assert "broken.py did not load: " in done.err


def test_culprits_are_named_by_their_file_and_class(tmp_path):
    registry = new_registry()
    load_file(registry, str(plugin(tmp_path, "named", ENDS)))
    method = registry.get("methods", "ending")
    try:
        registry.get("judges", "ending_judge")().score([], [])
    except SystemExit as error:
        assert blamed(error, registry, "x") == "The judge ending_judge failed: SystemExit: 0"
    try:
        sys.modules[method.__module__].end("Odd")
    except BaseException as error:
        assert blamed(error, registry, "x").endswith("failed: Odd")
    try:
        method().train(None)
    except AttributeError as error:
        assert blamed(error, registry, "x").startswith("The method ending failed: AttributeError")
    assert blamed(ValueError("y"), registry, "The run") == "The run failed: ValueError: y"


def test_interrupt_by_the_user_is_told_apart(monkeypatch):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(interrupts.Signals, "watched", False)
    monkeypatch.setattr(interrupts.Signals, "received", False)
    assert asked_for(KeyboardInterrupt()) and not asked_for(SystemExit())
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.watch_signals()
        assert not asked_for(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt) as raised:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert asked_for(raised.value)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_ended_holder_names_a_process_that_was_killed(tmp_path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom harness.core.files import lock\n"
        "with lock(Path(sys.argv[1]), 'x', wait=False):\n    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    assert ended_holder(tmp_path) == ""
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n" and ended_holder(tmp_path) == ""
    child.kill()
    child.wait()
    child.stdout.close()
    assert ended_holder(tmp_path).startswith(f"process {child.pid} on ")
    with lock(tmp_path, "x", wait=False):
        assert ended_holder(tmp_path) == ""
    assert ended_holder(tmp_path) == ""
    (tmp_path / ".owner").write_text(f"process {child.pid} on another-host")
    assert ended_holder(tmp_path) == ""  # it may be alive there


@pytest.mark.parametrize("merged", [pytest.param(False, marks=pytest.mark.slow), True])
def test_run_whose_console_is_closed_goes_on(folder, merged):
    own = fresh("closed")
    shutil.copytree(folder / "artifacts", own / "artifacts")
    arguments = on_small("dpo", results=own)
    begun = subprocess.Popen(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.DEVNULL,
        env={**os.environ, **ENV},
    )
    begun.stdout.close()
    assert begun.wait(600) == 0
    (run,) = own.glob("runs/small/dpo/*")
    assert outputs(run) == outputs(finished("dpo"))


FIGURES = '''
"""The exact suite with figures of its own that are no finite numbers."""

from dataclasses import dataclass

from harness import hookimpl
from harness_suites.exact import Exact


@dataclass
class Odd(Exact):
    name = "odd"

    def figures(self, method, model, stages):
        return {"start_tv": float("nan"), "tv": float("inf"), "by_length": [1, 2], "of": "[exact]"}


@hookimpl
def register_suites(register):
    register(Odd)
'''


def test_figures_of_a_suite_that_are_not_finite_cost_no_result():
    where = fresh("odd")
    odd = plugin(where, "odd_figures", FIGURES)
    few = ("--stage-set", "evaluation.prompts=16", "--stage-set", "sft.steps=2")
    done = command("run", "-m", "start", "-s", "odd", "-p", odd, *few, "--results", where)
    assert done.code == 0, done.err
    said = "The suite odd returned no finite number for start_tv, tv; the record has null there."
    (folder,) = (where / "runs" / "odd" / "start").iterdir()
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["evaluation"]["suite"] == {
        **{"start_tv": None, "tv": None},
        **{"by_length": [1, 2], "of": "[exact]"},
    }
    assert said in " ".join(done.err.split())
    assert "start tv --" in done.out and "by length (2 values), of [exact]" in done.out
    assert command("table", "--results", where).code == 0
