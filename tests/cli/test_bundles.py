"""Bundles on the command line: one message and exit status 2 for whatever is wrong with one."""

import json
import shutil
from dataclasses import dataclass

import pytest

from harness.cli.bundles import reproduce_bundle
from harness.core.errors import Refused
from harness.experiments import reproduce
from harness.experiments.bundle import MANIFEST
from harness.experiments.reproduce import Recorded, ReproduceOptions, Verdict

from ..helpers.bundles import contents, packed, rewritten, seal, study, write_cells
from ..helpers.tools import command, finished, small_suite

RUN = "toy/dpo/seed0-000000000000"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("cli"))


def refused(*arguments, word):
    """Assert that a command ends with exit status 2 and one message that holds a word."""
    done = command(*arguments)
    lines = [line for line in done.err.splitlines() if line.startswith("harness: ")]
    assert (done.code, len(lines)) == (2, 1), done.text
    assert word in done.err and "Traceback" not in done.text


def test_report_packs_a_study_and_reproduce_checks_its_seals(tmp_path):
    results = study(tmp_path / "results")
    done = command("report", "mine", "--results", results, "--bundle", tmp_path / "x.zip")
    assert done.code == 0 and "6 finished runs, 0 failed" in done.out
    done = command("reproduce", tmp_path / "x.zip", "--sample", "0")
    assert done.code == 0 and "26 files, 6 finished runs" in done.out


def test_report_of_bundles_writes_a_leaderboard(whole, tmp_path):
    done = command("report", whole, "-o", tmp_path / "page.html")
    assert done.code == 0, done.text
    assert "<h1>Leaderboard</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other schema", "other file"])
def test_damaged_bundle_ends_in_one_message(damage, whole, tmp_path):
    bundle = shutil.copy(whole, tmp_path / "copy.zip")
    content = bundle.read_bytes()
    if damage == "cut":
        bundle.write_bytes(content[:-50])
    elif damage == "flipped":
        at = len(content) // 2
        bundle.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
    elif damage == "empty":
        bundle.write_bytes(b"")
    elif damage == "other schema":
        manifest = json.loads(contents(bundle)[MANIFEST]) | {"schema": 2}
        rewritten(bundle, {MANIFEST: json.dumps(manifest).encode()})
    else:
        rewritten(bundle, {"../../out": b"mine"})
    refused("report", bundle, "-o", tmp_path / "page.html", word="copy.zip")
    assert not (tmp_path / "page.html").exists()
    refused("reproduce", bundle, "--sample", "0", word="copy.zip")


def test_arguments_that_do_not_go_together_are_refused(whole, tmp_path):
    refused("report", "mine", whole, word="name one kind")
    refused("report", "mine", "other", word="Name one study")
    refused("report", "--bundle", tmp_path / "x.zip", word="packs one STUDY")
    refused("report", whole, "--prompts", "3", word="--prompts")
    refused("report", "missing.zip", word="no such file")
    refused("reproduce", whole, "--run", "toy/x/y", word="no finished run")
    refused("reproduce", whole, "--sample", "7", word="6 finished runs")
    refused("reproduce", whole, "--sample", "1", "--run", RUN, word="leave one of them out")
    refused("reproduce", tmp_path, "--sample", "1", word="is no bundle")


def bundle_of_a_real_run(folder, change=None):
    """Return the bundle of one quick run on `small`, and the run's name in it."""
    name = "/".join(finished("dpo").parts[-3:])
    target = folder / "results/runs" / name
    shutil.copytree(finished("dpo"), target)
    if change:
        change(target)
        seal(target)
    write_cells(folder / "results", [target], "mine")
    done = command("report", "mine", "--results", folder / "results", "--bundle", folder)
    assert done.code == 0, done.text
    return folder / "mine.zip", name


@pytest.mark.slow
def test_reproduce_repeats_a_run_of_a_bundle_byte_by_byte(tmp_path):
    bundle, name = bundle_of_a_real_run(tmp_path)
    done = command("reproduce", bundle, "-p", small_suite())
    assert done.code == 0, done.text
    assert f"run        {name}" in done.out and "identical: all" in done.out
    assert "same       policy/model.safetensors" in done.out


@pytest.mark.slow
def test_reproduce_finds_a_figure_that_a_forger_made(tmp_path):
    def better(folder):
        """Turn one lost prompt into a won one, and make the digest fit."""
        lines = (folder / "samples.jsonl").read_text(encoding="utf-8")
        (folder / "samples.jsonl").write_text(lines.replace('"win": 0.0', '"win": 1.0', 1))

    bundle, _ = bundle_of_a_real_run(tmp_path, better)
    done = command("reproduce", bundle, "-p", small_suite())
    assert done.code == 1, done.text
    assert "different" in done.out and "samples.jsonl" in done.out


def test_run_that_would_send_a_key_to_a_server_is_refused(whole, monkeypatch):
    @dataclass(frozen=True)
    class Spec:
        labeller_options: tuple = (("url", "https://evil.example/v1"),)

    recorded = Recorded(whole, Spec(), {}, {})
    monkeypatch.setattr(reproduce, "read_run", lambda folder, data: recorded)
    monkeypatch.setattr(reproduce, "reproduce", lambda run, *_: Verdict([], [], run.folder))
    with pytest.raises(Refused, match=r"evil\.example.*Nothing was run"):
        reproduce_bundle(whole, None, ReproduceOptions(), None, None, [RUN])
    assert reproduce_bundle(whole, None, ReproduceOptions(anyway=True), None, None, [RUN]) == 0
