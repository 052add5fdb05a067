"""The resumable streams of data of the lab: prompts, preference pairs, labels, demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, replace
from random import Random
from typing import Any

import torch

from ..api.contracts import Method
from ..core.data import Demonstration
from ..core.seeds import derive, endless_order, permutation
from ..core.settings import AdamWOptions
from ..models.batches import Batch, PromptBatch
from ..models.tokens import Tokens
from .completion_cache import CompletionPools
from .inputs import MethodInputs
from .loop import Loop
from .runtime import Runtime


class DataStreams:
    """The streams of a method's training data; `Lab` adds models and training to them.

    The order of rows depends on the seed and the turn only. A restart continues a stream where the
    checkpoint was saved.
    """

    def __init__(
        self, method: Method, method_inputs: MethodInputs, runtime: Runtime, loop: Loop
    ) -> None:
        self._method, self._method_inputs = method, method_inputs
        self._runtime, self._loop = runtime, loop
        self._draws: tuple[tuple[int, int], int] = ((-1, -1), 0)
        self._ahead = False  # whether batches of all turns are made at once
        self._recalls = False  # whether log-probabilities of the preference data are looked up
        self._pools = CompletionPools(method_inputs.reference_cache, method_inputs.prompts)

    @property
    def tokens(self) -> Tokens:
        """The tokenizer with the harness's rules."""
        return self._method_inputs.tokens

    @property
    def device(self) -> torch.device:
        """The device of the run's tensors."""
        return self._runtime.device

    def prompts(self, steps: int, batch_size: int | None = None) -> Iterator[PromptBatch]:
        """Yield `steps` batches of training prompts, reshuffled each epoch, in the same order for
        every method.
        """
        prompts = self._given("prompts", self._method_inputs.prompts)
        size = self._batch_size(batch_size)
        self._pools.covers = 2 * steps * size >= len(prompts) and not self._limited
        for rows in self._draw("prompts", len(prompts), steps, size):
            yield self._posed(rows, self._loop.place)

    def further_prompts(self, n: int) -> PromptBatch:
        """Return the next n prompts of the open stream of prompts, which later turns then lack.

        For a turn that needs more prompts than the stream yielded.
        """
        if not self._loop.open or self._loop.kind != "prompts":
            raise ValueError(
                "lab.further_prompts belongs into a stream of prompts (`for ... in"
                " lab.prompts(...)`)"
            )
        place = self._loop.take_further(n)
        count = len(self._method_inputs.prompts)
        return self._posed(endless_order(count, place, n, self._runtime.seed, "prompts"), place)

    def _posed(self, rows: list[int], place: int) -> PromptBatch:
        """Return training prompts by row; `place` is the position of the first in the stream."""
        prompts = [self._method_inputs.prompts[i] for i in rows]
        batch = self.tokens.prompt_batch(prompts, self.device)
        return replace(batch, places=self._pools.offer(rows, place))

    def pairs(
        self,
        epochs: float = 1.0,
        steps: int = 0,
        batch_size: int | None = None,
        shuffle_labels: bool = False,
    ) -> Iterator[Batch]:
        """Yield batches of preference pairs (B, 2, T), chosen first, for `epochs` passes or `steps`
        batches.

        Column `p` (B,) is the probability that the chosen one is better: 1 where the labeller gave
        a plain label. `shuffle_labels` is a control: a random draw, fixed per pair, decides which
        completion counts as chosen.
        """
        pairs = self._given("pairs", self._method_inputs.pairs)
        size = self._batch_size(batch_size)
        turns = steps or max(1, round(epochs * len(pairs) / size))
        self._goes_over_pairs(turns * size)
        for rows in self._draw("pairs", len(pairs), turns, size):
            turned = [shuffle_labels and self._coin(i) for i in rows]
            ids = [[pairs[i].chosen, pairs[i].rejected] for i in rows]
            completions = [two[::-1] if t else two for two, t in zip(ids, turned, strict=True)]
            self._count_pairs(len(rows))
            prompts = [pairs[i].prompt for i in rows]
            batch = self.tokens.batch(
                prompts, completions, self.device, self._runtime.sampling.temperature
            )
            yield batch.with_columns(p=torch.tensor([pairs[i].p for i in rows], device=self.device))

    def lists(
        self, epochs: float = 1.0, steps: int = 0, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """Yield batches of scored lists (B, K, T) with column `score` (B, K)."""
        lists = self._given("lists", self._method_inputs.lists)
        size = self._batch_size(batch_size)
        turns = steps or max(1, round(epochs * len(lists) / size))
        for rows in self._draw("lists", len(lists), turns, size):
            some = [lists[i] for i in rows]
            prompts, completions = [x.prompt for x in some], [x.completions for x in some]
            temperature = self._runtime.sampling.temperature
            batch = self.tokens.batch(prompts, completions, self.device, temperature)
            scores = torch.tensor([x.scores for x in some], device=self.device)
            yield batch.with_columns(score=scores)

    def labelled(
        self,
        epochs: float = 1.0,
        steps: int = 0,
        batch_size: int | None = None,
        shuffle_labels: bool = False,
    ) -> Iterator[Batch]:
        """Yield batches of single completions (B, 1, T) with column `label` (B,).

        The label is 1 for a desirable completion, 0 for an undesirable one, and between for soft
        labels. The completions are the suite's labelled ones. A suite without any gives the
        completions of its pairs, one by one and shuffled.
        """
        if self._method_inputs.labelled:
            yield from self._singles(epochs, steps, batch_size, shuffle_labels)
            return
        pairs = self._given("pairs", self._method_inputs.pairs)
        size = self._batch_size(batch_size)
        turns = steps or max(1, round(epochs * 2 * len(pairs) / size))
        self._goes_over_pairs(turns * size)
        for rows in self._draw("labelled", 2 * len(pairs), turns, size):
            ids = [[pairs[i // 2].chosen if i % 2 == 0 else pairs[i // 2].rejected] for i in rows]
            good = [(i % 2 == 0) != (shuffle_labels and self._coin(i // 2)) for i in rows]
            labels = [
                pairs[i // 2].p if chosen else 1 - pairs[i // 2].p
                for i, chosen in zip(rows, good, strict=True)
            ]
            self._count_pairs(len(rows) // 2)
            prompts = [pairs[i // 2].prompt for i in rows]
            batch = self.tokens.batch(prompts, ids, self.device, self._runtime.sampling.temperature)
            yield batch.with_columns(label=torch.tensor(labels, device=self.device))

    def _singles(
        self, epochs: float, steps: int, batch_size: int | None, shuffle_labels: bool
    ) -> Iterator[Batch]:
        """Yield batches of the suite's labelled completions, shuffled."""
        singles = self._method_inputs.labelled
        size = self._batch_size(batch_size)
        turns = steps or max(1, round(epochs * len(singles) / size))
        self._goes_over_pairs(turns * size)
        for rows in self._draw("labelled", len(singles), turns, size):
            self._count_pairs(len(rows) // 2)
            batch = self.tokens.batch(
                [singles[i].prompt for i in rows],
                [[singles[i].completion] for i in rows],
                self.device,
                self._runtime.sampling.temperature,
            )
            turned = [shuffle_labels and self._coin(i) for i in rows]
            labels = [abs(singles[i].label - t) for i, t in zip(rows, turned, strict=True)]
            yield batch.with_columns(label=torch.tensor(labels, device=self.device))

    def demonstrations(self, n: int) -> Batch:
        """Return n demonstrations (n, 1, T), drawn anew at each call, for a further loss term."""
        demos = self._given("demonstrations", self._method_inputs.demonstrations)
        rows = Random(derive(*self._key("demonstrations"))).choices(range(len(demos)), k=n)
        ids = [
            [self.tokens.completion_ids(demos[i].prompt.text, demos[i].completion)] for i in rows
        ]
        return self.tokens.batch([demos[i].prompt for i in rows], ids, self.device)

    def demonstrated(
        self, epochs: float = 1.0, steps: int = 0, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """Yield batches of demonstrations (B, 1, T), for `epochs` passes or `steps` batches."""
        demos = self._given("demonstrations", self._method_inputs.demonstrations)
        size = self._batch_size(batch_size)
        turns = steps or max(1, round(epochs * len(demos) / size))
        for rows in self._draw("demonstrations", len(demos), turns, size):
            yield self._demonstrations([demos[i] for i in rows])

    def _demonstrations(self, demos: Sequence[Demonstration]) -> Batch:
        """Return demonstrations as a batch (n, 1, T)."""
        ids = [[self.tokens.completion_ids(d.prompt.text, d.completion)] for d in demos]
        temperature = self._runtime.sampling.temperature
        return self.tokens.batch([d.prompt for d in demos], ids, self.device, temperature)

    def minibatches(self, batch: Batch, size: int, epochs: int = 1) -> Iterator[Batch]:
        """Yield the rows of a batch in shuffled parts of `size`, `epochs` times over."""
        rows = batch.shape[0]
        for epoch in range(epochs):
            order = permutation(rows, *self._key("minibatches"), epoch)
            for start in range(0, rows, size):
                yield batch.select(order[start : start + size])

    def generator(self, *purpose: Hashable) -> torch.Generator:
        """Return a random generator that depends on the seed, the turn and the purpose only."""
        return torch.Generator().manual_seed(derive(*self._key(*purpose)))

    def _key(self, *purpose: Hashable) -> tuple[Hashable, ...]:
        """Return the key of random numbers in the current turn; each request has its own."""
        place = (self._loop.stream, self._loop.turn)
        count = self._draws[1] + 1 if self._draws[0] == place else 0
        self._draws = (place, count)
        return (self._runtime.seed, *purpose, *place, count)

    def _goes_over_pairs(self, rows: int) -> None:
        """Use cached log-probabilities from now on if a stream has as many rows as the preference
        data have prompts.

        Computing the whole cache is then no more work than the stream itself. A run with a budget
        may end its stream early, so it computes log-probabilities batch by batch instead.
        """
        reference_cache = self._method_inputs.reference_cache
        self._recalls |= (
            reference_cache is not None
            and not self._limited
            and rows >= reference_cache.prompts_of_pairs
        )

    @property
    def _limited(self) -> bool:
        return any(asdict(self._loop.budget).values())

    def _count_pairs(self, n: int) -> None:
        if self._ahead:
            return
        with self._runtime.meter.phase("update"):
            self._runtime.meter.add(pairs=n)

    def _draw(self, what: str, n: int, steps: int, size: int) -> Iterator[list[int]]:
        """Yield the row numbers of each turn, continuing after an earlier stream of its kind."""
        for turn in range(steps) if self._ahead else self._loop.turns(steps, what, size):
            first = self._loop.first + turn * size if self._ahead else self._loop.place
            yield endless_order(n, first, size, self._runtime.seed, what)

    def _all_batches(self, kind: str, steps: int, epochs: float) -> list[Batch | PromptBatch]:
        """Return what the turns of a new stream would take, without opening it."""
        streams: dict[str, Callable[[], Iterator[Batch | PromptBatch]]] = {
            "pairs": lambda: self.pairs(epochs, steps),
            "labelled": lambda: self.labelled(epochs, steps),
            "prompts": lambda: self.prompts(steps),
        }
        self._ahead = True
        try:
            return list(streams[kind]())
        finally:
            self._ahead = False

    def _coin(self, i: int) -> bool:
        """Return whether the control of shuffled labels swaps the labels of pair i."""
        return derive(self._runtime.seed, "coin", i) % 2 == 1

    def _batch_size(self, given: int | None) -> int:
        if given:
            return given
        return self._method.batch_size if isinstance(self._method, AdamWOptions) else 32

    def _given(self, need: str, supply: Sequence[Any]) -> Sequence[Any]:
        if not supply:
            raise ValueError(
                f"this method asks for {need} without saying so: add {need!r} to its `needs`"
            )
        return supply
