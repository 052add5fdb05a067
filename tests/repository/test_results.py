"""The scripts in results/: what they say of runs."""

import csv
import json
import re
import runpy

import pytest

from harness.core.records import write_sealed
from harness.experiments.bundle import opened
from harness.report.tables.columns import COLUMNS

from ..helpers.tools import ROOT, put, record
from ..helpers.toy_runs import run

RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def textbook():
    return runpy.run_path(str(RESULTS / "textbook.py"))


def test_every_committed_file_is_listed():
    """In results/README.md, by its name or as an ending that stands behind it: `speed.md`, ...,
    `.csv`.
    """
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    endings = {
        stem: set(re.findall(r"`(\.\w+)`", row))
        for row in rows
        for stem in re.findall(r"\((\w+)\.md\)", row)
    }
    made = [
        f for f in RESULTS.iterdir() if f.suffix in (".md", ".csv", ".png", ".tex", ".toml", ".py")
    ]
    unlisted = {
        f.name for f in made if f.name not in text and f.suffix not in endings.get(f.stem, ())
    }
    assert unlisted == {"README.md"} and len(made) > 30


def test_commands_that_make_them_name_what_there_is():
    script = (RESULTS / "reproduce.sh").read_text(encoding="utf-8")
    (columns,) = re.findall(r'--columns "(\S+)"', script)
    assert set(columns.replace("$accuracy", ",accuracy").split(",")) <= {
        column.key for column in COLUMNS
    }
    assert '[ "$suite" = arithmetic ]; then accuracy=,accuracy' in script
    named = set(re.findall(r"\$PYTHON (results/\w+\.py)", script))
    assert named == {
        f"results/{name}.py" for name in ("textbook", "costs", "readme", "readme_picture")
    }
    assert all((ROOT / name).is_file() for name in named)


def test_picture_of_the_readme_has_every_seed_of_its_methods(tmp_path):
    picture = runpy.run_path(str(RESULTS / "readme_picture.py"))
    runs = picture["seeds_of"](RESULTS / "summarization.csv")
    assert set(runs) == set(picture["LABELS"]) and {len(seeds) for seeds in runs.values()} == {5}
    assert all(
        0 <= kl < picture["KL_END"] for seeds in runs.values() for kl, _ in seeds
    )  # none is cut off
    picture["draw"](runs, tmp_path / "readme.png")
    assert (tmp_path / "readme.png").stat().st_size > 10_000


def test_spread_that_is_not_seen_is_no_figure(textbook):
    assert textbook["spread"]({"a": 0.0, "b": 0.0}) == "none seen"
    assert textbook["spread"]({"a": 0.0, "b": 0.0124}) == "0.012 (b)"


def test_textbook_table_tells_who_is_not_significantly_worse(textbook, tmp_path):
    """Two methods that are alike and better than SFT, and one that is worse: it has a best rank,
    and shines nowhere.
    """
    golds = {
        "start": lambda d: 0.0,
        "ppo": lambda d: 3.0,
        "dpo": lambda d: 3.0,
        "ipo": lambda d: -3.0,
    }
    cells = []
    for name, gold in golds.items():
        for seed in range(3):
            cost = {"flops": 2e12, "peak_memory": 2**30}
            made = run(
                tmp_path,
                name,
                seed,
                1.0 if name != "start" else 0.01,
                gold=gold,
                suite="summarization",
                cost=cost,
            )
            made["cost"]["shared"] = {
                "sft": made["cost"]["method"] | {"flops": 1e12, "peak_memory": 2**29}
            }
            (folder,) = (tmp_path / "runs" / "summarization" / name).glob(f"seed{seed}-*")
            write_sealed(folder / "result.json", made)
            cells.append(
                {
                    "folder": str(folder.relative_to(tmp_path)),
                    "label": name,
                    "suite": "summarization",
                    "trial": False,
                }
            )
    (tmp_path / "studies" / "main").mkdir(parents=True)
    (tmp_path / "studies" / "main" / "cells.json").write_text(json.dumps(cells))
    textbook["main"](tmp_path, tmp_path)
    lines = [
        line
        for line in (tmp_path / "textbook.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    header, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    told = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    best = {name: row["not significantly worse than the best on"] for name, row in told.items()}
    with (tmp_path / "textbook.csv").open() as stream:
        figures = {row["method"]: row for row in csv.DictReader(stream)}
    assert best["start"] == best["ipo"] == "-" and set(best) == set(golds) == set(figures)
    for name in ("ppo", "dpo"):
        assert best[name] == f"summarization ({float(figures[name]['win_rate']):.3f})"
        assert (
            figures[name]["win_rate_bold"] == "True" and len(figures[name]["folders"].split()) == 3
        )
    assert (
        told["ppo"]["train FLOPs / SFT"] == "2.00" and float(figures["ppo"]["flops_to_sft"]) == 2.0
    )


def test_two_folders_of_raw_runs_are_compared_file_by_file(tmp_path, capsys):
    same = runpy.run_path(str(ROOT / "results" / "same.py"))["main"]
    for side in ("a", "b"):
        put(tmp_path / side, record("dpo", seed=0), record("ppo", seed=0))
        folders = sorted((tmp_path / side).glob("runs/*/*/*"))
        cells = [
            {
                "folder": str(f.relative_to(tmp_path / side)),
                "label": f.parent.name,
                "suite": "toy",
                "seed": 0,
                "trial": False,
            }
            for f in folders
        ]
        (tmp_path / side / "studies" / "main").mkdir(parents=True)
        (tmp_path / side / "studies" / "main" / "cells.json").write_text(json.dumps(cells))
    assert same(tmp_path / "a", tmp_path / "b", "main") == 0
    assert "2 of 2 runs are the same" in capsys.readouterr().out
    (file,) = (tmp_path / "b").glob("runs/toy/dpo/*/samples.jsonl")
    file.write_text(file.read_text().replace('"win": 1.0', '"win": 0.0', 1))
    assert same(tmp_path / "a", tmp_path / "b", "main") == 1
    assert "dpo on toy, seed 0: samples.jsonl" in capsys.readouterr().out


def test_committed_bundle_is_intact_and_holds_the_runs_of_its_study():
    with opened(RESULTS / "leaderboard.zip") as bundle:
        methods = [run.split("/")[1] for run in bundle.runs]
        study = bundle.results / "studies" / "leaderboard" / "study.toml"
        assert study.read_bytes() == (RESULTS / "leaderboard.toml").read_bytes()
    assert sorted(set(methods)) == ["best_of_n", "dpo", "grpo", "ppo", "start"]
    assert len(methods) == 10 and (RESULTS / "leaderboard.zip").stat().st_size < 300_000
