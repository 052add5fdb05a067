"""Exact probabilities, KL, rewards, win rates and optima by enumeration of all completions.

Notation: P prompts, N completions each, the same for all prompts. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from ..core.data import Prompt
from .batches import Batch
from .logprobs import completion_logp
from .micro_batches import in_micro_batches
from .tokens import Tokens


@dataclass(frozen=True)
class Enumerated:
    """Every completion of every prompt, with its reference probability and its reward."""

    ref: Tensor  # (P, N) probabilities of the start checkpoint, float64
    reward: Tensor  # (P, N), float64
    lengths: Tensor  # (P, N) tokens, the end-of-sequence token included
    ids: tuple[tuple[int, ...], ...]  # (N) token ids of each completion
    mu: Tensor  # (P, N) how often a completion occurs in preference pairs
    prefer: Tensor  # (P, N, N) probability that the labeller prefers the row's completion
    demonstrated: Tensor | None = None  # (P, N) distribution of the demonstrations, if known
    taught: Tensor | None = None  # (P, N) probabilities of a teacher, if known

    def tilted(self, beta: float) -> Tensor:
        """Return pi* = ref exp(r / beta) / Z (P, N), which maximises E r - beta KL(pi || ref)."""
        return (self.ref.log() + self.reward / beta).softmax(-1)

    def best_of(self, n: int) -> Tensor:
        """Return the distribution (P, N) of best-of-n on the start checkpoint; ties take the first.

        A reward level v has mass f_v = P(r = v) and F_v = P(r <= v). The best is at level v unless
        not all n draws are at most v or all are below it: F_v^n - (F_v - f_v)^n; within a level the
        reference's proportions stay.
        """
        below = (
            self.reward[:, None, :] < self.reward[:, :, None]
        )  # [p, i, j]: the reward of j is below that of i
        level = self.reward[:, None, :] == self.reward[:, :, None]
        less, mass = ((mask * self.ref[:, None, :]).sum(-1) for mask in (below, level))
        return self.ref / mass * ((less + mass) ** n - less**n)

    def expected(self, policy: Tensor) -> Tensor:
        """Return (P,) expected rewards of policies (P, N)."""
        return (policy * self.reward).sum(-1)

    def win_rate(self, policy: Tensor) -> Tensor:
        """Return (P,) win rates of the policy against the start checkpoint; a tie counts 0.5."""
        margin = self.reward[:, :, None] - self.reward[:, None, :]
        wins = (margin > 0).double() + 0.5 * (margin == 0).double()
        return torch.einsum("pi,pij,pj->p", policy, wins, self.ref)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) over the last dimension, in nats."""
    return torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.clamp(min=1e-300).log()), 0.0).sum(
        -1
    )


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Return half the absolute difference over the last dimension, in [0, 1]."""
    return 0.5 * (p - q).abs().sum(-1)


def completions(vocabulary: Sequence[int], eos: int, limit: int) -> list[list[int]]:
    """Return every completion of at most `limit` tokens: ended by `eos`, or cut at the limit."""
    words = [token for token in vocabulary if token != eos]
    ended = [[*body, eos] for n in range(limit) for body in product(words, repeat=n)]
    return ended + [list(body) for body in product(words, repeat=limit)]


def every_completion(
    tokens: Tokens, prompts: Sequence[Prompt], limit: int, device: torch.device | str = "cpu"
) -> Batch:
    """Return a batch (P, N, T) of every completion over the tokenizer's whole vocabulary."""
    vocabulary = sorted(tokens.tokenizer.get_vocab().values())
    return tokens.batch(
        prompts, [completions(vocabulary, tokens.eos, limit)] * len(prompts), device
    )


def probabilities(model: nn.Module, batch: Batch, max_tokens: int) -> Tensor:
    """Return (P, N) probabilities of the completions of a batch (P, N, T), in float64."""
    logp = in_micro_batches(lambda part: completion_logp(model, part), batch.flat(), max_tokens)
    p, n, _ = batch.shape
    return logp.double().sum((1, 2)).view(p, n).exp()
