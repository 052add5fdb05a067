"""Sealed JSON files: every kind of damage is one message, and other runs are shown."""

import json
import math
import shutil

import pytest

from harness.core.errors import HarnessError
from harness.core.records import (
    SEAL,
    Damaged,
    read_object,
    read_unchecked,
    rows_of,
    storable,
    write_sealed,
)
from harness.core.run_folder import METRICS, read_result, runs, write_rows
from harness.experiments.clean import survey
from harness.experiments.study.state import read_cells, read_tuning
from harness.report.page import page
from harness.report.plots.curves import logged_of
from harness.report.selection.filters import Filter
from harness.report.selection.select import select
from harness.report.tables.tables import comparison

from ..helpers.tools import command, failure, put, record

DEEP = b"[" * 100_000


def flipped(content):
    """Return JSON with one digit of its first number changed: it stays valid."""
    at = next(i for i, byte in enumerate(content) if chr(byte).isdigit() and content[i - 1] != 34)
    digit = b"1" if content[at : at + 1] != b"1" else b"2"
    return content[:at] + digit + content[at + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "list": lambda content: b"[]",
    "null": lambda content: b"null",
    "object": lambda content: b"{}",
    "deep": lambda content: DEEP,
    "latin-1": lambda content: b"\xff\xfe" + content,
    "nan": lambda content: b'{"schema": NaN}',
    "flipped": flipped,
}


def damage(file, kind):
    """Damage a file in one way; `folder` and `missing` replace it."""
    content = file.read_bytes()
    if kind == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(DAMAGES[kind](content))


@pytest.fixture
def file(tmp_path):
    write_sealed(tmp_path / "a.json", {"n": 12, "inner": {"text": "x", "list": [1, 2.5]}})
    return tmp_path / "a.json"


def test_write_sealed_returns_the_values(file):
    assert read_object(file, "Mend it.", sealed=True)["inner"] == {"text": "x", "list": [1, 2.5]}
    assert SEAL in json.loads(file.read_text()) and read_unchecked(file, "")[1] is True


@pytest.mark.parametrize("kind", [*DAMAGES, "folder"])
def test_read_object_names_every_damage(file, kind):
    damage(file, kind)
    with pytest.raises(Damaged, match=r"a.json is damaged \(.+\). Mend it."):
        read_object(file, "Mend it.", sealed=True)


def test_seal_is_what_finds_a_flipped_number(file):
    """The negative control: without the seal the flipped number is read."""
    damage(file, "flipped")
    values, whole = read_unchecked(file, "")
    assert values["n"] != 12 and whole is False
    file.write_text(json.dumps(values))
    assert read_object(file, "")["n"] == values["n"]
    with pytest.raises(Damaged):
        read_object(file, "", sealed=True)


def test_file_that_may_not_be_read_is_named(file, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(Damaged, match=r"a.json is damaged .it may not be read.*permissions"):
        read_object(file, "Mend it.")


def test_rows_of_refuses_what_is_no_object():
    assert rows_of(b'{"a": 1}\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    for content in (b"[1]\n", b'{"a": NaN}\n', b'{"a": 1}\n{"a"', DEEP):
        with pytest.raises(ValueError, match="."):
            rows_of(content)


# -- the other runs are shown ----------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """Two methods of one seed each; `broken` is the folder of dpo."""
    put(tmp_path, record("dpo"), record("ppo"))
    return tmp_path


def broken(world):
    (folder,) = (world / "runs/toy/dpo").iterdir()
    return folder


@pytest.mark.parametrize("name", ["result.json", "spec.json", "provenance.json", "samples.jsonl"])
@pytest.mark.parametrize("kind", [*DAMAGES, "folder"])
def test_table_shows_the_other_runs(world, capfd, name, kind):
    if name == "samples.jsonl":  # protected by its digest in the result
        digest = write_rows(broken(world) / name, [{"prompt_id": "1", "win": 1}])
        result = read_result(broken(world)) | {"files": {name: digest}}
        write_sealed(broken(world) / "result.json", result)
    damage(broken(world) / name, kind)
    selection = select(world, Filter())
    assert [row.name for row in selection.rows] == ["ppo"]
    (note,) = [n for n in comparison(selection).notes if "Left out" in n]
    told = capfd.readouterr().err
    for text in (note, told):
        assert name in text and "is damaged" in text and "Delete the folder" in text
    assert [line for line in told.splitlines() if line] == [told.strip()]


def test_one_damaged_run_alone_is_the_message(tmp_path):
    put(tmp_path, record("dpo"))
    damage(broken(tmp_path) / "spec.json", "cut")
    with pytest.raises(Damaged, match=r"spec.json is damaged"):
        select(tmp_path, Filter())


def test_commands_show_the_rest_and_end_with_1(world):
    damage(broken(world) / "result.json", "flipped")
    for arguments in (("table",), ("report",), ("table", "--where", "beta=0.1")):
        done = command(*arguments, "--results", world)
        assert done.code == 1 and "result.json is damaged" in done.err, done.text
        assert "Traceback" not in done.text
    assert "result.json is damaged" in (world / "report.html").read_text()
    sound = command("table", "--methods", "ppo", "--results", world)
    assert "| ppo" in sound.out


def test_damage_of_another_suite_is_not_shown(world, capfd):
    put(world, record("dpo", suite="other"))
    (file,) = world.glob("runs/other/*/*/result.json")
    file.write_text("{")
    assert len(select(world, Filter(suite="toy")).rows) == 2
    assert capfd.readouterr().err == ""


def test_records_without_seals_are_marked_once(world):
    old = record("ipo", schema=2)
    put(world, old)
    (folder,) = (world / "runs/toy/ipo").iterdir()
    for name in ("result.json", "spec.json", "provenance.json"):
        values = read_unchecked(folder / name, "")[0]
        (folder / name).write_text(json.dumps(values))
    notes = [n for n in comparison(select(world, Filter())).notes if n.startswith("No seal")]
    assert notes == [
        "No seal: 1 of 3 records are of an older version, and no digest protects their figures."
    ]


def test_record_cannot_lose_its_seal(world):
    file = broken(world) / "result.json"
    file.write_text(file.read_text().replace('"seal"', '"seam"'))
    with pytest.raises(Damaged, match="changed after it was written"):
        list(runs(world))


def test_sealed_spec_is_not_replaced_by_one_without(world):
    (broken(world) / "spec.json").write_text('{"stages": {"sft": {"steps": 3}}}')
    assert [row.name for row in select(world, Filter()).rows] == ["ppo"]


def test_clean_deletes_no_artifact_that_a_damaged_record_may_need(world):
    (world / "artifacts" / "sft-1").mkdir(parents=True)
    write_sealed(world / "artifacts" / "sft-1" / "manifest.json", {"kind": "sft"})
    items = {i.path.name: i for i in survey(world) if "artifacts" in i.path.parts}
    assert items["sft-1"].deletable
    damage(broken(world) / "result.json", "cut")
    (broken(world) / "spec.json").unlink()
    items = {i.path.name: i for i in survey(world) if "artifacts" in i.path.parts}
    assert not items["sft-1"].deletable


def test_damaged_metrics_are_left_out_of_curves(world, capfd):
    folder = broken(world)
    digest = write_rows(folder / METRICS, [{"step": 1.0, "loss": 0.5}])
    made = {**read_result(folder), "files": {METRICS: digest}, "folder": str(folder)}
    assert logged_of(made, "loss") == {1.0: 0.5}
    damage(folder / METRICS, "flipped")
    assert logged_of(made, "loss") == {} and "metrics.jsonl is damaged" in capfd.readouterr().err


def test_page_names_a_damaged_run(world):
    damage(broken(world) / "spec.json", "null")
    assert "spec.json is damaged" in page(world)


@pytest.mark.parametrize("kind", [*DAMAGES, "folder"])
def test_damaged_files_of_a_study_are_named(tmp_path, capfd, kind):
    cell = {"seed": 3, "label": "a", "suite": "toy", "folder": "x", "trial": False}
    write_sealed(tmp_path / "cells.json", {"cells": [cell]})
    write_sealed(tmp_path / "tune.json", {"trials": 2, "seed": 4, "rule": "r", "searches": []})
    assert read_cells(tmp_path / "cells.json") == [cell] and read_tuning(tmp_path / "tune.json")
    for name in ("cells.json", "tune.json"):
        damage(tmp_path / name, kind)
    if kind != "list":  # what older versions wrote
        with pytest.raises(Damaged, match=r"cells.json is damaged .*Run the study again"):
            read_cells(tmp_path / "cells.json")
    assert read_tuning(tmp_path / "tune.json") == {}
    assert "tune.json is damaged" in capfd.readouterr().err


def test_failure_is_sealed_too(tmp_path):
    put(tmp_path, failure())
    (file,) = tmp_path.rglob("failure.json")
    damage(file, "flipped")
    with pytest.raises(HarnessError, match=r"failure.json is damaged"):
        list(runs(tmp_path))
    shutil.rmtree(file.parent)
    assert list(runs(tmp_path)) == []


def test_storable_makes_numbers_that_are_not_finite_none():
    values = {"a": math.nan, "b": [1, -math.inf], "c": {"d": 0.5}}
    assert storable(values, "figures") == {"a": None, "b": [1, None], "c": {"d": 0.5}}
    with pytest.raises(HarnessError, match="figures of x cannot be written as JSON.*Return"):
        storable({"a": object()}, "figures of x")


def test_record_without_its_start_checkpoint_is_named_and_the_rest_is_shown(tmp_path):
    broken = record("dpo")
    del broken["ground"]["start_checkpoint"]
    results = put(tmp_path, broken, record("ppo"))
    done = command("table", "--results", results)
    assert "dpo" in done.err and "ground" in done.err and "ppo" in done.out, done.text
