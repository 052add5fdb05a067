"""SLiC-HF: Sequence Likelihood Calibration (Zhao et al. 2023), direct and sample-rank."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from harness import PairOptions, Policy, RewardOptions, hookimpl, torch

from .population import best_of, hinge, minimiser, ordered_pairs, ranked

if TYPE_CHECKING:
    from harness import Lab

# smaller differences count as ties: scores of equal completions differ by rounding error
EQUAL = 1e-5


@dataclass
class SLiC(RewardOptions, PairOptions):
    """Keep the better completion of a pair a margin above the worse one, and some text likely; no
    reference.

    Log-probabilities are token sums, as in the paper: `delta` is in nats per completion, whatever
    the lengths.
    """

    name, kind, paper = "slic", "offline preference", "https://arxiv.org/abs/2305.10425"
    tuning_space = PairOptions.tuning_space | {
        "delta": {"times": [0.2, 5.0]},
        "lambda_reg": {"times": [0.2, 5.0]},
    }

    mode: str = "direct"  # direct: labelled pairs; sample-rank: samples ranked by the reward
    delta: float = 1.0  # margin, in nats per completion
    lambda_reg: float = 0.1  # weight of the target's likelihood, a regulariser
    target: str = "chosen"  # its text: chosen (or best candidate), demonstrations
    num_candidates: int = 8  # candidates per prompt in sample-rank: a power of two

    def check(self) -> None:
        super().check()
        self.check_reward()
        if self.mode not in ("direct", "sample-rank") or self.target not in (
            "chosen",
            "demonstrations",
        ):
            raise ValueError(
                "mode is direct or sample-rank, and target is chosen or demonstrations"
            )
        if self.delta <= 0 or self.lambda_reg < 0:
            raise ValueError("delta must be above 0, and lambda_reg not negative")
        if self.target == "demonstrations" and not self.lambda_reg:
            raise ValueError("target=demonstrations has no weight: set lambda_reg above 0")
        reward = {f.name for f in fields(RewardOptions)} - {
            "reward"
        }  # which a suite may set for any method
        idle = {"epochs"} if self.mode == "sample-rank" else {"num_candidates"} | reward
        changed = [
            f.name for f in fields(self) if f.name in idle and getattr(self, f.name) != f.default
        ]
        if changed:
            raise ValueError(f"mode={self.mode} makes no use of {', '.join(changed)}")
        if self.mode == "sample-rank" and not self.steps:
            raise ValueError(
                "mode=sample-rank goes over prompts, of which there is no end: set steps"
            )
        if self.num_candidates < 2 or self.num_candidates & (self.num_candidates - 1):
            raise ValueError("num_candidates must be a power of two: 2, 4, 8, ...")

    def required(self) -> frozenset[str]:
        given = {"pairs"} if self.mode == "direct" else {"prompts"} | self.reward_needs()
        return frozenset(given | ({"demonstrations"} if self.target == "demonstrations" else set()))

    def loss(self, logp, batch):
        """Eq. 4: max(0, delta - log pi(y+|x) + log pi(y-|x)) - lambda log pi(y_ref|x), token sums;
        (B,).

        `logp` (B, K, T). Pair m of M is (winner, loser)[:, m], `kept` the weight of this order and
        `flipped` that of the other, all (B, M); the hinge is the mean over pairs. `target` (B, K)
        weighs what is kept likely.
        """
        lp = logp.sum(-1)
        h = lp.gather(1, batch["winner"]) - lp.gather(1, batch["loser"])
        kept, flipped = torch.relu(self.delta - h), torch.relu(self.delta + h)
        loss = (batch["kept"] * kept + batch["flipped"] * flipped).mean(1)
        active = (batch["kept"] * (kept > 0)).mean(1)
        return loss - self.lambda_reg * (batch["target"] * lp).sum(1), {
            "margin": h.mean(1),
            "active": active,
        }

    def train(self, lab: Lab) -> Policy:
        """Take one step on each batch of pairs, with a separate term for demonstrations if they are
        the target.
        """
        for batch in self.given(lab) if self.mode == "direct" else self.sampled(lab):
            terms = [lab.term(self.loss, batch)]
            if self.target == "demonstrations":
                # of prompts of their own: a departure from the paper, whose target answers the
                # pair's prompt
                demos = lab.demonstrations(self.batch_size)
                terms.append(
                    lab.term(lambda logp, _: -logp.sum((1, 2)), demos, weight=self.lambda_reg)
                )
            lab.step(*terms)
        return lab.policy

    def given(self, lab):
        """Yield the labelled pairs; a label probability `p` below 1 weighs both orders."""
        for batch in self.pairs(lab):
            p = batch["p"][:, None]
            first = torch.zeros_like(p, dtype=torch.long)
            target = torch.cat([p, 1 - p], 1) * (self.target == "chosen")
            yield batch.with_columns(
                winner=first, loser=first + 1, kept=p, flipped=1 - p, target=target
            )

    def sampled(self, lab):
        """Yield candidates of the start checkpoint and the pairs of a knock-out among them, one
        fewer than candidates.

        Departures: drawn at the suite's temperature and untruncated (the paper: 0.7, top-k 40), and
        of fresh prompts each time rather than once and for all.
        """
        for prompts in lab.prompts(self.steps):
            batch = lab.rollout(prompts, self.num_candidates, of=lab.start)
            scores = lab.reward(batch).nan_to_num(
                nan=-torch.inf
            )  # a completion without a verdict is never preferred
            if self.shuffle_labels:
                scores = shuffled(scores, lab.generator("shuffle"))
            winner, loser = knock_out(scores)
            beaten = (
                scores.gather(1, winner) - scores.gather(1, loser) > EQUAL
            ).float()  # ties have no weight
            best = torch.zeros_like(scores).scatter(1, winner[:, -1:], 1.0) * (
                self.target == "chosen"
            )
            yield batch.with_columns(
                winner=winner,
                loser=loser,
                kept=beaten,
                flipped=torch.zeros_like(beaten),
                target=best,
            )

    def optimum(self, problem):
        """The one minimiser of the population's loss, found by descent: it is convex in the logits;
        not pi*.

        In a knock-out of m, round k has m / 2^k meetings of two independent best-of-2^(k-1) draws,
        and the winner of all is the best of m.
        """
        if self.shuffle_labels or self.target == "demonstrations" or not self.lambda_reg:
            return None
        if self.mode == "direct":
            pairs = ordered_pairs(problem)
            target = pairs.sum(2)
        else:
            m, rounds = self.num_candidates, range(1, self.num_candidates.bit_length())
            meetings = [m // 2**k * ranked(problem, best_of(problem, 2 ** (k - 1))) for k in rounds]
            pairs, target = sum(meetings) / (m - 1), best_of(problem, m)

        def loss(logp, softness):
            short = hinge(self.delta - logp[:, :, None] + logp[:, None, :], softness)
            return (pairs * short).sum((1, 2)) - self.lambda_reg * (target * logp).sum(1)

        return minimiser(loss, problem)


def knock_out(scores):
    """Return winner and loser (B, K - 1) of every meeting of a knock-out over scores (B, K), the
    final last.
    """
    left = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    winners, losers = [], []
    while left.shape[1] > 1:
        a, b = left[:, ::2], left[:, 1::2]
        first = scores.gather(1, a) >= scores.gather(1, b)
        left = torch.where(first, a, b)
        winners.append(left)
        losers.append(torch.where(first, b, a))
    return torch.cat(winners, 1), torch.cat(losers, 1)


def shuffled(scores, generator):
    """Return scores (B, K), permuted among the candidates of each prompt: a control."""
    order = torch.rand(scores.shape, generator=generator).argsort(1)
    return scores.gather(1, order.to(scores.device))


@hookimpl
def register_methods(register):
    register(SLiC)
