"""A suite from a file: any preference data set in the ecosystem's columns, with a judge that
methods cannot access.

    # hh.toml
    suite = "preference_file"
    data = "harmless-base.jsonl.gz"    # JSON, CSV, Parquet, or a folder
    # dataset = "Anthropic/hh-rlhf"    # or a data set of the hub, with train = "SPLIT"
    prompt_ends_with = "\\n\\nAssistant:"    # end of an implicit prompt; else the common prefix
    max_prompt_tokens = 256
    max_completion_tokens = 64
    [settings.dpo]
    learning_rate = 1e-5

Rows are split by the hash of their prompt: one half of the preferences trains the methods, the
other half only the judge, a reward model of its own. `layouts.py` says which columns are read.
Conversations, and plain text where the tokenizer has a chat template, are rendered by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness import Demonstration, Judge, Labelled, Pair, Prompt, completion_text, hookimpl
from harness.core.data import Text

from .columns import Columns, Example, prompt_of
from .conversations import check_answer, earlier_answers, first_turn
from .layouts import read_row
from .rows import RowSuite


@dataclass
class PreferenceFile(RowSuite):
    """Preferences from a file, a folder or the hub: pairs, ranked lists, or labelled answers."""

    name, version = "preference_file", "1"
    judge_name, labeller_name = "reward_model_judge", None

    # the prompt; if missing or empty, the common beginning of the two answers
    prompt_column: str = "prompt"
    chosen_column: str = "chosen"  # the better answer, or the conversation that ends with it
    rejected_column: str = "rejected"  # the worse answer, in the same form
    prompt_ends_with: str = ""  # an implicit prompt ends after the last of these
    list_pairs: str = "best_worst"  # pairs of a ranked list: best_worst, or all of unequal rank
    train_on: str = "last"  # answers of a conversation to imitate: last, or all
    judge_share: float = 0.5  # share of the rows that are not evaluated: they train only the judge

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        super().check()
        if self.list_pairs not in ("best_worst", "all"):
            raise ValueError(f"list_pairs is best_worst or all, not {self.list_pairs!r}")
        if self.train_on not in ("last", "all"):
            raise ValueError(f"train_on is last or all, not {self.train_on!r}")

    def prompts(self, split: str) -> list[Prompt]:
        """Return the distinct prompts of a split; methods train on the prompts of their
        preferences.
        """
        part = {"train": "method", "preferences": "method", "demonstrations": "method"}.get(
            split, split
        )
        return list({row.prompt.id: row.prompt for row in self._parts[part]}.values())

    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return the answers to imitate: chosen, desirable, or without a label.

        They are those of the methods' part, or of the validation split.
        """
        part = "method" if split == "demonstrations" else split
        return [demo for row in self._parts[part] for demo in _imitable(row, self.train_on)]

    def preferences(self) -> list[Pair]:
        """Return the pairs that methods may see."""
        return _pairs(self._parts["method"])

    def labelled(self) -> list[Labelled]:
        """Return the labelled answers that methods may see; none if all rows are pairs."""
        return _labelled(self._parts["method"])

    def judge_preferences(self) -> list[Pair] | list[Labelled]:
        """Return the preferences that only the judge sees: labelled answers if there are any, or
        pairs.
        """
        rows = self._parts["judge"]
        return _labelled(rows) or _pairs(rows)

    def references(self, split: str) -> dict[str, str]:
        """Return the first good answer to each prompt, for ROUGE; none if a prompt has none."""
        rows = self._parts[split]
        good = [demo for row in reversed(rows) for demo in _imitable(row, "last")]
        answers = {demo.prompt.id: completion_text(demo.completion) for demo in good}
        return answers if all(row.prompt.id in answers for row in rows) else {}

    @cached_property
    def _parts(self) -> dict[str, list[Example]]:
        parts = ("method", "judge", "validation", "test")
        return self._by_part(self._read, parts, optional=() if self.judge_share else ("judge",))

    def _other_part(self, place: float) -> str:
        return "judge" if place < self.judge_share else "method"

    def _placing(self, prompt: Prompt) -> Text:
        """Return the first question of a prompt if earlier answers are trained on too."""
        return first_turn(prompt.text) if self.train_on == "all" else prompt.text

    def _read(self, row: object) -> list[Example]:
        examples = read_row(
            row,
            Columns(
                self.prompt_column,
                self.chosen_column,
                self.rejected_column,
                self.prompt_ends_with,
                self.list_pairs,
            ),
        )
        if self.train_on == "all":
            for demo in (d for example in examples for d in _imitable(example, "all")):
                check_answer(demo.completion)
        return examples


def _imitable(row: Example, train_on: str) -> Iterator[Demonstration]:
    """Yield the answers of an example to imitate: its good answer, and earlier ones if the option
    asks for them.
    """
    if isinstance(row, Labelled) and not row.label:
        return
    if train_on == "all":
        for prompt, answer in earlier_answers(row.prompt.text):
            yield Demonstration(prompt_of(prompt), answer)
    yield Demonstration(row.prompt, row.chosen if isinstance(row, Pair) else row.completion)


def _pairs(rows: Sequence[Example]) -> list[Pair]:
    """Return the pairs among examples, and those that labelled answers to one prompt make.

    The first good answer to a prompt is paired with the first bad one, the second with the second.
    """
    labelled: dict[str, tuple[list[Labelled], list[Labelled]]] = {}
    for row in rows:
        if isinstance(row, Labelled):
            labelled.setdefault(row.prompt.id, ([], []))[not row.label].append(row)
    pairs = [
        Pair(one.prompt, one.completion, other.completion)
        for good, bad in labelled.values()
        for one, other in zip(good, bad, strict=False)
    ]
    return [row for row in rows if isinstance(row, Pair)] + pairs


def _labelled(rows: Sequence[Example]) -> list[Labelled]:
    """Return the labelled answers among examples, with those of their pairs; none if all are
    pairs.
    """
    if not any(isinstance(row, Labelled) for row in rows):
        return []
    labelled = [row for row in rows if isinstance(row, Labelled)]
    for pair in (row for row in rows if isinstance(row, Pair)):
        labelled += [
            Labelled(pair.prompt, pair.chosen, 1.0),
            Labelled(pair.prompt, pair.rejected, 0.0),
        ]
    return labelled


class RewardModelJudge(Judge):
    """A reward model trained on preferences that no method sees. Its score estimates the
    annotators' preference.
    """

    name, learns = "reward_model_judge", True

    def prepare(self, suite, stages):
        """Train the judge's model, or take it from the artifacts."""
        if stages is not None:
            self.stages, self.model = stages, stages.judge_model()

    def agreement(self):
        """Return the accuracy on held-out preferences."""
        return dict(self.model.held_out)

    def score(self, prompts, completions):
        """Return the judge model's normalised score per completion."""
        from harness.core.meter import Meter

        stages = self.stages
        ids = [
            [stages.tokens.answer_ids(p.text, text)]
            for p, text in zip(prompts, completions, strict=True)
        ]
        runtime = stages.runtime(Meter(), 0)
        with runtime.meter.phase("evaluate"):
            batch = stages.tokens.batch(list(prompts), ids, stages.device)
            return self.model.score(batch, runtime)[:, 0].tolist()


@hookimpl
def register_suites(register):
    register(PreferenceFile)


@hookimpl
def register_judges(register):
    register(RewardModelJudge)
