"""Instructions with constraints that code can check, as in IFEval: for any chat model.

# instructions.toml
suite = "instructions"
kinds = ["include", "lower", "at_most_words"]
prompts_to_train = 2000
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

from harness import SPLITS, Demonstration, Prompt, Suite, UsageError, hookimpl, make_verifier

from .instruction_kinds import ANY_KIND, SINGLE_KINDS, Instruction, draw

DRAWS = 200  # draws of a new prompt before a kind counts as exhausted


@dataclass
class Instructions(Suite):
    """Procedural instructions with constraints that code can check; the grade is the share kept.

    Every instruction names a topic, and an answer must mention it (`on_topic`). Two gates keep
    a policy from winning with gibberish: `sense`, and `likelihood` under the model of `--model`.
    Each has a column of its own, `verdict_sense` and `verdict_likelihood`.
    """

    name, version = "instructions", "1"
    judge_name, labeller_name = "verdict", "verdict"
    proxy = False  # gold is the verifier itself

    title: str = ""  # the suite's name; by default that of the suite file
    folder: str = "."  # the suite file's folder
    kinds: tuple[str, ...] = ANY_KIND  # which kinds of instructions, in equal shares
    prompts_to_train: int = 1000  # each other split has a quarter of it
    on_topic: bool = True  # an answer that does not mention the topic gets 0
    graded: bool = True  # the share of constraints kept; otherwise 1.0 for all of them, and 0.0
    must_end: bool = True  # an answer that was cut at the length limit is wrong
    sense: bool = True  # the gate `sense`
    sense_options: dict = field(default_factory=dict)  # options of it, as a table
    # the gate `likelihood`: the least mean log-probability per token, in nats; 0 leaves it out
    least_likelihood: float = -5.0
    chat_template: bool | str = True  # the tokenizer's (true), or a Jinja file
    chat_date: str = "2024-07-26"  # the day that the clock of a chat template shows
    chat_options: tuple[str, ...] = ()  # NAME=VALUE of the template: ["enable_thinking=false"]
    max_prompt_tokens: int = 256  # longer prompts lose their beginning
    max_completion_tokens: int = 64  # longer answers are cut

    def check(self) -> None:
        """Raise ValueError for options that make no sense."""
        from harness.models.chat import ChatOptions

        for kind in self.kinds:
            if kind not in ANY_KIND:
                raise ValueError(f"kinds are {', '.join(ANY_KIND)}, not {kind!r}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds names at least one kind, and each of them once")
        if self.prompts_to_train < 8 or min(self.max_prompt_tokens, self.max_completion_tokens) < 1:
            raise ValueError("prompts_to_train is at least 8, and the token limits are above 0")
        if self.least_likelihood > 0:
            raise ValueError("least_likelihood is a mean log-probability below 0, or 0 for no gate")
        if self.chat_template is False or self.chat_template == "auto":
            raise ValueError("chat_template is true or a Jinja file: chat models are instructed")
        ChatOptions.of(self).check()

    def prompts(self, split):
        """Return the instructions of a split; each id names the kind."""
        return [demo.prompt for demo in self._splits[split]]

    def size(self, split):
        """Return the number of prompts of a split."""
        return self.prompts_to_train if split == "train" else max(2, self.prompts_to_train // 4)

    def demonstrations(self, split="demonstrations"):
        """Return instructions with a plain answer that keeps them."""
        return self._splits[split]

    def make_verifier(self):
        """Return the checker of constraints behind its gates."""
        self._check_model()
        ends = {"must_end": self.must_end}
        parts = [{"name": "constraints", "graded": self.graded} | ends]
        if self.sense:
            parts.append({"name": "sense", "gate": True} | ends | self.sense_options)
        if self.least_likelihood and self.model:  # a suite that is only shown has no model
            template = self.chat_template if isinstance(self.chat_template, str) else "auto"
            options = {"model": str(self.model), "least": float(self.least_likelihood)}
            chat = {"chat_template": template, "chat_date": self.chat_date}
            parts.append({"name": "likelihood", "gate": True} | options | chat)
        return make_verifier("", {}, parts, self.folder)

    @property
    def max_new_tokens(self) -> int:
        """How long an answer may be."""
        return self.max_completion_tokens

    def _check_model(self) -> None:
        """Raise UsageError for a model whose tokenizer has no chat template."""
        from harness.api.start import has_chat_template

        if self.model and self.chat_template is True and not has_chat_template(self.model):
            raise UsageError(
                f"The suite {self.name} is for chat models, and the tokenizer of {self.model}"
                " has no chat template. Use a model that was tuned on conversations, or name a"
                " template: --suite-set chat_template=FILE.jinja."
            )

    @cached_property
    def _splits(self) -> dict[str, list[Demonstration]]:
        """Return the instructions of all splits; no text is in two splits."""
        seen: set[str] = set()
        return {split: list(self._drawn(split, seen)) for split in reversed(SPLITS)}

    def _drawn(self, split: str, seen: set[str]) -> Iterator[Demonstration]:
        """Yield the instructions of a split in turns of the kinds."""
        verifier = self.make_verifier()
        for place in range(self.size(split)):
            kind = self.kinds[place % len(self.kinds)]
            instruction = self._new(kind, f"{self.shared_seed}/{split}/{place}", seen)
            seen.add(instruction.text)
            messages = [{"role": "user", "content": instruction.text}]
            prompt = Prompt(
                f"{split}/{kind}/{place}", messages, verifier.read_gold(instruction.gold)
            )
            yield Demonstration(prompt, [{"role": "assistant", "content": instruction.answer}])

    def _new(self, kind: str, seed: str, seen: set[str]) -> Instruction:
        """Return an instruction whose text is new."""
        for attempt in count():
            instruction = draw(kind, f"{seed}/{attempt}", self.on_topic)
            if instruction.text not in seen:
                return instruction
            if attempt == DRAWS:
                raise UsageError(
                    f"The kind {kind} has too few different instructions for prompts_to_train ="
                    f" {self.prompts_to_train}. Lower it, or name more kinds: {SINGLE_KINDS}."
                )
        raise AssertionError


@hookimpl
def register_suites(register):
    register(Instructions)
