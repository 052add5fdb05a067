"""Archives: equal content gives equal bytes, and what no harness writes is not unpacked."""

import stat
import zipfile

import pytest

from harness.core import archives
from harness.core.archives import OddArchive, extract, plain_name, write_archive
from harness.core.errors import UsageError

from ..helpers.bundles import archive, sha256

FILES = {"b/c.txt": b"two", "a.txt": b"one"}
TRAVERSALS = (
    "../out",
    "a/../../out",
    "/out",
    "a\\..\\out",
    "C:/out",
    "a//b",
    "./a",
    "a/.",
    "nul\x00",
)


def test_archive_of_equal_files_has_equal_bytes(tmp_path):
    one, other = tmp_path / "one.zip", tmp_path / "other.zip"
    write_archive(one, FILES)
    write_archive(other, dict(reversed(FILES.items())))
    assert one.read_bytes() == other.read_bytes()


def test_extract_gives_back_the_files_and_their_digests(tmp_path):
    write_archive(tmp_path / "x.zip", FILES)
    digests = extract(tmp_path / "x.zip", tmp_path / "out")
    assert digests == {name: sha256(content) for name, content in FILES.items()}
    assert (tmp_path / "out/b/c.txt").read_bytes() == b"two"


@pytest.mark.parametrize("name", TRAVERSALS)
def test_extract_refuses_a_name_that_leads_elsewhere(name, tmp_path):
    assert not plain_name(name)
    bad = archive(tmp_path / "x.zip", {name: b"mine"})
    with zipfile.ZipFile(bad) as known:  # zipfile itself cuts a name at NUL
        if known.namelist() != [name]:
            return
    with pytest.raises(OddArchive, match="name that is not unpacked"):
        extract(bad, tmp_path / "deep" / "er")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["x.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_extract_refuses_what_is_no_regular_file(kind, tmp_path):
    bad = archive(tmp_path / "x.zip", {"a": b"/etc/passwd"}, mode=kind | 0o777)
    with pytest.raises(OddArchive, match="only regular files"):
        extract(bad, tmp_path / "out")


def test_extract_refuses_more_bytes_or_files_than_a_limit(tmp_path, monkeypatch):
    bomb = archive(tmp_path / "x.zip", {"a": bytes(5_000_000), "b": bytes(10)})
    assert bomb.stat().st_size < 10_000
    for limit, reason in (
        ("MAX_BYTES", "bytes unpacked"),
        ("MAX_FILE_BYTES", "5,000,000 bytes"),
        ("MAX_FILES", "files, more than"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, 1 if limit == "MAX_FILES" else 1_000_000)
            with pytest.raises(OddArchive, match=reason):
                extract(bomb, tmp_path / limit)
        assert not (tmp_path / limit).exists()


def test_extract_believes_no_size_in_a_header(tmp_path):
    bomb = bytearray(archive(tmp_path / "x.zip", {"a": bytes(5_000_000)}).read_bytes())
    at = bomb.rindex(b"PK\x01\x02") + 24  # the unpacked size in the central directory
    bomb[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(bytes(bomb))
    with pytest.raises(OddArchive):
        extract(tmp_path / "x.zip", tmp_path / "out")
    assert all(f.stat().st_size <= 10 for f in (tmp_path / "out").rglob("*"))


def test_extract_refuses_two_names_that_are_one_on_some_system(tmp_path):
    bad = archive(tmp_path / "x.zip", {"a/B": b"1", "A/b": b"2"})
    with pytest.raises(OddArchive, match="there twice"):
        extract(bad, tmp_path / "out")


@pytest.mark.parametrize("size", [0, 1, 30, 100, 200])
def test_extract_refuses_an_archive_that_was_cut(size, tmp_path):
    whole = tmp_path / "x.zip"
    write_archive(whole, FILES)
    whole.write_bytes(whole.read_bytes()[:size])
    with pytest.raises(OddArchive, match="no intact bundle"):
        extract(whole, tmp_path / "out")


def test_extract_names_a_missing_file_and_a_folder(tmp_path):
    for path, why in ((tmp_path / "none.zip", "no such file"), (tmp_path, "it is a folder")):
        with pytest.raises(UsageError, match=why):
            extract(path, tmp_path / "out")
