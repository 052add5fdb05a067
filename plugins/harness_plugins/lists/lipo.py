"""LiPO-lambda: pairs of a list weighed by what their swap would cost (Liu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Listed, RatioListLoss

# Nats by which completions of neighbouring scores are kept apart. The first steps of a LoRA adapter
# move log-ratios by less, and rounding would then decide their ranks.
PLACE = 0.01


@dataclass
class LiPO(RatioListLoss):
    """DPO's loss on all pairs of a scored list, each weighed by the difference of gains times that
    of rank discounts: the weight of LambdaLoss.

    Its pairs are sure, so no finite policy is its minimum: it is stopped in time, as `rrhf` is.
    """

    name, paper = "lipo", "https://arxiv.org/abs/2402.01878"

    def list_loss(self, y: Listed):
        """sum over psi_i > psi_j of D_ij log(1 + e^-(beta s_i - beta s_j)),
        D_ij = |2^psi_i - 2^psi_j| |1 / log(1 + tau_i) - 1 / log(1 + tau_j)|.

        psi is the mean win-rate of a completion in its list, in [0, 1], and tau its rank by s, from
        1; the weight has no gradient. Before the first step all s are equal but for rounding, and
        are ranked by their scores: a better score counts as 0.01 nats a place.
        """
        s = self.beta * y.ratio
        psi = (y.score[:, :, None] - y.score[:, None, :]).sigmoid().mean(-1)
        places = torch.arange(s.shape[-1], device=s.device)  # lists come with falling scores
        rank = (y.ratio.detach() - PLACE * places).argsort(-1, descending=True).argsort(-1)
        rank = rank + 1.0
        gain, discount = torch.exp2(psi), 1 / torch.log1p(rank)
        weight = (gain[:, :, None] - gain[:, None, :]).abs()
        weight = weight * (discount[:, :, None] - discount[:, None, :]).abs()
        better = y.score[:, :, None] > y.score[:, None, :]
        losses = torch.nn.functional.softplus(s[:, None, :] - s[:, :, None])
        return (better * weight * losses).sum((1, 2))


@hookimpl
def register_methods(register):
    register(LiPO)
