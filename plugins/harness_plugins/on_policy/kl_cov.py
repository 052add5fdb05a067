"""KL-Cov: a KL penalty on the tokens of the highest covariance (Cui et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, logprobs, torch

from .covariance import Covariance


@dataclass
class KLCov(Covariance):
    """GRPO without a clip, and with a penalty on the move of the tokens that lower the entropy
    most.
    """

    name, paper = "kl_cov", "https://arxiv.org/abs/2505.22617"

    kl_ratio: float = 2e-4  # share of all tokens with the penalty, at least one token
    kl_coef: float = 1.0  # weight of the penalty

    def check(self) -> None:
        super().check()
        if not 0 < self.kl_ratio <= 1 or self.kl_coef < 0:
            raise ValueError("kl_ratio lies in (0, 1] and kl_coef must not be negative")

    def chosen(self, lab, covariance, logp, part):
        """Take the `kl_ratio` of the tokens with the largest covariance."""
        tokens = part["mask"] > 0
        count = max(1, int(self.kl_ratio * int(tokens.sum())))
        ranked = covariance.masked_fill(~tokens, -torch.inf).flatten()
        chosen = torch.zeros_like(ranked)
        chosen[ranked.topk(min(count, int(tokens.sum()))).indices] = 1.0
        return chosen.view_as(covariance)

    def loss(self, logp, batch):
        """-rho A + kl_coef |log pi / pi_old| for the chosen tokens, -rho A for others (B, K, T).

        At the first update of a rollout the sign of the log-ratio is rounding, so a log-ratio
        within rounding counts as 0.
        """
        u = logp - batch["old_logp"]
        moved = torch.where(u.abs() > logprobs.TIE, u.abs(), 0.0)
        penalty = self.kl_coef * batch["chosen"] * moved
        loss = -u.exp() * batch["advantages"][..., None] + penalty
        return loss, {"ratio": u.exp(), "chosen": batch["chosen"]}


@hookimpl
def register_methods(register):
    register(KLCov)
