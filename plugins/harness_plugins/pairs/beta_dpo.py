"""beta-DPO: a KL strength by the batch, and pairs near its mean (Wu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, logprobs, torch

from .base import Side
from .coupled import CoupledLoss


@dataclass
class BetaDPO(CoupledLoss):
    """DPO whose beta grows with the mean margin of a batch, on the pairs nearest to that mean."""

    name, paper = "beta_dpo", "https://arxiv.org/abs/2407.08639"
    tuning_space = CoupledLoss.tuning_space | {"alpha": [0.0, 0.2, 0.6, 1.0]}

    beta: float = 0.1  # the paper's beta_0: strength of the KL constraint at the usual margin
    alpha: float = 0.6  # how much beta changes with the margin; 0 keeps it
    kept: float = 0.8  # the paper's rho: share of the pairs that are kept, at least one
    margin_decay: float = 0.9  # of the running mean that is the usual margin, the paper's m

    def check(self) -> None:
        super().check()
        if not 0 < self.kept <= 1 or not 0 <= self.margin_decay < 1:
            raise ValueError("kept must lie in (0, 1], and margin_decay in [0, 1)")
        if self.alpha < 0:
            raise ValueError("alpha must not be negative")

    def batch_loss(self, w: Side, l: Side, batch):
        """DPO's loss with beta (1 + alpha (mean margin - m)), of the pairs whose margin
        beta_0 (s_w - s_l) is nearest to m.

        Neither beta nor the choice has a gradient. Departures: the nearest pairs are kept, and
        those as near as the last; the paper draws them by a Gaussian. beta does not fall below a
        tenth of beta_0.
        """
        s = w.ratio - l.ratio
        margin = (self.beta * s).detach()
        usual = batch["usual"][0] if "usual" in batch else margin.mean()
        beta = self.beta * (1 + self.alpha * (margin.mean() - usual)).clamp(min=0.1)
        apart = (margin - usual).abs()
        nearest = apart <= apart.sort().values[max(1, round(self.kept * len(s))) - 1] + logprobs.TIE
        p, softplus = batch["p"], torch.nn.functional.softplus
        losses = p * softplus(-beta * s) + (1 - p) * softplus(beta * s)
        return losses[nearest].mean()

    def measured(self, lab, logp, pairs):
        """Attach the usual margin m: a running mean over batches, which survives a restart."""
        w, l = self.sides(logp, pairs)
        mean = float(self.beta * (w.ratio - l.ratio).mean())
        usual = self.margin_decay * lab.state.get("margin", mean) + (1 - self.margin_decay) * mean
        lab.state["margin"] = usual
        lab.log(usual_margin=usual)
        return pairs.with_columns(usual=torch.full_like(pairs["p"], usual))


@hookimpl
def register_methods(register):
    register(BetaDPO)
