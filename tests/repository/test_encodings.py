"""Text files are read and written as UTF-8, whatever the locale of the machine is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("harness", "plugins", "suites", "results", "benchmarks")
# `open` of these gives bytes, or opens no text file.
NO_TEXT = ("gzip", "bz2", "lzma", "os", "tarfile", "archive", "client", "asker")


def _owner(function):
    """Return the last name before the called one: `self.client.open` gives "client"."""
    value = getattr(function, "value", None)
    return getattr(value, "attr", getattr(value, "id", ""))


def _mode(call, function):
    position = 1 if isinstance(function, ast.Name) or function.attr == "fdopen" else 0
    found = [word.value for word in call.keywords if word.arg == "mode"]
    found += call.args[position : position + 1]
    return found[0].value if found and isinstance(found[0], ast.Constant) else "r"


def _leaves_the_encoding_open(call):
    """Return whether a call reads or writes text in the encoding of the locale."""
    function, words = call.func, {word.arg for word in call.keywords}
    name = getattr(function, "attr", getattr(function, "id", ""))
    if words & {"encoding", None}:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name in ("open", "fdopen"):
        return "b" not in str(_mode(call, function)) and (
            name == "fdopen" or _owner(function) not in NO_TEXT
        )
    return name in ("run", "Popen", "check_output") and bool(words & {"text", "universal_newlines"})


def _places(source):
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if _leaves_the_encoding_open(call)]


def test_every_text_file_names_its_encoding():
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 200
    found = {str(f.relative_to(ROOT)): _places(f.read_text(encoding="utf-8")) for f in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "Path(a).read_text()",
        "path.write_text(text)",
        "open(path)",
        "path.open('a')",
        "os.fdopen(1, 'w')",
        "subprocess.run(command, text=True)",
    ],
)
def test_negative_control_an_open_encoding_is_found(source):
    assert _places(source) == [1]


@pytest.mark.parametrize(
    "source",
    [
        "Path(a).read_text(encoding='utf-8')",
        "path.open('rb')",
        "gzip.open(path)",
        "subprocess.run(command, capture_output=True)",
    ],
)
def test_bytes_and_named_encodings_pass(source):
    assert _places(source) == []
