"""RLVR: reinforcement learning with verifiable rewards (Lambert et al. 2024, Tulu 3): a verifier
gives the reward.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from harness import OnPolicyOptions, Policy, hookimpl

from .grpo import GRPO
from .ppo import PPO
from .rloo import RLOO

if TYPE_CHECKING:
    from harness import Lab

ALGORITHMS = {"grpo": GRPO, "rloo": RLOO, "ppo": PPO}


@dataclass
class RLVR(OnPolicyOptions):
    """Run GRPO, RLOO or PPO, unchanged, on the suite's verifier; no reward model is trained, loaded
    or queried.

    The algorithm's own options are listed here with `none`, which stands for its default. An option
    that the chosen algorithm does not have is refused. An answer that the verifier cannot score is
    not wrong: grpo and rloo leave it out.
    """

    name, kind, paper = "rlvr", "verifiable reward", "https://arxiv.org/abs/2411.15124"
    needs = frozenset({"prompts", "verifier"})
    tuning_space = OnPolicyOptions.tuning_space | {"beta": [0.01, 0.05, 0.2]}

    algorithm: str = "grpo"  # the algorithm: grpo, rloo or ppo
    reward: str = "verifier"  # the only value; for a learned reward run the algorithm itself
    beta: float = 0.0  # strength of the KL constraint; verifiers are hard to exploit, so often none
    rewards: str | None = None  # grpo, ppo: outcome, or process, which the steps of answers get
    num_iterations: int | None = None  # grpo, rloo: passes over each rollout
    minibatch_size: int | None = None  # all: prompts per update
    clip_range: float | None = None  # all: of the probability ratio
    std_normalise: bool | None = None  # grpo: divide advantages by the group's spread
    ddof: int | None = None  # grpo: of that spread, 0 population or 1 sample
    kl_in: str | None = None  # grpo: loss or reward
    kl_estimator: str | None = None  # grpo: k3 or k2 in the loss, k1 in the reward
    loss_aggregation: str | None = None  # grpo: seq-mean-token-mean, token-mean or constant
    clip_range_high: float | None = None  # grpo: upper side of the clip
    entropy_coef: float | None = None  # grpo: weight of the entropy bonus
    top_entropy: float | None = None  # grpo: share of tokens, of the highest entropy, trained on
    num_ppo_epochs: int | None = None  # ppo: passes over each rollout
    clip_range_value: float | None = None  # ppo: of the change of a value
    vf_coef: float | None = None  # ppo: weight of the value loss
    gamma: float | None = None  # ppo: discount
    gae_lambda: float | None = None  # ppo: of generalised advantage estimation
    whiten_rewards: bool | None = None  # ppo: divide rewards by their spread
    whiten_advantages: bool | None = None  # ppo: zero mean and unit spread
    shared_critic: bool | None = None  # ppo: a head on the policy's trunk
    critic_learning_rate: float | None = None  # ppo: none is the policy's
    ptx_coef: float | None = None  # ppo: weight of the demonstrations' likelihood
    ptx_batch_size: int | None = None  # ppo: demonstrations per update
    value_pretrain_steps: int | None = None  # ppo: first turns, in which the critic alone learns
    critic_gae_lambda: float | None = None  # ppo: of the critic's targets
    lambda_alpha: float | None = None  # ppo: lambda grows with the completion's length
    positive_nll_coef: float | None = None  # ppo: weight of the likelihood of right completions
    positive_reward: float | None = None  # ppo: smallest reward of a right completion

    def check(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is {', '.join(ALGORITHMS)}, not {self.algorithm!r}")
        if self.reward != "verifier":
            raise ValueError(
                f"rlvr's reward is the verifier's; for reward={self.reward} run {self.algorithm}"
                " itself"
            )
        self.inner().check()

    def required(self) -> frozenset[str]:
        return self.inner().required()

    def inner(self) -> OnPolicyOptions:
        """Return the algorithm with these options; ValueError for one it does not have."""
        cls = ALGORITHMS[self.algorithm]
        shared = {f.name for f in fields(OnPolicyOptions)}
        names = [f.name for f in fields(self) if f.name != "algorithm"]
        given = {
            name: getattr(self, name)
            for name in names
            if name in shared or getattr(self, name) is not None
        }
        foreign = sorted(given.keys() - {f.name for f in fields(cls)})
        if foreign:
            raise ValueError(f"algorithm={self.algorithm} has no option {', '.join(foreign)}")
        return cls(**given)

    def train(self, lab: Lab) -> Policy:
        """Run the algorithm; the lab takes reward and batch options from this method, where they
        are equal.
        """
        return self.inner().train(lab)

    def optimum(self, problem):
        """The algorithm's, on the verdicts as rewards."""
        return self.inner().optimum(problem)


@hookimpl
def register_methods(register):
    register(RLVR)
