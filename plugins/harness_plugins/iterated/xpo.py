"""XPO: online DPO with a bonus for exploration (Xie et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..online_dpo import OnlineDPO
from .theory import root


@dataclass
class XPO(OnlineDPO):
    """Pairs of a sample of the policy and one of the reference, DPO's loss on them, and a term that
    lowers the likelihood of the reference's samples.
    """

    name, kind, paper = "xpo", "iterated", "https://arxiv.org/abs/2405.21046"

    num_generations: int = 2  # completions per prompt: half of the policy, half of the reference
    alpha: float = 1e-5  # weight of the exploration bonus, on log pi of the reference's samples

    def check(self) -> None:
        super().check()
        if self.num_generations % 2:
            raise ValueError("num_generations must be even: half of them are the reference's")
        if self.alpha < 0:
            raise ValueError("alpha must not be negative: it would undo the exploration")

    def pairs(self, k: int):
        """Return the positions (M,) and (M,) of every sample of the policy with each of the
        reference.
        """
        half = torch.arange(k // 2)
        return torch.cartesian_prod(half, half + k // 2).reshape(-1, 2).unbind(1)

    def loss(self, logp, batch):
        """Online DPO's loss + alpha log pi(y'|x), y' ~ pi_ref, token sums; (B,)."""
        losses, metrics = super().loss(logp, batch)
        likelihood = logp.sum(-1)[:, logp.shape[1] // 2 :].mean(-1)
        return losses + self.alpha * likelihood, metrics | {"reference_logp": likelihood}

    def train(self, lab):
        """Samples of both models, labels, one step; rounds end by moving the reference."""
        lab.state.setdefault("turns", 0)
        lab.state.setdefault("beta", self.beta)
        for prompts in lab.prompts(self.steps):
            every = self.move_reference_every
            if every and lab.state["turns"] and lab.state["turns"] % every == 0:
                lab.move_reference()
            how = (self.num_generations // 2, self.temperature, self.max_new_tokens)
            own = lab.rollout(prompts, *how)
            both = own.beside(lab.rollout(prompts, *how, of=lab.reference))
            both = both.with_columns(reward=lab.reward(both))
            lab.step(self.loss, self.experience(lab, both))
            lab.state["turns"] += 1
        return lab.policy

    def report(self, lab, batch, kl):
        """Log what the policy's own samples were like, and steer beta by their KL."""
        half = self.num_generations // 2
        super().report(lab, batch.first(half), kl[:, :half])

    def optimum(self, problem):
        """pi* for alpha = 0. Otherwise the point where the mean force on the logits vanishes:
        beta sum_y' (pi ref' + ref pi') (sigma(h) - p) + alpha (ref - pi) = 0.
        """
        if self.labels == "argmax" or not self.as_measured() or self.move_reference_every:
            return None
        start = problem.tilted(self.beta)

        def force(logp, prompt, share):
            ref, pi = problem.ref[prompt], logp.exp()
            s = logp - ref.log()
            wrong = (self.beta * (s[:, None] - s[None, :])).sigmoid() - problem.prefer[prompt]
            seen = pi[:, None] * ref[None, :] + ref[:, None] * pi[None, :]
            return self.beta * (seen * wrong).sum(-1) + share * self.alpha * (ref - pi)

        return root(force, start) if self.alpha else start


@hookimpl
def register_methods(register):
    register(XPO)
