"""Rows of a data set, from wherever a user keeps it: JSON lines, Parquet, a folder of
`save_to_disk`, the hub.
"""

from __future__ import annotations

import gzip
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness import Demonstration, Pair, Prompt, Suite, UsageError, derive

Example = TypeVar("Example", Pair, Demonstration)


@dataclass
class RowSuite(Suite):
    """A suite with rows from a file, a folder or the hub, split by the hash of the prompt."""

    title: str = ""  # what the suite is called; the suite file's name unless given
    folder: str = "."  # what relative paths start from; the suite file's folder
    data: str = ""  # a .jsonl, .json or .parquet file (also .gz), or a save_to_disk folder
    dataset: str = ""  # or a data set of the hub
    dataset_split: str = "train"  # the split of a hub data set or of a folder with several
    bad_rows: str = "fail"  # what to do with a row that cannot be used: fail or skip
    max_rows: int = 0  # take so many rows from the beginning; 0 takes all
    sampling_temperature: float = 1.0  # at which everything is sampled and measured
    max_prompt_tokens: int = 512  # longer prompts lose their beginning
    max_completion_tokens: int = 128  # longer completions are cut, without an end token
    test_share: float = 0.15  # of the rows: evaluation prompts
    validation_share: float = 0.05  # of the rows: what settings are chosen on

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        if bool(self.data) == bool(self.dataset):
            raise ValueError("name the rows by either data (a path) or dataset (a hub id)")
        if self.bad_rows not in ("fail", "skip"):
            raise ValueError(f"bad_rows is fail or skip, not {self.bad_rows!r}")
        if (
            self.max_completion_tokens < 1
            or self.max_prompt_tokens < 1
            or self.sampling_temperature <= 0
        ):
            raise ValueError(
                "max_completion_tokens, max_prompt_tokens and sampling_temperature must be above 0"
            )
        if not (
            0 < self.test_share
            and 0 < self.validation_share
            and self.test_share + self.validation_share < 0.9
        ):
            raise ValueError(
                "test_share and validation_share must be above 0 and leave at least a tenth of the"
                " rows"
            )

    @property
    def temperature(self) -> float:  # type: ignore[override]
        """The sampling temperature."""
        return self.sampling_temperature

    @property
    def max_new_tokens(self) -> int:
        """How long a completion may be."""
        return self.max_completion_tokens

    def data_files(self) -> list[Path]:
        """Return the file, or every file of the folder, that the rows are read from."""
        if not self.data or not self._path.is_dir():
            return [self._path] if self.data and self._path.is_file() else []
        return [f for f in sorted(self._path.rglob("*")) if f.is_file()]

    def _usable(self, read: Callable[[object], Example]) -> list[Example]:
        """Return the examples that `read` makes of rows; it raises ValueError for a bad row."""
        found: list[Example] = []
        skipped = 0
        for number, row in self._rows():
            if self.max_rows and len(found) >= self.max_rows:
                break
            try:
                found.append(read(row))
            except ValueError as error:
                if self.bad_rows == "fail":
                    raise UsageError(
                        f"{self._where}, row {number}: {error}. Mend the row, or set bad_rows ="
                        ' "skip".'
                    ) from error
                skipped += 1
        if not found:
            raise UsageError(f"{self._where}: no usable row ({skipped} skipped).")
        return found

    def _by_part(self, examples: list[Example], parts: Sequence[str]) -> dict[str, list[Example]]:
        """Return the examples by part, from their prompt's hash; no part may be empty."""
        found: dict[str, list[Example]] = {name: [] for name in parts}
        for example in examples:
            found[self._part_of(example.prompt)].append(example)
        empty = [name for name, rows in found.items() if not rows]
        if empty:
            raise UsageError(
                f"{self._where}: {len(examples)} usable rows leave none for {', '.join(empty)}."
            )
        return found

    def _part_of(self, prompt: Prompt) -> str:
        """Return a prompt's part by its hash: rows with one prompt stay together, whatever else the
        file holds.
        """
        place = derive("split", self.shared_seed, prompt.text) / 2**63
        if place < self.test_share:
            return "test"
        if place < self.test_share + self.validation_share:
            return "validation"
        return self._other_part(
            (place - self.test_share - self.validation_share) / self._other_share
        )

    @abstractmethod
    def _other_part(self, place: float) -> str:
        """Return the part of a prompt that is not evaluated, by its place in [0, 1)."""

    @property
    def _other_share(self) -> float:
        return 1 - self.test_share - self.validation_share

    @property
    def _where(self) -> str:
        return f"data set {self.dataset}" if self.dataset else str(self._path)

    @property
    def _path(self) -> Path:
        return Path(self.folder, self.data)

    def _rows(self) -> Iterator[tuple[int, object]]:
        """Yield (number, row): the line of a JSON-lines file, the position in anything else; both
        from 1.
        """
        if self.dataset:
            yield from enumerate(_hub_rows(self.dataset, self.dataset_split), 1)
            return
        path = self._path
        if not path.exists():
            raise UsageError(f"data = {self.data!r}: there is no {path}.")
        if path.is_dir():
            yield from enumerate(_folder_rows(path, self.dataset_split), 1)
        elif ".parquet" in path.suffixes:
            yield from enumerate(_parquet_rows(path), 1)
        else:
            try:
                yield from self._json_rows(path)
            except (
                OSError,
                EOFError,
                UnicodeDecodeError,
            ) as error:  # a cut or mislabelled archive, another encoding
                raise UsageError(f"{path} cannot be read as UTF-8 JSON lines: {error}.") from error

    def _json_rows(self, path: Path) -> Iterator[tuple[int, object]]:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if (
                    number == 1 and line.strip() == "["
                ):  # one array over many lines, as some data sets are published
                    yield from enumerate(_array_rows(path, line + stream.read()), 1)
                    return
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    if self.bad_rows == "fail":
                        raise UsageError(
                            f"{path}, line {number}: not a JSON object: {error}. Mend it, or set"
                            ' bad_rows = "skip".'
                        ) from error
                    yield number, None


def _array_rows(path: Path, text: str) -> list[object]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: not a JSON array: {error}.") from error


def _parquet_rows(path: Path) -> list[object]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}.") from error


def _hub_rows(name: str, split: str) -> Iterator[object]:
    from datasets import load_dataset

    try:
        yield from load_dataset(name, split=split)
    except Exception as error:  # the hub client raises many kinds: not found, offline, gated
        raise UsageError(
            f"dataset = {name!r}: it could not be loaded ({str(error).splitlines()[0][:200]})."
        ) from error


def _folder_rows(path: Path, split: str) -> Iterator[object]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is a folder but not one that `save_to_disk` wrote.") from error
    if isinstance(found, DatasetDict):
        if split not in found:
            raise UsageError(
                f"{path} has no split {split!r}; it has {', '.join(found)}. Set dataset_split."
            )
        found = found[split]
    yield from found
