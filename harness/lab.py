"""The lab: the bench a method works at, and the only door to models and data.

What passes the door is metered, seeded and resumable. There is no judge here, and no prompt of the test split: the
start checkpoint, data and reward models were prepared before the method was called, by code the lab does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .contracts import AdamWOptions, Engine, Method, Policy, RewardOptions, Verifier
from .data import Demonstration, Prompt, Sampling
from .errors import Diverged
from .logprobs import completion_logp, completion_values, in_micro_batches
from .loop import Loop
from .meter import Meter
from .models import ScalarModel, hidden_size, scalar_from, size_of, trainable, trunk_of
from .rewards import RewardModel, combine
from .rollout import Sampler, check_sampling
from .seeds import derive, permutation
from .tokens import Batch, PromptBatch, Tokens
from .training import Loss, Role, Term


@dataclass
class Supplies:
    """What was prepared for a method. Lists are empty, and `rewards` None, where the method did not ask."""

    start: nn.Module  # the start checkpoint, frozen
    tokens: Tokens
    prompts: Sequence[Prompt] = ()
    pairs: Sequence[tuple[Prompt, list[int], list[int]]] = ()  # prompt, chosen ids, rejected ids
    demonstrations: Sequence[Demonstration] = ()
    rewards: Callable[[], list[RewardModel]] | None = None
    verifier: Verifier | None = None


@dataclass
class Bench:
    """How a method works: what is the same for every method of a run."""

    engine: Engine
    sampling: Sampling
    eos: set[int]
    seed: int
    meter: Meter
    micro_batch_tokens: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class LanguageModel(Policy):
    """A causal language model at the bench: the policy, or the reference."""

    def __init__(self, model: nn.Module, role: str, phase: str, bench: Bench) -> None:
        self.model: nn.Module = model
        self.role = Role(role, model, lambda batch: completion_logp(model, batch))
        self._phase, self._bench = phase, bench

    def logp(self, batch: Batch) -> Tensor:
        """Return (B, K, T) log-probabilities at the batch's temperature, without gradients; 0 on padding."""
        with self._bench.meter.phase(self._phase):
            self.role.hold(self._bench.meter)
            return _metered(self.role, batch, self._bench)

    def answer(self, prompts: PromptBatch, sampler: Sampler) -> Batch:
        """Draw one completion per prompt."""
        return sampler.draw(self.model, prompts)


class Critic:
    """A value function at the bench."""

    def __init__(self, model: ScalarModel, bench: Bench) -> None:
        self.model = model
        self.role = Role("value", model, lambda batch: completion_values(model, batch))
        self._bench = bench

    def values(self, batch: Batch) -> Tensor:
        """Return (B, K, T) values of the state before each completion token, without gradients; 0 on padding."""
        with self._bench.meter.phase("score"):
            return _metered(self.role, batch, self._bench)


class Lab:
    """Everything a method may ask for. Asking is what makes, loads and bills."""

    def __init__(self, method: Method, supplies: Supplies, bench: Bench, loop: Loop) -> None:
        self._method, self._supplies, self._bench, self._loop = method, supplies, bench, loop
        self._policy: LanguageModel | None = None
        self._reference: LanguageModel | None = None
        self._critic: Critic | None = None
        self._rewards: list[RewardModel] | None = None
        self._draws: tuple[tuple[int, int], int] = ((-1, -1), 0)

    # -- data: resumable streams ---------------------------------------------------------------------------------

    def prompts(self, steps: int, batch_size: int | None = None) -> Iterator[PromptBatch]:
        """Yield `steps` batches of training prompts, reshuffled each epoch, in the same order for every method."""
        prompts = self._given("prompts", self._supplies.prompts)
        size = self._batch_size(batch_size)
        for turn in self._loop.turns(steps):
            rows = self._rows("prompts", len(prompts), turn * size, size)
            yield self.tokens.prompt_batch([prompts[i] for i in rows], self.device)

    def pairs(self, epochs: float = 1.0, steps: int = 0, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield batches of preference pairs (B, 2, T), chosen first, for `epochs` passes or `steps` batches."""
        pairs = self._given("pairs", self._supplies.pairs)
        size = self._batch_size(batch_size)
        for turn in self._loop.turns(steps or max(1, round(epochs * len(pairs) / size))):
            rows = self._rows("pairs", len(pairs), turn * size, size)
            some = [pairs[i] for i in rows]
            completions = [[chosen, rejected] for _, chosen, rejected in some]
            yield self.tokens.batch([prompt for prompt, _, _ in some], completions, self.device)

    def demonstrations(self, n: int) -> Batch:
        """Return n demonstrations (n, 1, T), drawn for the current turn: for a term beside the method's own."""
        demos = self._given("demonstrations", self._supplies.demonstrations)
        rows = self._rows("demonstrations", len(demos), self._loop.turn * n, n)
        ids = [[self.tokens.completion_ids(demos[i].prompt.text, demos[i].completion)] for i in rows]
        return self.tokens.batch([demos[i].prompt for i in rows], ids, self.device)

    def minibatches(self, batch: Batch, size: int, epochs: int = 1) -> Iterator[Batch]:
        """Yield the rows of a batch in shuffled parts of `size`, `epochs` times over."""
        rows = batch.shape[0]
        for epoch in range(epochs):
            order = permutation(rows, *self._key("minibatches"), epoch)
            for start in range(0, rows, size):
                yield batch.select(order[start : start + size])

    def rollout(
        self, prompts: PromptBatch, n: int = 1, temperature: float | None = None, max_new_tokens: int | None = None,
        **truncations: object,
    ) -> Batch:  # fmt: skip
        """Draw n completions per prompt from the policy: (B, n, T) with `logp` (B, n, T) and `ended` (B, n).

        `logp` are the sampler's own, of the weights that sampled: the old log-probabilities. Without a temperature
        or length the suite's apply, which are those of the evaluation.
        """
        usual = self._bench.sampling
        sampling = Sampling(
            usual.temperature if temperature is None else temperature,
            usual.max_new_tokens if max_new_tokens is None else max_new_tokens,
        )
        check_sampling(sampling, **truncations)
        policy = self.policy
        policy.role.hold(self._bench.meter)
        bench = self._bench
        sampler = Sampler(bench.engine, sampling, bench.meter, bench.eos, self._key("rollout"))
        return sampler.draw(policy.model, prompts, n)

    # -- models ----------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> LanguageModel:
        """The policy being trained: at first the start checkpoint."""
        if self._policy is None:
            model = trainable(self._supplies.start)
            self._policy = LanguageModel(model, "policy", "update", self._bench)
            self._loop.trainer.add("policy", model)
            self._policy.role.hold(self._bench.meter)
        return self._policy

    @property
    def reference(self) -> LanguageModel:
        """The frozen start checkpoint. Only a method that asks for it holds it."""
        if self._reference is None:
            self._reference = LanguageModel(self._supplies.start, "reference", "reference", self._bench)
        return self._reference

    @property
    def start(self) -> LanguageModel:
        """The start checkpoint as a policy of its own: for methods that train nothing."""
        policy = LanguageModel(self._supplies.start, "policy", "score", self._bench)
        policy.role.hold(self._bench.meter)
        return policy

    def critic(self, shared: bool = False, from_reward: bool = True, learning_rate: float | None = None) -> Critic:
        """Return the critic, the same each time: a network of its own, or a head on the policy's trunk (`shared`).

        A network of its own starts from the reward model's trunk (`from_reward`) or the start checkpoint's; its head
        starts at zero, so the first values are 0 whatever the scale of the reward.
        """
        if self._critic is None:
            seed = derive(self._bench.seed, "critic")
            if shared:
                trunk = trunk_of(self.policy.model)
                model = ScalarModel(trunk, hidden_size(self.policy.model)).to(self.device)
            elif from_reward:
                model = self._reward_models()[0].fresh_copy()
            else:
                model = scalar_from(self._supplies.start)
            model.requires_grad_(True)
            self._critic = Critic(model.initialise(seed, std=0.0), self._bench)
            self._loop.trainer.add("value", model.head if shared else model, learning_rate)
            parameters, size = size_of(model.head if shared else model)
            self._bench.meter.hold("value", parameters, size)
        return self._critic

    def reward(self, batch: Batch, sampler: Sampler | None = None) -> Tensor:
        """Return (B, K) learned rewards, in units of the start checkpoint's spread; demonstrations score 0 on average.

        A method with RewardOptions gets its ensemble, combined as it says, less its length penalty. A policy that
        scores while it answers gives the evaluator's `sampler`, whose bill it then goes on.
        """
        options = self._method if isinstance(self._method, RewardOptions) else RewardOptions()
        models = self._reward_models()[: options.reward_members]
        bench = replace(self._bench, meter=sampler.meter) if sampler else self._bench
        with bench.meter.phase(sampler.phase if sampler else "score"):
            scores = torch.stack([model.score(batch, bench) for model in models])
        combined = combine(scores, options.reward_combine, options.reward_variance_coef)
        if not torch.isfinite(combined).all():
            raise Diverged("The reward model returned a value that is not finite.")
        return combined - options.length_penalty * batch.lengths

    def verify(self, batch: Batch) -> Tensor:
        """Return (B, K) verdicts of the suite's verifier; NaN where an answer cannot be scored."""
        verifier = self._supplies.verifier
        if verifier is None:
            raise ValueError("this method asks for a verifier without saying so: add 'verifier' to its `needs`")
        b, k, _ = batch.shape
        with self._bench.meter.phase("score"):
            verdicts = [
                [verifier.verify(prompt, text) for text in texts]
                for prompt, texts in zip(batch.prompts.prompts, self.tokens.texts(batch), strict=True)
            ]
            self._bench.meter.add(verifier_queries=b * k)
        values = [[float("nan") if v is None else v for v in row] for row in verdicts]
        return torch.tensor(values, device=self.device)

    # -- training --------------------------------------------------------------------------------------------------

    def step(self, *what: Any) -> dict[str, float]:
        """Take one optimiser step: `step(loss, batch)` on the policy's log-probabilities, or `step(term, ...)`.

        A loss is called as `loss(logp, batch)` on parts of the batch and returns (B,), (B, K) or (B, K, T) values, or
        those and a dict of metrics of such shapes. Returns the step's loss, gradient norm and metrics.
        """
        terms = what if isinstance(what[0], Term) else (self.term(what[0], what[1]),)
        with self._bench.meter.phase("update"):
            metrics = self._loop.trainer.step(terms, self._loop.progress)
        self._loop.log(metrics)
        return metrics

    def term(
        self, loss: Loss, batch: Batch, of: LanguageModel | Critic | None = None, weight: float = 1.0,
        reduction: str | float = "token-mean",
    ) -> Term:  # fmt: skip
        """Return one term of a step: a loss of the policy's log-probabilities (or the critic's values) on a batch."""
        return Term(loss, batch, (of or self.policy).role, weight, reduction)

    def log(self, **metrics: float | Tensor) -> None:
        """Add numbers to the current turn's row of metrics."""
        self._loop.log({name: float(value) for name, value in metrics.items()})

    @property
    def state(self) -> dict[str, Any]:
        """Numbers that a method carries from turn to turn; they survive a restart. JSON-able values only."""
        return self._loop.state

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> Tokens:
        """The tokenizer with the harness's rules."""
        return self._supplies.tokens

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        return self._bench.device

    def texts(self, batch: Batch) -> list[list[str]]:
        """Return the completions of a batch as text, K per prompt."""
        return self.tokens.texts(batch)

    def generator(self, *purpose: Hashable) -> torch.Generator:
        """Return a random generator for a purpose: a function of seed, turn and purpose alone."""
        return torch.Generator().manual_seed(derive(*self._key(*purpose)))

    def _key(self, *purpose: Hashable) -> tuple[Hashable, ...]:
        """Return what random numbers of the current turn are derived from; repeated requests in a turn differ."""
        place = (self._loop.stream, self._loop.turn)
        count = self._draws[1] + 1 if self._draws[0] == place else 0
        self._draws = (place, count)
        return (self._bench.seed, *purpose, *place, count)

    def _rows(self, what: str, n: int, start: int, size: int) -> list[int]:
        """Return `size` row numbers from position `start` of an endless, per-epoch shuffled order of n rows."""
        rows: list[int] = []
        while len(rows) < size:
            epoch, offset = divmod(start + len(rows), n)
            order = permutation(n, self._bench.seed, what, epoch)
            rows += order[offset : offset + size - len(rows)]
        return rows

    def _batch_size(self, given: int | None) -> int:
        if given:
            return given
        return self._method.batch_size if isinstance(self._method, AdamWOptions) else 32

    def _given(self, need: str, supply: Sequence[Any]) -> Sequence[Any]:
        if not supply:
            raise ValueError(f"this method asks for {need} without saying so: add {need!r} to its `needs`")
        return supply

    def _reward_models(self) -> list[RewardModel]:
        if self._rewards is None:
            if self._supplies.rewards is None:
                raise ValueError("this method asks for a reward without saying so: add 'reward' to its `needs`")
            self._rewards = self._supplies.rewards()
        return self._rewards


def _metered(role: Role, batch: Batch, bench: Bench) -> Tensor:
    """Compute a role's output in micro-batches without gradients, and count it to the current phase."""

    def compute(part: Batch) -> Tensor:
        bench.meter.add(flops=role.flops(part))
        return role.compute(part)

    return in_micro_batches(compute, batch, bench.micro_batch_tokens)
