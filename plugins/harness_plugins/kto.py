"""KTO: Kahneman-Tversky Optimization (Ethayarajh et al. 2024) on single labelled completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import PairOptions, Policy, hookimpl, torch

from .population import ordered_pairs

if TYPE_CHECKING:
    from harness import Lab


@dataclass
class KTO(PairOptions):
    """Raise completions labelled desirable above a reference point and lower the others; no pairs
    are needed.
    """

    name, kind, paper = "kto", "offline preference", "https://arxiv.org/abs/2402.01306"
    needs = frozenset({"labelled"})  # or the completions of pairs: half of them desirable
    tuning_space = PairOptions.tuning_space | {"beta": {"times": [0.2, 5.0]}}

    beta: float = 0.1  # how fast gains and losses saturate; the strength of the KL constraint
    desirable_weight: float = 1.0  # lambda_D; paper: weights times counts at a ratio of 1 to 3/2
    undesirable_weight: float = 1.0  # lambda_U

    def check(self) -> None:
        super().check()
        if self.beta <= 0:
            raise ValueError("beta must be above 0")
        if self.desirable_weight <= 0 or self.undesirable_weight <= 0:
            raise ValueError("desirable_weight and undesirable_weight must be above 0")
        if self.batch_size < 2:
            raise ValueError(
                "batch_size must be at least 2: z0 pairs each prompt with another example's"
                " completion"
            )

    def loss(self, logp, batch):
        """Eq. 8: lambda_y - v(x, y), that is lambda_D (1 - sigma(beta (r - z0))), lambda_U (1 -
        sigma(beta (z0 - r))).

        `logp` (B, 1, T) of single completions, r = log pi(y|x) / pi_ref(y|x) summed over tokens;
        (B,). A `label` between 0 and 1 is a probability and weighs both terms.
        """
        r, good = (logp - batch["ref_logp"]).sum((1, 2)), batch["label"]
        gain = self.beta * (r - batch["z0"])
        desirable, undesirable = (
            torch.sigmoid(-gain),
            torch.sigmoid(gain),
        )  # 1 - sigma(x) = sigma(-x)
        loss = (
            good * self.desirable_weight * desirable
            + (1 - good) * self.undesirable_weight * undesirable
        )
        return loss, {"rising": (2 * good - 1) * r}

    def reference_point(self, lab, batch):
        """z0, sect. 4.1: max(0, mean log-ratio on prompts with the next example's completion),
        without a gradient.

        The mean is over the whole batch, and then clamped: a biased estimate of KL(pi || ref),
        mostly about 0. The neighbour should be another example: the stream is shuffled, so it is
        while a batch is smaller than the data.
        """
        apart = batch.mismatched()
        return (lab.policy.logp(apart) - lab.reference.logp(apart)).sum((1, 2)).mean().clamp(min=0)

    def train(self, lab: Lab) -> Policy:
        """Take one step on each batch of labelled completions."""
        for batch in lab.labelled(self.epochs, self.steps, shuffle_labels=self.shuffle_labels):
            z0 = self.reference_point(lab, batch)
            lab.log(z0=z0)
            shared = z0.expand(batch.shape[0])
            lab.step(self.loss, batch.with_columns(ref_logp=lab.reference.logp(batch), z0=shared))
        return lab.policy

    def optimum(self, problem):
        """Not pi*: completions chosen more often than rejected share all mass; the others have 0.

        With z0 fixed the loss is a constant less sum_y w(y) f(rho), w = lambda_D P(chosen) -
        lambda_U P(rejected), rho = pi / ref, f = sigma(beta (log rho - z0)), which is concave for
        beta <= 1. So pi = 0 where w <= 0, and w f'(rho) / ref is the same wherever there is mass.
        In large batches z0 is max(0, E log pi / ref), prompt and completion drawn apart. A
        completion that is drawn and has pi = 0 makes that mean -inf and z0 = 0; only where every w
        is above 0 has z0 to be found along with pi.
        """
        pairs = ordered_pairs(problem)
        chosen, rejected = pairs.sum(2), pairs.sum(1)
        gain = self.desirable_weight * chosen - self.undesirable_weight * rejected
        if self.shuffle_labels or self.beta > 1 or not (gain > 0).any(-1).all():
            return None  # shuffled: w has one sign; beta > 1: f is not concave
        drawn, z0 = ((chosen + rejected) / 2).mean(0), 0.0
        for _ in range(40):
            policy = allocate(problem.ref, gain, self.beta, z0)
            drift = (
                torch.where(drawn > 0, drawn * (policy.log() - problem.ref.log()), 0.0)
                .sum(-1)
                .mean()
            )
            estimate = max(0.0, float(drift))
            if abs(estimate - z0) < 1e-6:
                return policy
            z0 = estimate
        return None


def allocate(ref, gain, beta, z0):
    """Return (P, N) distributions with w f'(rho) / ref = nu wherever there is mass: two nested
    bisections in logs.

    f'(rho) = beta sigma(v) sigma(-v) / rho with v = beta (log rho - z0), decreasing in rho; nu is
    what makes the sum 1.
    """
    slope = gain.clamp(min=0).log() - ref.log()  # -inf where w <= 0

    def mass(nu):
        low, high = torch.full_like(ref, -700.0), torch.full_like(ref, 60.0)
        for _ in range(70):
            x = (low + high) / 2  # log rho
            v = beta * (x - z0)
            steep = (
                slope + torch.nn.functional.logsigmoid(v) + torch.nn.functional.logsigmoid(-v) - x
                > nu
            )
            low, high = torch.where(steep, x, low), torch.where(steep, high, x)
        return torch.where(gain > 0, ref * low.exp(), 0.0)

    low, high = torch.full_like(ref[:, :1], -800.0), torch.full_like(ref[:, :1], 800.0)
    for _ in range(70):
        nu = (low + high) / 2
        heavy = mass(nu).sum(-1, keepdim=True) > 1
        low, high = torch.where(heavy, nu, low), torch.where(heavy, high, nu)
    policy = mass(high)
    return policy / policy.sum(-1, keepdim=True)


@hookimpl
def register_methods(register):
    register(KTO)
