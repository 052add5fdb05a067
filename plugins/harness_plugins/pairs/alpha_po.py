"""AlphaPO: SimPO with another shape of the reward (Gupta et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import hookimpl, torch

from ..population import minimiser, ordered_pairs
from .base import PairLoss, Side
from .theory import normalised


@dataclass
class AlphaPO(PairLoss):
    """SimPO whose reward is a power of the length-averaged probability in place of its logarithm.

    As alpha goes to 0 it is `simpo`.
    """

    name, paper = "alpha_po", "https://arxiv.org/abs/2501.03884"
    tuning_space = PairLoss.tuning_space | {
        "beta": {"times": [0.4, 2.5]},
        "gamma": [0.0, 0.25, 1.0],
        "alpha": [-0.25, 0.1, 0.25, 0.5],
    }

    beta: float = 2.5  # scale of the reward; not a KL strength
    gamma: float = 0.25  # target margin of the reward
    alpha: float = 0.25  # shape of the reward, not 0; above 0 it punishes unlikely text more

    def check(self) -> None:
        super().check()
        if self.gamma < 0:
            raise ValueError("gamma must not be negative")
        if self.alpha == 0:
            raise ValueError("alpha must not be 0: that is the method simpo")

    def reward(self, y: Side):
        """beta (1 - q^-alpha) / alpha, q = pi(y|x)^(1 / |y|).

        A departure beyond the range of floats: q^-alpha is taken at e^60 at most.
        """
        exponent = (-self.alpha * y.logp / y.length).clamp(max=60.0)
        return -self.beta / self.alpha * torch.expm1(exponent)

    def pair_loss(self, w: Side, l: Side):
        """-log sigma(r(y_w) - r(y_l) - gamma)."""
        return torch.nn.functional.softplus(self.gamma - self.reward(w) + self.reward(l))

    def optimum(self, problem):
        """log pi = -|y| / alpha log(1 - alpha (r + c) / beta) for gamma 0 and alpha above 0, if
        labels follow Bradley-Terry on the reward. A margin has no closed form: minimised.
        """
        if self.shuffle_labels:
            return None
        r, lengths = problem.reward, problem.lengths
        if self.gamma == 0 and self.alpha > 0:
            top = r.amax(-1, keepdim=True)  # at c = -top the best has probability 1
            low = -top - self.beta / self.alpha * r.shape[-1] ** self.alpha
            return normalised(
                lambda c: -lengths / self.alpha * torch.log1p(-self.alpha * (r + c) / self.beta),
                low,
                -top,
            )
        pairs = ordered_pairs(problem)

        def loss(logp, _):
            q = torch.exp(logp / lengths)
            reward = self.beta * (1 - q**-self.alpha) / self.alpha
            h = reward[:, :, None] - reward[:, None, :] - self.gamma
            return -(pairs * torch.nn.functional.logsigmoid(h)).sum((1, 2))

        return minimiser(loss, problem)


@hookimpl
def register_methods(register):
    register(AlphaPO)
