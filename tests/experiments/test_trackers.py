"""Trackers on the hooks of a run: what they are given, and what they never see."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.api.registry import new_registry
from harness.core.errors import UsageError
from harness.core.spec import RunSpec
from harness.experiments import trackers
from harness.experiments.observers import Observers
from harness.experiments.trackers import (
    Observer,
    Tracking,
    check_trackers,
    completions_of,
    config_of,
    figures_of,
    register_trackers,
)

from ..helpers.tools import command

SECRET = "a-secret-of-twenty-characters"
RESULT = {
    "evaluation": {
        "win_rate": {"mean": 0.6, "low": 0.5, "high": 0.7},
        "kl": {"mean": 1.5, "low": 1.0, "high": 2.0},
        "tasks": {"t": {"mean": 0.2, "low": 0.1, "high": 0.3, "tax": {"difference": -0.1}}},
    },
    "cost": {"method": {"seconds": 2.0, "flops": 1e9, "peak_memory": 5}},
}


def spec_of_toy(**options):
    return RunSpec("dpo", "toy", options, {}, {"evaluation": {"prompts": 4}}, suite_name="toy")


class Recording:
    """A tracker that keeps what it is given."""

    def __init__(self):
        self.config, self.rows, self.tables, self.finished = {}, [], [], 0

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self.rows.append((step, values))

    def log_table(self, name, columns, data, step):
        self.tables.append((name, columns, data))

    def finish(self):
        self.finished += 1


@pytest.fixture
def observed(monkeypatch, tmp_path):
    """A run with a recording tracker in the place of wandb."""
    tracker = Recording()
    monkeypatch.setattr(Observer, "_wandb", lambda self, name: tracker)
    observer = Observer("wandb", Tracking(("wandb",), group="a study"), tmp_path)
    registry = new_registry()
    registry.manager.register(observer, "tracker wandb")
    warnings = []
    run = Observers(registry, spec_of_toy(), warnings.append)
    return SimpleNamespace(run=run, tracker=tracker, folder=tmp_path, warnings=warnings)


def begin(observed):
    observed.run("run_started", folder=observed.folder, plan="")


def step(observed, number=1, **metrics):
    observed.run("step_logged", phase="dpo", step=number, total=2, metrics=metrics, shown=())


def test_tracker_is_given_settings_steps_figures_and_completions(observed):
    rows = [{"step": 1, "prompt": "p", "completion": "c", "reward": 0.5}]
    (observed.folder / "rollouts.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    begin(observed)
    step(observed, 1, loss=0.7)
    step(observed, 2, loss=0.6)
    observed.run("run_finished", folder=observed.folder, result=RESULT)
    assert observed.tracker.config["method"] == "dpo" and not observed.warnings
    assert observed.tracker.rows[:2] == [
        (1, {"dpo/loss": 0.7, "dpo/step": 1.0}),
        (2, {"dpo/loss": 0.6, "dpo/step": 2.0}),
    ]
    last = observed.tracker.rows[2][1]
    assert last["evaluation/win_rate"] == 0.6 and last["evaluation/kl_high"] == 2.0
    assert last["tasks/t_alignment_tax"] == -0.1 and last["cost/flops"] == 1e9
    assert observed.tracker.tables == [
        ("completions", ["step", "prompt", "completion", "reward"], [[1, "p", "c", 0.5]])
    ]
    assert observed.tracker.finished == 1


def test_tracker_that_fails_is_reported_once_and_left_alone(observed, monkeypatch):
    def broken(values, step):
        raise OSError("the server is gone")

    monkeypatch.setattr(observed.tracker, "log", broken)
    begin(observed)
    for number in range(3):
        step(observed, number, loss=1.0)
    assert len(observed.warnings) == 1 and "the server is gone" in observed.warnings[0]


def test_tracker_never_sees_a_secret(observed, monkeypatch):
    monkeypatch.setenv("HARNESS_API_KEY", SECRET)
    row = {"prompt": f"say {SECRET}", "answer": SECRET, "gold": None}
    (observed.folder / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert SECRET not in json.dumps(completions_of(observed.folder))
    assert "[HARNESS_API_KEY]" in json.dumps(completions_of(observed.folder))
    spec = spec_of_toy(note=f"x {SECRET}")
    assert SECRET not in json.dumps(config_of(spec)) and "options.note" in config_of(spec)


def test_figures_of_a_guest_have_no_training_cost():
    assert "cost/flops" in figures_of(RESULT)
    assert not [name for name in figures_of({**RESULT, "guest": {}}) if name.startswith("cost")]


def test_check_trackers_refuses_what_is_unknown_or_not_installed(monkeypatch):
    with pytest.raises(UsageError, match="There is no tracker 'wand'. Did you mean 'wandb'"):
        check_trackers(["wand"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"--track wandb needs a package: pip install 'alig.*wandb"
    ):
        check_trackers(["wandb"])


def test_tracker_is_refused_before_anything_is_written(tmp_path):
    asked = ("run", "-m", "dpo", "-s", "exact", "--results", tmp_path / "r", "--track", "nothing")
    done = command(*asked)
    assert done.code == 2 and "There is no tracker 'nothing'" in done.err
    assert not (tmp_path / "r").exists()


def test_tracking_gives_the_options_of_a_studys_runs():
    tracking = Tracking(("wandb", "mlflow"), "p", "s")
    assert tracking.arguments() == (
        *("--track", "wandb", "--track", "mlflow"),
        *("--track-project", "p", "--track-group", "s"),
    )
    assert Tracking(group="s").arguments() == ()


def test_tensorboard_has_the_steps_and_figures(tmp_path):
    """Read back with TensorBoard's own reader."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    registry = new_registry()
    register_trackers(registry, Tracking(("tensorboard",), group="g"), tmp_path)
    run = Observers(registry, spec_of_toy(), pytest.fail)
    folder = tmp_path / "seed0-abc"
    folder.mkdir()
    run("run_started", folder=folder, plan="")
    for number in (1, 2):
        run(
            "step_logged", phase="dpo", step=number, total=2, metrics={"loss": 1 / number}, shown=()
        )
    run("run_finished", folder=folder, result=RESULT)
    (place,) = Path(tmp_path / "tensorboard" / "g").iterdir()
    events = EventAccumulator(str(place)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("dpo/loss")] == [(1, 1.0), (2, 0.5)]
    assert events.Scalars("evaluation/win_rate")[0].value == pytest.approx(0.6)
