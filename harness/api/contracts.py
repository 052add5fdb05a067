"""Every contract of the harness on one page: what a plugin is, and what it is given.

Importing this costs no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..core.data import Comparison, Demonstration, Job, Pair, Principle, Prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..core.meter import Meter
    from ..core.table import Table
    from ..models.enumeration import Enumerated
    from ..models.generation import Sampler
    from ..models.tokens import Batch, PromptBatch, Tokens
    from .lab import Lab

NEEDS = frozenset({"prompts", "pairs", "demonstrations", "reward", "verifier", "labels"})
SPLITS = ("demonstrations", "preferences", "train", "validation", "test")


@dataclass
class Method(ABC):
    """An alignment method. Its dataclass fields are its hyper-parameters; `train` is the loop of
    the paper.

    A field's trailing comment is its help. A field without a default cannot be set from the command
    line.
    """

    name: ClassVar[str]  # the word on the command line, the file, the entry point and the row
    kind: ClassVar[str] = (
        ""  # what sort of method, in a word or three: "offline preference", "on-policy"
    )
    paper: ClassVar[str] = ""  # a link
    needs: ClassVar[frozenset[str]] = frozenset()  # what the suite must give: see NEEDS

    @abstractmethod
    def train(self, lab: Lab) -> Policy:
        """Train at the bench and return the policy.

        Numbers carried from turn to turn belong in `lab.state`.
        """

    def check(self) -> None:  # noqa: B027  # nothing to check is a fine default
        """Raise ValueError for options that make no sense, alone or together; called before
        anything is made.
        """

    def required(self) -> frozenset[str]:
        """Return what this instance needs: `needs`, or more where an option asks for more."""
        return self.needs

    def labeller(self) -> str | None:
        """Return the labeller whose preferences this method learns from, where it is not the
        suite's: AI feedback.
        """
        return None

    def optimum(self, problem: Enumerated) -> Tensor | None:
        """Return the distribution (P, N) this method converges to where every completion can be
        listed, or None.

        It is what the paper's theory says, derived apart from the code that trains: a suite that
        can list its completions reports how far the trained policy is from it.
        """
        return None


class Policy(ABC):
    """Something that answers prompts. A trained model is one (`lab.policy`); best-of-n wraps one.

    A policy with no log-probabilities of its own names its `kl_estimator` and puts a `kl` column,
    `(B,)` nats per completion, on its answers; for all others the evaluator measures KL from
    `model`.
    """

    model: torch.nn.Module | None = None
    kl_estimator: str | None = None

    @abstractmethod
    def answer(self, prompts: PromptBatch, sampler: Sampler) -> Batch:
        """Draw one completion per prompt with the evaluator's sampler: a batch of shape (B, 1, T)."""


class Judge(ABC):
    """Scores completions for evaluation. No judge is ever reachable from a method."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"

    def prepare(self, suite: Suite, stages: Any) -> None:  # noqa: B027  # most judges need nothing
        """Make what the judge needs (a reward model of its own, say) before the first score."""

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return one score per completion; higher is better."""


class Labeller(ABC):
    """Says which completion of a prompt is better, as an annotator would, with an annotator's
    errors.

    A dataclass's fields are its options (`--labeller-set`).
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    human: ClassVar[bool] = (
        True  # its labels are billed as human labels; a model's or a rule's are not
    )

    def prepare(self, suite: Suite, judge: Judge) -> None:  # noqa: B027  # a labeller may need nothing
        """Take from the suite and its judge what labelling needs, before the first label."""

    @abstractmethod
    def compare(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int], rng: Random
    ) -> list[Comparison]:
        """Return an opinion of every pair that was asked about. `lengths` are in tokens; `rng` is
        the prompt's own.
        """

    def identity(self) -> dict[str, object]:
        """Return what decides its labels besides its code: its options, and what they stand for
        outside the harness.
        """
        return {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}

    def data_files(self) -> list[Path]:
        """Return the files its labels depend on, if any: a change makes another run."""
        return []

    def usage(self) -> dict[str, float]:
        """Return what labelling used so far, by name (requests, refusals, tokens); kept with the
        preferences.

        `asked` among them is what is billed: pairs asked about; without it the opinions returned
          are.
        """
        return {}

    def constitution(self, suite: Suite) -> list[Principle]:
        """Return the principles that it goes by where it is asked to go by some: the suite's."""
        return suite.principles()

    def revise(self, prompt: Prompt, completion: str, principle: Principle, rng: Random) -> str:
        """Return the completion criticised and rewritten under a principle; as it is where nothing
        is to be said.
        """
        raise NotImplementedError(
            f"the labeller {self.name} compares completions, and does not revise them"
        )

    def ceiling(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int]
    ) -> list[float] | None:
        """Return noiseless utilities, by which the share of labels that noise turned around is
        counted, or None.
        """
        return None


class Ranker(Labeller):
    """A labeller that puts all completions of a prompt in order at once."""

    @abstractmethod
    def rank(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int], rng: Random
    ) -> list[int]:
        """Return the rank of each completion, 0 the best; equal ranks are ties.

        `lengths` are in tokens.
        """

    def compare(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int], rng: Random
    ) -> list[Comparison]:
        """Return every pair in the order of the ranks; ties say nothing."""
        ranks = self.rank(prompt, completions, lengths, rng)
        pairs = combinations(range(len(ranks)), 2)
        return [
            Comparison(i, j, float(ranks[i] < ranks[j])) for i, j in pairs if ranks[i] != ranks[j]
        ]


class Verifier(ABC):
    """Checks an answer: a pure, bounded function. None means that the answer cannot be scored."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"

    @abstractmethod
    def verify(self, prompt: Prompt, completion: str) -> float | None:
        """Return 1.0 for a right answer, 0.0 for a wrong one (or a grade between)."""


class SuiteStages(Protocol):
    """The shared stages, as a suite or a judge sees them.

    Reading a property makes the stage behind it.
    """

    @property
    def tokens(self) -> Tokens:
        """The tokenizer of the base model, with the harness's rules."""

    @property
    def start(self) -> torch.nn.Module:
        """The start checkpoint, frozen."""

    @property
    def device(self) -> torch.device:
        """The device of this run."""

    @property
    def micro_batch_tokens(self) -> int:
        """How many tokens a forward pass takes at once."""

    def judge_model(self) -> Any:
        """Return a reward model trained on the pairs that only a judge may see."""

    def runtime(self, meter: Meter, seed: int) -> Any:
        """Return how models are used: engine, sampling and device, counted by `meter`."""


@dataclass
class Suite(ABC):
    """Prompts by split, demonstrations, a labeller or fixed preferences, a judge, perhaps a
    verifier.

    Fields are options of the suite. `shared_seed` seeds all that is drawn; splits never share a
    prompt.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    judge_name: ClassVar[str]  # a registered judge
    labeller_name: ClassVar[str | None] = (
        None  # a registered labeller, where preferences are sampled and labelled
    )
    temperature: ClassVar[float] = 1.0  # at which everything is sampled and measured
    settings: ClassVar[
        Mapping[str, Mapping[str, object]]
    ] = {}  # recommended options by stage or method; "*": any
    quick: ClassVar[Mapping[str, Mapping[str, object]]] = {}  # what `--quick` changes further

    enumerable: ClassVar[bool] = (
        False  # every completion can be listed: `figures` tells distances to optima
    )

    shared_seed: ClassVar[int] = 0

    @abstractmethod
    def prompts(self, split: str) -> list[Prompt]:
        """Return the prompts of a split, one of SPLITS."""

    def size(self, split: str) -> int:
        """Return how many prompts a split has; where that is known without making them, say so."""
        return len(self.prompts(split))

    @abstractmethod
    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return what the start checkpoint imitates; of the validation split, what centres the
        reward model.
        """

    def preferences(self) -> list[Pair] | None:
        """Return fixed preference pairs, or None where the harness samples completions and asks the
        labeller.
        """
        return None

    def judge_preferences(self) -> list[Pair]:
        """Return the pairs that only a trained judge may see."""
        return []

    def references(self, split: str) -> dict[str, str]:
        """Return reference completions by prompt id, for ROUGE; empty where there are none."""
        return {}

    def verifier(self) -> Verifier | None:
        """Return the verifier, where answers can be checked."""
        return None

    def principles(self) -> list[Principle]:
        """Return the constitution an AI annotator may go by; empty where there is none."""
        return []

    def figures(
        self, method: Method, model: torch.nn.Module | None, stages: SuiteStages
    ) -> dict[str, Any]:
        """Return more figures for the record than the evaluator's own: exact ones, where all can be
        enumerated.
        """
        return {}

    def base_model(self) -> Path | None:
        """Return the folder of the embedded base model, or None where the user names one."""
        return None

    def data_files(self) -> list[Path]:
        """Return the files the suite reads: their contents are part of what names a run."""
        return []

    @property
    def max_new_tokens(self) -> int:
        """Return how long a completion may be, in tokens, its end-of-sequence token included."""
        return 128


class Reporter(ABC):
    """Renders a table."""

    name: ClassVar[str]
    suffix: ClassVar[str]

    columns: ClassVar[Sequence[str]] = ()  # of a comparison where nobody asks for some; empty: all

    @abstractmethod
    def render(self, table: Table) -> str:
        """Return the table as text."""


@dataclass
class Launcher(ABC):
    """Carries out the commands of a study; its dataclass fields are its options.

    Nothing else knows about processes.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(
        self, jobs: Sequence[Job], started: Callable[[Job], None], ended: Callable[[Job, int], None]
    ) -> None:
        """Carry out all jobs, begun in their order; return when none is left.

        `started` and `ended` are called as jobs begin and end, from the thread that called this.
          The number is the exit
        status; below 0 it is the signal that ended the job. An exception (Ctrl-C, say) must leave
          no job behind.
        """
