"""Bundles: what they hold, what a reader refuses, and that a forged one is still checked."""

import json
import os
import shutil
import zipfile

import pytest

from harness.core.archives import OddArchive
from harness.core.errors import Refused, UsageError
from harness.core.records import write_sealed
from harness.experiments.bundle import MANIFEST, SCHEMA, is_bundle, opened, pack, servers_of

from ..helpers.bundles import archive, contents, packed, rewritten, study
from ..helpers.tools import failure, put

RUN = "runs/toy/dpo/seed0-000000000000"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bundle of three methods with two seeds each."""
    return packed(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def bundle(whole, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copy(whole, tmp_path / "copy.zip")


def read(path):
    """Open a bundle and leave it again."""
    with opened(path) as bundle:
        return bundle


def test_pack_of_equal_records_gives_equal_bytes(whole, tmp_path):
    again = packed(tmp_path, "other.zip")
    assert again.read_bytes() == whole.read_bytes()


def test_pack_holds_every_record_and_no_weights(tmp_path):
    results = study(tmp_path / "results")
    weights = results / RUN / "policy"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")
    (results / RUN / "checkpoint").mkdir()
    made = pack(results, "mine", tmp_path)
    assert made.path == tmp_path / "mine.zip" and (made.finished, made.missing) == (6, 0)
    names = set(contents(made.path))
    ends = {"spec.json", "provenance.json", "result.json", "samples.jsonl"}
    assert {f"{RUN}/{name}" for name in ends} == {n for n in names if n.startswith(RUN)}
    assert {"studies/mine/cells.json", "studies/mine/study.toml", MANIFEST} <= names
    read_back = read(made.path)
    (digest,) = read_back.weights["toy/dpo/seed0-000000000000"].values()
    assert len(digest) == 64 and len(read_back.runs) == 6


def test_pack_counts_failed_and_missing_runs(tmp_path):
    results = study(tmp_path / "results")
    put(results, failure("kto"))
    cells = json.loads((results / "studies/mine/cells.json").read_text())["cells"]
    more = {"label": "kto", "folder": "runs/toy/kto/seed0-000000000000"}
    lost = {"label": "gone", "folder": "runs/toy/gone/seed0-000000000000"}
    cells += [{**cells[0], **more}, {**cells[0], **lost}]
    write_sealed(results / "studies/mine/cells.json", {"cells": cells})
    made = pack(results, "mine", tmp_path / "x.zip")
    assert (made.finished, made.failed, made.missing) == (6, 1, 1)
    assert len(read(made.path).runs) == 6


def test_pack_refuses_a_missing_study_and_one_without_runs(tmp_path):
    results = study(tmp_path / "results")
    with pytest.raises(UsageError, match=r"no study 'other'.*Known: mine"):
        pack(results, "other", tmp_path / "x.zip")
    shutil.rmtree(results / "runs")
    with pytest.raises(UsageError, match="no finished run"):
        pack(results, "mine", tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_pack_redacts_a_secret_of_the_study_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "a-very-long-secret")
    results = study(tmp_path / "results")
    (results / "studies/mine/study.toml").write_text('# a-very-long-secret\nsuites = ["toy"]\n')
    text = contents(pack(results, "mine", tmp_path / "x.zip").path)["studies/mine/study.toml"]
    assert text.startswith(b"# [SOME_API_KEY]\n")


def test_pack_refuses_a_sealed_record_with_a_secret(tmp_path, monkeypatch):
    results = study(tmp_path / "results")
    monkeypatch.setenv("SOME_TOKEN", "some words")  # an answer of the records
    with pytest.raises(Refused, match="holds a key"):
        pack(results, "mine", tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_bundle_has_the_suffix_or_begins_as_an_archive(whole, tmp_path):
    renamed = shutil.copy(whole, tmp_path / "main")
    assert is_bundle(str(whole)) and is_bundle("missing.zip") and is_bundle(str(renamed))
    (tmp_path / "main").write_text("a file that is called as a study")
    assert not is_bundle(str(tmp_path / "main"))
    assert not is_bundle("mine") and not is_bundle(str(whole.parent))


@pytest.mark.parametrize(
    "name", [f"{RUN}/samples.jsonl", f"{RUN}/spec.json", "studies/mine/study.toml"]
)
def test_opened_refuses_content_that_its_manifest_does_not_list(name, bundle):
    changed = contents(bundle)[name].replace(b"o", b"0", 1) + b" "
    rewritten(bundle, {name: changed}, sealed=False)
    with pytest.raises(OddArchive, match=f"SHA-256 of {name}"):
        read(bundle)


def test_opened_refuses_a_manifest_that_was_edited(bundle):
    manifest = json.loads(contents(bundle)[MANIFEST])
    manifest["study"] = "other"
    rewritten(bundle, {MANIFEST: json.dumps(manifest).encode()}, sealed=False)
    with pytest.raises(OddArchive, match="bundle.json is not what was written"):
        read(bundle)


def test_opened_checks_the_seals_inside_a_forged_manifest(bundle):
    """A forger who makes the digests fit must also seal the records again."""
    name = f"{RUN}/result.json"
    better = contents(bundle)[name].replace(b'"mean": 0.7', b'"mean": 0.9', 1)
    assert better != contents(bundle)[name]
    rewritten(bundle, {name: better})
    with pytest.raises(OddArchive, match=r"result\.json is not what was written"):
        read(bundle)


def test_opened_checks_the_digest_of_answers_in_a_sealed_record(bundle):
    name = f"{RUN}/samples.jsonl"
    rewritten(bundle, {name: contents(bundle)[name].replace(b"word", b"w0rd", 1)})
    with pytest.raises(OddArchive, match=r"samples\.jsonl is not what was written"):
        read(bundle)


def test_opened_refuses_another_schema_and_names_the_version(bundle):
    manifest = json.loads(contents(bundle)[MANIFEST]) | {"schema": SCHEMA + 1, "harness": "9.1"}
    rewritten(bundle, {MANIFEST: json.dumps(manifest).encode()})
    with pytest.raises(UsageError, match=rf"schema {SCHEMA + 1}.*reads schema {SCHEMA}.*9\.1"):
        read(bundle)


def test_opened_refuses_records_of_a_newer_harness(bundle, tmp_path):
    name = f"{RUN}/result.json"
    result = json.loads(contents(bundle)[name]) | {"schema": 99}
    write_sealed(tmp_path / "result.json", result)
    rewritten(bundle, {name: (tmp_path / "result.json").read_bytes()})
    with pytest.raises(UsageError, match="records of a newer harness.*Upgrade"):
        read(bundle)


@pytest.mark.parametrize(
    "name", ["runs/toy/dpo/seed0-000000000000/run.py", "studies/other/cells.json", "setup.py"]
)
def test_opened_refuses_a_file_that_belongs_to_no_record(name, bundle):
    rewritten(bundle, {name: b"import os"})
    with pytest.raises(OddArchive, match="belongs to no record"):
        read(bundle)


def test_opened_refuses_cells_that_name_a_folder_elsewhere(bundle, tmp_path):
    cells = json.loads(contents(bundle)["studies/mine/cells.json"])["cells"]
    for folder in ("runs/../../../etc", "/etc/a/b/c", "runs/toy/dpo"):
        file = tmp_path / "cells.json"
        write_sealed(file, {"cells": [{**cells[0], "folder": folder}]})
        rewritten(bundle, {"studies/mine/cells.json": file.read_bytes()})
        with pytest.raises(OddArchive, match=r"cells\.json names the folder"):
            read(bundle)


def test_opened_refuses_other_archives(tmp_path):
    with pytest.raises(OddArchive, match="another kind of archive"):
        read(archive(tmp_path / "x.zip", {"a": b"1"}))
    (tmp_path / "y.zip").write_bytes(b"no archive")
    with pytest.raises(OddArchive, match="no intact bundle"):
        read(tmp_path / "y.zip")


def test_opened_leaves_no_folder_behind(whole, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    os.mkdir(tmp_path / "t")
    read(whole)
    bundle.write_bytes(bundle.read_bytes()[:-40])
    with pytest.raises(OddArchive):
        read(bundle)
    assert not list((tmp_path / "t").iterdir())


def test_folder_of_an_unknown_run_is_refused(whole):
    with pytest.raises(UsageError, match=r"no finished run 'x'.*toy/dpo"):
        read(whole).folder("x")


def test_archive_of_a_bundle_has_no_time_and_no_owner(whole):
    with zipfile.ZipFile(whole) as made:
        assert {entry.date_time for entry in made.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.extra for entry in made.infolist()} == {b""}


def test_servers_of_a_spec_are_found_in_nested_options():
    from dataclasses import dataclass, field

    @dataclass
    class Spec:
        labeller_options: dict = field(default_factory=lambda: {"url": "https://evil.example/v1"})
        suite_options: tuple = (("judge", "HTTP://other.example"),)
        method: str = "dpo"

    assert servers_of(Spec()) == ["HTTP://other.example", "https://evil.example/v1"]
