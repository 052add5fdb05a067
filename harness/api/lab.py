"""The interface of the lab: all that a method may ask for while it trains. Importing this costs no
torch.

A method receives a `Lab` and nothing else. Every call is metered, seeded and resumable. The lab
holds no judge and no prompt of the test split. `harness.training.lab` implements this interface.

Shapes: B prompts, K completions per prompt, T completion tokens. Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .lab_models import Model as Model
from .lab_models import StepTerm as StepTerm
from .lab_models import ValueModel as ValueModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..models.batches import Batch, PromptBatch
    from ..models.generation import Sampler
    from ..models.tokens import Tokens

    Loss = Callable[[Tensor, Mapping[str, Tensor]], "Tensor | tuple[Tensor, dict[str, Tensor]]"]


class Lab(Protocol):
    """What a method may ask for while it trains.

    Example:
        ```python
        def train(self, lab):
            for pairs in lab.pairs(epochs=1):
                ref_logp = lab.reference.logp(pairs)
                lab.step(self.loss, pairs.with_columns(ref_logp=ref_logp))
            return lab.policy
        ```
    """

    # -- data: resumable streams -----------------------------------------------------------------

    def prompts(self, steps: int, batch_size: int | None = None) -> Iterator[PromptBatch]:
        """Yield batches of training prompts, shuffled once per epoch, in one order for all methods.

        Args:
            steps: How many batches.
            batch_size: Prompts per batch; by default the method's `batch_size`.

        Returns:
            An iterator over batches of B prompts. Each turn of the loop is a checkpoint boundary.

        Raises:
            ValueError: The method does not declare "prompts" in its `needs`.
        """

    def further_prompts(self, n: int) -> PromptBatch:
        """Return the next n prompts of the open stream, for a turn that needs more than it got.

        Later turns continue after them, so no prompt comes up earlier than its turn.

        Raises:
            ValueError: Called outside a stream of prompts.
        """

    def pairs(
        self,
        epochs: float = 1.0,
        steps: int = 0,
        batch_size: int | None = None,
        shuffle_labels: bool = False,
    ) -> Iterator[Batch]:
        """Yield batches of preference pairs.

        Args:
            epochs: Passes over the pairs; used where `steps` is 0.
            steps: How many batches.
            batch_size: Pairs per batch; by default the method's `batch_size`.
            shuffle_labels: A control: a seeded coin decides which completion is called chosen.

        Returns:
            An iterator over batches (B, 2, T), the chosen completion first. Column `p` (B,) is the
            probability that the chosen completion is better; it is 1 for a plain label.

        Raises:
            ValueError: The method does not declare "pairs" in its `needs`.
        """

    def lists(
        self, epochs: float = 1.0, steps: int = 0, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """Yield batches of scored lists of completions, those of the data.

        Args:
            epochs: Passes over the lists; used where `steps` is 0.
            steps: How many batches.
            batch_size: Lists per batch; by default the method's `batch_size`.

        Returns:
            An iterator over batches (B, K, T). Column `score` (B, K) is higher for a better
            completion; over all completions of the data it has mean 0 and standard deviation 1.

        Raises:
            ValueError: The method does not declare "lists" in its `needs`.
        """

    def labelled(
        self,
        epochs: float = 1.0,
        steps: int = 0,
        batch_size: int | None = None,
        shuffle_labels: bool = False,
    ) -> Iterator[Batch]:
        """Yield batches of single completions with a label, for methods without pairs (KTO).

        They are the labelled completions of the suite. Where it has pairs only, they are the
        completions of the pairs, each on its own, in an order of their own.

        Args:
            epochs: Passes over the completions; used where `steps` is 0.
            steps: How many batches.
            batch_size: Completions per batch; by default the method's `batch_size`.
            shuffle_labels: A control: a seeded coin decides the labels of each pair.

        Returns:
            An iterator over batches (B, 1, T). Column `label` (B,) is 1 for a desirable completion,
            0 for an undesirable one, and between them for a soft label.

        Raises:
            ValueError: The method does not declare "labelled" in its `needs`.
        """

    def demonstrations(self, n: int) -> Batch:
        """Return n demonstrations (n, 1, T), drawn anew at each call.

        Raises:
            ValueError: The method does not declare "demonstrations" in its `needs`.
        """

    def demonstrated(
        self, epochs: float = 1.0, steps: int = 0, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """Yield batches of demonstrations in passes over all of them, shuffled in each.

        Args:
            epochs: Passes over the demonstrations; used where `steps` is 0.
            steps: How many batches.
            batch_size: Demonstrations per batch; by default the method's `batch_size`.

        Returns:
            An iterator over batches (B, 1, T). Each turn of the loop is a checkpoint boundary.

        Raises:
            ValueError: The method does not declare "demonstrations" in its `needs`.
        """

    def minibatches(self, batch: Batch, size: int, epochs: int = 1) -> Iterator[Batch]:
        """Yield the rows of a batch in shuffled parts of `size` rows, `epochs` times over."""

    def rollout(
        self,
        prompts: PromptBatch,
        n: int = 1,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        of: Any = None,
        mixed_with: Any = None,
        share: float = 0.0,
        **truncations: object,
    ) -> Batch:
        """Sample completions.

        Args:
            prompts: B prompts.
            n: Completions per prompt.
            temperature: By default the suite's, at which the policy is evaluated.
            max_new_tokens: By default the suite's.
            of: The model that samples: the policy by default, `lab.start` or `lab.reference`.
            mixed_with: A second model. Each token is then drawn from the geometric mixture
                of both, pi^(1 - share) other^share, and `logp` is the mixture's.
            share: Of the second model, in [0, 1].
            truncations: Refused. Top-k and top-p would make the log-probabilities wrong.

        Returns:
            A batch (B, n, T). Column `logp` (B, n, T) holds the log-probabilities of the weights
            that sampled (the old log-probabilities). Column `ended` (B, n) is true where the
            completion ends with an end-of-sequence token.

        Raises:
            ValueError: Called outside a stream: after a restart it would sample from other weights.
            UsageError: The engine cannot sample from a mixture.
        """

    def greedy(self, prompts: PromptBatch, max_new_tokens: int | None = None) -> Batch:
        """Return the policy's most probable continuation of each prompt, token by token.

        For a baseline. It is no sample, so it has no log-probabilities to learn from.

        Args:
            max_new_tokens: By default the suite's.

        Returns:
            A batch (B, 1, T) with the column `ended` (B, 1). It counts as a rollout.

        Raises:
            ValueError: Called outside a stream.
            UsageError: The engine samples the full distribution only.
        """

    # -- models ----------------------------------------------------------------------------------

    @property
    def policy(self) -> Any:
        """The policy being trained, a `Model`.

        Before the first step it equals the start checkpoint.
        """

    @property
    def reference(self) -> Any:
        """The frozen start checkpoint, or the model of `--reference`: a `Model`.

        It is loaded and counted only if it is used.
        """

    @property
    def start(self) -> Any:
        """The start checkpoint as a `Model`: for methods that train nothing."""

    def guest(self, name: str) -> Any:
        """Return a model that was trained elsewhere, as a `Policy`.

        It answers in its own tokens, posed by its own chat template, with the sampling of the
        evaluation. KL is measured where its tokens are those of the start checkpoint.

        Args:
            name: A folder in Hugging Face format, a PEFT adapter's folder, or a hub id.

        Raises:
            UsageError: It cannot be read.
        """

    def teacher(self, name: str) -> Any:
        """Return a frozen model to learn from, a `Model`; it is held and counted as `teacher`.

        Args:
            name: A folder in Hugging Face format, a PEFT adapter's folder, or a hub id.

        Raises:
            UsageError: It cannot be read, or its tokens are not the start checkpoint's.
        """

    def move_reference(self, share: float = 1.0) -> None:
        """Copy the weights of the policy into the reference, for iterated methods.

        The reference of the evaluation stays what it was.

        Args:
            share: In (0, 1]. Below 1 the reference moves by this share of the way, which makes a
                moving average; the policy must then train all its weights.
        """

    def critic(
        self, shared: bool = False, from_reward: bool = True, learning_rate: float | None = None
    ) -> Any:
        """Return the critic, a `ValueModel`; every call returns the same one.

        Args:
            shared: Put a value head on the policy's layers instead of a network of its own.
            from_reward: Start from the reward model's layers, where there is a reward model.
            learning_rate: Of the critic; by default the method's.

        The head starts at zero, so the first values are 0.
        """

    # -- rewards ---------------------------------------------------------------------------------

    def reward(self, batch: Batch, sampler: Sampler | None = None) -> Tensor:
        """Return the reward that the method's `RewardOptions` ask for.

        Args:
            batch: Completions (B, K, T).
            sampler: Of the evaluation, for a policy that scores completions while it answers.

        Returns:
            (B, K) rewards. A learned reward has standard deviation 1 over samples of the start
            checkpoint, and demonstrations score 0 on average. NaN where a verifier cannot decide.

        Raises:
            ValueError: The method does not declare "reward" (or "verifier") in its `needs`.
            Diverged: The reward model returned a value that is not finite.
        """

    def rewards(self, batch: Batch) -> dict[str, Tensor]:
        """Return the rewards that `RewardOptions` ask for apart, for methods that weigh them.

        Returns:
            (B, K) rewards by name: `reward`, or `verdict_LABEL` for each of several verifiers; and
            `missing_eos` and `length`, at most 0, for penalties that are set.
        """

    def verify(self, batch: Batch) -> Tensor:
        """Return (B, K) verdicts of the suite's verifier; NaN where it cannot decide.

        Raises:
            ValueError: The method does not declare "verifier" in its `needs`.
        """

    def grades(
        self,
        batch: Batch,
        question: str,
        scale: tuple[str, ...],
        of: Any = None,
        draws: int = 0,
        max_new_tokens: int | None = None,
    ) -> Tensor:
        """Return (B, K) grades by a model of the lab, an LLM judge; NaN where it gives none.

        Args:
            question: A text with {prompt} and {completion}.
            scale: The grades as they are written, numbers.
            of: The model that grades: the policy by default.
            draws: Replies to each question, whose "Score: N" are averaged. With 0 nothing is
                drawn: the grade is the mean of the scale under the model's probabilities.
            max_new_tokens: Of a reply; by default the suite's.
        """

    def step_rewards(self, batch: Batch) -> Tensor:
        """Return the verifier's reward of each step of completions, where the step ends.

        Args:
            batch: Completions (B, K, T).

        Returns:
            (B, K, T) rewards at the tokens in which steps end, NaN at all others. A completion
            that the verifier cannot grade has no steps.

        Raises:
            ValueError: The method does not declare "steps" in its `needs`.
        """

    def revise(self, batch: Batch, rounds: int = 1) -> Batch:
        """Return the completions (B, K, T) as the method's labeller rewrites them.

        Args:
            batch: Completions (B, K, T).
            rounds: Revisions per completion, each under a principle drawn from the constitution.

        Raises:
            ValueError: The method does not declare "labels" in its `needs`.
        """

    # -- training --------------------------------------------------------------------------------

    def step(self, *what: Any) -> dict[str, float]:
        """Take one optimizer step: `step(loss, batch)` or `step(term, ...)`.

        Args:
            what: A loss and a batch, or terms made by `Lab.term`. A loss is called as
                `loss(logp, batch)` on micro-batches. It returns values (B,), (B, K) or
                (B, K, T), or those and a dict of metrics with such shapes. The lab reduces them
                over the batch.

        Returns:
            The loss, the gradient norm and the metrics of this step.

        Raises:
            ValueError: Called outside a stream.
            Diverged: The loss or the gradient is not finite.
        """

    def term(
        self,
        loss: Loss,
        batch: Batch,
        of: Any = None,
        weight: float = 1.0,
        reduction: str | float = "token-mean",
    ) -> Any:
        """Return one term of a step: a loss of a model's output on a batch.

        Args:
            loss: See `step`. With `of=critic` its first argument holds values (B, K, T), with
                `of=policy.with_entropy` log-probabilities and entropies (B, K, T, 2), with
                `of=policy.against(...)` the columns (B, K, T, 3) named there.
            batch: Completions (B, K, T) and the columns that the loss reads.
            of: The policy by default, `policy.with_entropy`, `policy.against(...)`, or the critic.
            weight: Factor of this term.
            reduction: Of per-token losses: "token-mean", "seq-mean-token-mean",
                "seq-mean-token-sum", or a number that the sum over tokens is divided by.
        """

    def outside(self, kind: str, steps: int = 0, epochs: float = 1.0) -> Any:
        """Return the turns of a training by another library, such as TRL.

        The library is given the batches of all turns. Its steps are turns, its passes are counted,
        and the budget ends it. It runs in one process; nothing is saved before it ends.

        Args:
            kind: "pairs", "labelled" or "prompts": the stream that the batches are of.
            steps: How many batches; 0 takes `epochs`.
            epochs: Passes over the pairs or labelled completions.

        Returns:
            An `OutsideTraining` (harness/training/outside.py).
        """

    def log(self, **metrics: float | Tensor) -> None:
        """Add numbers to the current row of metrics.

        Raises:
            Diverged: A number is not finite.
        """

    @property
    def state(self) -> dict[str, Any]:
        """Numbers that the method carries from turn to turn.

        They are saved in checkpoints as JSON.
        """

    @property
    def turn(self) -> int:
        """The current turn of the stream, from 0. It survives a restart."""

    # -- facts and helpers -----------------------------------------------------------------------

    @property
    def max_new_tokens(self) -> int:
        """The longest completion in tokens: the suite's limit."""

    @property
    def tokens(self) -> Tokens:
        """The tokenizer with the harness's rules for prompts and completions."""

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""

    def texts(self, batch: Batch) -> list[list[str]]:
        """Return the completions of a batch as text, K per prompt."""

    def generator(self, *purpose: Hashable) -> torch.Generator:
        """Return a random generator: a function of the seed, the turn and the purpose alone."""
