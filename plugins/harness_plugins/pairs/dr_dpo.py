"""Dr. DPO: distributionally robust DPO (Wu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Side
from .coupled import CoupledLoss
from .theory import least


@dataclass
class DrDPO(CoupledLoss):
    """DPO whose mean over pairs is a soft minimum: pairs with a large loss weigh less.

    Such pairs may be mislabelled.
    """

    name, paper = "dr_dpo", "https://arxiv.org/abs/2407.07880"
    tuning_space = CoupledLoss.tuning_space | {"beta_prime": {"times": [0.2, 5.0]}}

    beta: float = 0.1  # strength of the KL constraint
    beta_prime: float = 1.0  # the paper's beta': as it grows the loss is DPO's

    def check(self) -> None:
        super().check()
        if self.beta_prime <= 0:
            raise ValueError("beta_prime must be above 0")

    def batch_loss(self, w: Side, l: Side, batch):
        """-beta' log mean exp(log sigma(h) / beta'), h = beta (s_w - s_l), over the batch.

        A doubtful label is two pairs, one in either order, that weigh p and 1 - p.
        """
        h, p = self.reward(w) - self.reward(l), batch["p"]
        log_sigma = torch.nn.functional.logsigmoid(torch.cat([h, -h])) / self.beta_prime
        weight = torch.cat([p, 1 - p]) / len(p)
        return -self.beta_prime * (log_sigma + weight.log()).logsumexp(0)

    def optimum(self, problem):
        """For batches of all pairs: the maximum of the mean of sigma(h)^(1 / beta'), None where two
        starts end apart.
        """

        def loss(s_w, s_l, _):
            return -(torch.sigmoid(self.beta * (s_w - s_l)) ** (1 / self.beta_prime))

        return None if self.shuffle_labels else least(loss, problem)


@hookimpl
def register_methods(register):
    register(DrDPO)
