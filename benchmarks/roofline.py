"""The least time a step can take: the FLOPs it needs, at the rate of a large product of matrices on
this core.

Needed is what no arrangement can leave out: a prompt is computed once for all its completions, a
completion's tokens once each and without padding, the last layer makes the keys and values of all
tokens and all else only for those whose states a head reads, and a backward pass costs two forward
passes. Of one forward pass, with hidden size d, feed-forward size f, L layers, V words, prompts of
P tokens and completions of n tokens, of which m are fed in (n - 1 where the last token's successor
is of no interest, n where a scalar head reads them all):

    tokens  T = sum over prompts of P  +  sum over completions of m read    R = number of prompts
    +  sum over completions of m pairs   A = sum over prompts of P (P + 1) / 2  +  sum over
    completions of m P + m (m + 1) / 2 asked   B = sum over prompts of P              +  the same
    FLOPs     = 2 (4 d^2 + 3 d f) ((L - 1) T + R)  +  2 * 2 d^2 (T - R)  +  4 d ((L - 1) A + B)  +
    2 d V R

(no last term for a scalar head). Two per multiply-add; norms, activations, softmax, sampling and
the optimiser are left out, so 1.0 is out of reach.
"""

from __future__ import annotations

import time

import world

# work -> forward passes of language models, and of models with a scalar head; a backward counts two
PASSES = {
    "rollout": (1, 0),
    "grpo": (1 + 3, 0),  # rollout, update; beta is 0
    "rloo": (1 + 1 + 3, 0),  # rollout, reference, update
    "ppo": (
        1 + 1 + 3,
        1 + 1 + 3,
    ),  # rollout, reference, update; reward, old values, update of the critic
    "ppo4": (1 + 1 + 4 * 3, 1 + 1 + 4 * 3),
    "dpo": (1 + 3, 0),  # reference, update
    "dpo_precomputed": (3, 0),
    "ipo": (1 + 3, 0),
    "kto": (
        1 + 3 + 2,
        0,
    ),  # reference, update, and policy and reference on the completions of others
    "sft": (3, 0),
    "reward": (0, 3),
}
DRAWS = (
    "rollout",
    "grpo",
    "rloo",
    "ppo",
    "ppo4",
    "ppo_group",
    "ppo4_group",
)  # works whose completions are sampled


def gflops() -> float:
    """Return GFLOP/s of one core on a large product of matrices, the best of some."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(20):
        begun = time.process_time()
        a @ b
        best = max(best, 2 * 1024**3 / (time.process_time() - begun) / 1e9)
    return best


def forward(
    size: str, prompt: int, prompts: int, lengths: list[int], scalar: bool = False
) -> float:
    """Return FLOPs of one forward pass over `prompts` prompts of `prompt` tokens and completions of
    these lengths.
    """
    sizes = world.SIZES[size]
    d, f, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    fed = [n if scalar else n - 1 for n in lengths]
    tokens, read = prompts * prompt + sum(fed), prompts + sum(fed)
    own = sum(m * prompt + m * (m + 1) / 2 for m in fed)
    pairs, positions = prompts * prompt * (prompt + 1) / 2 + own, prompts * prompt + own
    whole = 2 * (4 * d * d + 3 * d * f) * ((layers - 1) * tokens + read) + 4 * d * (
        (layers - 1) * pairs + positions
    )
    return whole + 4 * d * d * (tokens - read) + (0 if scalar else 2 * d * world.VOCABULARY * read)


def needed(work: str, size: str, shape: dict[str, int], lengths: list[int]) -> float:
    """Return FLOPs that a step of a work needs, for what its completions' lengths were."""
    language, scalar = PASSES[work.removesuffix("_group")]
    prompts = len(lengths) // completions_per_prompt(work, shape)
    given = (size, shape["prompt"], prompts, lengths)
    return language * forward(*given) + (scalar * forward(*given, scalar=True) if scalar else 0)


def completions_per_prompt(work: str, shape: dict[str, int]) -> int:
    """Return how many completions of a prompt a step sees: PPO one unless told, pairs two, single
    examples one.
    """
    if work in ("rollout", "grpo", "rloo") or work.endswith("_group"):
        return shape["group"]
    return 2 if work in ("dpo", "dpo_precomputed", "ipo", "reward") else 1


def data_lengths(work: str, batch: int, shape: dict[str, int]) -> list[int]:
    """Return lengths of completions, the end included, as `batch` examples of the data have them on
    average.

    Every example counts; the list is as long as that of a batch and its sum is that of a batch,
    rounded.
    """
    rows = world.pairs(world.DRAWN, shape["prompt"], shape["completion"])
    columns = ("chosen",) if work == "sft" else ("chosen", "rejected")
    lengths = sorted(len(r[k].split()) + 1 for r in rows for k in columns)
    n = batch * completions_per_prompt(work, shape)
    return [lengths[int((i + 0.5) * len(lengths) / n)] for i in range(n)]
