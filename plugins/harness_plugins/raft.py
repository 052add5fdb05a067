"""RAFT: reward-ranked fine-tuning (Dong et al. 2023): rounds of best-of-K and SFT on the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import OnPolicyOptions, Policy, hookimpl, torch

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class RAFT(OnPolicyOptions):
    """Sample K completions per prompt, imitate the best one, and repeat with the new policy."""

    name, kind, paper = "raft", "on-policy", "https://arxiv.org/abs/2304.06767"
    needs = frozenset({"prompts", "reward"})
    tuning_space = {"learning_rate": {"times": [0.2, 5.0]}, "epochs": [1, 2, 4]}

    uncorrected = "it imitates the best samples, whatever drew them"

    steps: int = 10  # rounds
    warmup_ratio: float = 0.0  # share of the rounds with a rising learning rate
    epochs: int = 1  # passes of SFT over a round's best completions
    minibatch_size: int = 0  # completions per update; 0 takes the whole round
    beta: float = 0.0  # rank by r - beta log(pi / ref); 0 loads no reference
    selection: str = "best"  # which of K samples to imitate: best, or random (a control)

    def check(self) -> None:
        super().check()
        if self.selection not in ("best", "random"):
            raise ValueError(f"selection is best or random, not {self.selection!r}")
        if self.num_generations < 2:
            raise ValueError(
                "num_generations must be at least 2: there is nothing to select from one"
            )
        if self.epochs < 1 or self.minibatch_size < 0:
            raise ValueError("epochs must be at least 1 and minibatch_size not negative")
        if self.adaptive_beta:
            raise ValueError(
                "raft has no KL constraint to steer: beta ranks, and adaptive_beta does not apply"
            )
        if self.beta and self.selection == "random":
            raise ValueError("selection=random ranks nothing: beta has nothing to apply to")

    def loss(self, logp, batch):
        """-log pi(y|x) per token of the selected completions, averaged over tokens; (B, 1, T)."""
        return -logp

    def train(self, lab: Lab) -> Policy:
        """Algorithm 1. The control is scored as well, so that it differs in the selection only."""
        for _, batch in self.rollouts(lab):
            kl = (batch["logp"] - lab.reference.logp(batch)).sum(-1) if self.beta else None
            score = batch["reward"] if kl is None else batch["reward"] - self.beta * kl
            self.report(lab, batch, kl)
            chosen, rows = self.select(score, lab.generator("selection"))
            if not rows:
                continue
            lab.log(selected_reward=batch["reward"].gather(1, chosen[:, None])[rows].nanmean())
            kept = batch.pick(chosen).select(rows)
            for part in lab.minibatches(kept, self.minibatch_size or self.batch_size, self.epochs):
                lab.step(self.loss, part)
        return lab.policy

    def select(self, score, generator):
        """Return which completion is kept, (B,), and the prompts that have one: a NaN is never the
        best.

        Of equal rewards the first sample is kept: samples are exchangeable, so the choice is
        unbiased.
        """
        known = ~score.isnan()
        if self.selection == "random":
            weights = known + 1e-9 * (~known.any(-1, keepdim=True))
            chosen = torch.multinomial(weights.cpu().float(), 1, generator=generator)[:, 0].to(
                score.device
            )
        else:
            chosen = score.masked_fill(~known, -torch.inf).argmax(-1)
        return chosen, known.any(-1).nonzero()[:, 0].tolist()

    def optimum(self, problem):
        """Best-of-K of best-of-K, once per round, if SFT is exact and sees every prompt in each:
        BoN_{K^t}(ref).

        Level formula with ties: pi_K(y) = pi(y)/f (F^K - (F - f)^K), F and f the mass at most as
        good, and as good.
        """
        if not self.as_measured():
            return None
        policy = problem.ref
        for _ in range(self.steps if self.selection == "best" else 0):
            score = problem.reward - self.beta * (policy.log() - problem.ref.log()).clamp(min=-1e3)
            score = score.round(decimals=9)  # equal rewards stay equal
            below = (score[:, None] <= score[..., None]).to(policy)  # (P, y, y')
            same = (score[:, None] == score[..., None]).to(policy)
            upto, level = (torch.einsum("pij,pj->pi", x, policy) for x in (below, same))
            won = upto**self.num_generations - (upto - level).clamp(min=0) ** self.num_generations
            policy = policy * won / level.clamp(min=1e-300)
            policy = policy / policy.sum(-1, keepdim=True)
        return policy


@hookimpl
def register_methods(register):
    register(RAFT)
