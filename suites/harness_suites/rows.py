"""A suite of rows: its sources, its parts, and the report on both.

Rows of a part that has sources of its own stay together. The others are split by the hash of their
prompt. `sources.py` reads the rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from harness import DataReport, Prompt, Suite, UsageError, derive, message_text
from harness.core.data import Text
from harness.core.data_report import EXAMPLE, Overlap, SourceReport
from harness.core.options import build
from harness.models.chat import ChatOptions

from .json_rows import Row
from .limits import Limits
from .rendering import RenderingCheck
from .sources import PARTS, Source, expanded, is_path

Example = TypeVar("Example", bound=Any)  # a record with a prompt
Read = Callable[[object], list[Example]]  # raises ValueError for a row that cannot be used
Placed = list[tuple[str, Example]]  # examples with the places of their rows


QUICK: dict[str, dict[str, object]] = {  # a run of a minute with a model of 135M on one CPU core
    "suite": {"rows_per_part": 48, "max_prompt_tokens": 48, "max_completion_tokens": 16},
    "stage.sft": {"steps": 2, "batch_size": 4},
    "stage.preferences": {"prompts": 16, "completions": 2, "labels": 16},
    "stage.reward_model": {"epochs": 0.5, "batch_size": 8},
    "stage.evaluation": {"prompts": 8},
    "*": {
        "steps": 2,
        "batch_size": 4,
        "minibatch_size": 4,
        "num_generations": 4,
        "num_ppo_epochs": 1,
        "n": 4,
    },
}


@dataclass
class RowSuite(Suite):
    """A suite with rows from files, folders or the hub."""

    quick = QUICK

    title: str = ""  # the suite's name; by default that of the suite file
    folder: str = "."  # the base of relative paths: the suite file's folder
    # JSON, JSON lines, CSV, TSV or Parquet, or a folder of such files or of save_to_disk; or a list
    data: str | tuple[str, ...] = ""
    dataset: str | tuple[str, ...] = ""  # or a data set of the hub; or a list
    dataset_config: str = ""  # the configuration of a data set that has several
    dataset_revision: str = ""  # the commit, branch or tag of a data set of the hub
    # the training rows: a split of the data set or folder, or files of their own
    train: str | tuple[str, ...] = ""
    validation: str | tuple[str, ...] = ""  # the same for validation; else split off by hash
    test: str | tuple[str, ...] = ""  # the same for evaluation
    # tables [[sources]] for settings that differ by source: data or dataset, config, revision,
    # split, part, max_rows
    sources: tuple[dict[str, Any], ...] = ()
    streaming: bool = False  # take the rows of a data set as they arrive; files are always read so
    bad_rows: str = "fail"  # what to do with a row that cannot be used: fail or skip
    shared_prompts: str = "drop"  # training rows whose prompt is also a test prompt: drop or fail
    max_rows: int = 0  # rows to take of each part, from the beginning; 0 takes all
    rows_per_part: int = 0  # rows to keep in each part, of all rows that were read; 0 keeps all
    sampling_temperature: float = 1.0  # temperature of sampling and of log-probabilities
    max_prompt_tokens: int = 512  # longer prompts lose their beginning
    max_completion_tokens: int = 128  # longer completions are cut, without an end token
    # render plain text by the chat template: auto (if there is one), true, false, or a file
    chat_template: bool | str = "auto"
    chat_date: str = "2024-07-26"  # the day that the clock of a chat template shows
    chat_options: tuple[str, ...] = ()  # NAME=VALUE of the template: ["enable_thinking=false"]
    max_row_mib: float = 32.0  # MiB of one row
    max_columns: int = 1000  # of a row
    max_depth: int = 64  # levels of lists and objects in a row
    max_unpacked_gib: float = 16.0  # GiB of a compressed file, after unpacking
    test_share: float = 0.15  # share of the rows for evaluation, unless `test` names them
    validation_share: float = 0.05  # share of the rows for choosing settings

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        self._check_sources()
        ChatOptions.of(self).check()
        self._limits.check()
        if self.bad_rows not in ("fail", "skip"):
            raise ValueError(f"bad_rows is fail or skip, not {self.bad_rows!r}")
        if self.shared_prompts not in ("drop", "fail"):
            raise ValueError(f"shared_prompts is drop or fail, not {self.shared_prompts!r}")
        if (
            self.max_completion_tokens < 1
            or self.max_prompt_tokens < 1
            or self.sampling_temperature <= 0
        ):
            raise ValueError(
                "max_completion_tokens, max_prompt_tokens and sampling_temperature must be above 0"
            )
        if self.rows_per_part < 0:
            raise ValueError("rows_per_part must not be negative")
        if self.max_rows < 0 or (self.streaming and not self.max_rows):
            raise ValueError("streaming takes rows as they arrive: say how many with max_rows")
        for part in ("test", "validation"):
            self._check_share(part)
        if self._test_share + self._validation_share >= 0.9:
            raise ValueError("test_share and validation_share must leave at least a tenth")

    def _check_share(self, part: str) -> None:
        option = f"{part}_share"
        share = getattr(self, option)
        if self._is_named(part) and share != type(self).__dataclass_fields__[option].default:
            raise ValueError(f"{option} has no meaning where `{part}` names the rows")
        if share <= 0:
            raise ValueError("test_share and validation_share must be above 0")

    def _check_sources(self) -> None:
        if self.data and self.dataset:
            raise ValueError(
                "name the rows by either data (a path) or dataset (a hub id); for both, write"
                " tables [[sources]]"
            )
        if not self._is_named("train"):
            raise ValueError(
                "name the training rows by either data (a path) or dataset (a hub id), by train,"
                " or in tables [[sources]]"
            )
        if self.dataset_config and not (self.dataset or self.data):
            raise ValueError("dataset_config has no meaning without dataset")
        if self.dataset_revision and not self.dataset:
            raise ValueError("dataset_revision has no meaning without dataset")
        parts = [name for part in PARTS for name in _names(getattr(self, part), self.folder)]
        if self.train and self._bases and all(map(is_path, parts)):
            raise ValueError("train names the rows, and data or dataset names them again")

    @property
    def temperature(self) -> float:  # type: ignore[override]
        """The sampling temperature."""
        return self.sampling_temperature

    @property
    def max_new_tokens(self) -> int:
        """How long a completion may be."""
        return self.max_completion_tokens

    def data_files(self) -> list[Path]:
        """Return every file that the rows are read from, and the chat template if it is a file."""
        template = ChatOptions.of(self).file
        sources = chain.from_iterable(s.files() for s in self._sources)
        return list(dict.fromkeys([*sources, *[template] * template.is_file()]))

    def data_report(self) -> DataReport:
        """Return what was read, skipped and dropped, and how the rows were split."""
        self._parts  # noqa: B018  # reads the rows
        return self._report

    @cached_property
    def _rendering(self) -> RenderingCheck | None:
        """The check that the model's tokenizer can render the rows."""
        if not self.model:
            return None
        chat = ChatOptions.of(self)
        return RenderingCheck(self.model, chat, self.max_prompt_tokens, self.answers_train)

    # -- sources ----------------------------------------------------------------------------------

    @property
    def _limits(self) -> Limits:
        return Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})

    @cached_property
    def _report(self) -> DataReport:
        return DataReport()

    @property
    def _bases(self) -> list[Source]:
        """The files, folders or data sets that `data` or `dataset` names."""
        common = {"folder": self.folder, "streaming": self.streaming, "config": self.dataset_config}
        files = [f for name in _names(self.data, self.folder) for f in expanded(name, self.folder)]
        if files:
            return [Source(data=name, **common) for name in files]
        common["revision"] = self.dataset_revision
        return [Source(dataset=name, **common) for name in _names(self.dataset, self.folder)]

    @cached_property
    def _sources(self) -> list[Source]:
        """All sources, in the order of the parts."""
        tables = [self._table(table) for table in self.sources]
        sources = [s for part in PARTS for s in [*self._named(part), *tables] if s.part == part]
        for source in sources:
            source.check()
        if len(set(sources)) < len(sources):
            raise ValueError("the same rows are named twice")
        return sources

    def _named(self, part: str) -> Iterator[Source]:
        """Yield the sources of a part: splits of the bases, or files of their own."""
        names = _names(getattr(self, part), self.folder)
        if part == "train" and not names:
            yield from self._bases
        for name in names:
            if self._bases and not is_path(name):
                for base in self._bases:
                    yield replace(base, split=name, part=part)
            else:
                for file in expanded(name, self.folder):
                    yield Source(part, data=file, folder=self.folder, streaming=self.streaming)

    def _table(self, table: dict[str, Any]) -> Source:
        common = {"folder": self.folder, "streaming": self.streaming}
        return build(Source, {**common, **table}, "[[sources]]")

    def _is_named(self, part: str) -> bool:
        return any(source.part == part for source in self._sources)

    # -- rows -------------------------------------------------------------------------------------

    def _by_part(
        self, read: Read[Example], parts: Sequence[str], optional: Sequence[str] = ()
    ) -> dict[str, list[Example]]:
        """Return the examples by part; only the optional parts may be empty.

        Args:
            read: Makes examples of a row; raises ValueError for a row that cannot be used.
            parts: The names of the parts, validation and test among them.
            optional: Those that may be empty.
        """
        named = {part: self._placed(part, read) for part in PARTS if self._is_named(part)}
        for kept, dropped in (("test", "validation"), ("test", "train"), ("validation", "train")):
            if kept in named and dropped in named:
                named[dropped] = self._without_shared(named[kept], kept, named[dropped], dropped)
        examples_of: dict[str, list[Example]] = {name: [] for name in parts}
        for part, placed in named.items():
            for _, example in placed:
                place = self._part_of(example.prompt) if part == "train" else part
                examples_of[place].append(example)
        empty = [name for name, rows in examples_of.items() if not rows and name not in optional]
        if empty:
            rows = sum(map(len, named.values()))
            raise UsageError(
                f"{self._where}: {rows} usable rows are too few; none is left for"
                f" {', '.join(empty)}."
            )
        if self.rows_per_part:
            examples_of = {
                name: examples[: self.rows_per_part] for name, examples in examples_of.items()
            }
        self._report.splits = {name: _size(examples) for name, examples in examples_of.items()}
        return examples_of

    def _placed(self, part: str, read: Read[Example]) -> Placed[Example]:
        """Return the examples of a part's sources, in their order."""
        placed: Placed[Example] = []
        for source in (s for s in self._sources if s.part == part):
            left = self.max_rows - sum(s.used for s in self._report.sources if s.part == part)
            if self.max_rows and left <= 0:
                break
            limits = [n for n in (source.max_rows, left if self.max_rows else 0) if n]
            placed += self._usable(source, read, min(limits, default=0))
        return placed

    def _usable(self, source: Source, read: Read[Example], most: int) -> Placed[Example]:
        """Return the examples that `read` makes of a source's rows, at most so many (0: all)."""
        usable: Placed[Example] = []
        report = SourceReport(source.label, source.part)
        self._report.sources.append(report)
        with closing(source.rows(self._limits)) as rows:
            for row in rows:
                report.rows += 1
                try:
                    self._limits.check_row(row.value)
                    examples = _examples(row, read)
                    for example in examples if self._rendering else ():
                        self._rendering.check(example)
                    usable += [(row.place, example) for example in examples]
                    report.used += 1
                except (ValueError, RecursionError) as error:
                    self._skip(source, row.place, _reason(error), report)
                if most and report.used >= most:
                    break
        if not usable:
            raise UsageError(f"{source.name}: no usable row ({report.rows} skipped).")
        return usable

    def _skip(self, source: Source, place: str, reason: str, report: SourceReport) -> None:
        """Count a bad row, or refuse it."""
        if self.bad_rows == "fail":
            raise UsageError(
                f'{source.name}, {place}: {reason}. Correct the row, or set bad_rows = "skip".'
            )
        report.skip(place, reason)

    def _without_shared(
        self, kept: Placed[Example], keeps: str, dropped: Placed[Example], drops: str
    ) -> Placed[Example]:
        """Return a part's examples without those whose prompt is in another part too."""
        key = self._prompt_key
        there = {key(example.prompt): place for place, example in reversed(kept)}
        shared = [(place, e) for place, e in dropped if key(e.prompt) in there]
        if not shared:
            return dropped
        place, first = shared[0]
        overlap = Overlap(
            keeps,
            drops,
            len({key(example.prompt) for _, example in shared}),
            len(shared),
            (f"{keeps} {there[key(first.prompt)]}", f"{drops} {place}"),
            key(first.prompt)[:EXAMPLE],
        )
        if self.shared_prompts == "fail":
            raise UsageError(
                f"{self._where}: {overlap.prompts} prompts of the {keeps} rows also stand in the"
                f" {drops} rows. The first is {' = '.join(overlap.places)}: {overlap.example!r}."
                ' Take them out, or set shared_prompts = "drop".'
            )
        self._report.overlaps.append(overlap)
        return [(place, e) for place, e in dropped if key(e.prompt) not in there]

    def _part_of(self, prompt: Prompt) -> str:
        """Return a training row's part by the hash of its prompt: rows with one prompt stay
        together, independent of other rows.
        """
        place = derive("split", self.shared_seed, self._prompt_key(prompt)) / 2**63
        if place < self._test_share:
            return "test"
        if place < self._test_share + self._validation_share:
            return "validation"
        evaluated = self._test_share + self._validation_share
        return self._other_part((place - evaluated) / (1 - evaluated))

    def _prompt_key(self, prompt: Prompt) -> str:
        return _key(self._placing(prompt))

    def _placing(self, prompt: Prompt) -> Text:
        """Return the text of a prompt that decides its part."""
        return prompt.text

    @abstractmethod
    def _other_part(self, place: float) -> str:
        """Return the part of a prompt that is not evaluated, by its hash in [0, 1)."""

    @property
    @abstractmethod
    def _parts(self) -> dict[str, Any]:
        """The examples by part."""

    @property
    def _test_share(self) -> float:
        return 0.0 if self._is_named("test") else self.test_share

    @property
    def _validation_share(self) -> float:
        return 0.0 if self._is_named("validation") else self.validation_share

    @property
    def _where(self) -> str:
        return " and ".join(dict.fromkeys(source.name for source in self._sources))


def _names(value: str | Sequence[str], folder: str) -> list[str]:
    """Return the names of an option: one, or several as a list or, on the command line, joined by
    commas.
    """
    if not isinstance(value, str):
        return [*value]
    if not value or Path(folder, value).exists():  # a file may have a comma in its name
        return [value] * bool(value)
    return [name.strip() for name in value.split(",")]


def _size(examples: Sequence[Any]) -> dict[str, int]:
    return {"rows": len(examples), "prompts": len({e.prompt.id for e in examples})}


def _key(text: Text) -> str:
    """Return the key of equal prompts: their words, without case, blanks and roles."""
    whole = text if isinstance(text, str) else " ".join(message_text(m) for m in text)
    return " ".join(whole.casefold().split())


def _examples(row: Row, read: Read[Example]) -> list[Example]:
    if row.fault:
        raise ValueError(row.fault)
    return list(map(_whole, read(row.value)))


def _whole(example: Example) -> Example:
    """Return the example if every text of it can be tokenised; raise ValueError otherwise."""
    texts = (getattr(example, name, None) for name in ("completion", "chosen", "rejected"))
    for text in _strings([example.prompt.text, example.prompt.answer, *texts]):
        text.encode()
        if "\x00" in text:
            raise ValueError("a NUL character, which is no text")
    return example


def _strings(value: Any) -> Iterator[str]:
    """Yield every text inside a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings, (*value, *value.values())))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_strings, value))


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        half = error.object[error.start : error.end].encode("ascii", "backslashreplace").decode()
        return f"half of a surrogate pair ({half}), which is no character"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
