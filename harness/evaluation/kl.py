"""KL(pi || ref) in nats per completion, on the policy's own samples at the temperature they were
drawn at.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..models.batches import Batch
from ..models.flops import ModelFlops
from ..models.logprobs import Predictions, predictions
from ..models.micro_batches import each_part
from ..models.sharding import in_pass
from ..training.lab import Runtime


def sampled_kl(
    policy: nn.Module, reference: nn.Module, batch: Batch, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Return (B,) Rao-Blackwellised and (B,) plain estimates of the KL of answers (B, 1, T).

    Rao-Blackwellised (Amini et al. 2025, 2504.10637): the expectation over the next token is taken
    exactly, sum_t sum_v pi(v | s_t) log(pi / ref)(v | s_t); the plain one, sum_t log(pi / ref)(y_t
    | s_t), is k1. Both are unbiased; a completion cut at the length limit counts as far as it goes.
    """
    device = batch["mask"].device
    exact, plain = (torch.zeros(batch.shape[0], device=device) for _ in range(2))

    def count(part: Batch) -> None:
        flops = sum(ModelFlops(model).forward(part) for model in (policy, reference))
        runtime.meter.add(flops=flops)

    def compute(part: Batch) -> tuple[Tensor, Tensor]:
        return in_pass(policy, lambda: in_pass(reference, lambda: _ratios(policy, reference, part)))

    def keep(rows: list[int], part: Batch, estimates: tuple[Tensor, Tensor]) -> None:
        exact[rows], plain[rows] = (values.sum((1, 2)) for values in estimates)

    limit, distributed = runtime.micro_batch_tokens, runtime.distributed
    each_part(batch, limit, compute, keep, count, distributed, runtime.sizes)
    distributed.all_reduce(exact, plain)
    return exact.cpu(), plain.cpu()


def _ratios(policy: nn.Module, reference: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (B, K, T) expectations of log(pi / ref) over the next token, and those of the tokens
    that were drawn.
    """
    places = batch["mask"] > 0
    ids, p_told, q_told = (
        batch["completion_ids"][places],
        predictions(policy, batch),
        predictions(reference, batch),
    )
    exact, plain = (
        torch.zeros(batch.shape, device=ids.device),
        torch.zeros(batch.shape, device=ids.device),
    )
    exact[places], plain[places] = expectations(p_told, q_told, ids)
    return exact, plain


def expectations(p_told: Predictions, q_told: Predictions, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return (M,) expectations of log(p / q) over the next token, and (M,) its values at `ids`."""
    estimates: list[tuple[Tensor, Tensor]] = []
    for part in p_told.parts():
        p, q = (predictions.logits(part).log_softmax(-1) for predictions in (p_told, q_told))
        ratio = p - q
        mean = torch.where(p > -torch.inf, p.exp() * ratio, 0.0).sum(-1)
        estimates.append((mean, ratio.gather(-1, ids[part, None])[:, 0]))
    exact, plain = (torch.cat(column) for column in zip(*estimates, strict=True))
    return exact, plain


def best_of_n_kl(n: int, level_mass: Tensor) -> Tensor:
    """Return estimates of KL(best-of-n || ref) from the reference mass (B,) of the selected reward
    level.

    Beirami et al. 2024 (2401.01879), with their epsilon the mass of the level, so that ties count:
    (1-e)^n [log n + (n-1) log(1-e) - (n-1)/n] + (1-(1-e)^n) log((1-(1-e)^n) / e). As e -> 0 it is
    log n - (n-1)/n, the value for a reward without atoms, which bounds it from above.
    """
    e = level_mass.double().clamp(1e-300, 1 - 1e-12)
    miss = torch.exp(n * torch.log1p(-e))  # (1 - e)^n
    hit = -torch.expm1(n * torch.log1p(-e))  # 1 - (1 - e)^n, without cancellation at small e
    rare = math.log(n) + (n - 1) * torch.log1p(-e) - (n - 1) / n
    return miss * rare + hit * (torch.log(hit) - torch.log(e))


def best_of_n_bound(n: int) -> float:
    """Return log n - (n-1)/n, the KL of best-of-n without ties; with ties it is a bound."""
    return math.log(n) - (n - 1) / n
