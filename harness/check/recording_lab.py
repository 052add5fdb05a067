"""A lab of small tables in place of models: it records the terms of every kind of step that a
method takes, on tensors that depend on nothing but their names.

Every model is a table of logits (V, V) by the previous token, in float64. Nothing is trained: the
policy has already moved from the weights that sampled, so that ratios are not 1 and clips act.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..core.data import Prompt
from ..models.batches import Batch, PromptBatch
from ..training.trainer import reduce_share

WORDS, END, TOKENS, PROMPTS = 7, 0, 5, 6  # token ids, the end's id, T, and B
SOFT = (1.0, 0.8, 1.0, 0.6, 0.5, 0.9)  # label probabilities of B pairs


class Unsupported(Exception):
    """A method asks for something that the recording lab does not have."""


@dataclass
class Recorded:
    """One term of a step, with what it was computed from and what came out."""

    of: str  # policy, or critic
    weight: float
    reduction: str | float
    columns: dict[str, Tensor]  # of the batch
    output: Tensor  # (B, K, T) log-probabilities, or values of the critic
    loss: Tensor  # values as the loss returns them
    gradient: Tensor  # (B, K, T) of the whole objective by the output
    value: float  # weight times the reduced loss
    function: Any = field(repr=False, default=None)  # the loss, to recompute it


def drawn(*name: object, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers that depend on a name alone, float64."""
    seed = zlib.crc32(repr(name).encode())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*name: object, high: int, shape: tuple[int, ...]) -> Tensor:
    """Return integers in [0, high) that depend on a name alone."""
    seed = zlib.crc32(repr(name).encode())
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


class Table:
    """A language model that is a table of logits by the previous token."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.model = None

    def logp(self, batch: Batch) -> Tensor:
        """Return log-probabilities (B, K, T) of the completion tokens; 0 on padding."""
        every = self.logits.log_softmax(-1)[self.before(batch)]
        return every.gather(-1, batch["completion_ids"][..., None])[..., 0] * batch["mask"]

    def before(self, batch: Batch) -> Tensor:
        """Return the token (B, K, T) before each completion token."""
        ids = batch["completion_ids"]
        last = batch.prompts.ids[:, -1:, None].expand(-1, ids.shape[1], -1)
        return torch.cat([last, ids[..., :-1]], -1)

    def against(self, other: Table, divergence: Any) -> tuple[Table, Any]:
        """Return what a term is of whose output holds a divergence from another table."""
        return other, divergence

    def columns(self, batch: Batch, other: Table, divergence: Any) -> Tensor:
        """Return (B, K, T, 3): log-probabilities of both tables, and their divergence."""
        before = self.before(batch)
        p, q = (table.logits.log_softmax(-1) for table in (self, other))
        apart = divergence(p, q)[before] * batch["mask"]
        return torch.stack([self.logp(batch), other.logp(batch), apart], -1)


class RecordingLab:
    """What a method may ask for, from tables. Each stream yields one batch."""

    def __init__(self, soft: bool = False, verified: bool = False) -> None:
        start = 0.7 * drawn("start", shape=(WORDS, WORDS))
        sampler = start + 0.5 * drawn("sampler", shape=(WORDS, WORDS))
        self.soft, self.verified = soft, verified  # soft labels; a reward of verdicts
        self.reference = self.start = Table(start)
        self._sampler = Table(sampler)
        self.policy = Table(sampler + 0.25 * drawn("policy", shape=(WORDS, WORDS)))
        self._teacher = Table(drawn("teacher", shape=(WORDS, WORDS)))
        self._critic = SimpleNamespace(values=self._values)
        self.steps: list[list[Recorded]] = []
        self.state: dict[str, Any] = {}
        self.turn, self.max_new_tokens, self.device = 0, TOKENS, torch.device("cpu")
        self.used: set[str] = set()  # kinds of data that were asked for
        self._seen: set[tuple[Any, ...]] = set()
        self._rollouts = 0

    def __getattr__(self, name: str) -> Any:
        raise Unsupported(f"it asks for lab.{name}, which a set of tensors does not have")

    # -- data ------------------------------------------------------------------------------------

    def _prompts(self, count: int) -> PromptBatch:
        ids = integers("prompts", high=WORDS, shape=(PROMPTS, 3))
        rows = [i % PROMPTS for i in range(count)]
        mask = torch.ones_like(ids)
        mask[::2, 0] = 0  # padded on the left
        prompts = [Prompt(f"train/{i}", f"prompt {i}") for i in rows]
        return PromptBatch(prompts, (ids * mask)[rows], mask[rows])

    def _batch(self, name: str, prompts: PromptBatch, k: int, **columns: Tensor) -> Batch:
        shape = (len(prompts), k, TOKENS)
        ids = 1 + integers(name, "ids", high=WORDS - 1, shape=shape)
        # 2 to T tokens with the end; the first of each prompt is cut at the limit without an end
        lengths = 2 + integers(name, "lengths", high=TOKENS - 1, shape=shape[:2])
        lengths[:, 0] = torch.where(torch.arange(shape[0]) % 3 == 0, TOKENS, lengths[:, 0])
        place = torch.arange(TOKENS)
        mask = (place < lengths[..., None]).double()
        ended = (lengths < TOKENS) | (torch.arange(k) > 0)
        last = (place == lengths[..., None] - 1) & ended[..., None]
        ids = torch.where(last, END, ids) * mask.long()
        always = {"completion_ids": ids, "mask": mask}
        return Batch(prompts, always | columns | ({"ended": ended} if "rollout" in name else {}))

    def prompts(self, steps: int, batch_size: int | None = None) -> Iterator[PromptBatch]:
        """Yield B prompts once."""
        yield self._prompts(PROMPTS)

    def further_prompts(self, n: int) -> PromptBatch:
        """Return n prompts, B at most."""
        return self._prompts(min(n, PROMPTS))

    def pairs(self, *_: Any, **__: Any) -> Iterator[Batch]:
        """Yield B pairs once: (B, 2, T), chosen first, with plain or with soft labels."""
        self.used.add("pairs")
        p = torch.tensor(SOFT if self.soft else [1.0] * PROMPTS, dtype=torch.float64)
        yield self._batch("pairs", self._prompts(PROMPTS), 2, p=p)

    def labelled(self, *_: Any, **__: Any) -> Iterator[Batch]:
        """Yield B completions (B, 1, T) with a label once."""
        self.used.add("labelled")
        plain = torch.arange(PROMPTS, dtype=torch.float64) % 2
        label = torch.tensor(SOFT, dtype=torch.float64) if self.soft else plain
        yield self._batch("labelled", self._prompts(PROMPTS), 1, label=label)

    def demonstrations(self, n: int) -> Batch:
        """Return demonstrations, B at most."""
        return self._batch("demonstrations", self._prompts(min(n, PROMPTS)), 1)

    def demonstrated(self, *_: Any, **__: Any) -> Iterator[Batch]:
        """Yield B demonstrations once."""
        yield self.demonstrations(PROMPTS)

    def minibatches(self, batch: Batch, size: int, epochs: int = 1) -> Iterator[Batch]:
        """Yield the whole batch once."""
        yield batch

    def rollout(self, prompts: PromptBatch, n: int = 1, *_: Any, **__: Any) -> Batch:
        """Return completions (B, n, T) with the log-probabilities of the weights that sampled."""
        self._rollouts += 1
        batch = self._batch(f"rollout {self._rollouts}", prompts, n)
        return batch.with_columns(logp=self._sampler.logp(batch))

    def greedy(self, prompts: PromptBatch, max_new_tokens: int | None = None) -> Batch:
        """Return completions (B, 1, T) without log-probabilities."""
        return self._batch("greedy rollout", prompts, 1)

    def reward(self, batch: Batch, sampler: Any = None) -> Tensor:
        """Return (B, K) rewards."""
        return self.verify(batch) if self.verified else self._learned(batch)

    def _learned(self, batch: Batch) -> Tensor:
        b, k, _ = batch.shape
        return drawn("reward", shape=(b, k))

    def rewards(self, batch: Batch) -> dict[str, Tensor]:
        """Return a reward and a penalty on completions without an end, (B, K) each."""
        return {"reward": self.reward(batch), "missing_eos": -(~batch["ended"]).double()}

    def verify(self, batch: Batch) -> Tensor:
        """Return (B, K) verdicts, 0 or 1."""
        return (self._learned(batch) > 0).double()

    def grades(self, batch: Batch, *_: Any, **__: Any) -> Tensor:
        """Return (B, K) grades from 0 to 5."""
        return 2.5 + 2.5 * self._learned(batch).tanh()

    def revise(self, batch: Batch, rounds: int = 1) -> Batch:
        """Return other completions of the same shape."""
        b, k, _ = batch.shape
        return self._batch("revised", batch.prompts, k)

    # -- models ----------------------------------------------------------------------------------

    def critic(self, *_: Any, **__: Any) -> Any:
        """Return the critic."""
        return self._critic

    def _values(self, batch: Batch) -> Tensor:
        return drawn("values", shape=tuple(batch["mask"].shape)) * batch["mask"]

    def teacher(self, *_: Any) -> Table:
        """Return a table of its own."""
        return self._teacher

    def move_reference(self, share: float = 1.0) -> None:
        """Leave the reference where it is: one turn is recorded."""

    def outside(self, *_: Any, **__: Any) -> Any:
        """Refuse: the loss is another library's."""
        raise Unsupported("another library trains it")

    # -- steps -----------------------------------------------------------------------------------

    def term(
        self,
        loss: Any,
        batch: Batch,
        of: Any = None,
        weight: float = 1.0,
        reduction: str | float = "token-mean",
    ) -> tuple[Any, ...]:
        """Return a term of a step."""
        return loss, batch, of, weight, reduction

    def step(self, *what: Any) -> dict[str, float]:
        """Record a step, unless one of the same losses is recorded."""
        terms = [self.term(*what)] if callable(what[0]) else [term for term in what if term]
        key = tuple((getattr(term[0], "__qualname__", ""), term[2] is None) for term in terms)
        if key not in self._seen:
            self._seen.add(key)
            self.steps.append([self._recorded(*term) for term in terms])
        return {"loss": sum(term.value for term in self.steps[-1]), "grad_norm": 0.0}

    def _recorded(
        self, loss: Any, batch: Batch, of: Any, weight: float, reduction: Any
    ) -> Recorded:
        critic = of is self._critic
        if isinstance(of, tuple):
            output = self.policy.columns(batch, *of)
        else:
            shifted = 0.1 * batch["mask"]
            output = (self._values(batch) + shifted) if critic else self.policy.logp(batch)
        name = "critic" if critic else "policy"
        return evaluated(loss, batch, output, name, weight, reduction)

    def log(self, **metrics: Any) -> None:
        """Ignore metrics."""

    def generator(self, *purpose: Hashable) -> torch.Generator:
        """Return a generator that the purpose alone decides."""
        return torch.Generator().manual_seed(zlib.crc32(repr(purpose).encode()))

    def texts(self, batch: Batch) -> list[list[str]]:
        """Return the token ids of completions as text."""
        rows = zip(batch["completion_ids"], batch.lengths, strict=True)
        return [
            [" ".join(map(str, one[:n].tolist())) for one, n in zip(ids, lengths, strict=True)]
            for ids, lengths in rows
        ]


def evaluated(
    loss: Any, batch: Batch, output: Tensor, of: str, weight: float, reduction: str | float
) -> Recorded:
    """Return a term with its values and its gradient by the output (B, K, T)."""
    leaf = output.detach().clone().requires_grad_()
    values = loss(leaf, batch)
    values = values[0] if isinstance(values, tuple) else values
    value = weight * reduce_share(values, batch, batch, reduction)
    (gradient,) = torch.autograd.grad(value, leaf)
    columns = {name: column.detach() for name, column in batch.columns.items()}
    return Recorded(
        of=of,
        weight=weight,
        reduction=reduction,
        columns=columns,
        output=leaf.detach(),
        loss=values.detach(),
        # padding has no log-probability; there may be columns beside them
        gradient=gradient * batch["mask"].view(*batch.shape, *(1,) * (gradient.dim() - 3)),
        value=float(value.detach()),
        function=loss,
    )


def record(method: Any, soft: bool = False) -> tuple[list[list[Recorded]], set[str]]:
    """Return the steps of a method's own loop, one of each kind, and the data that it asked for.

    Raises:
        Unsupported: It asks for what the recording lab does not have.
    """
    lab = RecordingLab(soft, verified=getattr(method, "reward", "model") == "verifier")
    method.train(lab)
    return lab.steps, lab.used


def batch_of(columns: Mapping[str, Tensor]) -> Batch:
    """Return a batch of columns that were read from a file."""
    count = len(columns["mask"])
    return Batch(RecordingLab()._prompts(count), columns)
