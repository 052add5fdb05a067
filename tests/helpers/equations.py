"""Losses of K completions in plain Python: values, and slopes by central differences."""

import math
from types import SimpleNamespace

import torch

# lengths of 3 prompts' completions
LENGTHS = ((4, 2, 3), (1, 3, 2), (2, 2, 4))
E = 1e-5


def drawn(k=3, seed=0, dtype=torch.float64, reference="ref_logp", **columns):
    """Return logp (3, K, 4), zero on padding, and a batch with a reference, a mask and columns."""
    lengths = torch.tensor(LENGTHS)[:, :k]
    mask = (torch.arange(4) < lengths[..., None]).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    logp, ref = (
        (-2 * torch.rand(3, k, 4, generator=generator, dtype=torch.float64) - 0.1).to(dtype) * mask
        for _ in range(2)
    )
    return logp.requires_grad_(), {reference: ref, "mask": mask} | columns


def plain(logp, ref, mask, more=0.0):
    """Return a completion in plain numbers, with `more` nats on its first token."""
    n = int(mask.sum())
    lp = [x + more * (t == 0) for t, x in enumerate(logp.tolist()[:n])]
    ref = ref.tolist()[:n]
    s = sum(lp) - sum(ref)
    return SimpleNamespace(lp=sum(lp), s=s, n=n, tokens=list(zip(lp, ref, strict=True)))


def in_plain_numbers(equation, logp, batch, reference="ref_logp"):
    """Return losses [B] and their derivatives [B][K] by the first tokens' log-probabilities.

    `equation(ys, fixed, row)` has the completions, the same without a gradient, and the row's
    other columns.
    """
    losses, slopes = [], []
    rest = {k: v.tolist() for k, v in batch.items() if k not in (reference, "mask")}
    for i in range(len(logp)):
        parts = list(zip(logp[i], batch[reference][i], batch["mask"][i], strict=True))
        row = SimpleNamespace(**{name: column[i] for name, column in rest.items()})

        def loss(at=-1, more=0.0, parts=parts, row=row):
            ys = [plain(*part, more * (k == at)) for k, part in enumerate(parts)]
            return equation(ys, [plain(*part) for part in parts], row)

        losses.append(loss())
        slopes.append([(loss(k, E) - loss(k, -E)) / (2 * E) for k in range(len(parts))])
    return losses, slopes


def both(method, logp, batch):
    """Return the method's losses [B] (summed over completions) and slopes [B][K], as above."""
    values = method.loss(logp, batch)
    values = values[0] if isinstance(values, tuple) else values
    (gradient,) = torch.autograd.grad(values.sum(), logp)
    return values.reshape(len(values), -1).sum(-1).tolist(), gradient[..., 0].tolist()


def sigma(x):
    return 1 / (1 + math.exp(-x))


def nls(x):
    """-log sigma(x)."""
    return math.log(1 + math.exp(-x))


def clip(x, low, high):
    return max(low, min(high, x))
