"""A-LoL: imitate completions in proportion to their advantage (Baheti et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from harness import PairOptions, RewardOptions, hookimpl, torch


@dataclass
class ALoL(RewardOptions, PairOptions):
    """Weigh the likelihood of a given completion by its advantage over the reference's mean reward,
    where that is positive, and by its clipped probability ratio.

    Both completions of a pair are used; the labels are not.
    """

    name, kind, paper = "a_lol", "iterated", "https://arxiv.org/abs/2305.14718"
    needs = frozenset({"prompts", "pairs", "reward"})

    clip_range: float = 0.9  # the paper's epsilon: of the ratio pi / ref of a completion
    importance: str = "sequence"  # ratio of the completion, of each token (A-LoL seq), or none
    num_generations: int = 4  # samples of the reference whose mean reward is its value

    def check(self) -> None:
        super().check()
        self.check_reward()
        if self.importance not in ("sequence", "token", "none"):
            raise ValueError(f"importance is sequence, token or none, not {self.importance!r}")
        if not 0 < self.clip_range < 1:
            raise ValueError("clip_range must lie in (0, 1)")
        if self.num_generations < 1:
            raise ValueError("num_generations must be at least 1")
        if self.shuffle_labels:
            raise ValueError("shuffle_labels has no meaning: the labels of pairs are not used")

    def required(self):
        return (self.needs - {"reward"}) | self.reward_needs()

    def loss(self, logp, batch):
        """-A clip(rho, 1 - eps, 1 + eps) log pi(y|x), A = max(0, r - V), rho = pi / ref without a
        gradient; (B, K).

        rho is the completion's, or with importance=token each token's, which weighs that token.
        """
        if self.importance == "none":
            weighted = logp.sum(-1)
        else:
            log_ratio = logp.detach() - batch["ref_logp"]
            if self.importance == "sequence":
                log_ratio = log_ratio.sum(-1, keepdim=True)
            rho = log_ratio.exp().clamp(1 - self.clip_range, 1 + self.clip_range)
            weighted = (rho * logp).sum(-1)
        return -batch["advantage"] * weighted

    def value(self, lab, prompts):
        """Return (B,) mean rewards of samples of the reference."""
        return lab.reward(lab.rollout(prompts, self.num_generations, of=lab.reference)).nanmean(-1)

    def train(self, lab):
        """Passes over the completions of the pairs."""
        for pairs in self.pairs(lab):
            reward, value = lab.reward(pairs), self.value(lab, pairs.prompts)
            advantage = (reward - value[:, None]).clamp(min=0).nan_to_num(0.0)
            lab.log(advantage=advantage.mean(), positive=(advantage > 0).float().mean())
            columns = {"advantage": advantage}
            if self.importance != "none":
                columns["ref_logp"] = lab.reference.logp(pairs)
            lab.step(self.loss, pairs.with_columns(**columns))
        return lab.policy

    def optimum(self, problem):
        """For an exact value: pi = c w clip(pi / ref), w how often a completion is given times its
        advantage. So pi = c w (1 + eps) where c w is above ref, and c w (1 - eps) below; the
        completion at the edge takes the rest. Without a ratio pi is w itself.
        """
        if self.importance == "token" or self.reward_refresh:
            return None
        value = problem.expected(problem.ref)[:, None]
        w = (self.seen(problem) * (problem.reward - value).clamp(min=0)).clamp(min=1e-300)
        if self.importance == "none":
            return w / w.sum(-1, keepdim=True)
        return torch.stack([self._rest(*row) for row in zip(w, problem.ref, strict=True)])

    def seen(self, problem):
        """Return (P, N): how often a completion is one of a pair; equal draws make none."""
        both = problem.mu[:, :, None] * problem.mu[:, None, :]
        both = both * (1 - torch.eye(both.shape[-1], dtype=both.dtype))
        return both.sum(-1) / both.sum((1, 2))[:, None]

    def _rest(self, w, ref):
        low, high = 1 - self.clip_range, 1 + self.clip_range
        # in falling order of w / ref completions pass the edge, at c = ref / w, one by one
        order = (w / ref).argsort(descending=True)
        above = torch.zeros_like(w)
        for edge in order:
            c = ref[edge] / w[edge]
            policy = c * w * torch.where(above > 0, high, low)
            rest = 1 - (policy.sum() - policy[edge])
            if c * w[edge] * low <= rest <= c * w[edge] * high:
                policy[edge] = rest
                return policy
            above[edge] = 1
            inside = w * torch.where(above > 0, high, low)
            c = 1 / inside.sum()
            ratio = c * w / ref
            if (ratio[above > 0] >= 1).all() and (ratio[above == 0] <= 1).all():
                return c * inside
        return w / w.sum()


@hookimpl
def register_methods(register):
    register(ALoL)
