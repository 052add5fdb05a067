"""Forward passes over a batch: log-probabilities, values and scores of completion tokens. Shifting
happens here only.

The state before completion token t is the position just left of it, so T + 1 states are kept per
completion: states 0..T-1 predict the tokens, states 1..T have read them. Two layouts give the same
numbers:

- *padded*: B * K rows, each a left-padded prompt and one right-padded completion. Any model can
  do it.
- *packed*: every prompt once and every token once, in one row without padding (packing.py). For
  attention-only models;
  `enable_sharing` finds out by trying (abilities.py). The last layer then computes only the
    states that are read.

A head that is nothing but a product of the last states reads those that predict a token, some at a
time: always in the packed layout, and in the padded one where the logits of all places would be
many (`find_head` finds out by trying).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attending
from .flops import ForwardCost, Passed, forward_cost
from .last_layer import reading
from .loading import ScalarModel, computing, trunk_of
from .micro_batches import _takes
from .packing import Packing, pack, pairs_of
from .tokens import Batch

LOGITS_AT_ONCE = (
    2**26
)  # numbers, 256 MiB in float32: what more than that takes is made, used and made again for backward


@dataclass(frozen=True)
class Predictions:
    """The distributions that completion tokens are drawn from: M of them, in the order of a mask's
    nonzero places.

    `states` are (M, d) for a `head` to read, or (M, V) logits where there is no head to be had
      apart.
    """

    states: Tensor
    head: Callable[[Tensor], Tensor]
    temperature: float
    at_once: int  # how many are read at a time

    def parts(self) -> Iterator[slice]:
        """Yield the parts that are read at a time."""
        return (slice(i, i + self.at_once) for i in range(0, len(self.states), self.at_once))

    def logits(self, part: slice) -> Tensor:
        """Return (m, V) float32 logits over temperature: log-probabilities belong to the sampling
        distribution.
        """
        return self._read(self.states[part])

    def logp(self, ids: Tensor) -> Tensor:
        """Return (M,) log-probabilities of tokens (M,)."""
        told = []
        for part in self.parts():
            states = self.states[part]
            if states.requires_grad and len(self.states) > self.at_once:
                told.append(
                    checkpoint(
                        self._logp, states, ids[part], use_reentrant=False, preserve_rng_state=False
                    )
                )
            else:
                told.append(self._logp(states, ids[part]))
        return torch.cat(told) if told else self.states.new_zeros(0)

    def _logp(self, states: Tensor, ids: Tensor) -> Tensor:
        found: Tensor = _LogSoftmaxAt.apply(self._read(states), ids)  # type: ignore[no-untyped-call]
        return found

    def _read(self, states: Tensor) -> Tensor:
        logits = self.head(states).float()
        return logits if self.temperature == 1 else logits / self.temperature


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax(logits)[id]: in the backward pass one table of softmax is made, where autograd
    would make three.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        """Return (M,) of logits (M, V) and ids (M,)."""
        norm = logits.logsumexp(-1)
        ctx.save_for_backward(logits, ids, norm)
        return logits.gather(-1, ids[:, None])[:, 0] - norm

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the logits: g (1[v = id] - softmax)."""
        logits, ids, norm = ctx.saved_tensors
        table = (logits - norm[:, None]).exp_().mul_(-gradient[:, None])
        return table.scatter_add_(-1, ids[:, None], gradient[:, None]), None


def predictions(model: nn.Module, batch: Batch) -> Predictions:
    """Return the distributions of a batch's completion tokens, in the order of the nonzero places
    of its mask.
    """
    places, width = batch["mask"] > 0, model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    at_once = max(1, LOGITS_AT_ONCE // width)
    if not _packs(model) and not _head_apart(model, batch):
        return Predictions(padded_logits(model, batch)[places], _itself, batch.temperature, at_once)
    if not _packs(model):
        states = padded_states(model, batch)[places]
        return Predictions(states, lambda some: apply_head(model, some), batch.temperature, at_once)
    packing = pack(batch)
    where = packing.states[..., :-1][places]
    if not getattr(trunk_of(model), "plain_head", False):
        with computing(model), attending(trunk_of(model), packing):
            logits = model(**packed_inputs(model, packing), logits_to_keep=where).logits[0]
        return Predictions(logits, _itself, batch.temperature, at_once)
    states, place = _packed_states(trunk_of(model), model, packing, where)
    return Predictions(
        states[place], lambda some: apply_head(model, some), batch.temperature, at_once
    )


def completion_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, V) float32 logits of the distributions that the completion tokens were drawn
    from; 0 on padding.

    All at once: for small vocabularies. `predictions` gives them part by part.
    """
    told = predictions(model, batch)
    logits = torch.cat([told.logits(part) for part in told.parts()])
    out = logits.new_zeros(*batch.shape, logits.shape[-1])
    out[batch["mask"] > 0] = logits
    return out


def completion_logp(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T) log-probabilities of the completion tokens; exactly 0 where there is no
    token.
    """
    places = batch["mask"] > 0
    logp = predictions(model, batch).logp(batch["completion_ids"][places])
    return torch.zeros(batch.shape, device=logp.device).masked_scatter(places, logp)


def completion_states(model: ScalarModel, batch: Batch) -> Tensor:
    """Return (B, K, T + 1) scalars: before the first completion token, and after each; any where
    there is no token.
    """
    b, k, t = batch.shape
    if _packs(model):
        packing = pack(batch)
        hidden, place = _packed_states(model.trunk, model, packing, packing.states)
        with computing(model):
            scalars: Tensor = model.head(hidden)[..., 0].float()
        return scalars[place]
    with computing(model):
        scalars = model(**accepted(model.trunk, _padded_inputs(batch))).float()
    return scalars[:, -(t + 1) :].view(b, k, t + 1)


def forward_flops(model: nn.Module, batch: Batch) -> float:
    """Return the FLOPs of a forward pass over a batch in the layout it takes, padding included
    where there is any.
    """
    return _flops(model, batch, forward_cost(model))


def backward_flops(model: nn.Module, batch: Batch, frozen: ForwardCost) -> float:
    """Return the FLOPs of a backward pass: gradients of activations, and of weights but for the
    frozen ones.
    """
    half = _flops(model, batch, forward_cost(model), backward=True)
    return 2 * half - _flops(model, batch, frozen, backward=True)


def _flops(model: nn.Module, batch: Batch, cost: ForwardCost, backward: bool = False) -> float:
    """Return the FLOPs that some weights take in a forward pass, or in half of a backward pass."""
    (b, k, t), prompt = batch.shape, batch.prompts
    scalar, said = isinstance(model, ScalarModel), int(batch["mask"].sum())
    if _packs(model):
        tokens, pairs = int(prompt.mask.sum()) + said, pairs_of(batch)
        if not _reads_some(model):
            return cost.flops(tokens, tokens if scalar else said, pairs)
        ends = (
            0 if scalar else int((batch.lengths > 0).sum())
        )  # a last token's state predicts nothing
        read = b + said - ends
        passed = Passed(
            tokens, read if scalar else said, pairs, read, pairs_of(batch, asking=True, ends=scalar)
        )
        return cost.reading(passed, backward)
    width = prompt.ids.shape[1] + t
    if not scalar and _head_apart(model, batch):
        return cost.flops(b * k * width, said, b * k * width * width)
    return cost.padded(b * k, width, width if scalar else t + 1)


@contextmanager
def padded(models: Iterable[nn.Module]) -> Iterator[None]:
    """Have some causal or scalar models use the padded layout for a while: what the packed one is
    tested against.
    """
    trunks = [
        model.trunk if isinstance(model, ScalarModel) else trunk_of(model) for model in models
    ]
    before = [getattr(trunk, "share_prompt", False) for trunk in trunks]
    try:
        for trunk in trunks:
            trunk.share_prompt = False  # type: ignore[assignment]
        yield
    finally:
        for trunk, was in zip(trunks, before, strict=True):
            trunk.share_prompt = was  # type: ignore[assignment]


def _packs(model: nn.Module) -> bool:
    """Return whether a causal or scalar model uses the packed layout."""
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    return bool(getattr(trunk, "share_prompt", False))


def _reads_some(model: nn.Module) -> bool:
    """Return whether the last layer computes only the states that are read (last_layer.py)."""
    trunk = model.trunk if isinstance(model, ScalarModel) else trunk_of(model)
    return getattr(trunk, "last_parts", None) is not None


def _packed_states(
    trunk: nn.Module, model: nn.Module, packing: Packing, where: Tensor
) -> tuple[Tensor, Tensor]:
    """Return hidden states (M, d) of a batch in one row, and which of them are those at places
    `where`, its shape.
    """
    if not _reads_some(model):
        place, how = where, attending(trunk, packing)
    else:
        read, place = torch.unique(where, return_inverse=True)
        how = reading(trunk, packing, read)
    with computing(model), how:
        states: Tensor = trunk(**packed_inputs(trunk, packing)).last_hidden_state[0]
    return states, place


def packed_inputs(model: nn.Module, packing: Packing) -> dict[str, Any]:
    """Return what a model or a trunk is told of a batch in one row."""
    inputs: dict[str, Any] = {"input_ids": packing.ids, "position_ids": packing.positions}
    return {**accepted(model, inputs), "use_cache": False}


def apply_head(model: Any, states: Tensor) -> Tensor:
    with computing(model):
        logits: Tensor = model.get_output_embeddings()(states)
    return logits


def _itself(logits: Tensor) -> Tensor:
    return logits


def _head_apart(model: nn.Module, batch: Batch) -> bool:
    """Return whether a head reads the padded layout's states in parts: it can, and all of the
    logits would be many.
    """
    width = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    many = batch["mask"].numel() * width > LOGITS_AT_ONCE
    return many and bool(getattr(trunk_of(model), "plain_head", False))


def padded_states(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, d) hidden states on padded rows: those that the completion tokens are
    predicted from.
    """
    (b, k, t), trunk = batch.shape, trunk_of(model)
    with computing(model):
        states: Tensor = trunk(
            **accepted(trunk, _padded_inputs(batch)), use_cache=False
        ).last_hidden_state
    return states[:, -(t + 1) : -1].reshape(b, k, t, -1)


def padded_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, V) logits of the model's own forward pass on padded rows."""
    b, k, t = batch.shape
    inputs: dict[str, Any] = {**_padded_inputs(batch), "logits_to_keep": t + 1}
    with computing(model):
        logits: Tensor = model(**accepted(model, inputs), use_cache=False).logits
    return logits[:, -(t + 1) : -1].reshape(b, k, t, -1)


def _padded_inputs(batch: Batch) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `position_ids`, (B * K, Q + T) each."""
    b, k, t = batch.shape
    prompt_ids, prompt_mask = (
        x.repeat_interleave(k, 0) for x in (batch.prompts.ids, batch.prompts.mask)
    )
    ids = torch.cat([prompt_ids, batch["completion_ids"].reshape(b * k, t)], 1)
    mask = torch.cat([prompt_mask, batch["mask"].reshape(b * k, t).to(prompt_mask.dtype)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def completion_values(model: ScalarModel, batch: Batch) -> Tensor:
    """Return (B, K, T) critic values of the states before each completion token; 0 where there is
    no token.
    """
    return torch.where(batch["mask"] > 0, completion_states(model, batch)[..., :-1], 0.0)


def completion_scores(model: ScalarModel, batch: Batch, pooling: str) -> Tensor:
    """Return (B, K) scores: the scalar after the last token, or the mean or sum of the scalars
    after every token.
    """
    after = completion_states(model, batch)[..., 1:]
    if pooling == "last":
        return after.gather(-1, (batch.lengths - 1).clamp(min=0)[..., None])[..., 0]
    total = torch.where(batch["mask"] > 0, after, 0.0).sum(-1)
    return total / batch["mask"].sum(-1).clamp(min=1) if pooling == "mean" else total


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of x where mask is 1, over every dimension."""
    return (x * mask).sum() / mask.sum()


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Return (x - mean) / sqrt(var + 1e-8) over the masked entries, population variance; masked
    entries become 0.

    `shift_mean=False` keeps the mean, as rewards are whitened (2403.17031, sect. 5).
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def accepted(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Drop what a model does not take: positions where they are relative, how many logits to keep."""
    taken = {name: _takes(model, name) for name in ("position_ids", "logits_to_keep")}
    return {name: value for name, value in inputs.items() if taken.get(name, True)}
