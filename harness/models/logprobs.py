"""Forward passes over a batch: log-probabilities, values and scores of completion tokens. No other
module shifts.

The state before completion token t is the position just left of it, so T + 1 states are kept per
completion: states 0..T-1 predict the tokens, states 1..T have read them. Two layouts give the same
numbers:

- *padded*: B * K rows, each a left-padded prompt and one right-padded completion. Any model can
  do it.
- *packed*: every prompt once and every token once, in one row without padding (packing.py). For
  attention-only models; `enable_sharing` probes it (capabilities.py). The last layer then computes
  only the states that are read.

If the head is a plain product with the last states, it reads the predicting states in parts: always
in the packed layout, and in the padded layout where the full logits would be large (`find_head`
probes it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .activation_checkpointing import checkpointing
from .attention import attending
from .batches import Batch
from .last_layer import reading
from .layouts import head_apart, packs, reads_some, states_at_once, vocabulary_of
from .loading import ScalarModel, computing, trunk_of
from .micro_batches import _takes
from .packing import Packing, pack
from .sharding import in_pass

# Margins up to this are rounding error: sums over some hundred float32 log-probabilities differ by
# about 1e-5 between batch layouts. A policy that equals its reference has margins of that size.
TIE = 1e-4


@dataclass(frozen=True)
class Predictions:
    """The M distributions of completion tokens, in the order of a mask's nonzero positions.

    `states` are (M, d) inputs of `head`, or (M, V) logits if the head cannot be applied separately.
    """

    states: Tensor
    head: Callable[[Tensor], Tensor]
    temperature: float
    at_once: int  # states per part

    def parts(self) -> Iterator[slice]:
        """Yield the parts that the head reads at a time."""
        return (slice(i, i + self.at_once) for i in range(0, len(self.states), self.at_once))

    def logits(self, part: slice) -> Tensor:
        """Return (m, V) float32 logits divided by the sampling temperature."""
        return self.read(self.states[part])

    def logp(self, ids: Tensor) -> Tensor:
        """Return (M,) log-probabilities of tokens (M,)."""
        logp = []
        for part in self.parts():
            states = self.states[part]
            if states.requires_grad and len(self.states) > self.at_once:
                logp.append(
                    checkpoint(
                        self._logp, states, ids[part], use_reentrant=False, preserve_rng_state=False
                    )
                )
            else:
                logp.append(self._logp(states, ids[part]))
        # no state: an empty tensor that still depends on all of the model, so that its gradient
        # is 0
        return torch.cat(logp) if logp else self.read(self.states).sum(-1)

    def logp_and_entropy(self, ids: Tensor) -> Tensor:
        """Return (M, 2): log-probabilities of tokens (M,), and entropies of the distributions."""
        both = []
        for part in self.parts():
            states = self.states[part]
            if states.requires_grad and len(self.states) > self.at_once:
                both.append(
                    checkpoint(
                        self._logp_and_entropy,
                        *(states, ids[part]),
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                )
            else:
                both.append(self._logp_and_entropy(states, ids[part]))
        return torch.cat(both) if both else self.read(self.states).sum(-1)[:, None].expand(-1, 2)

    def _logp_and_entropy(self, states: Tensor, ids: Tensor) -> Tensor:
        logp = self.read(states).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return torch.stack([logp.gather(-1, ids[:, None])[:, 0], entropy], -1)

    def _logp(self, states: Tensor, ids: Tensor) -> Tensor:
        logp: Tensor = _LogSoftmaxAt.apply(self.read(states), ids)  # type: ignore[no-untyped-call]
        return logp

    def read(self, states: Tensor) -> Tensor:
        """Return (m, V) float32 logits of states (m, d), divided by the sampling temperature."""
        logits = self.head(states).float()
        return logits if self.temperature == 1 else logits / self.temperature


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax(logits)[id]; backward allocates one softmax table instead of three."""

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
    """Return the distributions of a batch's completion tokens, in the order of its mask.

    Of a sharded model they are computed and read inside `in_pass`.
    """
    places, at_once = batch["mask"] > 0, states_at_once(vocabulary_of(model))
    if not packs(model) and not head_apart(model, batch):
        return Predictions(padded_logits(model, batch)[places], _itself, batch.temperature, at_once)
    if not packs(model):
        states = padded_states(model, batch)[places]
        return Predictions(states, lambda some: apply_head(model, some), batch.temperature, at_once)
    packing = pack(batch)
    where = packing.states[..., :-1][places]
    trunk = trunk_of(model)
    if not getattr(trunk, "plain_head", False):
        again = partial(attending, trunk, packing)
        with computing(model), attending(trunk, packing), checkpointing(trunk, again):
            logits = model(**packed_inputs(model, packing), logits_to_keep=where).logits[0]
        return Predictions(logits, _itself, batch.temperature, at_once)
    states, place = _packed_states(trunk, model, packing, where)
    return Predictions(
        states[place], lambda some: apply_head(model, some), batch.temperature, at_once
    )


def completion_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, V) float32 logits of the completion tokens; 0 on padding.

    For small vocabularies; `predictions` computes them in parts.
    """

    def compute() -> Tensor:
        predicted = predictions(model, batch)
        return torch.cat([predicted.logits(part) for part in predicted.parts()])

    logits = in_pass(model, compute)
    out = logits.new_zeros(*batch.shape, logits.shape[-1])
    out[batch["mask"] > 0] = logits
    return out


def completion_logp(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T) log-probabilities of the completion tokens; exactly 0 on padding."""
    places = batch["mask"] > 0
    ids = batch["completion_ids"][places]
    logp = in_pass(model, lambda: predictions(model, batch).logp(ids))
    return torch.zeros(batch.shape, device=logp.device).masked_scatter(places, logp)


def completion_logp_and_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, 2): log-probabilities of the completion tokens and entropies, in nats.

    The entropy is that of the distribution from which a token was drawn. Distributions are computed
    in parts, never all at once. Padding has exactly 0.
    """
    places = batch["mask"] > 0
    ids = batch["completion_ids"][places]
    both = in_pass(model, lambda: predictions(model, batch).logp_and_entropy(ids))
    out = torch.zeros(*batch.shape, 2, device=both.device)
    return out.masked_scatter(places[..., None], both)


def completion_states(model: ScalarModel, batch: Batch) -> Tensor:
    """Return (B, K, T + 1) scalars: before the first completion token, and after each.

    Values on padding are arbitrary.
    """
    return in_pass(model, lambda: _completion_states(model, batch))


def _completion_states(model: ScalarModel, batch: Batch) -> Tensor:
    b, k, t = batch.shape
    if packs(model):
        packing = pack(batch)
        hidden, place = _packed_states(model.trunk, model, packing, packing.states)
        scalars: Tensor = model.scalars(hidden)
        return scalars[place]
    with computing(model), checkpointing(model.trunk):
        scalars = model(**accepted(model.trunk, _padded_inputs(batch)))
    # no view: the hooks of sharded weights are on what a pass returns
    return scalars[:, -(t + 1) :].view(b, k, t + 1).clone()


@contextmanager
def padded(models: Iterable[nn.Module]) -> Iterator[None]:
    """Make causal or scalar models use the padded layout inside the context."""
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


def _packed_states(
    trunk: nn.Module, model: nn.Module, packing: Packing, where: Tensor
) -> tuple[Tensor, Tensor]:
    """Return hidden states (M, d) of a packed batch, and indices of positions `where` in M."""
    if not reads_some(model):
        place, how = where, attending(trunk, packing)
    else:
        read, place = torch.unique(where, return_inverse=True)
        if not len(read):  # no completion tokens: models cannot take an empty sequence
            read = read.new_zeros(1)
        how = reading(trunk, packing, read)
    with computing(model), how, checkpointing(trunk, partial(attending, trunk, packing)):
        states: Tensor = trunk(**packed_inputs(trunk, packing)).last_hidden_state[0]
    return states, place


def packed_inputs(model: nn.Module, packing: Packing) -> dict[str, Any]:
    """Return the inputs of a model or a trunk for a packed batch."""
    inputs: dict[str, Any] = {"input_ids": packing.ids, "position_ids": packing.positions}
    return {**accepted(model, inputs), "use_cache": False}


def apply_head(model: Any, states: Tensor) -> Tensor:
    with computing(model):
        logits: Tensor = model.get_output_embeddings()(states)
    return logits


def _itself(logits: Tensor) -> Tensor:
    return logits


def padded_states(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, d) hidden states on padded rows that predict the completion tokens."""
    (b, k, t), trunk = batch.shape, trunk_of(model)
    with computing(model), checkpointing(trunk):
        states: Tensor = trunk(
            **accepted(trunk, _padded_inputs(batch)), use_cache=False
        ).last_hidden_state
    return states[:, -(t + 1) : -1].reshape(b, k, t, -1)


def padded_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K, T, V) logits of the model's own forward pass on padded rows."""
    b, k, t = batch.shape
    inputs: dict[str, Any] = {**_padded_inputs(batch), "logits_to_keep": t + 1}
    with computing(model), checkpointing(trunk_of(model)):
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
    """Return (B, K, T) critic values of the states before each token; 0 on padding."""
    return torch.where(batch["mask"] > 0, completion_states(model, batch)[..., :-1], 0.0)


def completion_scores(model: ScalarModel, batch: Batch, pooling: str) -> Tensor:
    """Return (B, K) scores: the last scalar, or the mean or sum of the scalars over tokens."""
    after = completion_states(model, batch)[..., 1:]
    if pooling == "last":
        return after.gather(-1, (batch.lengths - 1).clamp(min=0)[..., None])[..., 0]
    total = torch.where(batch["mask"] > 0, after, 0.0).sum(-1)
    return total / batch["mask"].sum(-1).clamp(min=1) if pooling == "mean" else total


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of x where mask is 1, over every dimension."""
    return (x * mask).sum() / mask.sum()


def ordered_right(margin: Tensor) -> Tensor:
    """Return 1 where a margin is positive, 0 where it is negative and 0.5 where it is a tie.

    Args:
        margin: A difference of log-probabilities (nats, times a method's scale) or of scores,
            the better completion's less the other's; any shape. At most `TIE` either way is a tie.

    Returns:
        float32 of the same shape, for the metric of a pair's accuracy. NaN stays NaN.
    """
    decided = (margin.sign() + 1) / 2
    return torch.where(margin.abs() <= TIE, 0.5, decided).float()


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Return (x - mean) / sqrt(var + 1e-8) where mask is 1, and 0 elsewhere.

    The variance is the population's.

    `shift_mean=False` keeps the mean, as rewards are whitened (2403.17031, sect. 5).
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask


def accepted(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Drop the inputs that a model does not accept: `position_ids` or `logits_to_keep`."""
    taken = {name: _takes(model, name) for name in ("position_ids", "logits_to_keep")}
    return {name: value for name, value in inputs.items() if taken.get(name, True)}
