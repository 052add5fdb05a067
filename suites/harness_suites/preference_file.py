"""A suite from a file: any preference data set in the ecosystem's columns, with a judge that no method can see into.

    # hh.toml
    data = "harmless-base.jsonl.gz"           # JSON lines or Parquet (also .gz), a folder of save_to_disk, or ...
    # dataset = "Anthropic/hh-rlhf"           # ... a data set of the hub
    prompt_ends_with = "\\n\\nAssistant:"        # where an implicit prompt ends; without it, at the common prefix
    max_prompt_tokens = 256
    max_completion_tokens = 64
    [settings.dpo]
    learning_rate = 1e-5

Rows are split by the hash of their prompt: one half of the preferences trains the methods, the other half only the
judge, a reward model of its own. Conversations (lists of messages) are rendered by the tokenizer's chat template.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness import hookimpl
from harness.contracts import Judge, Suite
from harness.data import Demonstration, Pair, Prompt, completion_text
from harness.errors import UsageError
from harness.seeds import derive


@dataclass
class PreferenceFile(Suite):
    """Preference pairs from a file, a folder or the hub."""

    name, version = "preference_file", "1"
    judge_name, labeller_name = "reward_model_judge", None

    title: str = ""  # what the suite is called; the suite file's name unless given
    folder: str = "."  # what relative paths start from; the suite file's folder
    data: str = ""  # a .jsonl, .json or .parquet file (also .gz), or a folder written by save_to_disk
    dataset: str = ""  # or a data set of the hub
    dataset_split: str = "train"  # the split of a hub data set or of a folder with several
    prompt_column: str = "prompt"  # may be missing: the prompt is then what chosen and rejected share
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    prompt_ends_with: str = ""  # an implicit prompt ends after the last of these before the answers part
    bad_rows: str = "fail"  # what to do with a row that cannot be used: fail or skip
    max_rows: int = 0  # take so many rows from the beginning; 0 takes all
    test_share: float = 0.15  # of the rows: evaluation prompts
    validation_share: float = 0.05  # of the rows: centre the reward model
    judge_share: float = 0.5  # of the other rows: train the judge and nothing else
    sampling_temperature: float = 1.0  # at which everything is sampled and measured
    max_prompt_tokens: int = 512  # longer prompts lose their beginning
    max_completion_tokens: int = 128  # longer completions lose their end, and their end-of-sequence token

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        if bool(self.data) == bool(self.dataset):
            raise ValueError("name the preferences by either data (a path) or dataset (a hub id)")
        if self.bad_rows not in ("fail", "skip"):
            raise ValueError(f"bad_rows is fail or skip, not {self.bad_rows!r}")
        if self.max_completion_tokens < 1 or self.max_prompt_tokens < 1 or self.sampling_temperature <= 0:
            raise ValueError("max_completion_tokens, max_prompt_tokens and sampling_temperature must be above 0")
        if not (0 < self.test_share and 0 < self.validation_share and self.test_share + self.validation_share < 0.9):
            raise ValueError("test_share and validation_share must be above 0 and leave at least a tenth of the rows")

    @property
    def temperature(self) -> float:  # type: ignore[override]
        """The sampling temperature."""
        return self.sampling_temperature

    @property
    def max_new_tokens(self) -> int:
        """How long a completion may be."""
        return self.max_completion_tokens

    def prompts(self, split: str) -> list[Prompt]:
        """Return the distinct prompts of a split; methods train on the prompts of their preferences."""
        part = {"train": "method", "preferences": "method", "demonstrations": "method"}.get(split, split)
        return list({pair.prompt.id: pair.prompt for pair in self._parts[part]}.values())

    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return the chosen completions: of the methods' part, or of the validation split."""
        part = "method" if split == "demonstrations" else split
        return [Demonstration(pair.prompt, pair.chosen) for pair in self._parts[part]]

    def preferences(self) -> list[Pair]:
        """Return the pairs that methods may see."""
        return self._parts["method"]

    def judge_preferences(self) -> list[Pair]:
        """Return the pairs that only the judge sees."""
        return self._parts["judge"]

    def references(self, split: str) -> dict[str, str]:
        """Return the chosen completions, for ROUGE."""
        return {pair.prompt.id: completion_text(pair.chosen) for pair in self._parts[split]}

    @cached_property
    def _parts(self) -> dict[str, list[Pair]]:
        parts: dict[str, list[Pair]] = {"method": [], "judge": [], "validation": [], "test": []}
        for pair in self._pairs:
            parts[self._part_of(pair.prompt)].append(pair)
        empty = [name for name, pairs in parts.items() if not pairs]
        if empty:
            raise UsageError(f"{self._where}: {len(self._pairs)} usable rows leave none for {', '.join(empty)}.")
        return parts

    def _part_of(self, prompt: Prompt) -> str:
        """Return a prompt's part by its hash: rows with one prompt stay together, whatever else the file holds."""
        place = derive("split", self.shared_seed, prompt.text) / 2**63
        if place < self.test_share:
            return "test"
        if place < self.test_share + self.validation_share:
            return "validation"
        rest = (place - self.test_share - self.validation_share) / (1 - self.test_share - self.validation_share)
        return "judge" if rest < self.judge_share else "method"

    @cached_property
    def _pairs(self) -> list[Pair]:
        pairs, skipped = [], 0
        for number, row in self._rows():
            if self.max_rows and len(pairs) >= self.max_rows:
                break
            try:
                pairs.append(self._pair(row))
            except ValueError as error:
                if self.bad_rows == "fail":
                    raise UsageError(
                        f'{self._where}, row {number}: {error}. Mend the row, or set bad_rows = "skip".'
                    ) from error
                skipped += 1
        if not pairs:
            raise UsageError(f"{self._where}: no usable row ({skipped} skipped).")
        return pairs

    def _pair(self, row: object) -> Pair:
        if not isinstance(row, dict):
            raise ValueError(f"expected an object with {self.chosen_column!r} and {self.rejected_column!r}")
        for column in (self.chosen_column, self.rejected_column):
            if column not in row:
                raise ValueError(f"no column {column!r}; there are {', '.join(sorted(row)) or 'none'}")
        prompt, chosen, rejected = row.get(self.prompt_column), row[self.chosen_column], row[self.rejected_column]
        implicit = self.prompt_column not in row
        for text in (chosen, rejected, *([] if implicit else [prompt])):
            _check_text(text)
        if type(chosen) is not type(rejected):
            raise ValueError("chosen is a text and rejected a conversation, or the other way round")
        if implicit:
            prompt, chosen, rejected = self._split(chosen, rejected)
        if not completion_text(chosen).strip() or not completion_text(rejected).strip():
            raise ValueError("an empty completion")
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same")
        return Pair(Prompt(f"{derive('prompt', prompt):016x}", prompt), chosen, rejected)

    def _split(self, chosen, rejected):
        """Return (prompt, chosen, rejected) of an implicit prompt: what both begin with."""
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        if isinstance(chosen, str):
            if self.prompt_ends_with:
                end = chosen.rfind(self.prompt_ends_with, 0, shared)
                if end < 0:
                    raise ValueError(f"what chosen and rejected share does not contain {self.prompt_ends_with!r}")
                shared = end + len(self.prompt_ends_with)
            elif shared and chosen[shared - 1] == " ":
                shared -= 1  # the space belongs to the first word of the answer
        if not shared:
            raise ValueError("chosen and rejected share no beginning, so there is no prompt")
        return chosen[:shared], chosen[shared:], rejected[shared:]

    @property
    def _where(self) -> str:
        return f"data set {self.dataset}" if self.dataset else str(self._path)

    @property
    def _path(self) -> Path:
        return Path(self.folder, self.data)

    def data_files(self) -> list[Path]:
        """Return the file, or every file of the folder, that the preferences are read from."""
        if not self.data or not self._path.is_dir():
            return [self._path] if self.data and self._path.is_file() else []
        return [f for f in sorted(self._path.rglob("*")) if f.is_file()]

    def _rows(self) -> Iterator[tuple[int, object]]:
        """Yield (number, row): the line of a JSON-lines file, the position in anything else; both from 1."""
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
            except (OSError, EOFError, UnicodeDecodeError) as error:  # a cut or mislabelled archive, another encoding
                raise UsageError(f"{path} cannot be read as UTF-8 JSON lines: {error}.") from error

    def _json_rows(self, path: Path) -> Iterator[tuple[int, object]]:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    if self.bad_rows == "fail":
                        raise UsageError(
                            f'{path}, line {number}: not a JSON object: {error}. Mend it, or set bad_rows = "skip".'
                        ) from error
                    yield number, None


def _check_text(text: object) -> None:
    if isinstance(text, str):
        return
    good = isinstance(text, list) and text and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in text
    )  # fmt: skip
    if not good:
        raise ValueError(f"expected text or a list of messages with role and content, not {str(text)[:40]!r}")


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
        raise UsageError(f"dataset = {name!r}: it could not be loaded ({str(error).splitlines()[0][:200]}).") from error


def _folder_rows(path: Path, split: str) -> Iterator[object]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is a folder but not one that `save_to_disk` wrote.") from error
    if isinstance(found, DatasetDict):
        if split not in found:
            raise UsageError(f"{path} has no split {split!r}; it has {', '.join(found)}. Set dataset_split.")
        found = found[split]
    yield from found


class RewardModelJudge(Judge):
    """A reward model trained on preferences that no method sees: its score stands for the annotators' taste."""

    name = "reward_model_judge"

    def prepare(self, suite, stages):
        """Train the judge's model, or take it from the artifacts."""
        if stages is not None:
            self.stages, self.model = stages, stages.judge_model()

    def score(self, prompts, completions):
        """Return the judge model's normalised score per completion."""
        from harness.meter import Meter

        stages = self.stages
        ids = [[stages.tokens.completion_ids(p.text, text)] for p, text in zip(prompts, completions, strict=True)]
        bench = stages.shop.bench(Meter(), 0)
        with bench.meter.phase("evaluate"):
            batch = stages.tokens.batch(list(prompts), ids, stages.shop.device)
            return self.model.score(batch, bench)[:, 0].tolist()


@hookimpl
def register_suites(register):
    register(PreferenceFile)


@hookimpl
def register_judges(register):
    register(RewardModelJudge)
