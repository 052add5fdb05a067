"""Artifacts, atomic writes, locks, run folders and what reads them: crashes lose nothing and lie
about nothing.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from harness.core.artifacts import MANIFEST, Artifacts
from harness.core.errors import HarnessError, Refused
from harness.core.files import lock, make_folder, write_json, write_text
from harness.core.run_folder import (
    SAMPLES,
    flatten,
    load_results,
    provenance,
    read_result,
    read_rows,
    rows_behind,
    runs,
    unspent,
    write_rows,
)

from ..helpers.tools import (
    ENV,
    command,
    estimate,
    failure,
    finished,
    on_small,
    process,
    put,
    record,
    results,
)


class Maker:
    """Makes an artifact and counts how often."""

    def __init__(self, text="made"):
        self.calls, self.text, self.scratch = 0, text, None

    def __call__(self, output, scratch):
        self.calls += 1
        self.scratch = sorted(f.name for f in scratch.iterdir())
        (output / "sub").mkdir()
        (output / "sub" / "a.txt").write_text(self.text)
        return {"steps": 3}, {"phases": {}, "models": {}}


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path / "artifacts")


# -- artifacts -------------------------------------------------------------------------------------


def test_same_inputs_are_made_once(artifacts):
    make = Maker()
    first = artifacts.get_or_make("sft", {"a": 1, "b": [2.5, None]}, make)
    again = artifacts.get_or_make("sft", {"b": [2.5, None], "a": 1}, make)
    elsewhere = Artifacts(artifacts.root).get_or_make("sft", {"a": 1, "b": [2.5, None]}, make)
    assert make.calls == 1 and not first.reused and again.reused and elsewhere.reused
    assert first.folder == again.folder and first.content == again.content
    assert (again.info, again.cost) == (first.info, first.cost)
    assert (first.folder / "sub" / "a.txt").read_text() == "made"


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("sft", {"a": 2, "b": 1}),
        ("sft", {"a": 1}),
        ("sft", {"a": 1, "b": 1, "c": 0}),
        ("sft", {"a": "1", "b": 1}),
        ("reward", {"a": 1, "b": 1}),
    ],
)
def test_any_other_input_is_made_anew(artifacts, kind, inputs):
    make = Maker()
    first = artifacts.get_or_make("sft", {"a": 1, "b": 1}, make)
    other = artifacts.get_or_make(kind, inputs, make)
    assert make.calls == 2 and first.folder != other.folder and not other.reused


def test_content_is_of_the_bytes_not_of_the_name(artifacts):
    first, same = (artifacts.get_or_make("x", {"a": a}, Maker("same")) for a in (1, 2))
    other = artifacts.get_or_make("x", {"a": 3}, Maker("other"))
    assert first.content == same.content != other.content


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "empty"])
def test_damaged_file_is_detected(artifacts, damage):
    make = Maker()
    made = artifacts.get_or_make("sft", {"a": 1}, make)
    file = made.folder / "sub" / "a.txt"
    if damage == "delete":
        file.unlink()
    else:
        file.write_text({"flip": "mode", "cut": "mad", "empty": ""}[damage])
    with pytest.raises(
        HarnessError,
        match=r"sft-\w+/sub/a.txt is damaged .it was changed .* Delete the folder",
    ):
        artifacts.get_or_make("sft", {"a": 1}, make)
    assert make.calls == 1


@pytest.mark.parametrize("content", [None, "", "{", "{}"])
def test_damaged_manifest_is_detected(artifacts, content):
    made = artifacts.get_or_make("sft", {"a": 1}, Maker())
    (
        (made.folder / MANIFEST).unlink()
        if content is None
        else (made.folder / MANIFEST).write_text(content)
    )
    with pytest.raises(HarnessError, match="damaged"):
        artifacts.get_or_make("sft", {"a": 1}, Maker())


def test_crash_while_making_leaves_nothing_and_scratch_survives(artifacts):
    def crash(output, scratch):
        (output / "half.txt").write_text("half")
        (scratch / "checkpoint").write_text("kept")
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        artifacts.get_or_make("sft", {"a": 1}, crash)
    assert [f.name for f in artifacts.root.iterdir()] == [".work"]
    make = Maker()
    made = artifacts.get_or_make("sft", {"a": 1}, make)
    assert make.scratch == ["checkpoint"] and not (made.folder / "half.txt").exists()
    assert not list((artifacts.root / ".work").rglob("checkpoint"))


def child(code, *args):
    """Start a Python process that says "ready" when it has reached the point of interest."""
    begun = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENV},
    )
    assert begun.stdout.readline() == "ready\n"
    return begun


def kill(begun):
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    begun.stdout.close()


KILLED_MAKER = """
import sys, time
from pathlib import Path
from threading import Thread
from harness.core.artifacts import Artifacts

def make(output, scratch):
    (output / "half.txt").write_text("half")
    (scratch / "checkpoint").write_text("kept")
    print("ready", flush=True)
    time.sleep(60)

Artifacts(Path(sys.argv[1])).get_or_make("sft", {"a": 1}, make)
"""


def test_kill_while_making_leaves_nothing_and_no_lock(artifacts):
    kill(child(KILLED_MAKER, artifacts.root))
    make = Maker()
    made = artifacts.get_or_make("sft", {"a": 1}, make)
    assert (
        make.scratch == ["checkpoint"]
        and [f.name for f in made.folder.iterdir() if "half" in f.name] == []
    )


# -- atomic writes ---------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from threading import Thread
from harness.core.files import write_json
for i in range(10**9):
    write_json(Path(sys.argv[1]), {"number": i, "text": "x" * 200_000, "again": i})
    if i == 0:
        print("ready", flush=True)
"""


def test_killed_writer_leaves_whole_json(tmp_path):
    file, rng = tmp_path / "result.json", random.Random(0)
    for _ in range(20):
        writer = child(WRITER, file)
        time.sleep(rng.random() * 0.02)
        kill(writer)
        value = json.loads(file.read_text())
        assert value["number"] == value["again"] and len(value["text"]) == 200_000


def test_write_that_fails_keeps_the_old_file(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"old": 1})
    for bad in ({"nan": float("nan")}, {"inf": float("inf")}, {"object": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(file, bad)
    assert json.loads(file.read_text()) == {"old": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_rows_round_trip(tmp_path):
    rows = [{"b": 1.5, "a": "line\u2028 \x85 \x0b \n \U0001f600 \ud800"}, {}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    write_text(tmp_path / "empty.jsonl", "")
    assert read_rows(tmp_path / "empty.jsonl") == []
    with pytest.raises(ValueError):
        write_rows(tmp_path / "rows.jsonl", [{"x": float("nan")}])
    assert read_rows(tmp_path / "rows.jsonl") == rows


# -- locks and folders -----------------------------------------------------------------------------

OWNER = """
import sys, time
from pathlib import Path
from threading import Thread
from harness.core.files import lock
with lock(Path(sys.argv[1]), "The run", wait=False):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_second_owner_is_refused_and_told_the_first(tmp_path):
    owner = child(OWNER, tmp_path)
    try:
        with pytest.raises(
            Refused, match=rf"The run is in use by process {owner.pid} on \S+ \(.*\). Wait for it"
        ):
            with lock(tmp_path, "The run", wait=False):
                pass
    finally:
        kill(owner)
    with lock(tmp_path, "The run", wait=False):
        assert str(os.getpid()) in (tmp_path / ".owner").read_text()
    assert not (tmp_path / ".owner").exists()


def test_run_in_use_is_refused_until_its_owner_dies():
    folder = finished("start")
    owner = child(OWNER, folder)
    try:
        done = command(*on_small("start", results=results()))
        assert (
            done.code == 3 and f"process {owner.pid}" in done.err and "Traceback" not in done.text
        )
    finally:
        kill(owner)
    again = command(*on_small("start", results=results()))
    assert again.code == 0 and "finished before" in again.out


@pytest.mark.parametrize("place", ["/proc/nowhere/results", "below a file"])
def test_folder_that_cannot_be_written_is_refused(tmp_path, place):
    if place == "below a file":
        (tmp_path / "file").write_text("")
        place = str(tmp_path / "file" / "results")
    with pytest.raises(Refused, match="Cannot write to .*Choose another folder with --results"):
        make_folder(Path(place))
    done = process("run", "-m", "start", "-s", "summarization", "--quick", "--results", place)
    assert done.code == 3 and "Cannot write to" in done.err and "Traceback" not in done.text


# -- reading ---------------------------------------------------------------------------------------


def test_load_results_has_dotted_columns_and_failures(tmp_path):
    put(tmp_path, record("dpo"), record("ppo", seed=2, win=0.75), failure("ppo", seed=3))
    frame = load_results(tmp_path)
    assert type(frame).__name__ == "DataFrame" and len(frame) == 3
    assert {
        "folder",
        "method",
        "seed",
        "evaluation.win_rate.mean",
        "cost.method.flops",
        "options.beta",
    } <= set(frame)
    ppo = frame[(frame.method == "ppo") & (frame.seed == 2)].iloc[0]
    assert (
        ppo["evaluation.win_rate.mean"] == estimate(0.75)["mean"]
        and Path(ppo.folder, "result.json").exists()
    )
    failed = frame[frame.status == "diverged"]
    assert list(failed.seed) == [3] and "nan" in failed.iloc[0].failure


def test_load_results_of_a_real_run():
    folder = finished("start")
    frame = load_results(results())
    (row,) = [r for _, r in frame.iterrows() if r.folder == str(folder)]
    assert (
        row.method == "start"
        and row["evaluation.prompts"] == 24
        and row["cost.budget_used.steps"] == 0
    )


def test_load_results_of_nothing(tmp_path):
    assert len(load_results(tmp_path)) == len(load_results(tmp_path / "nowhere")) == 0


def test_result_stands_over_a_failure(tmp_path):
    put(tmp_path, record())
    (folder,) = (tmp_path / "runs" / "toy" / "dpo").iterdir()
    write_json(folder / "failure.json", failure())
    assert [r["status"] for _, r in runs(tmp_path)] == ["finished"]


def test_unfinished_run_is_no_run(tmp_path):
    folder = tmp_path / "runs" / "toy" / "dpo" / "seed0-abc"
    folder.mkdir(parents=True)
    write_json(folder / "spec.json", {})
    assert list(runs(tmp_path)) == [] and read_result(folder) is None


def test_newer_schema_is_refused(tmp_path):
    put(tmp_path, record(schema=4))
    with pytest.raises(HarnessError, match=r"written by a newer harness \(schema 4\)"):
        load_results(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1'])
def test_damaged_result_is_named(tmp_path, content):
    put(tmp_path, record())
    (file,) = tmp_path.rglob("result.json")
    file.write_bytes(content)
    with pytest.raises(
        HarnessError, match=r"result.json is damaged .* Delete the folder .* and run again"
    ):
        list(runs(tmp_path))
    with pytest.warns(UserWarning, match="result.json is damaged"):
        assert len(load_results(tmp_path)) == 0


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"null"])
def test_result_of_another_kind_is_named(tmp_path, content):
    put(tmp_path, record())
    (file,) = tmp_path.rglob("result.json")
    file.write_bytes(content)
    with pytest.raises(HarnessError, match="damaged"):
        list(runs(tmp_path))


def schema_1(results):
    """Write the run of `start` as a harness of schema 1 did, with its former names."""
    named = {"baseline": "sft", "baseline_gold": "sft_gold"}
    r = record("start")
    put(results, r)
    (folder,) = results.glob("runs/*/*/*")
    rows = [{named.get(k, k): v for k, v in row.items()} for row in read_rows(folder / SAMPLES)]
    digest = write_rows(folder / SAMPLES, rows)
    figures = {k.replace("baseline", "reference"): v for k, v in r["evaluation"].items()}
    former = {"schema": 1, "method": "sft", "evaluation": figures, "files": {SAMPLES: digest}}
    write_json(folder / "result.json", r | former)
    return folder


def test_records_of_schema_1_are_read_with_the_names_of_today(tmp_path):
    folder = schema_1(tmp_path)
    read = read_result(folder)
    assert read["method"] == "start" and read["evaluation"]["baseline_gold"] == 1.0
    rows = rows_behind({**read, "folder": str(folder)}, SAMPLES)
    assert rows[0]["baseline"] == "some words" and not any("sft" in key for key in rows[0])
    assert load_results(tmp_path)["method"].tolist() == ["start"]


def test_records_of_schema_1_stand_in_tables(tmp_path):
    schema_1(tmp_path)
    done = command("table", "--results", tmp_path, "--methods", "sft", "--columns", "method,gold")
    assert done.code == 0 and "| start " in done.out, done.text


def test_newer_failure_is_refused(tmp_path):
    put(tmp_path, failure(schema=4))
    with pytest.raises(HarnessError, match="newer harness"):
        load_results(tmp_path)


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": {}}) == {
        "a.b.c": 1,
        "a.d": [1, {"e": 2}],
    }


@pytest.mark.parametrize(
    ("left", "asked", "told"),
    [
        ({}, 0, {}),
        ({"steps": 3}, 0, {"steps": 3}),
        ({"steps": 0}, 0, {}),
        ({"steps": -1, "tokens": 50}, 0, {}),
        ({"labels": 5}, 0, {}),
        ({"labels": 6}, 0, {"labels": 6}),
        ({"labels": -4}, 90, {}),
        ({"steps": 3, "labels": 5}, 0, {"steps": 3, "labels": 5}),
        ({"steps": 3, "labels": -2}, 90, {}),
    ],
)
@pytest.mark.parametrize("kind", ["labels", "ai_labels"])
def test_budget_is_unspent_where_no_limit_was_reached(left, asked, told, kind):
    assert unspent({"cost": {"budget_left": left, "method": {kind: asked}}}, completions=4) == told
    assert unspent({}, completions=4) == {}


def test_threads_of_one_process_number_probe_one_folder(tmp_path):
    """As two hosts or containers do that have a process of the same number on a shared disk."""
    refused: list[Exception] = []

    def probe():
        for _ in range(300):
            try:
                make_folder(tmp_path / "shared")
            except Refused as error:
                refused.append(error)

    threads = [Thread(target=probe) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not refused and list((tmp_path / "shared").iterdir()) == []


def test_provenance_writes_paths_below_the_current_folder_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["harness", "run", "--results", str(tmp_path / "mine"), "--model", "/elsewhere/x"]
    monkeypatch.setattr(sys, "argv", words)
    command = provenance({})["command"]
    assert command == ["harness", "run", "--results", "mine", "--model", "/elsewhere/x"]
