"""LD-DPO: length-desensitised DPO (Liu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..population import minimiser, ordered_pairs
from .base import RatioLoss, Side


@dataclass
class LDDPO(RatioLoss):
    """DPO in which the tokens beyond the shorter completion's length count alpha each.

    At alpha 1 it is `dpo`; at 0 both completions are cut to the same length.
    """

    name, paper = "ld_dpo", "https://arxiv.org/abs/2409.06411"
    tuning_space = RatioLoss.tuning_space | {"ld_alpha": [0.0, 0.25, 0.5, 0.75]}

    beta: float = 0.1  # strength of the KL constraint at ld_alpha 1
    ld_alpha: float = 0.5  # the paper's alpha, in [0, 1]: weight of tokens beyond the common length

    def check(self) -> None:
        super().check()
        if not 0 <= self.ld_alpha <= 1:
            raise ValueError("ld_alpha must lie in [0, 1]")

    def sides(self, logp, batch):
        """Return the completions with log-ratios in which the tail's tokens weigh `ld_alpha`, for
        the policy and for the reference.
        """
        length = batch["mask"].sum(-1)
        place = torch.arange(logp.shape[-1], device=logp.device)
        common = place < length.amin(1)[:, None, None]  # (B, 1, T)
        weight = torch.where(common, 1.0, self.ld_alpha).to(logp)
        ratio = (weight * (logp - batch["ref_logp"])).sum(-1)
        w, l = super().sides(logp, batch)
        return w._replace(ratio=ratio[:, 0]), l._replace(ratio=ratio[:, 1])

    def pair_loss(self, w: Side, l: Side):
        """-log sigma(beta (s_w - s_l)) with the weighted log-ratios."""
        return torch.nn.functional.softplus(self.reward(l) - self.reward(w))

    def optimum(self, problem):
        """No closed form: the loss of all pairs, minimised; log pi of the first n tokens is the log
        of the sum over completions that begin with them.
        """
        pairs, lengths = ordered_pairs(problem), problem.lengths[0].tolist()
        starts = {n: beginnings(problem.ids, n) for n in set(lengths)}
        common = torch.tensor([[min(a, b) for b in lengths] for a in lengths])

        def loss(logp, _):
            s, h = logp - problem.ref.log(), 0.0
            for n, alike in starts.items():
                heads = (logp[:, None] + alike).logsumexp(-1)
                heads = heads - (problem.ref.log()[:, None] + alike).logsumexp(-1)
                weighed = self.ld_alpha * s + (1 - self.ld_alpha) * heads
                h = h + (common == n) * (weighed[:, :, None] - weighed[:, None, :])
            return -(pairs * torch.nn.functional.logsigmoid(self.beta * h)).sum((1, 2))

        return None if self.shuffle_labels else minimiser(loss, problem)


def beginnings(ids, n):
    """Return (N, N): 0 where the column's completion begins as the row's does, for n tokens, else
    -inf.
    """
    alike = torch.tensor([[a[:n] == b[:n] for b in ids] for a in ids])
    return torch.where(alike, 0.0, -torch.inf).double()


@hookimpl
def register_methods(register):
    register(LDDPO)
