"""TDPO: DPO with a sequential KL to the reference (Zeng et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import PairOptions, hookimpl, logprobs, torch

from ..pairs.base import Side, in_both_orders


@dataclass
class TDPO(PairOptions):
    """DPO whose margin is raised by the chosen completion's KL from the reference, token by token,
    and lowered by the rejected one's.
    """

    name, kind, paper = "tdpo", "offline preference", "https://arxiv.org/abs/2404.11999"
    needs = frozenset({"pairs"})
    tuning_space = PairOptions.tuning_space | {"beta": {"times": [0.2, 5.0]}}

    beta: float = 0.1  # strength of the KL constraint
    alpha: float = 0.5  # weight of the sequential KL; 0 is dpo
    stop_gradient: bool = True  # TDPO2: no gradient through the chosen one's KL; false is TDPO1

    def check(self) -> None:
        super().check()
        if self.beta <= 0 or self.alpha < 0:
            raise ValueError("beta must be above 0, and alpha not negative")
        if not self.stop_gradient and self.alpha != 1:
            raise ValueError("TDPO1 has no alpha: set alpha=1 with stop_gradient=false")

    def loss(self, columns, batch):
        """-log sigma(beta (s_w - s_l) - alpha beta (D_l - D_w)), s = log pi / ref summed,
        D = sum_t KL(ref || pi) at the completion's tokens; D_w has no gradient; (B,).

        `columns` (B, 2, T, 3) hold log pi, log ref and the KL.
        """
        logp, ref, kl = columns.unbind(-1)
        s, d = (logp - ref).sum(-1), kl.sum(-1)
        # a Side's ratio holds s, and its logp the sequential KL
        w, l = (Side(s[:, k], d[:, k], batch["mask"][:, k].sum(-1)) for k in (0, 1))
        h = self.margin(w, l)
        metrics = {"margin": h, "accuracy": logprobs.ordered_right(h), "sequential_kl": d}
        return in_both_orders(self.pair_loss, w, l, batch["p"]), metrics

    def margin(self, w, l):
        """Return beta (s_w - s_l + alpha (D_w - D_l)), (B,)."""
        chosen = w.logp.detach() if self.stop_gradient else w.logp
        return self.beta * (w.ratio - l.ratio + self.alpha * (chosen - l.logp))

    def pair_loss(self, w, l):
        return torch.nn.functional.softplus(-self.margin(w, l))

    def train(self, lab):
        """One pass after another over the pairs; the reference's distributions are computed."""
        both = lab.policy.against(lab.reference, kl_of_reference)
        for pairs in self.pairs(lab):
            lab.step(lab.term(self.loss, pairs, of=both))
        return lab.policy


def kl_of_reference(p, q):
    """Return KL(q || p) (m,) of log-probabilities p of the policy and q of the reference (m, V)."""
    return (q.exp() * (q - p)).sum(-1)


@hookimpl
def register_methods(register):
    register(TDPO)
