"""REBEL: regress the change of log-ratios on the difference of rewards (Gao et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import OnPolicyOptions, hookimpl, torch


@dataclass
class REBEL(OnPolicyOptions):
    """Fit the difference of two completions' log-ratios to the policy that drew them to eta times
    the difference of their rewards, by least squares.

    The reward has the KL to the reference in it, as in the paper's experiments.
    """

    name, kind, paper = "rebel", "iterated", "https://arxiv.org/abs/2404.16767"
    needs = frozenset({"prompts", "reward"})

    uncorrected = "its loss compares samples, whatever drew them"

    num_generations: int = 2  # completions per prompt; all their pairs are used
    eta: float = 1.0  # step size of the mirror descent; the paper's code has 1
    num_iterations: int = 4  # passes of the regression over each rollout
    minibatch_size: int = 0  # prompts per update; 0 takes the whole rollout

    def check(self) -> None:
        super().check()
        if self.num_generations < 2:
            raise ValueError("num_generations must be at least 2: a pair has two completions")
        if self.eta <= 0:
            raise ValueError("eta must be above 0")
        if self.num_iterations < 1 or self.minibatch_size < 0:
            raise ValueError("num_iterations must be at least 1, and minibatch_size not negative")

    def loss(self, logp, batch):
        """((s_i - s_j) / eta - (r_i - r_j))^2, s = log pi / pi_t summed; mean over pairs, (B,).

        `gain` (B, K) is r - beta log(pi_t / ref); a pair with an unknown reward counts 0.
        """
        s, gain = (logp - batch["old_logp"]).sum(-1), batch["gain"]
        i, j = torch.triu_indices(s.shape[1], s.shape[1], 1, device=s.device).unbind(0)
        due = gain[:, i] - gain[:, j]
        known = ~due.isnan()
        error = (s[:, i] - s[:, j]) / self.eta - due.nan_to_num(0.0)
        squares = known * error**2
        return squares.mean(-1), {"residual": (known * error).abs().mean(-1)}

    def train(self, lab):
        """A rollout of pi_t, then passes of the regression over it."""
        for _, batch in self.rollouts(lab):
            beta, kl = lab.state["beta"], None
            gain = batch["reward"]
            if beta:
                kl = (batch["logp"] - lab.reference.logp(batch)).sum(-1)
                gain = gain - beta * kl
            self.report(lab, batch, kl)
            batch = batch.with_columns(old_logp=batch["logp"], gain=gain)
            size = self.minibatch_size or self.batch_size
            for part in lab.minibatches(batch, size, self.num_iterations):
                lab.step(self.loss, part)
        return lab.policy

    def optimum(self, problem):
        """pi*: there all gains are equal, so neither the regression nor its sampler moves it. With
        beta = 0 each round goes further, and nothing is stated.
        """
        return problem.tilted(self.beta) if self.beta and self.as_measured() else None


@hookimpl
def register_methods(register):
    register(REBEL)
