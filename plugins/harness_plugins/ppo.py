"""RLHF-PPO: PPO against a learned reward with a KL penalty (Ouyang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import Policy, check_idle, hookimpl, logprobs, torch

from .process import StepOptions

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class PPO(StepOptions):
    """Sample, score, estimate advantages with a critic, and improve within a clipped neighbourhood;
    repeat.
    """

    name, kind, paper = "ppo", "on-policy", "https://arxiv.org/abs/2203.02155"
    needs = frozenset({"prompts", "reward"})

    num_generations: int = 1  # completions per prompt
    num_ppo_epochs: int = 4  # passes over each rollout
    minibatch_size: int = 0  # prompts per update; 0 takes the whole rollout
    clip_range: float = 0.2  # of the probability ratio
    clip_range_value: float = 0.2  # of the change of a value; 0 does not clip
    vf_coef: float = 0.1  # weight of the value loss
    gamma: float = 1.0  # discount
    gae_lambda: float = 0.95  # of generalised advantage estimation
    whiten_rewards: bool = False  # divide rewards by their spread over the rollout, mean kept
    whiten_advantages: bool = True  # zero mean and unit spread over the rollout
    missing_eos_penalty: float = 1.0  # reward lost by a completion without an end token
    shared_critic: bool = False  # a head on the policy's trunk instead of a network of its own
    critic_from_reward: bool = True  # a separate critic starts from the reward model, if any
    critic_learning_rate: float | None = None  # none: the policy's
    ptx_coef: float = 0.0  # weight of the demonstrations' likelihood, against forgetting
    ptx_batch_size: int = 32  # demonstrations per update, for ptx_coef
    # VAPO (2504.05118): 50, 1, 0.05 and 0.1
    value_pretrain_steps: int = 0  # first turns, in which the critic alone learns, on whole returns
    critic_gae_lambda: float | None = None  # of the critic's targets; none: as the advantages'
    lambda_alpha: float = 0.0  # gae_lambda is 1 - 1 / (lambda_alpha |y|) by completion; 0: fixed
    positive_nll_coef: float = 0.0  # weight of the likelihood of right completions
    positive_reward: float = 1.0  # smallest reward of a right completion, for positive_nll_coef

    def check(self) -> None:
        super().check()
        if not 0 <= self.gae_lambda <= 1 or not 0 < self.gamma <= 1:
            raise ValueError("gae_lambda lies in [0, 1] and gamma in (0, 1]")
        if (
            self.num_ppo_epochs < 1
            or self.minibatch_size < 0
            or self.clip_range <= 0
            or self.clip_range_value < 0
        ):
            raise ValueError(
                "num_ppo_epochs must be at least 1, clip_range above 0, the other sizes not"
                " negative"
            )
        if self.vf_coef <= 0 or self.ptx_coef < 0 or self.ptx_batch_size < 1:
            raise ValueError(
                "vf_coef must be above 0, ptx_coef not negative, ptx_batch_size at least 1"
            )
        if self.critic_learning_rate is not None and self.critic_learning_rate <= 0:
            raise ValueError("critic_learning_rate must be above 0")
        if self.shared_critic and (self.critic_learning_rate or not self.critic_from_reward):
            raise ValueError(
                "a shared critic is the policy's trunk: critic_learning_rate, critic_from_reward"
                " are idle"
            )
        if not self.ptx_coef:
            check_idle(self, "ptx_batch_size", "a ptx_coef above 0")
        self._check_vapo()
        self.check_steps()

    def _check_vapo(self) -> None:
        if not 0 <= self.value_pretrain_steps < self.steps:
            raise ValueError(
                "value_pretrain_steps lies between 0 and steps - 1: it is part of them"
            )
        if self.critic_gae_lambda is not None and not 0 <= self.critic_gae_lambda <= 1:
            raise ValueError("critic_gae_lambda lies in [0, 1]")
        if self.lambda_alpha < 0 or self.positive_nll_coef < 0:
            raise ValueError("lambda_alpha and positive_nll_coef must not be negative")
        if self.lambda_alpha:
            check_idle(self, "gae_lambda", "a lambda_alpha of 0")
        if not self.positive_nll_coef:
            check_idle(self, "positive_reward", "a positive_nll_coef above 0")

    def required(self) -> frozenset[str]:
        return super().required() | ({"demonstrations"} if self.ptx_coef else set())

    # -- pure tensors ------------------------------------------------------------------------------

    def shaped_rewards(self, score, logp, ref_logp, mask, beta):
        """R_t = -beta (logp_t - ref_logp_t) + [t last] score: (B, K, T) from score (B, K). Ziegler
        et al. 2019, eq. 2. A score (B, K, T) of steps is added where it stands.

        The penalty is the signed k1 of every token, never clamped: its expectation is the KL.
        """
        penalty = -beta * (logp - ref_logp) * mask
        if score.dim() == mask.dim():
            return penalty + score
        last = (mask.sum(-1).long() - 1)[..., None]
        return penalty.scatter_add(-1, last, score[..., None])

    def advantages(self, rewards, values, mask, gae_lambda=None):
        """Generalised advantage estimation (Schulman et al. 2016): delta_t = R_t + gamma V_{t+1} -
        V_t, (B, K, T).

        V after the last token is 0. Padding has no effect: values and rewards are 0 there, and it
        is masked. `gae_lambda` is a number or (B, K); none takes the option.
        """
        gae_lambda = self.gae_lambda if gae_lambda is None else gae_lambda
        out, ahead = torch.zeros_like(rewards), torch.zeros_like(rewards[..., 0])
        following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
        for t in reversed(range(rewards.shape[-1])):
            delta = rewards[..., t] + self.gamma * following[..., t] - values[..., t]
            ahead = (delta + self.gamma * gae_lambda * ahead) * mask[..., t]
            out[..., t] = ahead
        return out

    def lambdas(self, mask):
        """Return the lambda of the advantages: a number, or 1 - 1 / (alpha |y|), (B, K), at least 0
        (VAPO, length-adaptive).
        """
        if not self.lambda_alpha:
            return self.gae_lambda
        return (1 - 1 / (self.lambda_alpha * mask.sum(-1).clamp(min=1))).clamp(min=0)

    def loss(self, logp, batch):
        """Clipped surrogate (Schulman et al. 2017, eq. 7): -min(rho A, clip(rho, 1-eps, 1+eps) A)
        per token; with `nll_weight` (B, K) plus nll_weight (-log pi).
        """
        ratio = torch.exp(logp - batch["old_logp"])
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        advantages = batch["advantages"]
        outside = ((ratio - 1).abs() > self.clip_range).float()
        loss = -torch.min(ratio * advantages, clipped * advantages)
        if "nll_weight" in batch:
            loss = loss - batch["nll_weight"][..., None] * logp
        return loss, {"clip_fraction": outside, "ratio": ratio}

    def weighed(self, part):
        """Return an update's completions with `nll_weight` (B, K): its mean over all tokens is
        positive_nll_coef times the mean over the tokens of right completions (VAPO).
        """
        if not self.positive_nll_coef:
            return part
        lengths = part["mask"].sum(-1)
        right = (part["reward"] >= self.positive_reward).to(lengths)  # NaN is not
        share = lengths.sum() / (right * lengths).sum().clamp(min=1)
        return part.with_columns(nll_weight=self.positive_nll_coef * share * right)

    def value_loss(self, values, batch):
        """0.5 max((V - G)^2, (clip(V, V_old +- eps) - G)^2) per token, as in the released code of
        Ziegler et al.
        """
        old, returns, eps = batch["old_values"], batch["returns"], self.clip_range_value
        squared = (values - returns) ** 2
        if eps:
            squared = torch.max(squared, (old + (values - old).clamp(-eps, eps) - returns) ** 2)
        return 0.5 * squared, {"value_loss": 0.5 * squared}

    # -- the loop ----------------------------------------------------------------------------------

    def train(self, lab: Lab) -> Policy:
        """Rollout, advantages, updates."""
        critic = lab.critic(self.shared_critic, self.critic_from_reward, self.critic_learning_rate)
        for _, batch in self.rollouts(lab):
            batch = self.experience(lab, critic, batch)
            if batch is None:  # the verifier could not score any of them
                continue
            for part in lab.minibatches(
                batch, self.minibatch_size or self.batch_size, self.num_ppo_epochs
            ):
                self.update(lab, critic, part)
        return lab.policy

    def experience(self, lab, critic, batch):
        """Attach what the updates need to a scored rollout; the updates change none of it.

        A completion that could not be scored (NaN) is not treated as wrong: its tokens take no part
        in the loss.
        """
        known, logp = ~batch["reward"].isnan(), batch["logp"]
        ref_logp, values = lab.reference.logp(batch), critic.values(batch)
        process = self.rewards == "process"
        score = (lab.step_rewards(batch) if process else batch["reward"]).nan_to_num(0.0)
        rewards = self.shaped_rewards(score, logp, ref_logp, batch["mask"], lab.state["beta"])
        mask = batch["mask"] * known[..., None]
        self.report(lab, batch, (logp - ref_logp).sum(-1))
        if not known.any():
            return None
        if self.whiten_rewards:
            rewards = logprobs.masked_whiten(rewards, mask, shift_mean=False)
        advantages = self.advantages(rewards, values, mask, self.lambdas(mask))
        returns = self.targets(lab, rewards, values, mask, advantages)
        lab.log(explained_variance=explained_variance(values, returns, mask))
        if self.whiten_advantages:
            advantages = logprobs.masked_whiten(advantages, mask)
        return batch.with_columns(
            mask=mask, old_logp=logp, advantages=advantages, returns=returns, old_values=values
        )

    def targets(self, lab, rewards, values, mask, advantages):
        """Return what the critic learns, (B, K, T): values plus advantages at its own lambda, which
        is 1 while it is trained alone.
        """
        own = 1.0 if self.pretrains(lab) else self.critic_gae_lambda
        apart = advantages if own is None else self.advantages(rewards, values, mask, own)
        return apart + values

    def pretrains(self, lab):
        """Return whether the critic alone learns in this turn."""
        return bool(self.value_pretrain_steps) and lab.turn < self.value_pretrain_steps

    def update(self, lab, critic, part):
        """One optimiser step on policy, critic and, if mixed in, demonstrations."""
        value_term = lab.term(self.value_loss, part, of=critic, weight=self.vf_coef)
        if self.pretrains(lab):
            lab.step(value_term)
            return
        terms = [lab.term(self.loss, self.weighed(part)), value_term]
        if self.ptx_coef:
            demos = lab.demonstrations(self.ptx_batch_size)
            terms.append(lab.term(lambda logp, batch: -logp, demos, weight=self.ptx_coef))
        lab.step(*terms)

    def optimum(self, problem):
        """pi* of RLHF: the KL is in the reward, so no estimator of the advantage moves the fixed
        point.
        """
        exact = (
            self.beta > 0
            and not self.adaptive_beta
            and self.gamma == 1
            and self.temperature is None
        )
        # rewards of steps need not sum to the reward that the problem lists
        more = self.ptx_coef or self.positive_nll_coef or self.rewards == "process"
        return problem.tilted(self.beta) if exact and not more else None


def explained_variance(values, returns, mask):
    """1 - var(returns - values) / var(returns) over tokens: 1 for a perfect critic, 0 for a
    constant.
    """

    def spread(x):
        return logprobs.masked_mean((x - logprobs.masked_mean(x, mask)) ** 2, mask)

    return 1 - spread(returns - values) / spread(returns).clamp(min=1e-8)


@hookimpl
def register_methods(register):
    register(PPO)
