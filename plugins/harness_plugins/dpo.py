"""DPO: Direct Preference Optimization (Rafailov et al. 2023), with cDPO, the robust and the
length-normalised form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import PairOptions, Policy, hookimpl, logprobs, torch

from .ipo import length_tilted

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class DPO(PairOptions):
    """Fit the policy's log-ratios to the preferences directly; its optimum is that of RLHF with KL
    strength beta.
    """

    name, kind, paper = "dpo", "offline preference", "https://arxiv.org/abs/2305.18290"
    needs = frozenset({"pairs"})
    tuning_space = PairOptions.tuning_space | {"beta": {"times": [0.2, 5.0]}}
    aliases = {
        "cdpo": "label_smoothing=0.1",
        "robust_dpo": "label_smoothing=0.1 robust=true",
        "dpo_norm": "length_average=true beta=5",
    }

    beta: float = 0.1  # strength of the KL constraint
    label_smoothing: float = 0.0  # assumed share of flipped labels, in [0, 0.5)
    robust: bool = False  # unbiased under flipped labels (2403.00409) instead of cDPO's smoothing

    length_average: bool = False  # divide log-ratios by length (Tulu 3, with a beta of 5)

    def check(self) -> None:
        super().check()
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError("label_smoothing must lie in [0, 0.5)")
        if self.robust and not self.label_smoothing:
            raise ValueError(
                "robust=true needs a label_smoothing above 0: the share of labels assumed flipped"
            )
        if self.beta <= 0:
            raise ValueError("beta must be above 0")

    def loss(self, logp, batch):
        """Eq. 7: -log sigma(beta (s_w - s_l)), with s = log pi(y|x) / pi_ref(y|x) summed over
        tokens; (B,).

        `logp` (B, 2, T), chosen first. With smoothing e: (1-e) L(h) + e L(-h), cDPO (Mitchell
        2023); robust: ((1-e) L(h) - e L(-h)) / (1 - 2e), eq. 12 of Chowdhury et al. 2024. A label
        probability `p` below 1 weighs both orders in the same way: p L(h) + (1-p) L(-h).
        `length_average` takes s / |y| (Tulu 3, 2411.15124).
        """
        s = (logp - batch["ref_logp"]).sum(-1)
        if self.length_average:
            s = s / batch["mask"].sum(-1)
        s_w, s_l = s.unbind(1)
        h = self.beta * (s_w - s_l)
        kept, flipped = -torch.nn.functional.logsigmoid(h), -torch.nn.functional.logsigmoid(-h)
        e, p = self.label_smoothing, batch["p"]
        # the weights of both orders sum to 1 in either form
        weight = (p - e) / (1 - 2 * e) if self.robust else p * (1 - e) + (1 - p) * e
        loss = weight * kept + (1 - weight) * flipped
        return loss, {
            "margin": h,
            "accuracy": logprobs.ordered_right(h),
            "chosen_reward": self.beta * s_w,
        }

    def train(self, lab: Lab) -> Policy:
        """Take one step on each batch of pairs."""
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))
        return lab.policy

    def optimum(self, problem):
        """pi* of RLHF, for pairs of any source, if labels follow Bradley-Terry on the reward
        (paper, sect. 4). With length averages s / |y| = r / beta + c.
        """
        if self.label_smoothing or self.shuffle_labels:
            return None
        if self.length_average:
            return length_tilted(problem.ref.log(), problem.reward / self.beta, problem.lengths)
        return problem.tilted(self.beta)


@hookimpl
def register_methods(register):
    register(DPO)
