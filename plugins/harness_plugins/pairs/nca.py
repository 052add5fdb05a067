"""NCA: Noise Contrastive Alignment (Chen et al. 2024), the form for pairs."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import RatioLoss, Side
from .theory import least_by_completion


@dataclass
class NCA(RatioLoss):
    """Tell each completion of a pair from noise: rewards are absolute, and the chosen one's rises.

    `nca_k` is the form for K scored completions.
    """

    name, paper = "nca", "https://arxiv.org/abs/2402.05369"

    beta: float = 0.01  # scale of the implicit reward; the paper has 0.01

    def pair_loss(self, w: Side, l: Side):
        """-log sigma(beta s_w) - 1/2 (log sigma(-beta s_w) + log sigma(-beta s_l))."""
        r_w, r_l, softplus = self.beta * w.ratio, self.beta * l.ratio, torch.nn.functional.softplus
        return softplus(-r_w) + (softplus(r_w) + softplus(r_l)) / 2

    def optimum(self, problem):
        """No closed form: with the normaliser left out, (pi / ref)^beta would be twice the share of
        a completion's pairs in which it is chosen.
        """

        def loss(s, chosen, rejected):
            up, down = (torch.nn.functional.softplus(sign * self.beta * s) for sign in (-1, 1))
            return chosen * up + (chosen + rejected) / 2 * down

        return None if self.shuffle_labels else least_by_completion(loss, problem)


@hookimpl
def register_methods(register):
    register(NCA)
