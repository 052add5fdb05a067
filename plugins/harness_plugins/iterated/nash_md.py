"""Nash-MD: policy gradient of the win-rate over a mixture with the reference (Munos 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import OnPolicyOptions, hookimpl

from .theory import token_mixture


@dataclass
class NashMD(OnPolicyOptions):
    """Follow the gradient of the win-rate over a geometric mixture of policy and reference, less
    the KL to the reference.
    """

    name, kind, paper = "nash_md", "iterated", "https://arxiv.org/abs/2312.00886"
    needs = frozenset({"prompts", "reward"})

    uncorrected = "its mixtures are drawn by the engine hf, which has the policy's own weights"

    num_generations: int = 1  # completions per prompt of the policy, and as many of the mixture
    beta: float = 0.008  # the paper's tau: strength of the KL constraint
    mixture_coef: float = 0.125  # the paper's beta: share of the reference in the mixture

    def check(self) -> None:
        super().check()
        if not 0 <= self.mixture_coef <= 1:
            raise ValueError("mixture_coef must lie in [0, 1]")

    def loss(self, logp, batch):
        """-(P(y > y') - 1/2 - beta log pi(y) / ref(y)) log pi(y), token sums; (B, K).

        `advantage` (B, K) is the bracket; 1/2 is a control variate, and the bracket has no
        gradient.
        """
        return -batch["advantage"] * logp.sum(-1)

    def train(self, lab):
        """A sample of each of policy and mixture, one step."""
        lab.state.setdefault("beta", self.beta)
        for prompts in lab.prompts(self.steps):
            k, how = self.num_generations, (self.temperature, self.max_new_tokens)
            own = lab.rollout(prompts, k, *how)
            mixture = lab.rollout(
                prompts, k, *how, mixed_with=lab.reference, share=self.mixture_coef
            )
            both = own.beside(mixture)
            lab.step(self.loss, self.experience(lab, both.with_columns(reward=lab.reward(both))))
        return lab.policy

    def experience(self, lab, both):
        """Return the policy's samples with their advantages, by their win-rates."""
        k = self.num_generations
        reward, batch = both["reward"], both.first(k)
        margins = reward[:, :k, None] - reward[:, None, k:]
        wins = margins.sigmoid().nanmean(-1)
        kl = (batch["logp"] - lab.reference.logp(batch)).sum(-1)
        advantage = wins - 0.5 - lab.state["beta"] * kl
        lab.log(win_rate_over_mixture=wins.nan_to_num(0.5).mean())
        self.report(lab, batch, kl)
        return batch.with_columns(advantage=advantage.nan_to_num(0.0))

    def optimum(self, problem):
        """The policy that is ref exp(P(y > m) / beta) / Z for its own mixture m: there every
        advantage is equal. Found by iteration; None where it does not settle.
        """
        if not self.beta or not self.as_measured():
            return None
        policy = problem.ref
        for _ in range(3000):
            opponent = token_mixture(problem, policy, self.mixture_coef)
            wins = (problem.prefer * opponent[:, None, :]).sum(-1)
            new = (problem.ref.log() + wins / self.beta).softmax(-1)
            if (new - policy).abs().max() < 1e-10:
                return new
            policy = (policy + new) / 2
        return None


@hookimpl
def register_methods(register):
    register(NashMD)
