"""Every contract of the harness on one page: what a plugin is, and what it is given. Importing this costs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from .data import Demonstration, Pair, Prompt, Sampling, Table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .lab import Lab
    from .rollout import Sampler
    from .tokens import Batch, PromptBatch

NEEDS = frozenset({"prompts", "pairs", "demonstrations", "reward", "verifier"})
SPLITS = ("demonstrations", "preferences", "train", "validation", "test")


@dataclass
class Method(ABC):
    """An alignment method. Its dataclass fields are its hyper-parameters; `train` is the loop of the paper.

    A field's trailing comment is its help. A field without a default cannot be set from the command line.
    """

    name: ClassVar[str]  # the word on the command line, the file, the entry point and the row
    paper: ClassVar[str] = ""  # a link
    needs: ClassVar[frozenset[str]] = frozenset()  # what the suite must give: see NEEDS

    @abstractmethod
    def train(self, lab: Lab) -> Policy:
        """Train at the bench and return the policy. Numbers carried from turn to turn belong in `lab.state`."""

    def check(self) -> None:  # noqa: B027  # nothing to check is a fine default
        """Raise ValueError for options that make no sense, alone or together; called before anything is made."""

    def required(self) -> frozenset[str]:
        """Return what this instance needs: `needs`, or more where an option asks for more."""
        return self.needs


@dataclass
class AdamWOptions:
    """How anything here is trained: by AdamW, with the options under one name everywhere."""

    learning_rate: float = 1e-6  # peak learning rate of AdamW
    lr_schedule: str = "linear"  # linear, cosine or constant, after the warm-up
    lr_final: float = 0.0  # where the schedule ends, as a share of the peak
    warmup_ratio: float = 0.1  # share of training over which the learning rate rises
    weight_decay: float = 0.0  # decoupled weight decay
    adam_beta2: float = 0.98  # AdamW's second-moment decay (the first is 0.9, epsilon 1e-8)
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0 leaves them alone
    batch_size: int = 32  # examples per optimiser step: demonstrations, pairs, or prompts

    def check(self) -> None:
        """Raise ValueError for options that make no sense, alone or together; called before anything is made."""
        if self.lr_schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"lr_schedule is linear, cosine or constant, not {self.lr_schedule!r}")
        if self.learning_rate <= 0 or self.batch_size < 1:
            raise ValueError("learning_rate must be above 0 and batch_size at least 1")
        if not 0 <= self.warmup_ratio < 1 or not 0 <= self.lr_final <= 1:
            raise ValueError("warmup_ratio must lie in [0, 1) and lr_final in [0, 1]")


@dataclass
class GradientMethod(AdamWOptions, Method):
    """A method that trains by gradient: a Method with the options of AdamW."""


@dataclass
class RewardOptions:
    """A mixin for methods that ask for a learned reward: one model or an ensemble, and what is taken off the score."""

    reward_members: int = 1  # reward models trained with different seeds
    reward_combine: str = "mean"  # of an ensemble: mean, worst, or uncertainty (mean - coef * variance)
    reward_variance_coef: float = 0.1  # coefficient of the variance for reward_combine=uncertainty
    length_penalty: float = 0.0  # taken off the reward for every completion token

    def check_reward(self) -> None:
        """Raise ValueError for a combination that cannot be computed."""
        if self.reward_combine not in ("mean", "worst", "uncertainty"):
            raise ValueError(f"reward_combine is mean, worst or uncertainty, not {self.reward_combine!r}")
        if self.reward_members < 1:
            raise ValueError("reward_members must be at least 1")
        if self.reward_members == 1 and self.reward_combine != "mean":
            raise ValueError(f"reward_combine={self.reward_combine} needs an ensemble: set reward_members to 2 or more")


class Policy(ABC):
    """Something that answers prompts. A trained model is one (`lab.policy`); best-of-n wraps one.

    A policy with no log-probabilities of its own names its `kl_estimator` and puts a `kl` column, `(B,)` nats per
    completion, on its answers; for all others the evaluator measures KL from `model`.
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
    """Says which completion of a prompt is better, as an annotator would, with an annotator's errors."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"

    def prepare(self, suite: Suite, judge: Judge) -> None:  # noqa: B027  # a labeller may need nothing
        """Take from the suite and its judge what labelling needs, before the first label."""

    @abstractmethod
    def rank(self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int], rng: Random) -> list[int]:
        """Return the rank of each completion, 0 the best; equal ranks are ties. `lengths` are in tokens."""

    def ceiling(self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int]) -> list[float] | None:
        """Return noiseless utilities, by which the share of labels that noise turned around is counted, or None."""
        return None


class Verifier(ABC):
    """Checks an answer: a pure, bounded function. None means that the answer cannot be scored."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"

    @abstractmethod
    def verify(self, prompt: Prompt, completion: str) -> float | None:
        """Return 1.0 for a right answer, 0.0 for a wrong one (or a grade between)."""


@dataclass
class Suite(ABC):
    """Prompts by split, demonstrations, a labeller or fixed preferences, a judge, perhaps a verifier.

    Fields are options of the suite. `shared_seed` seeds all that is drawn; splits never share a prompt.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    judge_name: ClassVar[str]  # a registered judge
    labeller_name: ClassVar[str | None] = None  # a registered labeller, where preferences are sampled and labelled
    temperature: ClassVar[float] = 1.0  # at which everything is sampled and measured
    settings: ClassVar[Mapping[str, Mapping[str, object]]] = {}  # recommended options by stage or method; "*": any
    quick: ClassVar[Mapping[str, Mapping[str, object]]] = {}  # what `--quick` changes further

    shared_seed: ClassVar[int] = 0

    @abstractmethod
    def prompts(self, split: str) -> list[Prompt]:
        """Return the prompts of a split, one of SPLITS."""

    @abstractmethod
    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return what the start checkpoint imitates; of the validation split, what centres the reward model."""

    def preferences(self) -> list[Pair] | None:
        """Return fixed preference pairs, or None where the harness samples completions and asks the labeller."""
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


class Engine(ABC):
    """Draws completions from a causal language model."""

    name: ClassVar[str]

    @abstractmethod
    def generate(
        self, model: torch.nn.Module, prompts: PromptBatch, n: int, sampling: Sampling, noise: Tensor
    ) -> Batch:
        """Draw n completions per prompt, `noise` (B * n, max_new_tokens) uniform on [0, 1) deciding every token.

        The answer carries `logp` (B, n, T): the log-probability of each token under the distribution it was drawn from.
        """


class Reporter(ABC):
    """Renders a table."""

    name: ClassVar[str]
    suffix: ClassVar[str]

    @abstractmethod
    def render(self, table: Table) -> str:
        """Return the table as text."""
