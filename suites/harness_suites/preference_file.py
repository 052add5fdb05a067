"""A suite from a file: any preference data set in the ecosystem's columns, with a judge that no
method can see into.

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
other half only the judge, a reward model of its own. Conversations (lists of messages) are rendered
by the tokenizer's chat template.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from harness import Demonstration, Judge, Pair, Prompt, completion_text, derive, hookimpl

from .rows import RowSuite


@dataclass
class PreferenceFile(RowSuite):
    """Preference pairs from a file, a folder or the hub."""

    name, version = "preference_file", "1"
    judge_name, labeller_name = "reward_model_judge", None

    prompt_column: str = "prompt"  # if missing, the common prefix of the two completions
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    prompt_ends_with: str = ""  # an implicit prompt ends after the last of these
    judge_share: float = 0.5  # of the rows that are not evaluated: train the judge and nothing else

    def prompts(self, split: str) -> list[Prompt]:
        """Return the distinct prompts of a split; methods train on the prompts of their
        preferences.
        """
        part = {"train": "method", "preferences": "method", "demonstrations": "method"}.get(
            split, split
        )
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
        parts = ("method", "judge", "validation", "test")
        return self._by_part(self._pair, parts, optional=() if self.judge_share else ("judge",))

    def _other_part(self, place: float) -> str:
        return "judge" if place < self.judge_share else "method"

    def _pair(self, row: object) -> Pair:
        if not isinstance(row, dict):
            raise ValueError(
                f"expected an object with {self.chosen_column!r} and {self.rejected_column!r}"
            )
        for column in (self.chosen_column, self.rejected_column):
            if column not in row:
                raise ValueError(
                    f"no column {column!r}; there are {', '.join(sorted(row)) or 'none'}"
                )
        prompt, chosen, rejected = (
            row.get(self.prompt_column),
            row[self.chosen_column],
            row[self.rejected_column],
        )
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
                    raise ValueError(
                        f"what chosen and rejected share does not contain {self.prompt_ends_with!r}"
                    )
                shared = end + len(self.prompt_ends_with)
            elif shared and chosen[shared - 1] == " ":
                shared -= 1  # the space belongs to the first word of the answer
        if not shared:
            raise ValueError("chosen and rejected share no beginning, so there is no prompt")
        return chosen[:shared], chosen[shared:], rejected[shared:]


def _check_text(text: object) -> None:
    if isinstance(text, str):
        text.encode()  # ValueError for a lone surrogate, which has no tokens
        return
    good = (
        isinstance(text, list)
        and text
        and all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in text
        )
    )
    if not good:
        raise ValueError(
            f"expected text or a list of messages with role and content, not {str(text)[:40]!r}"
        )


class RewardModelJudge(Judge):
    """A reward model trained on preferences that no method sees: its score stands for the
    annotators' taste.
    """

    name = "reward_model_judge"

    def prepare(self, suite, stages):
        """Train the judge's model, or take it from the artifacts."""
        if stages is not None:
            self.stages, self.model = stages, stages.judge_model()

    def score(self, prompts, completions):
        """Return the judge model's normalised score per completion."""
        from harness.core.meter import Meter

        stages = self.stages
        ids = [
            [stages.tokens.completion_ids(p.text, text)]
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
