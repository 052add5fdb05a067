"""SAPO: Soft Adaptive Policy Optimization (Gao et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import Surrogate


@dataclass
class SAPO(Surrogate):
    """GRPO with a smooth gate on the ratio in place of the clip: gradients fade and never stop."""

    name, paper = "sapo", "https://arxiv.org/abs/2511.20347"
    reduction = "seq-mean-token-mean"

    tau_pos: float = 1.0  # how fast the gate closes where the advantage is above 0
    tau_neg: float = 1.05  # elsewhere; faster, as such updates raise many other tokens

    def check(self) -> None:
        super().check()
        if self.tau_pos <= 0 or self.tau_neg <= 0:
            raise ValueError("tau_pos and tau_neg must be above 0")

    def loss(self, logp, batch):
        """-(4 / tau) sigma(tau (rho - 1)) A per token (B, K, T), tau by the sign of A.

        At rho = 1 the slope of the gate is 1, as that of the ratio itself.
        """
        ratio, advantages = torch.exp(logp - batch["old_logp"]), batch["advantages"][..., None]
        tau = torch.where(advantages > 0, self.tau_pos, self.tau_neg)
        return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages, {"ratio": ratio}


@hookimpl
def register_methods(register):
    register(SAPO)
