"""GRPO: group-relative policy optimisation (Shao et al. 2024, DeepSeekMath).

Dr. GRPO and DAPO are options.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb
from typing import TYPE_CHECKING

from harness import Policy, hookimpl, torch

from .entropy import EntropyOptions
from .process import StepOptions

if TYPE_CHECKING:
    from harness import Lab

STD_FLOOR = 1e-4  # added to a group's standard deviation, as is usual; the paper adds nothing
LISTED = 400_000  # entries of the largest table of groups that `optimum` lists


@dataclass
class GRPO(EntropyOptions, StepOptions):
    """Use a prompt's own samples as the baseline, without a critic.

    The defaults are the DeepSeekMath paper's form. Dr. GRPO (2503.20783): std_normalise=false,
    loss_aggregation=constant, beta=0. DAPO (2503.14476): clip_range_high=0.28,
    loss_aggregation=token-mean, beta=0; its refilling of groups without signal and its soft penalty
    on overlong answers are not implemented (such groups weigh 0; `length_penalty` is linear).
    """

    name, kind, paper = "grpo", "on-policy", "https://arxiv.org/abs/2402.03300"
    aliases = {"dr_grpo": "std_normalise=false loss_aggregation=constant beta=0"}
    needs = frozenset({"prompts", "reward"})

    num_generations: int = 8  # completions per prompt: the group (the paper: 64)
    beta: float = 0.04  # strength of the KL constraint; 0 holds no reference (Dr. GRPO, DAPO)
    std_normalise: bool = True  # divide advantages by the group's spread (Dr. GRPO: false)
    ddof: int = 0  # of that spread: 0 population, 1 sample (Bessel; TRL)
    kl_in: str = "loss"  # where the KL is: loss, per token, or reward, per completion
    kl_estimator: str = "k3"  # in the loss k3 (the paper) or k2; in the reward k1
    loss_aggregation: str = "seq-mean-token-mean"  # or token-mean; constant: B * K * max_new_tokens
    clip_range: float = 0.2  # of the probability ratio
    clip_range_high: float | None = None  # its upper side (DAPO: 0.28); none: the same
    num_iterations: int = 1  # passes over each rollout, the paper's mu
    minibatch_size: int = 0  # prompts per update; 0 takes the whole rollout

    def check(self) -> None:
        super().check()
        if self.num_generations < 2:
            raise ValueError(
                "num_generations must be at least 2: a completion is compared with others of its"
                " prompt"
            )
        if self.num_iterations < 1 or self.minibatch_size < 0 or self.ddof not in (0, 1):
            raise ValueError(
                "num_iterations must be at least 1, minibatch_size not negative, and ddof 0 or 1"
            )
        if self.clip_range <= 0 or (self.clip_range_high is not None and self.clip_range_high <= 0):
            raise ValueError("clip_range and clip_range_high must be above 0")
        if self.ddof and not self.std_normalise:
            raise ValueError(
                "ddof is of the group's spread, by which std_normalise=false does not divide"
            )
        self._check_kl()
        self.check_entropy()
        self.check_steps()
        if self.rewards == "process" and self.kl_in == "reward":
            raise ValueError("rewards=process has no reward of the whole answer: set kl_in=loss")
        if self.loss_aggregation not in ("seq-mean-token-mean", "token-mean", "constant"):
            raise ValueError("loss_aggregation is seq-mean-token-mean, token-mean or constant")

    def _check_kl(self) -> None:
        allowed = {"loss": ("k3", "k2"), "reward": ("k1",)}
        if self.kl_in not in allowed:
            raise ValueError(f"kl_in is loss or reward, not {self.kl_in!r}")
        if self.kl_estimator not in allowed[self.kl_in]:
            why = (
                "k1 has no expected gradient"
                if self.kl_in == "loss"
                else "only the expectation of k1 has the KL's"
            )
            raise ValueError(
                f"kl_in={self.kl_in} goes with kl_estimator={' or '.join(allowed[self.kl_in])}:"
                f" {why}"
            )
        if not self.beta and self.kl_in == "reward":
            raise ValueError("beta=0 has no KL: kl_in and kl_estimator have nothing to apply to")
        if not self.beta and self.kl_estimator != "k3":
            raise ValueError("beta=0 has no KL: kl_estimator has nothing to apply to")

    # -- pure tensors ------------------------------------------------------------------------------

    def advantages(self, reward):
        """A_i = (r_i - mean_G r) / std_G r (sect. 4.1.2), (B, K); 0 for a reward that is unknown,
        NaN.
        """
        return group_advantages(reward, self.std_normalise, self.ddof)

    def step_advantages(self, rewards):
        """A_it = the sum of (r - mean) / std over steps of y_i that end at t or later (4.1.3).

        `rewards` (B, K, T) is NaN where no step ends; mean and spread are of all steps of a group.
        """
        steps = group_advantages(rewards.flatten(1), self.std_normalise, self.ddof)
        return steps.view_as(rewards).flip(-1).cumsum(-1).flip(-1)

    def loss(self, logp, batch):
        """Eq. 3: -(min(rho A, clip(rho, 1-eps, 1+eps_high) A) - beta D), rho = pi / pi_old, per
        token (B, K, T).

        D is eq. 4's k3 = ref/pi - log(ref/pi) - 1, whose gradient is that of KL(ref || pi), or k2 =
        log(pi/ref)^2 / 2.
        """
        ratio, advantages = torch.exp(logp - batch["old_logp"]), batch["advantages"]
        if advantages.dim() < ratio.dim():  # of whole completions
            advantages = advantages[..., None]
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        clipped = ratio.clamp(1 - self.clip_range, 1 + high)
        loss = self.counted(-torch.min(ratio * advantages, clipped * advantages), batch)
        if "ref_logp" in batch:
            loss = loss + batch["beta"][:, None, None] * self.divergence(logp - batch["ref_logp"])
        return loss, {"clip_fraction": (ratio != clipped).float(), "ratio": ratio}

    def divergence(self, u):
        """Estimate the KL from u = log pi / ref, per token."""
        return u.square() / 2 if self.kl_estimator == "k2" else torch.exp(-u) - 1 + u

    # -- the loop ----------------------------------------------------------------------------------

    def train(self, lab: Lab) -> Policy:
        """Algorithm 1, with the reward model and the reference as they are."""
        for _, batch in self.rollouts(lab):
            batch = self.experience(lab, batch)
            for part in lab.minibatches(
                batch, self.minibatch_size or self.batch_size, self.num_iterations
            ):
                limit = self.max_new_tokens or lab.max_new_tokens
                lab.step(self.updating(lab, part, self.reduction(part, limit)))
        return lab.policy

    def experience(self, lab, batch):
        """Attach what the updates need to a scored rollout; all of it is fixed from here on."""
        reward, beta, kl, more = batch["reward"], lab.state["beta"], None, {}
        if beta:
            ref_logp = lab.reference.logp(batch)
            kl = (batch["logp"] - ref_logp).sum(-1)
            if self.kl_in == "loss":
                more = {"ref_logp": ref_logp, "beta": torch.full_like(reward[:, 0], beta)}
            else:
                reward = reward - beta * kl
        lab.log(groups_without_signal=without_signal(batch["reward"]))
        self.report(lab, batch, kl)
        process = self.rewards == "process"
        advantages = (
            self.step_advantages(lab.step_rewards(batch)) if process else self.advantages(reward)
        )
        return batch.with_columns(old_logp=batch["logp"], advantages=advantages, **more)

    def reduction(self, part, limit):
        """Return how the lab reduces the token losses of a part; `limit` is the longest a
        completion may be.
        """
        b, k, _ = part.shape
        return (
            float(b * k * limit) if self.loss_aggregation == "constant" else self.loss_aggregation
        )

    # -- theory ------------------------------------------------------------------------------------

    def optimum(self, problem):
        """The fixed point: pi* only where the KL is in the reward, or is k2 without a spread.

        There every advantage is 0 at pi*, whatever scales it. In the loss, the KL balances a reward
        term that depends on the group: the group's mean contains the completion itself, which
        leaves (G-1)/G of the reward, and the spread divides it. With k3 and one token, 0 = pi (a -
        E a) + beta (ref - pi) for a = E[A | y], so pi = ref / (1 - (a - E a) / beta). None for
        completions of more tokens, whose per-token KL has no closed form.
        """
        if not self.as_measured() or not self.beta or self.top_entropy < 1:
            return None
        if self.rewards == "process":
            return None  # the normalised rewards of steps depend on the group
        if self.entropy_coef:
            return self._with_bonus(problem)
        if self.kl_in == "reward":
            return problem.tilted(self.beta)
        if problem.lengths.max() > 1 or (self.std_normalise and self.kl_estimator == "k2"):
            return None  # k2 with a spread may have no interior fixed point
        if self.std_normalise:
            return self._rest(problem)
        beta = self.beta * self.num_generations / (self.num_generations - 1)
        return (
            problem.tilted(beta)
            if self.kl_estimator == "k2"
            else forward_tilted(problem.ref, problem.reward, beta)
        )

    def _with_bonus(self, problem):
        """Return the maximiser of E r - beta KL + c H, of one token: exp((r + beta log ref) / (beta
        + c)) / Z; c is larger by G / (G-1), which the group's mean leaves of the reward.

        None for more tokens, a spread, or the KL in the loss: no closed form.
        """
        if self.kl_in != "reward" or self.std_normalise or problem.lengths.max() > 1:
            return None
        c = self.entropy_coef * self.num_generations / (self.num_generations - 1)
        gain = problem.reward + self.beta * problem.ref.log()
        return (gain / (self.beta + c)).softmax(-1)

    def _rest(self, problem):
        """Return the fixed point with a spread, a = E[A | y] listed exactly; None for too many
        groups to list.
        """
        (p, n), others = problem.ref.shape, self.num_generations - 1
        if comb(n + others - 1, others) * p * n > LISTED:
            return None
        groups = torch.tensor(list(combinations_with_replacement(range(n), others)))  # (M, G-1)
        counts = torch.nn.functional.one_hot(groups, n).sum(1).double()  # (M, N)
        ways = torch.lgamma(torch.tensor(others + 1.0)) - torch.lgamma(counts + 1).sum(-1)
        r, g = problem.reward, others + 1
        total = (counts @ r.T).T[..., None] + r[:, None]  # (P, M, N): the others, and y itself
        squares = (counts @ (r**2).T).T[..., None] + (r**2)[:, None]
        spread = ((squares - total**2 / g) / (g - self.ddof)).clamp(min=0).sqrt()
        listed, policy = (r[:, None] - total / g) / (spread + STD_FLOOR), problem.ref
        for _ in range(5000):
            weights = (ways + policy.log() @ counts.T).exp()  # (P, M)
            new = forward_tilted(
                problem.ref, torch.einsum("pm,pmn->pn", weights, listed), self.beta
            )
            if (new - policy).abs().max() < 1e-10:
                return new
            policy = (policy + new) / 2
        return None


def group_advantages(reward, std_normalise, ddof):
    """Return (r - mean) / std of each group (B, K), or r - mean; 0 for NaN, an unknown reward."""
    known = ~reward.isnan()
    centred = torch.where(known, reward - reward.nanmean(-1, keepdim=True), 0.0)
    if not std_normalise:
        return centred
    degrees = (known.sum(-1, keepdim=True) - ddof).clamp(min=1)
    return centred / ((centred.square().sum(-1, keepdim=True) / degrees).sqrt() + STD_FLOOR)


def has_signal(reward):
    """Return (B,) whether the known rewards (B, K) of a prompt differ."""
    known = ~reward.isnan()
    high, low = (
        reward.masked_fill(~known, -torch.inf).amax(-1),
        reward.masked_fill(~known, torch.inf).amin(-1),
    )
    return high > low


def without_signal(reward):
    """Return the share of prompts whose known rewards (B, K) are all the same."""
    return (~has_signal(reward)).float().mean()


def forward_tilted(ref, gain, beta):
    """Return ref / (1 - (gain - c) / beta), (P, N): what maximises E gain - beta KL(ref || pi); c
    makes it sum to 1.

    c lies between max(gain) - beta, where the sum is infinite, and max(gain), where it is at most
    1.
    """
    top = gain.max(-1, keepdim=True).values
    low, high = torch.zeros_like(top), torch.full_like(top, beta)  # c - max(gain) + beta
    for _ in range(100):
        middle = (low + high) / 2
        heavy = (ref * beta / (middle + top - gain)).sum(-1, keepdim=True) > 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    policy = ref * beta / (high + top - gain)
    return policy / policy.sum(-1, keepdim=True)


@hookimpl
def register_methods(register):
    register(GRPO)
