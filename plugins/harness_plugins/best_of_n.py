"""Best-of-n: sample n answers from the start checkpoint and return the one with the highest
reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import Method, Policy, RewardOptions, hookimpl, kl, torch

if TYPE_CHECKING:
    from harness import Lab


class BestOf(Policy):
    """A policy with no log-probabilities of its own: its KL is estimated from the reference's."""

    kl_estimator = "best-of-n level mass"

    def __init__(self, lab: Lab, n: int) -> None:
        self.lab, self.n, self.model = lab, n, lab.start.model
        self.kl_bound = kl.best_of_n_bound(n)

    def answer(self, prompts, sampler):
        """Return the first of the best of n i.i.d. answers, and `kl` (B,)."""
        batch = sampler.draw(self.model, prompts, self.n)
        scores = self.lab.reward(batch, sampler)  # (B, n)
        # the first of equal rewards: the samples are exchangeable, so the choice is unbiased
        best = scores.argmax(1)
        return batch.pick(best).with_columns(
            kl=kl.best_of_n_kl(self.n, level_mass(batch, scores, best)).float()
        )


def level_mass(batch, scores, best):
    """Return (B,) the reference's mass on the selected reward level, over the distinct completions
    drawn at it.

    Each probability is exact, exp(sum_t log pi_ref). Completions at that level that were not drawn
    are missed, which lowers the mass and raises the estimate of KL towards its bound; with a
    real-valued reward they are rare.
    """
    probability = batch["logp"].double().sum(-1).exp()  # (B, n)
    level = scores == scores.gather(1, best[:, None])
    rows = []
    for i, ids in enumerate(batch["completion_ids"].tolist()):
        distinct = {
            tuple(ids[j]): float(probability[i, j]) for j in level[i].nonzero()[:, 0].tolist()
        }
        rows.append(min(1.0, sum(distinct.values())))
    return torch.tensor(rows, dtype=torch.float64, device=scores.device)


@dataclass
class BestOfN(RewardOptions, Method):
    """Train nothing. Each answer costs n samples and n reward queries at inference."""

    name, kind, paper = "best_of_n", "inference only", "https://arxiv.org/abs/2112.09332"
    needs = frozenset({"reward"})
    tuning_space = {"n": [4, 8, 16, 32]}

    n: int = 16  # answers drawn per prompt

    def check(self) -> None:
        self.check_reward()
        if self.n < 1:
            raise ValueError("n must be at least 1")
        if self.reward_refresh:
            raise ValueError(
                "best_of_n trains nothing: there is no turn at which reward_refresh could come"
            )

    def required(self) -> frozenset[str]:
        return self.reward_needs()

    def train(self, lab: Lab) -> Policy:
        """Return the wrapper."""
        return BestOf(lab, self.n)

    def optimum(self, problem):
        """ref(y) / f (F^n - (F - f)^n), its sampling distribution; f is the mass of a reward level,
        F of all levels up to it.
        """
        return problem.best_of(self.n)


@hookimpl
def register_methods(register):
    register(BestOfN)
