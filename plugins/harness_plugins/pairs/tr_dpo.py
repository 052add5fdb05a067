"""TR-DPO: DPO whose reference follows the policy (Gorbatovski et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from .base import RatioLoss, Side


@dataclass
class TRDPO(RatioLoss):
    """DPO, and now and then the reference moves to the policy, or a share of the way.

    The KL constraint is to the last reference, so the policy goes further than DPO's.
    """

    name, paper = "tr_dpo", "https://arxiv.org/abs/2404.09656"
    tuning_space = RatioLoss.tuning_space | {"ref_model_sync_steps": {"times": [0.25, 2.0]}}

    beta: float = 0.1  # strength of the KL constraint to the moving reference
    ref_model_sync_steps: int = 64  # the paper's tau: optimiser steps between moves
    ref_model_mixup_alpha: float = 1.0  # the paper's alpha: share of the way; 1 is the hard update

    def check(self) -> None:
        super().check()
        if self.ref_model_sync_steps < 1:
            raise ValueError("ref_model_sync_steps must be at least 1")
        if not 0 < self.ref_model_mixup_alpha <= 1:
            raise ValueError("ref_model_mixup_alpha must lie in (0, 1]")
        if self.ref_model_mixup_alpha < 1 and self.lora_rank:
            raise ValueError(
                "with lora_rank ref_model_mixup_alpha must be 1: the average of two adapters is not"
                " the adapter of the average"
            )

    def pair_loss(self, w: Side, l: Side):
        """DPO's eq. 7: -log sigma(beta (s_w - s_l)), s to the reference as it stands."""
        return torch.nn.functional.softplus(self.reward(l) - self.reward(w))

    def train(self, lab):
        """Steps of DPO; after every tau of them pi_ref <- alpha pi + (1 - alpha) pi_ref.

        The weights are averaged. The evaluation measures the KL from the start checkpoint.
        """
        lab.state.setdefault("steps", 0)
        for pairs in self.pairs(lab):
            done = lab.state["steps"]
            if done and done % self.ref_model_sync_steps == 0:
                lab.move_reference(self.ref_model_mixup_alpha)
            lab.step(self.loss, self.prepared(lab, pairs))
            lab.state["steps"] = done + 1
        return lab.policy

    def optimum(self, problem):
        """pi* at beta / T after T rounds of the hard update, each long enough: every round tilts
        its own reference by r / beta. The soft update has no fixed point while it goes on.
        """
        if self.shuffle_labels or self.ref_model_mixup_alpha < 1 or not self.steps:
            return None
        return problem.tilted(self.beta / -(-self.steps // self.ref_model_sync_steps))


@hookimpl
def register_methods(register):
    register(TRDPO)
