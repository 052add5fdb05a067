"""Pools of completions of the start checkpoint, drawn once and shared between methods and runs.

Sample j of a prompt depends on the pool's key, the prompt, how often the prompt came up before, and
j only. So four samples are the first four of sixteen, and neither the order of a batch nor its
other prompts matter. One artifact holds some prompts by a few samples (`steps_to`), so that a
small n draws no more than it needs.

Pools for training are keyed by the shared seed, like the preference data. The seed of a method
orders its prompts and minibatches. Pools of evaluated answers are keyed by the method's seed as
well: a method that trains nothing (best-of-n) has no other source of variation, and its interval
over seeds would have no width. These are shared over n, judges and repetitions. Neither kind shares
random numbers with the baseline answers of the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.data import Prompt, Sampling
from ..core.digests import digest_of
from ..core.meter import Cost
from ..core.progress import STAGES, activity
from ..core.seeds import derive
from ..models.batches import Batch, PromptBatch
from ..models.generation import Sampler
from ..models.loading import load_tensors, save_tensors
from .reference_cache import Cached, Ids, MadeStage, ReferenceCache, cost_of, ids_of

BLOCK = 64  # prompts of a split, in its order, that are sampled together
# how often a prompt is sampled from a pool; only a small split comes up more often
VISITS = 4
FIRST_STEPS = (1, 4, 8)  # samples are made up to here, then
STEP = 8  # so many more at a time


@dataclass(frozen=True)
class PromptBlock:
    """Prompts that are sampled together."""

    prompts: PromptBatch
    ids: list[Ids]
    name: str  # a digest of them

    @classmethod
    def of(cls, prompts: PromptBatch) -> PromptBlock:
        """Return a block of prompts."""
        ids = ids_of(prompts)
        return cls(
            prompts,
            ids,
            digest_of([(p.id, text) for p, text in zip(prompts.prompts, ids, strict=True)]),
        )


@dataclass
class BlockRows:
    """A block of prompts, and the rows of a batch that are among them."""

    prompt_block: PromptBlock
    visit: int  # how often they came up before
    rows: list[int]  # of the batch
    places: list[int]  # in the block


@dataclass
class SampleRange:
    """Samples `first` to `last` - 1 of a block: part `number` of the `count` that a draw needs."""

    block: BlockRows
    first: int
    last: int
    number: int
    count: int


@dataclass
class CompletionPool:
    """Draws for one purpose.

    `key` decides its random numbers. `split` holds the blocks that are shared; None stands for the
    prompts as given.
    """

    reference_cache: ReferenceCache
    key: tuple[object, ...]
    split: Sequence[Prompt] | None = None
    # a model known to equal the start checkpoint
    unmoved: nn.Module | None = None

    def draw(
        self, model: nn.Module, prompts: PromptBatch, n: int, sampling: Sampling
    ) -> Cached | None:
        """Return n completions per prompt (B, n, T) with `logp`, and their cost; None where no pool
        applies.

        No pool applies to another model, to other sampling settings, to prompts that stand twice in
        one batch (they would get the same completions), and to prompts that came up too often.
        """
        at_start = model is self.unmoved or self.reference_cache.start.is_(model)
        if not at_start or sampling != self.reference_cache.stage_runtime.sampling:
            return None
        blocks = self._blocks(prompts)
        if blocks is None:
            return None
        shape = (len(prompts), n, sampling.max_new_tokens)
        ids, logp = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        lengths, cost = torch.zeros(shape[:2], dtype=torch.long), Cost()
        start = cache(
            self.reference_cache.start.model
        )  # loaded only where samples are missing, and held until all are drawn
        for piece in _pieces(blocks, n):
            columns, spent = self._samples(piece, start)
            block, take = piece.block, slice(piece.first, min(piece.last, n))
            width = columns["completion_ids"].shape[2]
            kept = slice(0, take.stop - piece.first)
            ids[block.rows, take, :width] = columns["completion_ids"][block.places, kept].long()
            logp[block.rows, take, :width] = columns["logp"][block.places, kept]
            lengths[block.rows, take] = columns["lengths"][block.places, kept].long()
            cost.add(spent)
        longest = int(lengths.max())
        mask = (torch.arange(longest) < lengths[..., None]).float()
        columns = {"completion_ids": ids[..., :longest], "mask": mask, "logp": logp[..., :longest]}
        device = prompts.ids.device
        batch = Batch(
            prompts,
            {name: column.to(device) for name, column in columns.items()},
            sampling.temperature,
        )
        return Cached(batch, cost)

    def _blocks(self, prompts: PromptBatch) -> list[BlockRows] | None:
        """Return the blocks that hold the prompts; None where no pool applies."""
        texts = ids_of(prompts)
        places = prompts.places or [(row, 0) for row in range(len(prompts))]
        named = [
            (visit, prompt.id, ids)
            for (_, visit), prompt, ids in zip(places, prompts.prompts, texts, strict=True)
        ]
        if len(set(named)) < len(named) or max(visit for _, visit in places) >= VISITS:
            return None
        by_block: dict[tuple[int, int], list[int]] = {}
        for row, (place, visit) in enumerate(places):
            by_block.setdefault((visit, 0 if self.split is None else place // BLOCK), []).append(
                row
            )
        blocks = []
        for (visit, number), rows in sorted(by_block.items()):
            if self.split is None:
                blocks.append(
                    BlockRows(PromptBlock.of(prompts[rows]), visit, rows, list(range(len(rows))))
                )
                continue
            make = partial(self._prompt_block, self.split, number, prompts.ids.device)
            prompt_block: PromptBlock = self.reference_cache.kept.get_or_load(
                f"prompt_block {number}", make
            )  # there is one split only
            inside = [places[row][0] % BLOCK for row in rows]
            if [prompt_block.ids[i] for i in inside] != [
                texts[row] for row in rows
            ]:  # the method changed them
                return None
            blocks.append(BlockRows(prompt_block, visit, rows, inside))
        return blocks

    def _prompt_block(
        self, split: Sequence[Prompt], number: int, device: torch.device
    ) -> PromptBlock:
        prompts = split[number * BLOCK : (number + 1) * BLOCK]
        return PromptBlock.of(
            self.reference_cache.tokens.counting_afresh().prompt_batch(prompts, device)
        )

    def _samples(
        self, piece: SampleRange, start: Callable[[], nn.Module]
    ) -> tuple[dict[str, Tensor], Cost]:
        """Return a piece's samples: `completion_ids`, `logp` (P, S, T), `lengths` (P, S)."""
        block = piece.block
        place = {
            "key": list(self.key),
            "prompts": block.prompt_block.name,
            "visit": block.visit,
            "samples": [piece.first, piece.last],
        }

        def make(out: Path, _: Path) -> MadeStage:
            return self._make(piece, start(), out)

        def load() -> tuple[dict[str, Tensor], Cost]:
            artifact = self.reference_cache.artifact("pool", make, **place)
            return load_tensors(artifact.folder / "samples.safetensors"), cost_of(artifact)

        if self.split is None:  # requested once
            return load()
        kept: tuple[dict[str, Tensor], Cost] = self.reference_cache.kept.get_or_load(
            digest_of(place), load
        )
        return kept

    def _make(self, piece: SampleRange, start: nn.Module, out: Path) -> MadeStage:
        block, samples, meter = (
            piece.block,
            piece.last - piece.first,
            self.reference_cache.stage_runtime.meter(),
        )
        runtime = self.reference_cache.stage_runtime.runtime(meter, 0)
        sampling = runtime.sampling
        key = ("pool", *self.key, sampling.temperature, sampling.max_new_tokens, block.visit)
        sampler = _Drawing(runtime.engine, sampling, meter, runtime.eos, key, runtime.distributed)
        with activity(STAGES, "completions of the start checkpoint"):
            batch = sampler.draw(start, block.prompt_block.prompts, samples, piece.first)
        columns = {
            "completion_ids": batch["completion_ids"].int(),
            "logp": batch["logp"],
            "lengths": batch.lengths.int(),
        }
        save_tensors(columns, out / "samples.safetensors")
        self.reference_cache.stage_runtime.progress("sampling", piece.number, piece.count, {})
        return {"prompts": len(block.prompt_block.prompts), "samples": samples}, meter.snapshot()


class CompletionPools:
    """Chooses the pool that the lab draws from: once a turn for each prompt, for a second draw must
    differ.
    """

    def __init__(self, reference_cache: ReferenceCache | None, prompts: Sequence[Prompt]) -> None:
        self.reference_cache, self.prompts = reference_cache, prompts
        self.covers = False  # whether the current stream goes over half the split or more
        self._left: set[tuple[int, int]] = set()

    def offer(self, rows: Sequence[int], begin: int) -> list[tuple[int, int]]:
        """Return the places of a turn's prompts: their rows in the split, and how often each was
        given before.

        `begin` is the turn's position in the endless order of prompts, in which each prompt comes
        once per pass.
        """
        places = [(row, (begin + i) // len(self.prompts)) for i, row in enumerate(rows)]
        self._left = set(places)
        return places

    def take(self, prompts: PromptBatch, model: nn.Module, beside: bool) -> CompletionPool | None:
        """Return the pool for this turn's prompts; None where they were drawn already.

        The model equals the start checkpoint. A stream of `beside` draws (the start checkpoint next
        to a trained policy) that covers the split takes blocks of the split, which every seed
        shares. Any other draws for the present prompts only, so that nothing is drawn in vain.
        """
        places = set(prompts.places or ())
        if self.reference_cache is None or not places or not places <= self._left:
            return None
        self._left -= places
        split = self.prompts if beside and self.covers else None
        return CompletionPool(
            self.reference_cache, ("training", self.reference_cache.shared_seed), split, model
        )


class _Drawing(Sampler):
    """Draws samples from number `first` on.

    The random numbers of each depend on the key, the prompt and the sample's number.
    """

    def _noise(self, prompts: PromptBatch, n: int, *more: Any) -> Tensor:
        (first,) = more
        rows = []
        for prompt, ids in zip(prompts.prompts, ids_of(prompts), strict=True):
            for sample in range(first, first + n):
                generator = torch.Generator().manual_seed(
                    derive(*self.noise_key, prompt.id, ids, sample)
                )
                rows.append(torch.rand(self.sampling.max_new_tokens, generator=generator))
        return torch.stack(rows).to(prompts.ids.device)


def _pieces(blocks: Sequence[BlockRows], n: int) -> list[SampleRange]:
    """Return the parts that make up n samples of every prompt of some blocks."""
    parts = [(block, first, last) for block in blocks for first, last in steps_to(n)]
    return [SampleRange(*part, number, len(parts)) for number, part in enumerate(parts, 1)]


def steps_to(n: int) -> list[tuple[int, int]]:
    """Return the steps (first, last + 1) in which n samples are drawn, the same for every n."""
    edges = [0, *FIRST_STEPS]
    while edges[-1] < n:
        edges.append(edges[-1] + STEP)
    return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < n]
