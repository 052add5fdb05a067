"""Outputs of the start checkpoint that are computed once: its log-probabilities of the preference
data, and pools of completions.

They are artifacts, named by their inputs, so methods, seeds and studies share them. Whether one is
used depends on the run's spec only, never on what is on disk: a record has the same bytes whether
an artifact was made or found. A method is charged as if it had done the work itself. In the record,
`runtime.reuse` says what was really spent, and `flops_reused` how much of the charge was cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..core.meter import Cost, Meter
from ..models.batches import Batch, PromptBatch
from ..models.initial_checkpoint import InitialCheckpoint
from ..models.loading import load_tensors, save_tensors
from ..models.logprobs import completion_logp
from ..models.micro_batches import micro_batches
from ..models.tokens import Tokens
from .runtime import Runtime, metered
from .trainer import Role

if TYPE_CHECKING:
    from ..core.artifacts import Artifact
    from ..core.data import LabelledPair
    from .stages.runtime import StageRuntime

AT_ONCE = 256  # prompts per batch while log-probabilities are computed

Ids = tuple[int, ...]
MadeStage = tuple[dict[str, Any], dict[str, Any]]  # info, cost


@dataclass
class CacheCost:
    """What one kind of artifact really cost in this process."""

    made: int = 0
    found: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    flops: float = 0.0


class LoadedOnce:
    """Values that are loaded once, by name."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get_or_load(self, name: str, load: Callable[[], Any]) -> Any:
        """Return a value, loading it at the first request."""
        if name not in self._values:
            self._values[name] = load()
        return self._values[name]


@dataclass
class Cached:
    """A cached value with the cost of computing it."""

    value: Any
    cost: Cost = field(default_factory=Cost)

    def count_time(self, meter: Meter, flops: float) -> None:
        """Count the time of `flops`, which the current phase was charged, at the rate at which they
        were computed.
        """
        share = flops / max(self.cost.flops, 1.0)
        seconds, cpu_seconds = self.cost.seconds * share, self.cost.cpu_seconds * share
        meter.add(seconds=seconds, cpu_seconds=cpu_seconds, flops_reused=flops)


class ReferenceCache:
    """Finds cached outputs of the start checkpoint, and computes those that are missing."""

    def __init__(
        self,
        stage_runtime: StageRuntime,
        inputs: Mapping[str, Any],
        start: InitialCheckpoint,
        tokens: Tokens,
        pairs: Sequence[LabelledPair] = (),
        content: str = "",
        reference: tuple[InitialCheckpoint, str] | None = None,
    ) -> None:
        self.stage_runtime, self.inputs, self.start, self.tokens = (
            stage_runtime,
            dict(inputs),
            start,
            tokens,
        )
        self.pairs, self.content = pairs, content  # the preference data, and its digest
        self.reference = (
            reference  # where it is not the start checkpoint: the model, and its digest
        )
        self.spent: dict[str, CacheCost] = {}
        self.pins: dict[str, Any] = {}  # of the artifacts in use, as the record holds them
        self.shared_seed: int = inputs["shared_seed"]
        self.kept = LoadedOnce()
        # raises where a method has changed what artifacts are made from; training sets it
        self.check: Callable[[], None] = lambda: None
        self._sampling = stage_runtime.sampling

    def report(self) -> dict[str, dict[str, float]]:
        """Return what was really spent in this process, by kind of artifact."""
        return {kind: asdict(spent) for kind, spent in sorted(self.spent.items())}

    def artifact(self, kind: str, make: Any, **more: Any) -> Artifact:
        """Return an artifact of the start checkpoint, and note whether it had to be made."""

        def checked(out: Path, scratch: Path) -> MadeStage:
            self.check()
            return cast(MadeStage, make(out, scratch))

        computed = self.stage_runtime.get_or_make(kind, {**self.inputs, **more}, checked)
        self.pins[computed.folder.name] = computed.pin()
        spent = self.spent.setdefault(kind, CacheCost())
        if computed.reused:
            spent.found += 1
            return computed
        cost = cost_of(computed)
        spent.made += 1
        spent.seconds, spent.cpu_seconds = (
            spent.seconds + cost.seconds,
            spent.cpu_seconds + cost.cpu_seconds,
        )
        spent.flops += cost.flops
        return computed

    # -- log-probabilities of the preference data --------------------------------------------------

    @cached_property
    def prompts_of_pairs(self) -> int:
        """The number of prompts in the preference data: the forward passes that the cache costs."""
        return len({pair.prompt.id for pair in self.pairs})

    def logp(self, batch: Batch) -> Cached | None:
        """Return log-probabilities (B, K, T) of a batch of preference data; None for any other.

        A completion is found by its token ids and its prompt's, however the batch was made.
        """
        if batch.temperature != self._sampling.temperature or not self.pairs:
            return None
        places, cost = self._table.value, self._table.cost
        b, k, t = batch.shape
        rows, lengths = batch["completion_ids"].tolist(), batch.lengths.tolist()
        starts: list[int] = []
        for i, prompt in enumerate(ids_of(batch.prompts)):
            for j in range(k):
                start = places["start"].get(digest(prompt, tuple(rows[i][j][: lengths[i][j]])))
                if start is None:
                    return None
                starts.append(start)
        flat, mask = places["logp"], batch["mask"]
        index = torch.tensor(starts, device=mask.device)[:, None] + torch.arange(
            t, device=mask.device
        )
        values = flat[index.clamp(max=len(flat) - 1)].view(b, k, t)
        return Cached(torch.where(mask > 0, values, 0.0), cost)

    @cached_property
    def _table(self) -> Cached:
        """All log-probabilities in one row, and where each completion begins, by its digest."""
        other = {"reference": self.reference[1]} if self.reference else {}
        table = self.artifact("reference_logp", self._make_table, data=self.content, **other)
        saved = load_tensors(table.folder / "logp.safetensors")
        starts = saved["lengths"].cumsum(0) - saved["lengths"]
        places = dict(zip(saved["keys"].tolist(), starts.tolist(), strict=True))
        return Cached(
            {"start": places, "logp": saved["logp"].to(self.stage_runtime.device)}, cost_of(table)
        )

    def _make_table(self, out: Path, _: Path) -> MadeStage:
        """Compute the log-probabilities of every completion once, all of a prompt together."""
        meter = self.stage_runtime.meter()
        runtime = self.stage_runtime.runtime(meter, 0)
        source = self.reference[0] if self.reference else self.start
        model = source.model()  # in memory until all are computed
        role = Role("reference", model, lambda batch: completion_logp(model, batch))
        keys, lengths, logp = [], [], []
        batches = self._distinct(runtime)
        for number, batch in enumerate(batches, 1):
            with meter.phase("reference"):
                values = metered(role, batch, runtime)
            keys += keys_of(batch)
            lengths.append(batch.lengths.flatten())
            logp.append(values[batch["mask"] > 0])
            self.stage_runtime.progress("reference", number, len(batches), {})
        assert len(set(keys)) == len(keys), "two completions of the preference data have one digest"
        columns = {
            "keys": torch.tensor(keys),
            "lengths": torch.cat(lengths),
            "logp": torch.cat(logp),
        }
        save_tensors(columns, out / "logp.safetensors")
        return {"completions": len(keys)}, meter.snapshot()

    def _distinct(self, runtime: Runtime) -> list[Batch]:
        """Return the distinct completions of the preference data.

        A batch holds prompts with equally many completions.
        """
        tokens = self.tokens.counting_afresh()
        by_prompt = dict[str, tuple[Any, dict[Ids, None]]]()
        ids: dict[Ids, Any] = {}
        for pair in self.pairs:
            _, completions = by_prompt.setdefault(pair.prompt.id, (pair.prompt, {}))
            completions |= {tuple(pair.chosen): None, tuple(pair.rejected): None}
        for prompt, completions in by_prompt.values():  # prompts of the same text are one
            text = tuple(tokens.prompt_ids(prompt.text))
            ids.setdefault(text, (prompt, {}))[1].update(completions)
        by_count: dict[int, list[Any]] = {}
        for prompt, completions in ids.values():
            by_count.setdefault(len(completions), []).append(
                (prompt, [list(c) for c in completions])
            )
        batches = []
        for _, group in sorted(by_count.items()):
            for first in range(0, len(group), AT_ONCE):
                prompts, completed = zip(*group[first : first + AT_ONCE], strict=True)
                batches.append(
                    tokens.batch(prompts, completed, runtime.device, self._sampling.temperature)
                )
        return batches


def count_as_computed(role: Role, batch: Batch, runtime: Runtime, cached: Cached) -> Tensor:
    """Charge a cached value exactly as `metered` would have; return it."""
    total = 0.0
    for rows in micro_batches(batch, runtime.micro_batch_tokens):
        flops = role.flops(batch.select(rows))
        runtime.meter.add(flops=flops)
        total += flops
    cached.count_time(runtime.meter, total)
    value: Tensor = cached.value
    return value


def cost_of(artifact: Artifact) -> Cost:
    """Return the whole cost of making an artifact."""
    meter = Meter()
    meter.restore(artifact.cost)
    return meter.total()


def ids_of(prompts: PromptBatch) -> list[Ids]:
    """Return each prompt's token ids, without padding."""
    rows = zip(prompts.ids.tolist(), prompts.mask.tolist(), strict=True)
    return [
        tuple(token for token, real in zip(ids, mask, strict=True) if real) for ids, mask in rows
    ]


def keys_of(batch: Batch) -> list[int]:
    """Return the digest of every completion with its prompt, prompt-major."""
    rows, lengths = batch["completion_ids"].tolist(), batch.lengths.tolist()
    prompts = ids_of(batch.prompts)
    return [
        digest(prompts[i], tuple(c[:n]))
        for i in range(len(rows))
        for c, n in zip(rows[i], lengths[i], strict=True)
    ]


def digest(prompt: Ids, completion: Ids) -> int:
    """Return a 64-bit digest of a prompt's and a completion's token ids."""
    return int.from_bytes(
        blake2b(repr((prompt, completion)).encode(), digest_size=8).digest(), "big", signed=True
    )
