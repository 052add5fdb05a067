"""EXO: Efficient Exact Optimization (Ji et al. 2024), the form for pairs."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..population import minimiser
from .base import RatioLoss, Side


@dataclass
class EXO(RatioLoss):
    """Minimise the reverse KL from the policy's preference to the label's; DPO has the forward one.

    A label probability `p` is the target itself: the loss is not linear in the label, so weighing
    both orders would be another loss.
    """

    name, paper = "exo", "https://arxiv.org/abs/2402.00856"

    beta: float = 0.1  # scale of the log-ratios, the paper's beta_pi
    label_smoothing: float = 1e-3  # the paper's epsilon: the target of a plain label is 1 - epsilon

    def check(self) -> None:
        super().check()
        if not 0 < self.label_smoothing < 0.5:
            raise ValueError(
                "label_smoothing must lie in (0, 0.5): the KL to a sure label is infinite"
            )

    def loss(self, logp, batch):
        """Eq. 16: KL((sigma(h), sigma(-h)) || (t, 1 - t)), h = beta (s_w - s_l), t = 1 - epsilon;
        (B,).

        With p below 1 the target is t = p (1 - epsilon) + (1 - p) epsilon.
        """
        w, l = self.sides(logp, batch)
        h, p, e = self.beta * (w.ratio - l.ratio), batch["p"], self.label_smoothing
        target = p * (1 - e) + (1 - p) * e
        return reverse_kl(h, target), self.metrics(w, l)

    def pair_loss(self, w: Side, l: Side):
        """Return the loss of a plain label."""
        h = self.beta * (w.ratio - l.ratio)
        return reverse_kl(h, torch.full_like(h, 1 - self.label_smoothing))

    def optimum(self, problem):
        """Minimise sigma(h) (log sigma(h) - log t) over both orders. As epsilon goes to 0 it is pi*
        of RLHF, where h = logit p for every pair at once.
        """
        e = self.label_smoothing
        target = problem.prefer * (1 - e) + (1 - problem.prefer) * e
        pairs = problem.mu[:, :, None] * problem.mu[:, None, :]
        pairs = pairs * (1 - torch.eye(pairs.shape[-1], dtype=pairs.dtype))

        def loss(logp, _):
            s = logp - problem.ref.log()
            log_q = torch.nn.functional.logsigmoid(self.beta * (s[:, :, None] - s[:, None, :]))
            return (pairs * log_q.exp() * (log_q - target.log())).sum((1, 2))

        return None if self.shuffle_labels else minimiser(loss, problem)


def reverse_kl(h, target):
    """Return KL((sigma(h), sigma(-h)) || (target, 1 - target)), (B,)."""
    log_q, log_not = torch.nn.functional.logsigmoid(h), torch.nn.functional.logsigmoid(-h)
    return log_q.exp() * (log_q - target.log()) + log_not.exp() * (log_not - (1 - target).log())


@hookimpl
def register_methods(register):
    register(EXO)
