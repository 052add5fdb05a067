"""Locks name their holder, temporary names differ between hosts, and pipes are refused."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.core import files
from harness.core.errors import Refused, UsageError
from harness.core.files import beside, lock, make_folder, write_text
from harness.core.model_folder import adapter_in
from harness.core.suite_file import read_suite_file
from harness.experiments.study.file import read_study

from ..helpers.tools import command, on_small

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom harness.core.files import lock\n"
    "with lock(Path(sys.argv[1]), 'x', wait=False):\n    print('held', flush=True)\n"
    "    time.sleep(float(sys.argv[2]))\n"
)


def holder(folder, seconds):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    child.stdout.close()
    return child


def test_lock_names_whom_it_waits_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "REMIND_SECONDS", 0.2)
    child = holder(tmp_path, 1.5)
    with lock(tmp_path, "The artifact sft-1", wait=True):
        pass
    child.wait()
    told = capsys.readouterr().err.splitlines()
    named = f"process {child.pid} on {socket.gethostname()}"
    assert told and told[0].startswith(
        f"harness: waiting for {named}, which makes the artifact sft-1, for 0 s"
    )


def test_lock_refuses_with_the_holder(tmp_path):
    child = holder(tmp_path, 30)
    with pytest.raises(Refused, match=f"in use by process {child.pid} on "):
        with lock(tmp_path, "The run", wait=False):
            pass
    child.kill()
    child.wait()


def test_write_text_of_two_hosts_with_equal_process_ids(tmp_path, monkeypatch):
    """Two threads stand for two containers: each has process id 1 and a host name of its own."""
    names, texts = threading.local(), ["a" * 50_000, "b" * 50_000]
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(socket, "gethostname", lambda: names.host)
    failures, file = [], tmp_path / "shared.json"

    def write(host, text):
        names.host = host
        try:
            for _ in range(200):
                write_text(file, text)
                make_folder(tmp_path / "shared")
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=write, args=(host, text))
        for host, text in zip(("one", "two"), texts, strict=True)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not file.exists() or file.read_text() in texts  # never a mixture, never cut
        time.sleep(0.001)
    assert not failures and sorted(f.name for f in tmp_path.iterdir()) == ["shared", "shared.json"]


def test_beside_never_gives_a_name_twice(tmp_path):
    long = tmp_path / ("n" * 250)
    made = {beside(path) for path in (tmp_path / "a", long) for _ in range(100)}
    assert len(made) == 200 and all(len(path.name) <= 255 for path in made)


def test_lock_removes_what_a_killed_process_was_writing(tmp_path):
    beside(tmp_path / "result.json").write_text("half")
    (tmp_path / ".keep").write_text("")
    with lock(tmp_path, "x", wait=False):
        assert {".keep", ".lock", ".owner"} == {f.name for f in tmp_path.iterdir()}


@pytest.fixture
def pipe(tmp_path):
    def make(name):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        return path

    return make


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_model_folder_with_a_pipe_is_refused(pipe, tmp_path, name):
    pipe(f"model/{name}")
    with pytest.raises(UsageError, match=f"{name} is no regular file"):
        adapter_in(tmp_path / "model")


def test_suite_and_study_files_that_are_pipes_are_refused(pipe):
    with pytest.raises(UsageError):
        read_suite_file(str(pipe("suite.toml")))
    with pytest.raises(UsageError):
        read_study(pipe("study.toml"))
    for endless in ("/dev/zero", "/dev/stdin"):
        with pytest.raises(UsageError):
            read_study(Path(endless))


def test_run_refuses_pipes_with_one_message(pipe, tmp_path):
    plugin = command(*on_small("dpo", "-p", pipe("plugin.py"), results=tmp_path / "r"))
    assert plugin.code == 2 and "Traceback" not in plugin.text, plugin.text
    pipe("model/config.json")
    model = command(*on_small("dpo", "--model", tmp_path / "model", results=tmp_path / "r"))
    assert model.code == 2 and "no regular file" in model.err, model.text
    data = pipe("rows.jsonl")
    suite = tmp_path / "own.toml"
    suite.write_text(f'suite = "preference_file"\ndataset = "{data}"\n')
    done = command("run", "-m", "dpo", "-s", suite, "--results", tmp_path / "r")
    assert done.code == 2 and "Traceback" not in done.text, done.text
