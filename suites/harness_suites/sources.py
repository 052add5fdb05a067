"""The sources of rows: files, folders of data files or of `save_to_disk`, and the hub.

Every source is read piece by piece: JSON, CSV, TSV, Parquet, each plain or compressed.
"""

from __future__ import annotations

import bz2
import csv
import gc
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from harness import UsageError
from harness.core import hub

from .json_rows import Row, json_rows
from .limits import GIB, USUAL, Limits, unpacking

PARTS = ("train", "validation", "test")
ENDINGS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
BATCH = 32  # rows of a Parquet file decoded at a time
FEW = 2  # the same, if values may be as long as a row
LONGEST_FOOTER = 1 << 24  # bytes of a Parquet file's description of its columns
# errors of a truncated or damaged file, or of another encoding
UNREADABLE = (EOFError, OSError, UnicodeDecodeError, csv.Error, lzma.LZMAError, zlib.error)
LIST_OF_OBJECTS = re.compile(r"""\s*\[\s*\{\s*["']""")  # the beginning of a cell of a table
SEVERAL = "*?["  # characters of a pattern that names several files


@dataclass(frozen=True)
class Source:
    """One file, folder or data set with rows of one part: train, validation or test."""

    part: str = "train"  # train, validation or test
    data: str = ""  # a file, or a folder
    dataset: str = ""  # or a data set of the hub
    config: str = ""  # the configuration of a data set that has several
    revision: str = ""  # the commit, branch or tag of a data set of the hub
    split: str = ""  # the split of a data set, or the list of a JSON object; a data set's is train
    max_rows: int = 0  # usable rows to take from the beginning; 0 takes all
    folder: str = "."  # the base of relative paths
    streaming: bool = False  # take the rows of a data set as they arrive

    def check(self) -> None:
        """Raise ValueError for contradictory settings."""
        if self.part not in PARTS:
            raise ValueError(f"part is train, validation or test, not {self.part!r}")
        if bool(self.data) == bool(self.dataset):
            raise ValueError("a source is either data (a path) or dataset (a hub id)")
        if self.revision and self.local:
            raise ValueError("revision has no meaning for files: only the hub has revisions")
        if self.max_rows < 0:
            raise ValueError("max_rows must not be negative")

    @property
    def name(self) -> str:
        """The source as messages name it."""
        if not self.dataset:
            return str(self.path) + (f", {self.split}" if self.split else "")
        config = f", configuration {self.config}" if self.config else ""
        revision = f" at {self.revision}" if self.revision else ""
        return f"data set {self.dataset}{revision}{config}, split {self.split or 'train'}"

    @property
    def label(self) -> str:
        """The source as records name it: without the base of relative paths."""
        return self.name if self.dataset else self.data + (f", {self.split}" if self.split else "")

    @property
    def path(self) -> Path:
        """The file or folder; for a data set, the path that its name would be."""
        return Path(self.folder, self.data or self.dataset)

    @property
    def local(self) -> bool:
        """Whether the rows are on this machine and not on the hub."""
        return bool(self.data) or self.path.is_dir()

    def files(self) -> list[Path]:
        """Return the file, or every file of the folder, that the rows are read from."""
        if not self.local or not self.path.is_dir():
            return [self.path] if self.local and self.path.is_file() else []
        inside = (f for f in sorted(self.path.rglob("*")) if f.is_file())
        return [f for f in inside if not any(p.startswith(".") for p in _below(f, self.path))]

    def rows(self, limits: Limits = USUAL) -> Iterator[Row]:
        """Yield the rows in their order; a row over a limit is returned with the reason.

        Raises:
            UsageError: The source does not exist, or its format is not that of its name.
        """
        if not self.local:
            return self._dataset_rows(self.dataset)
        if not self.path.exists():
            raise UsageError(f"data = {self.data!r}: there is no {self.path}.")
        if self.path.is_dir():
            return self._folder_rows()
        if not self.path.is_file():
            raise UsageError(f"{self.path} is no file and no folder that rows can be read from.")
        if self.config:
            raise UsageError(f"{self.path} is one file: it has no configuration {self.config!r}.")
        return self._file_rows(limits)

    def _file_rows(self, limits: Limits) -> Iterator[Row]:
        name, kind = str(self.path), _named_kind(_plain(self.path.name))
        try:
            kind = _kind_of(self.path)
            if kind == "JSON":
                yield from json_rows(name, partial(_opened, self.path, limits), self.split, limits)
            elif self.split:
                raise UsageError(f"{name}: it has no part {self.split!r}, only rows.")
            elif kind == "Parquet":
                yield from _parquet_rows(self.path, limits)
            else:
                yield from _table_rows(self.path, "\t" if kind == "TSV" else ",", limits)
        except UNREADABLE as error:
            raise UsageError(f"{name} cannot be read as {kind}: {error}.") from error

    def _folder_rows(self) -> Iterator[Row]:
        if not any((self.path / name).exists() for name in ("dataset_dict.json", "state.json")):
            if not any(_is_data_file(file) for file in self.files()):
                raise UsageError(
                    f"{self.path} is a folder with no data files in it, and not one that"
                    f" `save_to_disk` wrote. Data files end in {', '.join(ENDINGS)}."
                )
            yield from self._dataset_rows(str(self.path))
            return
        from datasets import DatasetDict, load_from_disk

        if self.config:
            raise UsageError(f"{self.path}: `save_to_disk` keeps no configurations.")
        dataset = load_from_disk(str(self.path))
        if isinstance(dataset, DatasetDict):
            split = self.split or "train"
            if split not in dataset:
                raise UsageError(
                    f"{self.path} has no split {split!r}; it has {', '.join(dataset)}. Name the"
                    f' split of each part, for example train = "{next(iter(dataset))}".'
                )
            dataset = dataset[split]
        elif self.split:
            raise UsageError(f"{self.path} is one data set without splits: no {self.split!r}.")
        yield from _numbered(dataset)

    def _dataset_rows(self, where: str) -> Iterator[Row]:
        where, revision, offline = self._cached(where)
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        try:
            dataset = load_dataset(
                where,
                name=self.config or None,
                split=self.split or "train",
                revision=revision or None,
                streaming=self.streaming,
            )
            try:
                yield from _numbered(dataset)
            finally:  # Arrow's threads must end before the interpreter does: arrow#45214
                del dataset
                gc.collect()
        except Exception as error:  # the hub client raises many kinds: not found, offline, gated
            missing = offline and not Path(where).is_dir()
            why = hub.advice(where, "dataset") if missing else _advice(error)
            raise UsageError(f"{self.name}: {why}") from error

    def _cached(self, where: str) -> tuple[str, str, bool]:
        """Return the name and revision to load, and whether the hub cannot be reached.

        Without the hub, the local cache is read at the requested revision; `load_dataset` itself
        would use the newest one that it prepared before.
        """
        if self.local or not hub.offline(where):
            return where, self.revision, False
        folder = hub.snapshot(where, self.revision)
        if folder is not None:
            return str(folder), "", True
        if self.revision:
            raise UsageError(f"{self.name}: {hub.advice(where, 'dataset')}")
        return where, "", True


def is_path(name: str) -> bool:
    """Return whether a name is a file's and not a split's."""
    plain = _plain(name)
    return "/" in name or os.sep in name or "*" in name or plain.endswith(ENDINGS)


def expanded(name: str, folder: str) -> list[str]:
    """Return the files of a name: the file itself, or those that match a pattern such as
    `*.jsonl`.
    """
    if not any(c in name for c in SEVERAL) or Path(folder, name).exists():
        return [name]
    base = Path(name).anchor or folder
    files = sorted(str(f) for f in Path(base).glob(name[len(Path(name).anchor) :]) if f.is_file())
    if not files:
        raise UsageError(f"data = {name!r}: no file in {base} matches.")
    return files


def _advice(error: Exception) -> str:
    """Return the error of a data set, and the option that corrects it."""
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if "split" in message:
        hint = 'Name the split of each part, for example train = "train_prefs", test = "test_prefs"'
    elif "onfig" in message:
        hint = "Set dataset_config"
    else:
        hint = "Check its name, the network, and whether it needs a login"
    return f"it could not be loaded ({message.rstrip('.')}). {hint}."


def _below(file: Path, folder: Path) -> tuple[str, ...]:
    return file.relative_to(folder).parts


def _plain(name: str) -> str:
    """Return a file's name in small letters, without the ending of a compressed file."""
    name = name.lower()
    return next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)


def _is_data_file(file: Path) -> bool:
    return _plain(file.name).endswith((*ENDINGS, ".arrow"))


def _kind_of(path: Path) -> str:
    """Return the format of a file: by its name, or Parquet if its content begins so."""
    plain = _plain(path.name)
    with _opened(path) as stream:
        head = stream.read(4)
    if plain.endswith(".parquet") or head == b"PAR1":
        return "Parquet"
    _check_encoding(path, head)
    return _named_kind(plain)


def _named_kind(plain: str) -> str:
    """Return the format by a file's name; JSON if the name does not show it."""
    formats = {".parquet": "Parquet", ".csv": "CSV", ".tsv": "TSV"}
    return next((kind for ending, kind in formats.items() if plain.endswith(ending)), "JSON")


def _check_encoding(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes show another encoding or format, and name it."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in head:
        wide = head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00")) or head[1:4] == bytes(3)
        raise UsageError(
            f"{path} is text in UTF-{'32' if wide else '16'}: convert it to UTF-8, for example with"
            f" `iconv -f UTF-{'32' if wide else '16'} -t UTF-8`."
        )
    if head == b"PK\x03\x04":
        raise UsageError(f"{path} is a zip archive (or a spreadsheet): unpack it, or export CSV.")


def _opened(path: Path, limits: Limits = USUAL) -> BinaryIO:
    """Return a file's bytes, unpacked if they begin like a compressed file."""
    with path.open("rb") as stream:
        head = stream.read(6)
    if head.startswith(b"\x1f\x8b"):
        return unpacking(gzip.open(path), path, limits)
    if head.startswith(b"BZh"):
        return unpacking(bz2.open(path), path, limits)
    if head == b"\xfd7zXZ\x00":
        return unpacking(lzma.open(path), path, limits)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        return unpacking(pyarrow.input_stream(str(path), compression="zstd"), path, limits)
    return path.open("rb")


def _parquet_rows(path: Path, limits: Limits) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as pq

    with _opened(path, limits) as stream:
        try:
            _check_footer(path, stream)
            plain = isinstance(getattr(stream, "raw", None), io.FileIO)  # not compressed as a whole
            file = pq.ParquetFile(path if plain else stream, pre_buffer=False)
            _check_columns(path, file.metadata, limits)
            yield from _numbered(_parquet_values(file, limits))
        except pyarrow.ArrowException as error:
            raise UsageError(f"{path} cannot be read as Parquet: {error}.") from error


def _parquet_values(file: Any, limits: Limits) -> Iterator[Any]:
    """Yield the rows of an open Parquet file.

    Row groups are requested one by one, because Arrow reads ahead over everything requested.
    """
    for group in range(file.num_row_groups):
        size = BATCH if _largest_chunk(file.metadata.row_group(group)) < limits.row_bytes else FEW
        for batch in file.iter_batches(size, row_groups=[group]):
            yield from batch.to_pylist()


def _largest_chunk(group: Any) -> int:
    """Return the unpacked bytes of the largest column of a row group.

    One value may be that long, and a dictionary-encoded column repeats it for every row.
    """
    return max(
        (group.column(i).total_uncompressed_size for i in range(group.num_columns)), default=0
    )


def _check_columns(path: Path, metadata: Any, limits: Limits) -> None:
    """Refuse a file with too many columns, or with columns that unpack to too much."""
    if metadata.num_columns > limits.max_columns:
        raise UsageError(
            f"{path}: {metadata.num_columns} columns, more than max_columns ="
            f" {limits.max_columns}. Write a file with only the columns that hold the rows, or"
            " set a larger max_columns."
        )
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    for number, group in enumerate(groups, 1):
        if group.total_byte_size > limits.max_unpacked_gib * GIB:
            raise UsageError(
                f"{path}, row group {number}: it unpacks to {group.total_byte_size:,} bytes, more"
                f" than max_unpacked_gib = {limits.max_unpacked_gib:g} GiB. Write smaller row"
                " groups, or set a larger max_unpacked_gib."
            )


def _check_footer(path: Path, stream: BinaryIO) -> None:
    """Refuse a file whose footer would fill the memory."""
    stream.seek(-8, os.SEEK_END)
    size = int.from_bytes(stream.read(4), "little")
    mark = stream.read(4)
    if mark == b"PAR1" and size > LONGEST_FOOTER:
        raise UsageError(
            f"{path}: the description of its columns alone takes {size >> 20} MiB. Write a file"
            " with only the columns that hold the rows."
        )
    stream.seek(0)


def _table_rows(path: Path, delimiter: str, limits: Limits) -> Iterator[Row]:
    """Yield the lines of a table with a header as objects; a cell with a list of messages in JSON
    becomes that list.
    """
    csv.field_size_limit(limits.row_bytes)
    with io.TextIOWrapper(_opened(path, limits), encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(_checked(path, reader), [])
        if len(header) > limits.max_columns:
            raise UsageError(
                f"{path}, line 1: {len(header)} columns, more than max_columns ="
                f" {limits.max_columns}. Set a larger max_columns."
            )
        if len(set(header)) < len(header):
            raise UsageError(f"{path}: two columns of its header have the same name: {header}.")
        line = reader.line_num
        for cells in _checked(path, reader):
            first, line = line + 1, reader.line_num
            if not cells:
                continue
            if len(cells) == len(header):
                yield _table_row(f"line {first}", header, cells)
            else:
                fault = f"{len(cells)} cells under a header of {len(header)}"
                yield Row(f"line {first}", None, fault)


def _checked(path: Path, reader: Any) -> Iterator[list[str]]:
    """Yield the rows of a table; name the line of a cell that is too long."""
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "field limit" not in str(error):
                raise
            raise UsageError(
                f"{path}, line {reader.line_num}: a cell is longer than max_row_mib allows. A quote"
                " may be open; if not, set a larger max_row_mib."
            ) from error
        if cells is None:
            return
        yield cells


def _table_row(place: str, header: list[str], cells: list[str]) -> Row:
    try:
        return Row(place, dict(zip(header, map(_cell, cells), strict=True)))
    except ValueError as error:
        return Row(place, None, str(error))


def _cell(text: str) -> Any:
    """Return a cell: text, or the objects that it holds as a list in JSON."""
    if LIST_OF_OBJECTS.match(text):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                "a cell holds a list of messages that is not JSON (Python's notation, perhaps)"
            ) from error
    return text


def _numbered(values: Any) -> Iterator[Row]:
    for number, value in enumerate(values, 1):
        yield Row(f"row {number}", value)
