"""RLAIF: preferences of an AI labeller with a constitution replace human ones; PPO or DPO learns
from them.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING

from harness import OnPolicyOptions, Policy, hookimpl

from .dpo import DPO
from .ppo import PPO

if TYPE_CHECKING:
    from harness import Lab

OPTIMISERS = {"ppo": PPO, "dpo": DPO}
OWN = {"annotator", "optimiser", "revision_steps", "revision_rounds"}


@dataclass
class RLAIF(OnPolicyOptions):
    """Train on preferences of an AI annotator under a constitution (CAI; RLAIF), without human
    labels.

    All options but the first four are the optimiser's; `none` means its own default. An option that
    the chosen optimiser does not have is refused. The annotator's preferences are not the suite's
    reward, so no optimum is known in terms of it.
    """

    name, kind, paper = "rlaif", "AI feedback", "https://arxiv.org/abs/2309.00267"
    tuning_space = OnPolicyOptions.tuning_space | {"beta": [0.02, 0.05, 0.1, 0.2]}

    annotator: str = "constitution"  # the labeller: constitution, lm, endpoint or a plugin
    optimiser: str = "ppo"  # ppo (with a reward model of the AI preferences) or dpo (on them)
    revision_steps: int = 0  # initial SFT steps on the annotator's revisions of samples: SL-CAI
    revision_rounds: int = 1  # revisions of a sample, each under a principle of its own

    steps: int | None = None  # turns of ppo, or optimiser steps of dpo (0: epochs)
    beta: float | None = None  # strength of the KL constraint
    missing_eos_penalty: float | None = None  # ppo: reward lost without an end token
    num_generations: int | None = None  # ppo: completions per prompt
    rewards: str | None = None  # ppo: outcome; no annotator checks steps
    num_ppo_epochs: int | None = None  # ppo: passes over each rollout
    minibatch_size: int | None = None  # ppo: prompts per update; 0 takes the whole rollout
    clip_range: float | None = None  # ppo: of the probability ratio
    clip_range_value: float | None = None  # ppo: of the change of a value; 0 does not clip
    vf_coef: float | None = None  # ppo: weight of the value loss
    gamma: float | None = None  # ppo: discount
    gae_lambda: float | None = None  # ppo: of generalised advantage estimation
    whiten_rewards: bool | None = None  # ppo: divide rewards by their spread
    whiten_advantages: bool | None = None  # ppo: zero mean and unit spread
    shared_critic: bool | None = None  # ppo: a head on the policy's trunk
    critic_from_reward: bool | None = None  # ppo: start the critic from the reward model
    critic_learning_rate: float | None = None  # ppo: none is the policy's
    ptx_coef: float | None = None  # ppo: weight of the demonstrations' likelihood
    ptx_batch_size: int | None = None  # ppo: demonstrations per update
    value_pretrain_steps: int | None = None  # ppo: first turns, in which the critic alone learns
    critic_gae_lambda: float | None = None  # ppo: of the critic's targets
    lambda_alpha: float | None = None  # ppo: lambda grows with the completion's length
    positive_nll_coef: float | None = None  # ppo: weight of the likelihood of right completions
    positive_reward: float | None = None  # ppo: smallest reward of a right completion
    epochs: float | None = None  # dpo: passes over the pairs
    shuffle_labels: bool | None = None  # dpo: a control, labels drawn by a coin
    label_smoothing: float | None = None  # dpo: assumed share of flipped labels
    robust: bool | None = None  # dpo: unbiased under flipped labels
    length_average: bool | None = None  # dpo: divide log-ratios by length

    def __post_init__(self) -> None:
        """Take the optimiser's own defaults, so that the record holds the values in use."""
        for name, default in defaults(OPTIMISERS.get(self.optimiser, PPO)).items():
            if getattr(self, name) is None:
                setattr(self, name, default)

    def check(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser is {' or '.join(OPTIMISERS)}, not {self.optimiser!r}")
        known = defaults(OPTIMISERS[self.optimiser])
        for name, default in defaults(type(self)).items():
            if name not in OWN and name not in known and getattr(self, name) != default:
                raise ValueError(f"{name} is no option of {self.optimiser}, the optimiser chosen")
        if self.revision_steps < 0 or self.revision_rounds < 1:
            raise ValueError("revision_steps must not be negative, and revision_rounds at least 1")
        if self.revision_rounds > 1 and not self.revision_steps:
            raise ValueError("revision_rounds has no meaning without revision_steps")
        if self.reward == "verifier":
            raise ValueError("reward=verifier leaves the annotator nothing to say: use rlvr")
        self.inner().check()

    def inner(self) -> PPO | DPO:
        """The optimiser as its own plugin, with these options."""
        cls = OPTIMISERS[self.optimiser]
        return cls(**{name: getattr(self, name) for name in defaults(cls)})

    def labeller(self) -> str:
        return self.annotator

    def required(self) -> frozenset[str]:
        return self.inner().required() | (
            {"prompts", "labels"} if self.revision_steps else frozenset()
        )

    def revision_loss(self, logp, batch):
        """SL-CAI (2212.08073, sect. 3): -log pi(revision | x) per token, (B, 1, T)."""
        return -logp

    def train(self, lab: Lab) -> Policy:
        """Imitate revisions if options ask for them; then run the optimiser's own loop on the
        annotator's preferences.
        """
        for prompts in lab.prompts(self.revision_steps) if self.revision_steps else ():
            samples = lab.rollout(prompts, of=lab.start)
            lab.step(self.revision_loss, lab.revise(samples, self.revision_rounds))
        # The reference of the KL is now the revised policy, as in the paper. Pairs and reward model
        # are still from the start checkpoint's samples; the paper would sample anew.
        if self.revision_steps and not lab.state.get("revised"):
            lab.move_reference()
            lab.state["revised"] = True
        return self.inner().train(lab)


def defaults(cls) -> dict:
    """Return the options of a method with their defaults."""
    return {
        f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(cls)
    }


@hookimpl
def register_methods(register):
    register(RLAIF)
