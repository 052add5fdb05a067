"""Hub ids without a network: the local cache at once, or one message, never minutes of retries."""

import json
import os
import socket
import subprocess
import sys

import pytest

from harness.core import hub

from ..helpers.tools import ROOT

BASE = ROOT / "suites" / "harness_suites" / "base"
OLD, NEW = "a" * 40, "b" * 40
# nothing listens at this address, so a connection is refused at once
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}


def put(home, kind, name, commit, files, ref):
    """Write files as the hub's cache holds them."""
    folder = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    for file, content in files.items():
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def rows(n, word):
    made = [{"prompt": f"say {i}", "chosen": f"{word} {i}", "rejected": "no"} for i in range(n)]
    return "".join(json.dumps(row) + "\n" for row in made).encode()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("hub")
    put(home, "models", "org/tiny", OLD, {f.name: f.read_bytes() for f in BASE.iterdir()}, "main")
    put(home, "datasets", "org/pairs", NEW, {"train.jsonl": rows(90, "new")}, "main")
    put(home, "datasets", "org/pairs", OLD, {"train.jsonl": rows(40, "old")}, "v1")
    return home


SCRIPT = """
import json
from harness.core.errors import UsageError
from harness.models.hub_format import limits_of, load_tokenizer, read_model
from harness_suites.sources import Source

def of(found):
    try:
        return found()
    except UsageError as error:
        return str(error)

def rows(**source):
    return of(lambda: [row.value["chosen"].split()[0] for row in Source(**source).rows()])

print(json.dumps({
    "tokens": of(lambda: len(load_tokenizer("org/tiny"))),
    "positions": limits_of("org/tiny").positions,
    "model": of(lambda: type(read_model("org/tiny")).__name__),
    "no model": of(lambda: read_model("org/none")),
    "no tokenizer": of(lambda: load_tokenizer("org/none")),
    "main": rows(dataset="org/pairs"),
    "tag": rows(dataset="org/pairs", revision="v1"),
    "commit": rows(dataset="org/pairs", revision="a" * 40),
    "no revision": rows(dataset="org/pairs", revision="v2"),
    "no data": rows(dataset="org/none"),
    "no split": rows(dataset="org/pairs", split="nope"),
}))
"""


@pytest.fixture(scope="module")
def found(home):
    """What a process without a network finds, and what it says meanwhile."""
    environment = {**os.environ, **NOWHERE, "HF_HOME": str(home)}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Retrying" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_model_in_the_cache_is_used(found):
    assert found["tokens"] == 296 and found["positions"] == 256
    assert found["model"] == "LlamaForCausalLM"


def test_data_in_the_cache_are_of_the_revision_that_is_asked_for(found):
    assert found["main"] == ["new"] * 90
    assert found["tag"] == found["commit"] == ["old"] * 40
    assert "Unknown split" in found["no split"] and "Name the split" in found["no split"]


@pytest.mark.parametrize(
    ("what", "download"),
    [
        ("no model", "hf download org/none`"),
        ("no tokenizer", "hf download org/none`"),
        ("no data", "hf download org/none --repo-type dataset`"),
        ("no revision", "hf download org/pairs --repo-type dataset`"),
    ],
)
def test_what_is_not_there_is_refused_with_the_alternative(found, what, download):
    said = found[what]
    assert NOWHERE["HF_ENDPOINT"] + " cannot be reached" in said
    assert "Name a folder, or run" in said and download in said


def test_hub_that_does_not_answer_is_tried_once_and_not_for_long(monkeypatch):
    tried = []

    def connect(address, timeout):
        tried.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setattr(hub, "_SWITCHES", {})
    hub.reachable.cache_clear()
    try:
        assert hub.offline("org/name") and hub.offline("other/name")
        assert tried == [hub.PATIENCE] and hub.PATIENCE <= 10
    finally:
        hub.reachable.cache_clear()


@pytest.mark.parametrize("name", [".", "/absent/folder", "a/b/c", "./model", "~/model"])
def test_name_that_is_no_hub_id_needs_no_hub(name, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the hub was asked"))
    assert not hub.offline(name)


def test_proxy_is_trusted_to_reach_the_hub(monkeypatch):
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("was tried"))
    hub.reachable.cache_clear()
    try:
        assert hub.reachable()
    finally:
        hub.reachable.cache_clear()
