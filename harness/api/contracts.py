"""The contracts of all plugins. Importing this module does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.data import Comparison, Demonstration, Labelled, Pair, Principle, Prompt, Ranked
from .identified import CountsUsage
from .judge_contract import Answer as Answer
from .judge_contract import Judge as Judge
from .judge_contract import PairVerdict as PairVerdict
from .study_contracts import Launcher as Launcher
from .study_contracts import Reporter as Reporter
from .verifier_contract import Verifier as Verifier

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..core.data_report import DataReport
    from ..models.batches import Batch, PromptBatch
    from ..models.enumeration import Enumerated
    from ..models.generation import Sampler
    from .lab import Lab
    from .suite_stages import SuiteStages

NEEDS = frozenset(
    {
        *("prompts", "pairs", "lists", "labelled", "demonstrations"),
        *("reward", "verifier", "steps", "labels"),
    }
)
SPLITS = ("demonstrations", "preferences", "train", "validation", "test")


@dataclass
class Method(ABC):
    """An alignment method. Its dataclass fields are its hyper-parameters.

    The trailing comment of a field is its help text. A field without a default cannot be set from
    the command line.

    Example:
        ```python
        @dataclass
        class Hinge(PairOptions):
            name, needs = "hinge", frozenset({"pairs"})

            beta: float = 1.0  # scale of the log-ratios

            def loss(self, logp, batch):
                s_w, s_l = (logp - batch["ref_logp"]).sum(-1).unbind(1)
                return torch.relu(1 - self.beta * (s_w - s_l))

            def train(self, lab):
                for pairs in self.pairs(lab):
                    lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))
                return lab.policy
        ```
    """

    name: ClassVar[str]  # on the command line, in tables and in records
    kind: ClassVar[str] = ""  # one to three words: "offline preference", "on-policy"
    paper: ClassVar[str] = ""  # a link
    needs: ClassVar[frozenset[str]] = frozenset()  # what the suite must provide: see NEEDS
    extra: ClassVar[str] = ""  # a package that it needs, and the extra that installs it
    # metrics to show while it trains, the most telling first, where they are logged
    shown: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "grad_norm")
    # what `[tune]` of a study searches if the study names no space, in the form of
    # `[tune.space.METHOD]`; empty: there is nothing to tune
    tuning_space: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def train(self, lab: Lab) -> Policy:
        """Train a policy with the training loop of the paper.

        Numbers that the loop carries from turn to turn belong in `lab.state`.

        Args:
            lab: Data streams, models, rewards and optimizer steps.

        Returns:
            The policy to evaluate: usually `lab.policy`.
        """

    def check(self) -> None:  # noqa: B027  # optional
        """Check the options, alone and together. Called before any data or model is made.

        Raises:
            ValueError: An option, or a combination of options, is invalid.
        """

    def required(self) -> frozenset[str]:
        """Return a subset of NEEDS: the class's `needs`, and those that the options add."""
        return self.needs

    def labeller(self) -> str | None:
        """Return the name of the method's own labeller (AI feedback), or None for the suite's."""
        return None

    def data_files(self) -> list[Path]:
        """Return the files that the method reads. A changed file makes another run."""
        return []

    def optimum(self, problem: Enumerated) -> Tensor | None:
        """Return the distribution that the method converges to by its paper's theory.

        It is derived independently of the training code. An enumerable suite reports the distance
        of the trained policy to it.

        Args:
            problem: All N completions of each of P prompts: reference probabilities, rewards,
                lengths and preference probabilities.

        Returns:
            (P, N) probabilities, each row with sum 1, or None where theory gives no closed form.
        """
        return None


class Policy(ABC):
    """An object that answers prompts: a trained model (`lab.policy`), or a wrapper of one.

    The evaluator measures KL with the log-probabilities of `model`. A policy without
    log-probabilities of its own, such as best-of-n, sets `kl_estimator` to a name and adds a column
    `kl` (B,) in nats per completion to its answers. A policy whose KL cannot be known at all says
    why in `no_kl`; its `model` is then None.

    `provenance` is what a record says of a model that was trained elsewhere: its name, and the
    digest of its files. It is empty for a policy that the method trained.
    """

    model: torch.nn.Module | None = None
    kl_estimator: str | None = None
    no_kl: str = ""
    provenance: Mapping[str, Any] = {}

    def language_model(self, tokenizer: Any) -> tuple[torch.nn.Module, Any] | None:
        """Return the model and the tokenizer that benchmarks are run with.

        Args:
            tokenizer: The start checkpoint's.

        Returns:
            None for a policy that only answers, such as best-of-n.
        """
        if self.model is None or self.kl_estimator is not None:
            return None
        return self.model, tokenizer

    @abstractmethod
    def answer(self, prompts: PromptBatch, sampler: Sampler) -> Batch:
        """Return one completion per prompt.

        Args:
            prompts: B prompts.
            sampler: The evaluator's sampler, with its temperature, length limit and seed.

        Returns:
            A batch (B, 1, T).
        """


class Labeller(CountsUsage, ABC):
    """A simulated, model-based or remote annotator that compares completions.

    If the class is a dataclass, its fields are its options (`--labeller-set`).
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    human: ClassVar[bool] = True  # its labels count as human labels; those of models do not

    def prepare(self, suite: Suite, judge: Judge) -> None:  # noqa: B027  # optional
        """Prepare the labeller before the first label.

        Args:
            suite: The suite of the run.
            judge: The judge of the suite, prepared.

        Raises:
            UsageError: The labeller cannot label this suite, or lacks a key or a model.
        """

    @abstractmethod
    def compare(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int], rng: Random
    ) -> list[Comparison]:
        """Compare completions of one prompt.

        Args:
            prompt: The prompt.
            completions: K completions as text.
            lengths: K lengths in tokens.
            rng: The random generator of this prompt; all noise comes from it.

        Returns:
            Comparisons of pairs of indices `first` and `second`. `p` in [0, 1] is the probability
            that the first is better. A pair without a verdict is left out.

        Raises:
            HarnessError: No further answers can be had, for example from a remote endpoint.
        """

    def compare_sampled(
        self,
        prompt: Prompt,
        completions: Sequence[str],
        lengths: Sequence[int],
        ended: Sequence[bool],
        rng: Random,
    ) -> list[Comparison]:
        """Compare sampled completions of one prompt.

        A labeller that distinguishes completions that were cut overrides this. By default it
        returns `compare`.

        Args:
            prompt: The prompt.
            completions: K completions as text.
            lengths: K lengths in tokens.
            ended: K flags: whether the completion ended by itself. It is false for a completion
                that was cut at the length limit.
            rng: The random generator of this prompt; all noise comes from it.

        Returns:
            Comparisons, as `compare` returns them.
        """
        return self.compare(prompt, completions, lengths, rng)

    def constitution(self, suite: Suite) -> list[Principle]:
        """Return the principles of comparisons and revisions: by default the suite's."""
        return suite.principles()

    def revise(self, prompt: Prompt, completion: str, principle: Principle, rng: Random) -> str:
        """Return a revision of a completion under a principle.

        Args:
            prompt: The prompt.
            completion: The completion as text.
            principle: The principle of the critique.
            rng: The random generator of this completion.

        Returns:
            The revision, or the completion itself where nothing is to be changed.

        Raises:
            NotImplementedError: The labeller only compares.
        """
        raise NotImplementedError(
            f"the labeller {self.name} compares completions, and does not revise them"
        )

    def ceiling(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int]
    ) -> list[float] | None:
        """Return noiseless utilities, for the share of labels that noise reversed.

        Args:
            prompt: The prompt.
            completions: K completions as text.
            lengths: K lengths in tokens.

        Returns:
            K utilities, higher is better, or None where they are unknown.
        """
        return None


class Ranker(Labeller):
    """A labeller that ranks all completions of a prompt at once."""

    @abstractmethod
    def rank(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int], rng: Random
    ) -> list[int]:
        """Rank the completions of one prompt.

        Args:
            prompt: The prompt.
            completions: K completions as text.
            lengths: K lengths in tokens.
            rng: The random generator of this prompt; all noise comes from it.

        Returns:
            K ranks; 0 is the best. Equal ranks are ties.
        """

    def compare(
        self, prompt: Prompt, completions: Sequence[str], lengths: Sequence[int], rng: Random
    ) -> list[Comparison]:
        """Return a comparison with `p` 0 or 1 for every pair of unequal ranks."""
        ranks = self.rank(prompt, completions, lengths, rng)
        pairs = combinations(range(len(ranks)), 2)
        return [
            Comparison(i, j, float(ranks[i] < ranks[j])) for i, j in pairs if ranks[i] != ranks[j]
        ]


@dataclass
class Suite(ABC):
    """A task: prompts by split, demonstrations, preferences, a judge and perhaps a verifier.

    Preferences are fixed pairs, or samples that a labeller compares. The dataclass fields are the
    options of the suite. `shared_seed` seeds all random draws. No two splits share a prompt.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    judge_name: ClassVar[str]  # a registered judge
    labeller_name: ClassVar[str | None] = None  # a registered labeller; None: fixed preferences
    temperature: ClassVar[float] = 1.0  # of all sampling and of all log-probabilities
    # recommended options by stage or method; "*" is any method
    settings: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    quick: ClassVar[Mapping[str, Mapping[str, object]]] = {}  # changes of `--quick` to `settings`

    # whether the evaluation scores answers with the shared reward model too, and makes it for that
    proxy: ClassVar[bool] = True
    enumerable: ClassVar[bool] = False  # all completions can be listed; `figures` are exact

    # Plain text is posed by the tokenizer's chat template where it has one ("auto"), must be
    # (True), is not (False), or is posed by a Jinja file.
    chat_template: ClassVar[bool | str] = "auto"
    chat_date: ClassVar[str] = "2024-07-26"  # the day that a template's clock shows
    chat_options: ClassVar[Sequence[str]] = ()  # NAME=VALUE of the template's own options

    shared_seed: ClassVar[int] = 0
    model: ClassVar[str | None] = None  # what --model names; None where a suite is only described
    answers_train: ClassVar[bool] = True  # whether something of the run learns from its answers

    @abstractmethod
    def prompts(self, split: str) -> list[Prompt]:
        """Return the prompts of a split.

        Args:
            split: One of SPLITS.

        Returns:
            Prompts with distinct ids, in the same order at every call.
        """

    def size(self, split: str) -> int:
        """Return the number of prompts of a split.

        Override it where the number is known without making the prompts.
        """
        return len(self.prompts(split))

    @abstractmethod
    def demonstrations(self, split: str = "demonstrations") -> list[Demonstration]:
        """Return demonstrations.

        Args:
            split: "demonstrations" for the fine-tuning of the start checkpoint; "validation" for
                the centring of the reward model.
        """

    def preferences(self) -> list[Pair] | None:
        """Return fixed preference pairs, or None.

        With None the harness samples completions of the split "preferences" from the start
        checkpoint, and the suite's labeller compares them.
        """
        return None

    def lists(self) -> list[Ranked]:
        """Return scored lists of completions; empty where the suite has none.

        They are those of the data itself. By default they are the lists that fixed pairs were
        taken from.
        """
        pairs = self.preferences() or []
        return [pair.listed for pair in pairs if pair.listed is not None]

    def labelled(self) -> list[Labelled]:
        """Return single completions with a label; empty where the suite has preferences only.

        Reward models learn from them where there are any. Methods that need `labelled` train on
        them, and on the completions of pairs otherwise.
        """
        return []

    def judge_preferences(self) -> list[Pair] | list[Labelled]:
        """Return the pairs or labelled completions that only a trained judge may see."""
        return []

    def references(self, split: str) -> dict[str, str]:
        """Return reference completions by prompt id, for ROUGE; empty where there are none."""
        return {}

    def make_verifier(self) -> Verifier | None:
        """Return the verifier, or None where answers cannot be checked.

        `harness.make_verifier` makes a registered one from its name and options.
        """
        return None

    def principles(self) -> list[Principle]:
        """Return the constitution for AI annotators; empty where there is none."""
        return []

    def figures(
        self, method: Method, model: torch.nn.Module | None, stages: SuiteStages
    ) -> dict[str, Any]:
        """Return figures for the record in addition to the evaluator's.

        Args:
            method: The method of the run.
            model: The model of the policy, or None where the policy has no log-probabilities.
            stages: The shared stages.

        Returns:
            JSON-able figures by name. One that is not finite is recorded as null, with a warning.
        """
        return {}

    def base_model(self) -> Path | None:
        """Return the folder of the embedded base model, or None where the user names one."""
        return None

    def data_files(self) -> list[Path]:
        """Return the files that the suite reads. A changed file makes another run."""
        return []

    def data_report(self) -> DataReport | None:
        """Return what was read of the user's data, or None for a suite that makes its own.

        The report is printed once at the start of a run and recorded.
        """
        return None

    @property
    def max_new_tokens(self) -> int:
        """The longest completion in tokens, its end-of-sequence token included."""
        return 128
