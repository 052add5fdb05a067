"""VESPO: Variational Sequence-level Soft Policy Optimization (Shen et al. 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Surrogate

LOG_RATIO = 20.0  # log-ratios are held within this, as in the authors' code


@dataclass
class VESPO(Surrogate):
    """REINFORCE with a smooth weight of the whole completion's ratio in place of a clip.

    The weight is 1 for a ratio of 1 and fades on both sides of its top.
    """

    name, paper = "vespo", "https://arxiv.org/abs/2602.10693"

    k_pos: float = 2.0  # power of the ratio where the advantage is not negative
    lambda_pos: float = 3.0  # decay of the weight there
    k_neg: float = 3.0  # power of the ratio elsewhere
    lambda_neg: float = 2.0  # decay elsewhere

    def check(self) -> None:
        super().check()
        if min(self.k_pos, self.k_neg) < 0 or min(self.lambda_pos, self.lambda_neg) <= 0:
            raise ValueError("k_pos and k_neg must not be negative, the lambdas above 0")

    def loss(self, logp, batch):
        """-sg(phi(w)) A log pi per token (B, K, T), phi(w) = w^k e^(lambda (1 - w)).

        w = pi(y|x) / pi_old(y|x) of the whole completion; k and lambda by the sign of A.
        """
        advantages, up = batch["advantages"], batch["advantages"] >= 0
        u = (logp - batch["old_logp"]).detach().sum(-1).clamp(-LOG_RATIO, LOG_RATIO)
        k = torch.where(up, self.k_pos, self.k_neg)
        decay = torch.where(up, self.lambda_pos, self.lambda_neg)
        weight = torch.exp(decay + k * u - decay * u.exp())
        loss = -(weight * advantages)[..., None] * logp
        return loss, {"weight": weight, "ratio": u.exp()}


@hookimpl
def register_methods(register):
    register(VESPO)
