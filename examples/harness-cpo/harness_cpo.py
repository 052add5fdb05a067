"""CPO (Xu et al. 2024): DPO without a reference and with a likelihood term."""

from __future__ import annotations

from dataclasses import dataclass

from harness_plugins.population import minimiser, ordered_pairs

from harness import PairOptions, hookimpl, logprobs, torch

softplus = torch.nn.functional.softplus


@dataclass
class CPO(PairOptions):
    """Prefer the chosen completion by its log-probability alone, and keep it likely."""

    name, kind, paper = "my_cpo", "offline preference", "https://arxiv.org/abs/2401.08417"
    needs = frozenset({"pairs"})

    beta: float = 0.1  # scale of the difference of log-probabilities
    alpha: float = 1.0  # weight of the chosen completion's negative log-likelihood; the paper has 1

    def check(self):
        super().check()
        if self.beta <= 0 or self.alpha < 0:
            raise ValueError("beta must be above 0, and alpha not negative")

    def loss(self, logp, batch):
        """-log sigma(beta (l_w - l_l)) - alpha l_w, l = log pi(y|x) summed over tokens; (B,).

        `logp` (B, 2, T), chosen first. A labeller's own doubt, `p` below 1, weighs both orders.
        """
        (w, l), p = logp.sum(-1).unbind(1), batch["p"]
        h = self.beta * (w - l)
        loss = p * (softplus(-h) - self.alpha * w) + (1 - p) * (softplus(h) - self.alpha * l)
        return loss, {"margin": h, "accuracy": logprobs.ordered_right(h)}

    def train(self, lab):
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs)
        return lab.policy

    def optimum(self, problem):
        """Return the minimiser over all distributions, found by descent; it has no closed form."""
        pairs = ordered_pairs(problem)

        def loss(logp, _):
            h = self.beta * (logp[:, :, None] - logp[:, None, :])
            return (pairs * (softplus(-h) - self.alpha * logp[:, :, None])).sum((1, 2))

        return None if self.shuffle_labels else minimiser(loss, problem)


@hookimpl
def register_methods(register):
    register(CPO)
