"""The contract of a verifier. Importing this module does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ..core.data import Prompt
from .identified import Identified


class Verifier(Identified, ABC):
    """A check of answers: a pure function with bounded run time and bounded memory.

    If the class is a dataclass, its fields are its options: what a suite file sets beside the
    verifier's name. The verdicts of a dataclass are cached by `identity()`, gold answer and
    completion. An instance with other state must not be a dataclass.

    Example:
        ```python
        @dataclass
        class LastWord(Verifier):
            name, reads_prompt = "last_word", False

            def verify(self, prompts, completions, golds, ended):
                last = [text.split()[-1:] for text in completions]
                return [float(word == [gold]) for word, gold in zip(last, golds, strict=True)]
        ```
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    # whether a verdict depends on more of the prompt than its gold answer
    reads_prompt: ClassVar[bool] = True
    # whether it accepts all that clears a lower bar, right or wrong: then it serves as a gate
    lower_bar: ClassVar[bool] = False
    # whether `steps` gives a reward for each step of an answer
    has_steps: ClassVar[bool] = False
    # the folder that relative paths in options start from: the suite file's, set by the harness
    folder: ClassVar[Path] = Path(".")

    def check(self) -> None:  # noqa: B027  # optional
        """Check the options, alone and together.

        Raises:
            ValueError: An option, or a combination of options, is invalid.
        """

    def read_gold(self, text: str) -> str:
        """Return the gold answer of a row in the form that `verify` receives.

        Args:
            text: The row's answer as it stands in the data, such as a worked solution.

        Returns:
            The gold answer alone. By default the text, unchanged.

        Raises:
            ValueError: The text holds no gold answer that this verifier can read. The message
                says what was expected.
        """
        return text

    @abstractmethod
    def verify(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        golds: Sequence[str | None],
        ended: Sequence[bool],
    ) -> list[float | None]:
        """Check n completions.

        A verdict must not depend on the other completions of the call.

        Args:
            prompts: n prompts.
            completions: n completions as text, without the end-of-sequence token.
            golds: n gold answers as `read_gold` returned them; None where a prompt has none.
            ended: n flags: whether the completion ended by itself. It is false for a completion
                that was cut at the length limit.

        Returns:
            n verdicts: 1.0 for a right answer, 0.0 for a wrong one, or a grade between them. None
            means that the answer cannot be graded, for example for want of a gold answer. The
            verifier of a single suite may return other finite grades.

        Raises:
            HarnessError: No verdict can be had at all, for example because a program is missing.
        """

    def steps(
        self, prompt: Prompt, completion: str, gold: str | None, ended: bool
    ) -> list[tuple[int, float]] | None:
        """Return a reward for each step of a completion, for methods with `rewards=process`.

        A verifier that overrides it sets `has_steps = True`.

        Args:
            prompt: The prompt.
            completion: The completion as text, without the end-of-sequence token.
            gold: The gold answer as `read_gold` returned it.
            ended: Whether the completion ended by itself.

        Returns:
            (end, reward) of each step in their order: the number of characters up to its end, and
            a finite number. None where the completion cannot be graded.
        """
        raise NotImplementedError(f"the verifier {self.name} gives no reward for a step")

    def reading(self, completion: str, ended: bool) -> str | None:
        """Return the answer that a completion gives, as a text that is equal for equal answers.

        With several answers to a prompt, those with the same reading vote together (maj@k). A
        verifier that compares with a gold answer should override it.

        Args:
            completion: The completion as text, without the end-of-sequence token.
            ended: Whether the completion ended by itself.

        Returns:
            The reading; None if the completion gives no answer. By default None: nothing votes.
        """
        return None

    def examples(self) -> list[tuple[str, str]]:
        """Return pairs (text of a gold answer, completion that is right for it).

        `harness check` requires a verdict of 1.0 for each of them.
        """
        return []

    def close(self) -> None:  # noqa: B027  # optional
        """End the processes that the verifier started, if any. It may be used again."""
