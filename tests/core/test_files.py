"""Atomic writes, and full disks."""

import errno
from types import SimpleNamespace

import pytest

from harness.core.files import NoSpace, full_disk, write_text, writing

# -- full disks ------------------------------------------------------------------------------------


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_names_file_and_bytes_and_keeps_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_text(file, "before")
    monkeypatch.setattr("harness.core.files.os.fsync", full)
    with pytest.raises(NoSpace, match=r"No space for .*a.json of 2,000 bytes: [\d,]+ bytes are"):
        write_text(file, "x" * 2000)
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"] and file.read_text() == "before"


def test_disk_without_inodes_says_so(tmp_path, monkeypatch):
    disk = SimpleNamespace(f_files=20, f_favail=0, f_bavail=10, f_frsize=4096)
    monkeypatch.setattr("harness.core.files.os.statvfs", lambda path: disk)
    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(NoSpace, match=r"a.json.*no inodes are left"):
        write_text(tmp_path / "a.json", "x")


def test_full_disk_that_no_writer_names_is_told_alike(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))
    assert full_disk(error).startswith(f"No space for {tmp_path / 'a'}: ")
    assert "No space for a file" in full_disk(RuntimeError("No space left on device"))


def test_other_errors_are_left_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "a.json", "x")


def test_library_that_hides_the_number_is_understood(tmp_path):
    with pytest.raises(NoSpace, match="of 7 bytes"), writing(tmp_path, 7):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
