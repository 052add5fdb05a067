"""Sample completions from any causal language model, with their log-probabilities.

The prompt is prefilled once. If the model's attention can be replaced (attention.py), its keys and
values are stored once for n completions; otherwise they are repeated. A model without a cache
recomputes the whole sequence for every token. Finished rows leave the batch. Tokens are drawn by
inverse transform from external noise, one number per token, so a completion does not depend on the
rest of its batch. `generation_config` is never read: top-k, top-p, penalties and forced tokens
would change the distribution whose log-probabilities training needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.data import Sampling
from ..core.distributed import ALONE, DistributedContext
from ..core.errors import UsageError
from ..core.meter import Meter
from ..core.progress import advance_from
from ..core.seeds import derive
from .attention import SharedPromptCache, attending
from .batches import Batch, PromptBatch
from .engine import CompletionSource, Engine, check_length
from .flops import ModelFlops
from .footprint import decoding_tokens
from .layouts import keeps_cache
from .loading import cast_once, computing, trunk_of
from .logprobs import accepted
from .memory import DECODING, BatchSizes, total_memory
from .mixtures import Mixed, MixedCache, mixed_logits
from .sharding import gathered_weights

KEEP_UNTIL = 0.9


def check_sampling(sampling: Sampling, **truncations: object) -> None:
    """Raise UsageError for sampling whose distribution is not the model's at some temperature."""
    if sampling.temperature <= 0:
        raise UsageError(
            f"temperature={sampling.temperature}: greedy decoding has no log-probabilities. Use a"
            " temperature above 0."
        )
    if sampling.greedy or sampling.top_p < 1:
        truncations = {"greedy": True} if sampling.greedy else {"top_p": sampling.top_p}
    if sampling.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={sampling.max_new_tokens}: expected at least 1.")
    for name, value in truncations.items():
        raise UsageError(
            f"{name}={value}: truncated or penalised sampling draws from another distribution than"
            " the one whose log-probabilities KL and importance ratios are computed from. Only"
            " `temperature` shapes sampling here."
        )


def shaped(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return logits (R, V) at the temperature, -inf for tokens that sampling leaves out.

    Greedy keeps the most probable token. Nucleus sampling (Holtzman et al. 2020, 1904.09751) keeps
    the smallest set of tokens whose probability is at least `top_p`.
    """
    logits = logits.float()
    if sampling.greedy:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    logits = logits / sampling.temperature
    if sampling.top_p >= 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    left_out = torch.zeros_like(before, dtype=torch.bool).scatter(
        -1, order, before >= sampling.top_p
    )
    return logits.masked_fill(left_out, -torch.inf)


def draw_tokens(logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return (R,) tokens by inverse transform of `noise` (R,) under `logits` (R, V), and their
    log-probabilities.
    """
    logp = logits.float().log_softmax(-1)
    cdf = logp.exp().cumsum(-1)
    target = (noise * cdf[:, -1] * (1 - 1e-6))[:, None]
    tokens = torch.searchsorted(cdf, target, right=True).clamp(max=logits.shape[-1] - 1)
    return tokens[:, 0], logp.gather(-1, tokens)[:, 0]


@dataclass
class Decoding:
    """Sampled tokens of rows; 0 after their ends."""

    tokens: Tensor  # (R, T)
    logp: Tensor  # (R, T)
    lengths: Tensor  # (R,)


class Cached(Protocol):
    """The state of a decoding: keys and values of the active rows."""

    keep_until: float  # rows are dropped when fewer than this share is unfinished
    look_every: int  # steps between checks for finished rows

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only."""

    def next_logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return (R, V) logits after one more token (R,) per row."""


def cache_of(model: nn.Module, prefilled: Any, prompts: PromptBatch, n: int, limit: int) -> Cached:
    """Return the cache of a model: shared prompts if supported, its own, or none."""
    trunk = getattr(model, "base_model", model)
    if getattr(trunk, "share_cache", False):
        return SharedDecoding(prefilled, prompts, n, limit)
    return Repeated(prefilled, prompts, n) if keeps_cache(model) else Recomputed(prompts, n)


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: PromptBatch,
    n: int,
    sampling: Sampling,
    noise: Tensor,
    eos: set[int],
    cached: Callable[[nn.Module, Any, PromptBatch, int, int], Cached] = cache_of,
    show: Callable[[int], None] = lambda step: None,
    mixed_with: Mixed | None = None,
) -> Decoding:
    """Draw n completions for each prompt; rows are prompt-major. `show` gets each position."""
    limit, device = sampling.max_new_tokens, prompts.ids.device
    rows = len(prompts) * n
    state = Decoding(
        torch.zeros(rows, limit, dtype=torch.long, device=device),
        torch.zeros(rows, limit, device=device),
        torch.full((rows,), limit, device=device),
    )
    with ExitStack() as contexts:
        for one in (model, *(() if mixed_with is None else (mixed_with.model,))):
            contexts.enter_context(computing(one))
            contexts.enter_context(cast_once(one))
        logits, cache = _opened(model, prompts, n, limit, cached)
        if mixed_with is not None:
            other, beside = _opened(mixed_with.model, prompts, n, limit, cached)
            logits = mixed_logits(logits, other, mixed_with)
            cache = MixedCache(cache, beside, mixed_with)
        held = torch.arange(rows, device=device)  # the active rows
        done = torch.zeros(rows, dtype=torch.bool, device=device)
        ends = torch.tensor(sorted(eos), device=device)
        for t in range(limit):
            show(t)
            drawn, logp = draw_tokens(shaped(logits, sampling), noise[held, t])
            state.tokens[held, t], state.logp[held, t] = drawn, logp
            stopped = torch.isin(drawn, ends) & ~done
            state.lengths[held] = torch.where(stopped, t + 1, state.lengths[held])
            done |= stopped
            if t + 1 == limit:
                break
            if (t + 1) % cache.look_every == 0:
                alive = (~done).nonzero()[:, 0]
                if not len(alive):
                    break
                if len(alive) < cache.keep_until * len(held):
                    cache.keep(alive)
                    held, drawn, done = held[alive], drawn[alive], done[alive]
            logits = cache.next_logits(model, drawn)
    mask = torch.arange(limit, device=device) < state.lengths[:, None]
    return Decoding(state.tokens * mask, state.logp * mask, state.lengths)


def _opened(
    model: nn.Module,
    prompts: PromptBatch,
    n: int,
    limit: int,
    cached: Callable[[nn.Module, Any, PromptBatch, int, int], Cached],
) -> tuple[Tensor, Cached]:
    """Return the logits (R, V) of the first tokens, and the cache of the prompts."""
    logits, prefilled = prefill(model, prompts)
    return logits.repeat_interleave(n, 0), cached(model, prefilled, prompts, n, limit)


def prefill(model: nn.Module, prompts: PromptBatch) -> tuple[Tensor, Any]:
    positions = (prompts.mask.cumsum(1) - 1).clamp(min=0)
    inputs: dict[str, Any] = {
        "input_ids": prompts.ids,
        "attention_mask": prompts.mask,
        "position_ids": positions,
    }
    with computing(model):
        out = model(**accepted(model, {**inputs, "logits_to_keep": 1}), use_cache=True)
    return out.logits[:, -1], getattr(out, "past_key_values", None)


class Repeated:
    """The model's own cache, repeated for the completions of a prompt: works with any model."""

    keep_until, look_every = KEEP_UNTIL, 1

    def __init__(self, cache: Any, prompts: PromptBatch, n: int) -> None:
        repeat = torch.arange(len(prompts), device=prompts.ids.device).repeat_interleave(n)
        cache.reorder_cache(repeat)
        self.cache, self.mask = cache, prompts.mask[repeat]

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only."""
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]

    def next_logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return (R, V) logits after one more token (R,) per row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        positions = self.mask.sum(1, keepdim=True) - 1
        with computing(model):
            out = model(
                input_ids=tokens[:, None],
                attention_mask=self.mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = out.past_key_values
        return out.logits[:, -1]  # type: ignore[no-any-return]


class Recomputed:
    """No cache: the whole sequence is recomputed for every token.

    For state spaces, whose caches have other names.
    """

    keep_until, look_every = KEEP_UNTIL, 1

    def __init__(self, prompts: PromptBatch, n: int) -> None:
        self.ids, self.mask = (
            prompts.ids.repeat_interleave(n, 0),
            prompts.mask.repeat_interleave(n, 0),
        )

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only."""
        self.ids, self.mask = self.ids[rows], self.mask[rows]

    def next_logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return (R, V) logits after one more token (R,) per row."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        inputs: dict[str, Any] = {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": positions,
        }
        with computing(model):
            out = model(**accepted(model, {**inputs, "logits_to_keep": 1}), use_cache=False)
        return out.logits[:, -1]  # type: ignore[no-any-return]


class SharedDecoding:
    """Decoding on shared prompts: for models whose attention can be replaced."""

    keep_until, look_every = KEEP_UNTIL, 1
    cache_class: type[SharedPromptCache] = SharedPromptCache

    def __init__(self, cache: Any, prompts: PromptBatch, n: int, limit: int) -> None:
        self.cache = self.cache_class(cache, prompts.mask, n, limit)
        self.positions = prompts.mask.sum(1).repeat_interleave(n)

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only."""
        self.cache.keep(rows)
        self.positions = self.positions[rows]

    def next_logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return (R, V) logits after one more token (R,) per row."""
        with computing(model), attending(trunk_of(model), self.cache):
            out = model(
                input_ids=tokens[:, None],
                position_ids=self.positions[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache.advance()
        self.positions = self.positions + 1
        return out.logits[:, -1]  # type: ignore[no-any-return]


class CachedEngine(Engine):
    """The harness's own decoding loop on the model's key/value cache."""

    name = "hf"
    takes_batch_tokens = takes_truncation = takes_mixtures = True
    cached: Callable[..., Cached] = staticmethod(cache_of)

    def __init__(self, eos: set[int]) -> None:
        self.eos = eos

    def generate(
        self,
        model: nn.Module,
        prompts: PromptBatch,
        n: int,
        sampling: Sampling,
        noise: Tensor,
        mixed_with: Mixed | None = None,
    ) -> Batch:
        """Draw n completions per prompt, in groups that fit; see Engine.

        A group that does not fit in memory is drawn again in smaller ones: the noise of a row
        decides its tokens, whatever the group.
        """
        width = prompts.ids.shape[1] + sampling.max_new_tokens
        memory = total_memory(prompts.ids.device)
        room = decoding_tokens(model, width, memory) // (1 if mixed_with is None else 2)
        limit = min(self.batch_tokens, max(1, room))

        def draw(tokens: int) -> list[Decoding]:
            each = list(groups(prompts, n, tokens // width))
            steps = sampling.max_new_tokens
            shows = [advance_from(i * steps, len(each) * steps) for i in range(len(each))]
            return [
                decode(
                    model,
                    some,
                    count,
                    sampling,
                    noise[rows],
                    self.eos,
                    self.cached,
                    show,
                    mixed_with,
                )
                for (some, count, rows), show in zip(each, shows, strict=True)
            ]

        parts = (self.sizes or BatchSizes()).attempt(DECODING, limit, width, draw)
        return assemble(prompts, parts, n, sampling.temperature)


def groups(prompts: PromptBatch, n: int, rows: int) -> Iterator[tuple[PromptBatch, int, slice]]:
    """Yield (prompts, completions of each, their rows among all) of at most `rows` rows each.

    The rows are prompt-major and come in order. Where not even the n completions of one prompt
    fit, they are split, and the prompt is read again for each part.
    """
    if rows >= n:
        size = rows // n
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            yield some, n, slice(start * n, (start + len(some)) * n)
        return
    size = max(1, rows)
    for i in range(len(prompts)):
        for start in range(0, n, size):
            count = min(size, n - start)
            yield prompts[i : i + 1], count, slice(i * n + start, i * n + start + count)


def assemble(prompts: PromptBatch, parts: list[Decoding], n: int, temperature: float) -> Batch:
    """Return drawn rows as a batch with `logp` (B, n, T)."""
    lengths = torch.cat([part.lengths for part in parts])
    longest = int(lengths.max())
    tokens = torch.cat([part.tokens for part in parts])[:, :longest]
    logp = torch.cat([part.logp for part in parts])[:, :longest]
    mask = (torch.arange(longest, device=lengths.device) < lengths[:, None]).float()
    shape = (len(prompts), n, longest)
    columns = {
        "completion_ids": tokens.view(shape),
        "mask": mask.view(shape),
        "logp": logp.view(shape),
    }
    return Batch(prompts, columns, temperature)


class Sampler:
    """Draws completions with an engine, sampling parameters, and noise from a seed."""

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        meter: Meter,
        eos: set[int],
        noise_key: tuple[object, ...],
        distributed: DistributedContext = ALONE,
        shaped: bool = False,  # an evaluation's: it may be greedy or truncated
    ) -> None:
        check_sampling(replace(sampling, greedy=False, top_p=1.0) if shaped else sampling)
        if (sampling.greedy or sampling.top_p < 1) and not engine.takes_truncation:
            raise UsageError(
                f"The engine {engine.name} samples the full distribution only: leave out"
                " evaluation.greedy and evaluation.top_p, or use --engine hf."
            )
        self.engine, self.sampling, self.meter, self.eos = engine, sampling, meter, eos
        self.noise_key, self.distributed = noise_key, distributed
        self.phase = "rollout"
        self.mixed_with: Mixed | None = None  # a second model of a mixture
        self.pool: CompletionSource | None = None  # the cache of the start checkpoint's completions

    def draw(self, model: nn.Module, prompts: PromptBatch, n: int = 1, *more: object) -> Batch:
        """Draw n completions per prompt: (B, n, T) with `logp` and `ended`.

        `more` makes repeated draws differ.
        """
        with self.meter.aside():
            cached = (
                self.pool.draw(model, prompts, n, self.sampling) if self.pool and not more else None
            )
        with self.meter.phase(self.phase):
            batch: Batch = (
                cached.value
                if cached
                else self._generate(model, prompts, n, self._noise(prompts, n, *more))
            )
            last = (batch.lengths - 1).clamp(min=0)[..., None]
            ends = torch.tensor(sorted(self.eos), device=prompts.ids.device)
            ended = torch.isin(batch["completion_ids"].gather(-1, last)[..., 0], ends)
            flops = self._count(model, batch)
            if cached is not None:
                cached.count_time(self.meter, flops)
        return batch.with_columns(ended=ended)

    def _generate(self, model: nn.Module, prompts: PromptBatch, n: int, noise: Tensor) -> Batch:
        """Split the prompts over processes, and gather all completions."""
        self._sync(model, prompts)
        with ExitStack() as whole:  # a process decodes as many tokens as its rows need
            whole.enter_context(gathered_weights(model))
            if self.mixed_with is not None:
                whole.enter_context(gathered_weights(self.mixed_with.model))
            return self._decode(model, prompts, n, noise)

    def _sync(self, model: nn.Module, prompts: PromptBatch) -> None:
        """Give the engine the present weights; its start counts to no phase."""
        engine = self.engine
        if engine.copies_weights:
            with self.meter.aside():
                engine.start(model)
            with self.meter.phase("sync"):
                engine.sync(model)
        check_length(engine, prompts.ids.shape[1], self.sampling.max_new_tokens)

    def _decode(self, model: nn.Module, prompts: PromptBatch, n: int, noise: Tensor) -> Batch:
        more: dict[str, Any] = {} if self.mixed_with is None else {"mixed_with": self.mixed_with}
        if self.distributed.size == 1:
            return self.engine.generate(model, prompts, n, self.sampling, noise, **more)
        own = self.distributed.shard(len(prompts))
        whole = torch.zeros(
            3,
            len(prompts),
            n,
            self.sampling.max_new_tokens,
            device=noise.device,
            dtype=torch.float64,
        )
        if own.start < own.stop or self.engine.collective:
            part = self.engine.generate(
                model, prompts[own], n, self.sampling, noise[own.start * n : own.stop * n], **more
            )
            for i, name in enumerate(("completion_ids", "mask", "logp")):
                whole[i, own, :, : part.shape[2]] = part[name].double()
        self.distributed.all_reduce(whole)
        ids, mask, logp = whole[..., : int(whole[1].sum(-1).max())]
        columns = {"completion_ids": ids.long(), "mask": mask.float(), "logp": logp.float()}
        return Batch(prompts, columns, self.sampling.temperature)

    def _noise(self, prompts: PromptBatch, n: int, *more: object) -> Tensor:
        """Return (B * n, T) uniform numbers."""
        generator = torch.Generator().manual_seed(derive(*self.noise_key, *more))
        return torch.rand(len(prompts) * n, self.sampling.max_new_tokens, generator=generator).to(
            prompts.ids.device
        )

    def _count(self, model: nn.Module, batch: Batch) -> float:
        """Meter the drawn completions, and return the FLOPs of drawing them."""
        flops = ModelFlops(model).decode(batch)
        if self.mixed_with is not None:
            flops += ModelFlops(self.mixed_with.model).decode(batch)
        generated = int(batch.lengths.sum())
        self.meter.add(
            flops=flops, tokens_generated=generated, samples=batch.shape[0] * batch.shape[1]
        )
        return flops
