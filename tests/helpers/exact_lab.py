"""A lab without sampling noise: every expectation is a sum over all completions."""

import math
from functools import cached_property, partial
from itertools import product
from types import SimpleNamespace

import torch
from harness_plugins.population import ordered_pairs

from harness.core.data import Prompt
from harness.models.batches import Batch, PromptBatch
from harness.models.enumeration import Enumerated, completions, total_variation

WITH_ENTROPY = object()  # what a term is of whose output holds entropies too


class ExactBatch(Batch):
    """Rows of all that could be drawn; two batches are joined in all combinations of rows."""

    def beside(self, other):
        pairs = (self["prompt"][:, None] == other["prompt"][None, :]).nonzero()
        one, two = (
            Batch(x.prompts, x.columns).select(rows.tolist())
            for x, rows in zip((self, other), pairs.unbind(1), strict=True)
        )
        weight = one["weight"] * two["weight"] * len(self["prompt"].unique())
        return one.beside(two).with_columns(prompt=one["prompt"], weight=weight)


class ExactLab:
    """A lab whose batches hold everything that could be drawn, each row with its probability as its
    weight.

    The policy is a table of logits per context, in float64. `shift` scores each token one place
    late, `lose_end` leaves the end token out of every mask: two classic faults.
    """

    def __init__(
        self, words=2, limit=3, prompts=2, seed=0, steps=800, rate=0.1, shift=False, lose_end=False
    ):
        generator = torch.Generator().manual_seed(seed)
        ids = completions(range(words + 1), 0, limit)
        contexts = {
            c: i for i, c in enumerate(sorted({tuple(y[:t]) for y in ids for t in range(len(y))}))
        }
        n, width = len(ids), max(map(len, ids))
        self.tokens, self.context, self.mask = (
            torch.zeros(n, width, dtype=torch.long) for _ in range(3)
        )
        for i, y in enumerate(ids):
            for t, token in enumerate(y):
                self.tokens[i, t], self.context[i, t], self.mask[i, t] = (
                    token,
                    contexts[tuple(y[:t])],
                    1,
                )
        self.shift, self.seen = shift, self.mask.double()
        if lose_end:
            self.seen = self.seen * (self.tokens != 0)
        self.ref = (
            torch.randn(prompts, len(contexts), words + 1, generator=generator, dtype=torch.float64)
            * 0.7
        )
        self.table = self.ref.clone().requires_grad_()
        self.value = (
            torch.rand(prompts, n, generator=generator, dtype=torch.float64) * 2 - 1
        ) * math.sqrt(3)
        self.taught = torch.randn(self.ref.shape, generator=generator, dtype=torch.float64)
        self.data = torch.rand(prompts, n, generator=generator, dtype=torch.float64) + 0.1
        self.data = self.data / self.data.sum(-1, keepdim=True)
        self.adam, self.steps, self.rate = (
            torch.optim.Adam([self.table], betas=(0.9, 0.99)),
            steps,
            rate,
        )
        self.taken, self.state, self.log = 0, {}, lambda **_: None
        self.start = self.reference = SimpleNamespace(
            table=self.ref, logp=lambda b: self.logp(self.ref, b)
        )
        self.policy = SimpleNamespace(
            table=self.table,
            logp=lambda b: self.logp(self.table, b).detach(),
            entropy=lambda b: self.entropy(b).detach(),
            with_entropy=WITH_ENTROPY,
            against=lambda other, divergence: (other, divergence),
        )
        self.ids, self.max_new_tokens = tuple(map(tuple, ids)), limit

    def every(self, table, faulty=False):
        """(P, N, T) log-probabilities of all completions."""
        logp = table.log_softmax(-1)[:, self.context, self.tokens] * self.mask
        if faulty and self.shift:
            logp = torch.cat([logp[..., 1:], torch.zeros_like(logp[..., :1])], -1)
        return logp * self.seen if faulty else logp

    def beside(self, batch, other, divergence):
        """(B, K, T, 3): log-probabilities of the policy and another table, their divergence."""
        p, q = self.table.log_softmax(-1), other.table.log_softmax(-1)
        apart = divergence(p.flatten(0, 1), q.flatten(0, 1)).view(p.shape[:2])
        rows = (batch["prompt"][:, None], batch["index"])
        columns = [self.logp(self.table, batch), self.logp(other.table, batch)]
        return torch.stack([*columns, (apart[:, self.context] * self.seen)[rows]], -1)

    def teacher(self, name):
        return SimpleNamespace(table=self.taught)

    def logp(self, table, batch):
        return self.every(table, faulty=True)[batch["prompt"][:, None], batch["index"]]

    def entropy(self, batch):
        """(B, K, T) entropies of the distributions of the completion tokens."""
        logp = self.table.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)[:, self.context] * self.mask
        return entropy[batch["prompt"][:, None], batch["index"]]

    def problem(self):
        ref = self.every(self.ref).sum(-1).exp()
        prefer = torch.sigmoid(self.value[:, :, None] - self.value[:, None])
        lengths = self.mask.sum(-1).expand(ref.shape)
        mu = torch.full_like(ref, 1 / ref.shape[1])
        return Enumerated(
            ref,
            self.value,
            lengths,
            self.ids,
            mu,
            prefer,
            self.data,
            self.every(self.taught).sum(-1).exp(),
        )

    def distance(self, optimum):
        """TV of the policy to the optimum, the worst prompt."""
        return float(total_variation(self.every(self.table).sum(-1).exp().detach(), optimum).max())

    def batch(self, prompt, index, weight, **columns):
        """Rows of completions by number: prompt (B,), index (B, K), weight (B,)."""
        dummy = PromptBatch(
            [Prompt("p", "p")] * len(prompt),
            torch.zeros(len(prompt), 1),
            torch.ones(len(prompt), 1),
        )
        always = {"prompt": prompt, "index": index, "weight": weight, "mask": self.seen[index]}
        return ExactBatch(dummy, always | {"completion_ids": self.tokens[index]} | columns)

    def pairs(self, epochs=1, steps=0, shuffle_labels=False):
        p, n = self.value.shape
        first, second = torch.triu_indices(n, n, 1)
        prompt = torch.arange(p).repeat_interleave(len(first))
        index = torch.stack([first, second], 1).repeat(p, 1)
        sure = torch.sigmoid(self.value[prompt, index[:, 0]] - self.value[prompt, index[:, 1]])
        index = torch.where((sure < 0.5)[:, None], index.flip(1), index)  # chosen first
        weight = torch.full_like(sure, 1 / len(sure))
        for _ in range(steps or self.steps):
            yield self.batch(prompt, index, weight, p=torch.maximum(sure, 1 - sure))

    def demonstrated(self, *_):
        p, n = self.value.shape
        prompt, index = torch.arange(p).repeat_interleave(n), torch.arange(n).repeat(p)[:, None]
        for _ in range(self.steps):
            yield self.batch(prompt, index, self.data.flatten() / p)

    def labelled(self, *_, shuffle_labels=False):
        """Every completion with how often it is chosen; any prompt with any completion is a
        mismatch, equally often.
        """
        p, n = self.value.shape
        pairs = ordered_pairs(self.problem())
        chosen, rejected = pairs.sum(2).flatten(), pairs.sum(1).flatten()
        prompt, index = torch.arange(p).repeat_interleave(n), torch.arange(n).repeat(p)[:, None]
        label, weight = chosen / (chosen + rejected), (chosen + rejected) / 2 / p
        for _ in range(self.steps):
            batch = self.batch(prompt, index, weight, label=label)
            batch.mismatched = lambda batch=batch: batch
            yield batch

    def prompts(self, steps, batch_size=None):
        yield from range(steps)

    def rollout(self, prompts, n=1, *_, of=None, mixed_with=None, share=0.0, **__):
        table = (of or self.policy).table.detach()
        if mixed_with is not None:
            table = (1 - share) * table.log_softmax(-1) + share * mixed_with.table.log_softmax(-1)
        p, count = self.value.shape
        index = torch.tensor(list(product(range(count), repeat=n))).repeat(p, 1)
        prompt = torch.arange(p).repeat_interleave(count**n)
        logp = self.every(table)[prompt[:, None], index]
        weight = logp.sum((1, 2)).exp() / p
        ended = (self.tokens[index] == 0).any(-1)
        self.drawn = prompt
        return self.batch(
            prompt, index, weight, logp=self.every(table, True)[prompt[:, None], index], ended=ended
        )

    def greedy(self, prompts, max_new_tokens=None):
        """The most probable completion, token by token, for each row of the last rollout."""
        place = {y: i for i, y in enumerate(self.ids)}
        contexts = {}
        for y, row in zip(self.ids, self.context.tolist(), strict=True):
            contexts |= {y[:t]: row[t] for t in range(len(y))}
        best = []
        for table in self.table.detach():
            y = ()
            while y not in place:
                y += (int(table[contexts[y]].argmax()),)
            best.append(place[y])
        index = torch.tensor(best)[self.drawn][:, None]
        return self.batch(self.drawn, index, torch.ones(len(index)))

    def reward(self, batch):
        return self.value[batch["prompt"][:, None], batch["index"]]

    @cached_property
    def gains(self):
        """(P, N, T) how much each token raises the mean reward of all that begins so.

        They sum to the reward, and none depends on a later token. NaN on padding.
        """
        gains = torch.full((*self.value.shape, self.mask.shape[1]), math.nan).double()
        for i, y in enumerate(self.ids):
            before = 0.0
            for t in range(len(y)):
                alike = [j for j, z in enumerate(self.ids) if z[: t + 1] == y[: t + 1]]
                mean = self.value[:, alike].mean(-1)
                gains[:, i, t] = mean - before
                before = mean
        return gains

    def step_rewards(self, batch):
        return self.gains[batch["prompt"][:, None], batch["index"]]

    def grades(self, batch, *_, **__):
        return self.reward(batch)

    def critic(self, *_):  # V = 0: with gamma = lambda = 1 the gradient is exact all the same
        return SimpleNamespace(values=lambda batch: torch.zeros_like(batch["mask"]))

    def minibatches(self, batch, size, epochs=1):
        yield from [batch] * epochs

    def move_reference(self, share=1.0):
        moved = torch.lerp(self.reference.table, self.table.detach(), share)
        self.reference = SimpleNamespace(table=moved)
        self.reference.logp = partial(self.logp, self.reference.table)

    def generator(self, *_):
        return torch.Generator().manual_seed(0)

    def term(self, loss, batch, of=None, weight=1.0, reduction="token-mean"):
        if of is WITH_ENTROPY:
            batch = batch.with_columns()
            batch.output = lambda: torch.stack(
                [self.logp(self.table, batch), self.entropy(batch)], -1
            )
        elif isinstance(of, tuple):
            batch = batch.with_columns()
            batch.output = lambda: self.beside(batch, *of)
        elif of is not None:
            return None
        return loss, batch, weight, reduction

    def step(self, *what):
        terms = [self.term(*what)] if callable(what[0]) else [term for term in what if term]
        self.adam.zero_grad()
        sum(
            weight * self.reduced(loss, batch, reduction)
            for loss, batch, weight, reduction in terms
        ).backward()
        self.adam.param_groups[0]["lr"] = self.rate * (
            1 - self.taken % self.steps / self.steps
        )  # anew in each round
        self.adam.step()
        self.taken += 1

    def reduced(self, loss, batch, reduction):
        """The expectation of what the trainer's reductions are on samples."""
        output = getattr(batch, "output", lambda: self.logp(self.table, batch))()
        values = loss(output, batch)
        values = values[0] if isinstance(values, tuple) else values
        weight, mask = batch["weight"], batch["mask"]
        if values.dim() < 3:
            return (weight * (values if values.dim() == 1 else values.mean(-1))).sum()
        if reduction == "token-mean":
            return (weight[:, None, None] * values * mask).sum() / (
                weight[:, None, None] * mask
            ).sum()
        if reduction != "seq-mean-token-mean":  # a constant divides the sum over tokens
            scale = 1.0 if reduction == "seq-mean-token-sum" else values.shape[0] / reduction
            return scale * (weight * (values * mask).sum((1, 2))).sum()
        means = (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        return (weight * means.mean(-1)).sum()


def far_from(method, optimum_of=None, **runtime):
    """Train the method's own loop on exact expectations; return TV to the optimum of `optimum_of`,
    or its own.
    """
    lab = ExactLab(**runtime)
    method.check()
    method.train(lab)
    return lab.distance((optimum_of or method).optimum(lab.problem()))
