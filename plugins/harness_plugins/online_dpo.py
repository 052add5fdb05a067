"""Online DPO (Guo et al. 2024) and iterated DPO (Xiong et al. 2023): DPO on pairs the policy has
just sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import OnPolicyOptions, Policy, hookimpl, logprobs, torch

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class OnlineDPO(OnPolicyOptions):
    """Sample, rank the samples by the reward, and take a DPO step on all pairs of a prompt's
    samples.
    """

    name, kind, paper = "online_dpo", "on-policy", "https://arxiv.org/abs/2402.04792"
    needs = frozenset({"prompts", "reward"})

    uncorrected = "its loss compares samples, whatever drew them"

    num_generations: int = 2  # completions per prompt; all their pairs are used
    beta: float = 0.1  # strength of the KL constraint
    labels: str = "sampled"  # sampled from sigma(r_i - r_j), soft (that probability), argmax (TRL)
    move_reference_every: int = 0  # turns between copies of the policy to the reference; 0: never

    def check(self) -> None:
        super().check()
        if self.num_generations < 2:
            raise ValueError("num_generations must be at least 2: a pair has two completions")
        if self.labels not in ("sampled", "soft", "argmax"):
            raise ValueError(f"labels is sampled, soft or argmax, not {self.labels!r}")
        if self.beta <= 0:
            raise ValueError("beta must be above 0")
        if self.move_reference_every < 0 or (
            self.move_reference_every and self.steps % self.move_reference_every
        ):
            raise ValueError(
                "move_reference_every must not be negative, and steps a multiple of it: whole"
                " rounds"
            )
        if self.move_reference_every and self.adaptive_beta:
            raise ValueError(
                "adaptive_beta steers the KL to the start, which a moved reference no longer is"
            )

    def pairs(self, k: int):
        """Return the positions (M,) and (M,) of the first and second completion of every pair."""
        return torch.triu_indices(k, k, 1).unbind(0)

    def labelled(self, reward, generator):
        """Return p (B, M) that completion i is better: sigma(r_i - r_j), or drawn from it, or
        rounded; NaN if unknown.

        Rewards are in units of the start checkpoint's spread. Argmax labels have no finite optimum
        (the margins grow for ever); of equal rewards neither is better.
        """
        i, j = self.pairs(reward.shape[1])
        margin = reward[:, i] - reward[:, j]
        if self.labels == "argmax":
            return torch.where(margin.isnan(), margin, (margin.sign() + 1) / 2)
        p = margin.sigmoid()
        if self.labels == "soft":
            return p
        drawn = torch.rand(p.shape, generator=generator).to(p) < p
        return torch.where(p.isnan(), p, drawn.to(p))

    def weights(self, p, ids, mask):
        """Return (B, M): 0 for a pair of identical answers or without a label, else 1."""
        i, j = self.pairs(mask.shape[1])
        same = ((ids[:, i] == ids[:, j]) & (mask[:, i] == mask[:, j])).all(-1)
        untold = p.isnan() | ((p == 0.5) & (self.labels == "argmax"))
        return (~same & ~untold).to(mask)

    def loss(self, logp, batch):
        """p L(h) + (1-p) L(-h), L = -log sigma, h = beta (s_i - s_j), s = log pi / ref, token sums;
        (B,).

        DPO's loss, its mean over a prompt's M pairs; `p` and `pair_weight` (B, M).
        """
        s, (i, j) = (logp - batch["ref_logp"]).sum(-1), self.pairs(logp.shape[1])
        h, p, weight = (
            batch["beta"][:, None] * (s[:, i] - s[:, j]),
            batch["p"],
            batch["pair_weight"],
        )
        log_sigma = torch.nn.functional.logsigmoid
        losses = -(p * log_sigma(h) + (1 - p) * log_sigma(-h))
        right = logprobs.ordered_right(h * (p - 0.5).sign())  # half for a tie
        return (weight * losses).mean(-1), {
            "pairs_right": (weight * right).mean(-1)
        }  # share of all pairs, as `pairs_used`

    def train(self, lab: Lab) -> Policy:
        """Rollout, labels, one step; rounds end by moving the reference."""
        lab.state.setdefault("turns", 0)
        for _, batch in self.rollouts(lab):
            every = self.move_reference_every
            if every and lab.state["turns"] and lab.state["turns"] % every == 0:
                lab.move_reference()
            lab.step(self.loss, self.experience(lab, batch))
            lab.state["turns"] += 1
        return lab.policy

    def experience(self, lab, batch):
        """Attach reference log-probabilities, labels and weights of the pairs."""
        reward, beta, ref_logp = batch["reward"], lab.state["beta"], lab.reference.logp(batch)
        p = self.labelled(reward, lab.generator("labels"))
        weight = self.weights(p, batch["completion_ids"], batch["mask"])
        lab.log(pairs_used=weight.mean())
        self.report(lab, batch, (batch["logp"] - ref_logp).sum(-1))
        return batch.with_columns(
            ref_logp=ref_logp,
            p=p.nan_to_num(0.5),
            pair_weight=weight,
            beta=torch.full_like(reward[:, 0], beta),
        )

    def optimum(self, problem):
        """pi* at beta / T after T rounds, each at its own optimum; T is 1 for a fixed reference.

        Labels from sigma(r_i - r_j) are Bradley-Terry, so beta (s - s') = r - r' for any sampling
        distribution of the pairs.
        """
        if self.labels == "argmax" or not self.as_measured():
            return None
        rounds = self.steps // self.move_reference_every if self.move_reference_every else 1
        return problem.tilted(self.beta / rounds)


@hookimpl
def register_methods(register):
    register(OnlineDPO)
