"""Secrets: how they are read, and that nothing written or shown holds one."""

import base64
import io
import sys
from urllib.parse import quote

import pytest

from harness.core.errors import UsageError
from harness.core.files import write_json, write_text
from harness.core.live_rows import LiveRows
from harness.core.options import parse_settings
from harness.core.secrets import RedactingStream, read_secret, redact, refuse_secrets, secrets_of
from harness.core.suite_file import read_suite_file

KEY = "sk-CANARY-7f3a91b2"
MALFORMED = {
    "a line feed within": f"{KEY}\nX-Other: 1",
    "a carriage return within": f"{KEY}\r\nX",
    "a space within": f"{KEY} {KEY}",
    "a tab within": f"{KEY}\tx",
    "an escape code": f"\x1b[31m{KEY}",
    "a null-like control character": f"{KEY}\x01",
    "a letter beyond ASCII": f"{KEY}\u00e9",
    "a zero-width space": f"{KEY}\u200b",
    "a byte-order mark": f"\ufeff{KEY}",
    "typographic quotes": f"\u201c{KEY}\u201d",
    "an undecodable byte": f"{KEY}\udcff",
    "far too long": KEY * 1000,
}


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch):
    monkeypatch.setattr("harness.core.secrets._read", {})


@pytest.mark.parametrize("value", [KEY, f"{KEY}\n", f"{KEY}\r\n", f"  {KEY}\t"])
def test_read_secret_strips_white_space_around_a_key(monkeypatch, value):
    monkeypatch.setenv("ANY_NAME", value)
    assert read_secret("ANY_NAME", "The endpoint") == KEY
    assert redact(f"a {KEY} b") == "a [ANY_NAME] b"


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_read_secret_refuses_a_malformed_key_by_name(monkeypatch, value):
    monkeypatch.setenv("ANY_NAME", value)
    with pytest.raises(UsageError, match="The endpoint: the value of ANY_NAME is") as error:
        read_secret("ANY_NAME", "The endpoint")
    assert "CANARY" not in str(error.value)


@pytest.mark.parametrize("value", ["", "  \n"])
def test_read_secret_refuses_an_empty_key(monkeypatch, value):
    monkeypatch.setenv("ANY_NAME", value)
    with pytest.raises(UsageError, match="needs a key in the environment variable ANY_NAME"):
        read_secret("ANY_NAME", "The endpoint")


def test_redact_finds_every_form_of_a_secret(monkeypatch):
    key = 'sk-"quoted"\\and/slashed+CANARY'
    monkeypatch.setenv("OTHER_TOKEN", key)
    encoded = base64.b64encode(key.encode()).decode()
    forms = [key, repr(key), repr(key.encode()), quote(key, safe=""), encoded, f"Bearer {key}"]
    for form in forms:
        assert "CANARY" not in redact(form) and "[OTHER_TOKEN]" in redact(form)
    assert redact(encoded).count("[OTHER_TOKEN]") == 1


def test_secrets_of_takes_names_that_say_so():
    environment = {
        "HF_TOKEN": "hf_0123456789",
        "WANDB_API_KEY": "0123456789",
        "DB_PASSWORD": "correct horse",
        "TOKENIZERS_PARALLELISM": "false-false",  # the name only begins so
        "MY_TOKEN": "short",
        "SSL_KEY": "/etc/ssl/private.pem",
        "HOME": "/home/somebody",
    }
    assert set(secrets_of(environment)) == {"hf_0123456789", "0123456789", "correct horse"}


def test_redact_removes_the_longest_secret_first(monkeypatch):
    monkeypatch.setenv("A_KEY", "abcdefgh")
    monkeypatch.setenv("B_KEY", "abcdefgh-and-more")
    assert redact("abcdefgh-and-more") == "[B_KEY]"


def test_files_and_streams_hold_no_secret(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HARNESS_API_KEY", f"{KEY}\n")
    write_text(tmp_path / "a", f"header Bearer {KEY}")
    write_json(tmp_path / "b", {"message": f"Invalid header value b'Bearer {KEY}\\n'"})
    assert "CANARY" not in (tmp_path / "a").read_text() + (tmp_path / "b").read_text()
    rows = LiveRows(tmp_path / "rows.jsonl")
    rows.append({"answer": f"key {KEY}"})
    rows.close()
    assert (tmp_path / "rows.jsonl").read_text() == '{"answer": "key [HARNESS_API_KEY]"}\n'
    inner = io.StringIO()
    stream = RedactingStream(inner)
    print(f"key {KEY}", file=stream)
    stream.writelines([KEY, "\n"])
    assert inner.getvalue() == "key [HARNESS_API_KEY]\n[HARNESS_API_KEY]\n"
    assert stream.isatty() is False and stream.encoding == inner.encoding
    print(KEY, file=sys.stderr)
    assert "CANARY" in capsys.readouterr().err  # only redacted streams are


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (f"http://host/{KEY}/v1", "the value of HARNESS_API_KEY"),
        ("hf_" + "a" * 30, "what looks like a key"),
        ("sk-proj-" + "a1" * 12, "what looks like a key"),
    ],
)
def test_options_that_hold_a_secret_are_refused(monkeypatch, tmp_path, value, what):
    monkeypatch.setenv("HARNESS_API_KEY", KEY)
    with pytest.raises(UsageError, match=f"--labeller-set url holds {what}") as error:
        parse_settings([f"url={value}"], "--labeller-set")
    assert value not in str(error.value)
    (tmp_path / "s.toml").write_text(f'data = "{value}"\n')
    with pytest.raises(UsageError, match=f"data holds {what}"):
        read_suite_file(str(tmp_path / "s.toml"))
    refuse_secrets({"model": "sk-learn", "path": "task-123456789012345678"}, "--set")
