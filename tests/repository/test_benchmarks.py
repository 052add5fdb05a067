"""The benchmarks: tables follow from committed rows, wrong options end in one message, every work
takes its steps.
"""

import csv
import json
import shutil
import subprocess
import sys
import types

import pytest

from ..helpers.tools import ROOT

FOLDER, RESULTS = ROOT / "benchmarks", ROOT / "results"
CSV = ("speed.csv", "speed_curves.csv")
WORKS = (
    "rollout",
    "grpo",
    "rloo",
    "ppo",
    "ppo4_group",
    "dpo",
    "dpo_precomputed",
    "ipo",
    "kto",
    "sft",
    "reward",
)


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark's modules by name: they are scripts that import each other, not a package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [file.stem for file in FOLDER.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield __import__
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture
def copied(tmp_path):
    """A folder with the committed rows."""
    for name in CSV:
        (tmp_path / name).write_bytes((RESULTS / name).read_bytes())
    return tmp_path


@pytest.fixture
def speed(tmp_path):
    """`speed(*options, trl="1.16.0")` calls the command where that TRL seems to be installed;
    output and last line.
    """

    def call(*options, trl="1.16.0"):
        about = tmp_path / "packages" / f"trl-{trl}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trl\nVersion: {trl}\n")
        told = [
            sys.executable,
            str(FOLDER / "speed.py"),
            "--results",
            str(tmp_path / "out"),
            *options,
        ]
        env = {"PYTHONPATH": str(about.parent), "PATH": ""}
        done = subprocess.run(told, capture_output=True, text=True, env=env)
        return done.returncode, (done.stderr or done.stdout).strip().splitlines()[-1]

    return call


def row_of(folder, **about):
    """Return a row of the table that is about the same."""
    with open(folder / "speed.csv", newline="") as told:
        return next(r for r in csv.DictReader(told) if about.items() <= r.items())


def test_committed_table_follows_from_the_committed_rows(benchmark, copied):
    tables, speed = benchmark("tables"), benchmark("speed")
    shutil.copy(RESULTS / "speed.md", copied)  # whose notes by hand are kept
    tables.write(copied, list(speed.GOALS))
    assert (copied / "speed.md").read_bytes() == (RESULTS / "speed.md").read_bytes()


def test_rows_are_written_as_they_were_read(benchmark, copied):
    tables = benchmark("tables")
    for name in CSV:
        tables.save(copied / name, tables.read(copied / name))
        assert (copied / name).read_bytes() == (RESULTS / name).read_bytes()


def test_measured_row_replaces_the_one_about_the_same_and_may_say_more(benchmark, copied):
    tables = benchmark("tables")
    speed = benchmark("speed")
    (row,) = speed.rows_of("main", ["dpo"], ["11M"])
    old = tables.row_about(copied, row)
    tables.keep(
        copied,
        old | {"commit": "1234567", "load": "1", "software_peer": "TRL 1.16.0", "news": "yes"},
    )
    rows = tables.read(copied / "speed.csv")
    assert len(rows) == len(tables.read(RESULTS / "speed.csv"))
    assert (
        tables.row_about(copied, row)["commit"] == "1234567"
        and tables.row_about(copied, row)["news"] == "yes"
    )
    assert rows[0]["news"] == ""
    tables.write(copied, list(speed.GOALS))
    text = (copied / "speed.md").read_text()
    assert "| 1234567 | " in text and "Peer: TRL 1.16.0" in text


def made(**changed):
    """Return a row of one turn of GRPO, two thirds as fast as aimed at."""
    row = {
        "work": "grpo",
        "ratio": 2.0,
        "ratio_min": 2.0,
        "ratio_max": 2.0,
        "goal": 3,
        "turns": 1,
        "ours_share": 0.4,
    }
    return {k: str(v) for k, v in (row | {"peer_length": 20, "ours_length": 16} | changed).items()}


def test_ratios_are_per_step_and_per_token_where_lengths_differ(benchmark):
    ratios = benchmark("tables").ratios
    assert ratios(made()) == (
        "2.00 [one turn]",
        "1.60",
    )  # ours spoke less: per token it gained less
    assert ratios(made(work="rollout")) == ("2.50", "2.00 [one turn]")
    assert ratios(made(turns=2, ratio_max=2.5)) == ("2.00 [2.00 to 2.50]", "1.60")
    assert ratios(made(work="dpo"))[1] == "-"


def test_each_missed_target_has_the_reason_its_numbers_give(benchmark):
    why = benchmark("tables").why
    assert why(made(turns=2, ratio_max=3.1)).startswith("within the spread of its turns")
    assert why(made(ours_share=0.8)).startswith("would need 120% of the roofline")
    assert "40% of it is reached and 60% would be needed; one turn" in why(made())
    assert "one turn" not in why(made(turns=2))


def test_notes_below_the_mark_are_kept(benchmark, tmp_path):
    report = benchmark("report")
    file = tmp_path / "table.md"
    report.write(file, ["old"])
    assert file.read_text() == "old\n"
    file.write_text(f"old\n\n{report.MARK}\n\na note\n")
    for _ in range(2):
        report.write(file, ["new", ""])
        assert file.read_text() == f"new\n\n{report.MARK}\n\na note\n"
    for name in ("speed_runs.md", "speed_threads.md", "speed_gpu.md"):
        assert report.MARK in (RESULTS / name).read_text(encoding="utf-8")


def test_command_is_told_without_paths_of_the_machine(benchmark, monkeypatch):
    report = benchmark("report")
    monkeypatch.setattr(
        sys, "argv", ["x", "ppo", "--ppo-python", "/a/bin/python", "--models=/b/c", "--steps", "2"]
    )
    told = "python benchmarks/speed.py ppo --ppo-python OTHER/bin/python --models=PATH --steps 2"
    assert report.command("speed.py") == told


def test_environments_are_written_down(benchmark):
    report = benchmark("report")
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"trl=={report.pinned('requirements.txt')}" in constraints
    assert report.pinned("requirements-ppo.txt") == "1.12.0"  # the last that has PPO


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["gepo"], "there is no work 'gepo': expected rollout, grpo"),
        (["ppo"], "ppo needs --ppo-python: TRL has no PPO after 1.12.0"),
        (["--size", "3M", "--part", "main"], "invalid choice: '3M'"),
        (
            ["--size", "1M", "--part", "curves"],
            "--size is of main and unfavourable, and changes nothing in curves",
        ),
        (["--turns", "1", "--part", "curves"], "--turns is of main and unfavourable"),
        (["--curve-steps", "1", "--part", "main"], "--curve-steps is of curves"),
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["kto", "--part", "curves"], "--part curves has no kto: expected rollout, grpo, dpo"),
        (
            ["ppo_group", "--ppo-python", sys.executable, "--part", "unfavourable"],
            "--part unfavourable has no ppo_group",
        ),
        (
            ["ppo", "--ppo-python", "/nowhere/python"],
            "/nowhere/python cannot be run: No such file or directory",
        ),
        (
            ["--ppo-python", sys.executable],
            "has trl 1.16.0, but 1.12.0 is needed: pip install -r benchmarks/requ",
        ),
    ],
)
def test_what_cannot_be_measured_ends_in_one_message(speed, tmp_path, options, said):
    code, last = speed(*options)
    assert code == 2 and said in last and not (tmp_path / "out").exists()


def test_another_trl_is_refused(speed):
    code, last = speed("grpo", trl="1.12.0")
    assert code == 2 and last.endswith(
        "has trl 1.12.0, but 1.16.0 is needed: pip install -r benchmarks/requirements.txt"
    )


def test_what_is_kept_or_left_out_is_told(benchmark, copied, monkeypatch, capsys):
    speed = benchmark("speed")
    monkeypatch.setattr(speed, "refuse_other_trl", lambda *_: None)
    monkeypatch.setattr(speed, "measured", lambda *_: pytest.fail("all is there"))
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "speed.py",
            "--part",
            "main",
            "--part",
            "curves",
            "--size",
            "1M",
            "--missing",
            "--results",
            str(copied),
        ],
    )
    before = (copied / "speed.csv").read_bytes()
    speed.main()
    told = capsys.readouterr().out
    kept = row_of(copied, part="main", work="dpo", size="1M")
    assert "without --ppo-python left out: ppo, ppo4, ppo_group, ppo4_group" in told
    assert "curves: --size is of main and unfavourable, and changes nothing here" in told
    assert (
        f"main dpo 1M: kept, {kept['turns']} x {kept['steps']} of commit {kept['commit']}, load"
        f" {kept['load']}" in told
    )
    assert "curves grpo: 21 points kept, of commit " in told
    assert (copied / "speed.csv").read_bytes() == before


def test_part_of_the_gpu_table_does_not_replace_it():
    told = [sys.executable, str(FOLDER / "gpu.py"), "--side", "peers"]
    done = subprocess.run(told, capture_output=True, text=True)
    assert done.returncode == 2 and "say where to by --output" in done.stderr


def test_every_work_of_ours_takes_its_steps(benchmark, tmp_path, monkeypatch):
    world = benchmark("world")
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    monkeypatch.setitem(world.SIZES, "1M", small)
    world.build("1M", tmp_path, 8)
    shape = {"group": 2, "prompt": 6, "completion": 8}
    points = [{"work": w, "size": "1M", "batch": 4, "steps": 2, "shape": shape} for w in WORKS]
    told = json.dumps(
        {"side": "ours", "points": points, "models": str(tmp_path), "out": str(tmp_path / "out")}
    )
    done = subprocess.run(
        [sys.executable, str(FOLDER / "side.py"), told], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for work, line in zip(WORKS, (tmp_path / "out").read_text().splitlines(), strict=True):
        found = json.loads(line)
        assert len(found["seconds"]) == len(found["tokens"]) == len(found["flops"]) == 2
        assert found["updates"] == {"rollout": 0, "ppo4_group": 4}.get(work, 1), work
        assert (
            min(found["seconds"]) > 0
            and "torch" in found["software"]
            and "TRL" not in found["software"]
        )


def test_gpu_table_has_dashes_for_what_was_not_measured(benchmark):
    gpu = benchmark("gpu")
    ours = {"rollout": {"seconds": 2.0, "peak": 2**30}, "grpo": None, "dpo": None}
    peers = {
        "rollout": {"seconds": 5.0, "peak": 2**31},
        "grpo": {"seconds": 8.0, "peak": 2**30},
        "dpo": None,
    }
    args = types.SimpleNamespace(steps=3, engine="hf", work=None)
    *_, rollout, grpo, dpo = gpu.table(
        {"0.5B": {"ours": ours, "peers": peers}}, "card", 100.0, args
    )
    assert rollout.startswith("| 0.5B | rollout | 5.000 | 2.000 | 2.50 | 3277 / 8192 | ")
    assert grpo == "| 0.5B | grpo | 8.000 | - | - | 2048 / - | - / - | 1.0 / - |"
    assert dpo == "| 0.5B | dpo | - | - | - | - / - | - / - | - / - |"
    *_, alone, _, _ = gpu.table({"0.5B": {"peers": peers}}, "card", 100.0, args)
    assert alone.startswith("| 0.5B | rollout | 5.000 | - | - | ")


def test_whole_runs_are_told_in_cpu_and_wall_seconds(benchmark, monkeypatch, tmp_path):
    runs = benchmark("runs")
    assert (
        runs.row("ppo", 2, {"before": [(90.0, 60.0)], "now": [(45.0, 40.0)]})
        == "| ppo | 2 | 90.0 | 45.0 | 2.00 | 60.0 | 40.0 | 1.50 |"
    )
    assert runs.head("1111111", "2222222", 1)[0].startswith(
        "CPU and wall seconds of whole runs at 1111111 (before)"
    )
    seen = []

    def run(root, method, suite, results, seed, threads):
        seen.append((method, seed, sorted(file.name for file in results.iterdir())))
        (results / method).touch()
        return 1.0, 2.0

    monkeypatch.setattr(runs, "run", run)
    for name, method in (("ppo, from nothing", "ppo"), ("dpo", "dpo"), ("kto", "kto")):
        assert runs.alone(ROOT, name, method, "summarization", tmp_path / "made", 0, 1) == (
            1.0,
            2.0,
        )
    stages = ("best_of_n", 9, [])  # once; no run finds what another made
    assert seen == [("ppo", 0, []), stages, ("dpo", 0, ["best_of_n"]), ("kto", 0, ["best_of_n"])]


def test_peaks_of_many_layers_are_extended_from_those_of_few(benchmark):
    """Each part is linear in the layers, and the largest moment may be another one."""
    from harness.experiments.requirements.moments import Moment
    from harness.experiments.requirements.stages import Stage

    fits = benchmark("fits")

    def stage(layers):
        update = Moment("update", {"policy": 10 + 4 * layers}, 3 * layers, 6 * layers, 200, 50)
        answers = Moment("answers", {"policy": 10 + 4 * layers}, cache=20 * layers)
        return [Stage("dpo", (update, answers))]

    few = [stage(layers) for layers in fits.FEW]
    assert stage(2)[0].peak.name == "update" and stage(80)[0].peak.name == "answers"
    for layers in (2, 28, 80):
        expected = stage(layers)[0].peak.total / fits.GB
        assert fits.extended(few, layers)["dpo"] == pytest.approx(expected)
    assert fits.cell(21.6) == "21.6 (24)" and fits.cell(21.7) == "21.7 (80)"
    assert fits.cell(72.1) == "72.1 (no)"
