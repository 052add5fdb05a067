"""Levers of speed in turns, old against new, in CPU seconds of one thread.

    OMP_NUM_THREADS=1 python benchmarks/levers.py sft attention critic head

- sft: an SFT step on padded rows against packed rows, at 0.3M parameters.
- attention: a step under bfloat16 autocast, with the attention in bfloat16 against float32.
- critic: the share of a PPO update that the critic's pass over the first minibatch takes.
- head: log-probabilities of 4096 states by a head of 49,152 words and their gradient, in
  checkpointed parts against chunks with buffers that are used again.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clock import resident
from harness_suites.summarization import Summarization
from torch import Tensor, nn
from torch.optim import AdamW

from harness.core.data import Prompt
from harness.models import attention_scores, packing
from harness.models.batches import Batch
from harness.models.capabilities import enable_sharing, find_head, find_rounding
from harness.models.layouts import states_at_once
from harness.models.loading import (
    Arithmetic,
    in_memory,
    learning,
    load_causal,
    load_tokenizer,
    scalar_from,
)
from harness.models.logprobs import Predictions, completion_logp, completion_values
from harness.models.tokens import Tokens

TURNS, SIZE, CHUNK = 12, 32, 256
CPU = torch.device("cpu")


class Demonstrations:
    """Batches of the embedded suite's demonstrations."""

    def __init__(self) -> None:
        suite = Summarization()
        self.base = suite.base_model()
        self.tokens = Tokens(load_tokenizer(self.base))
        self.rows = suite.demonstrations("train")[: TURNS * SIZE]

    def batch(self, turn: int) -> Batch:
        """Return one batch."""
        rows = self.rows[turn * SIZE : (turn + 1) * SIZE]
        prompts: list[Prompt] = [row.prompt for row in rows]
        ids = [[self.tokens.completion_ids(r.prompt.text, r.completion)] for r in rows]
        return self.tokens.batch(prompts, ids, CPU)

    def model(self, packed: bool, arithmetic: Arithmetic | None = None) -> nn.Module:
        """Return the base model, on padded rows or packed."""
        model = in_memory(load_causal(self.base, arithmetic or Arithmetic()))
        (enable_sharing if packed else find_head)(model)
        return learning(model)


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of some work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def step(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a batch, after its backward pass."""
    logp = completion_logp(model, batch)
    loss: Tensor = -(logp * batch["mask"]).sum() / batch["mask"].sum()
    loss.backward()
    return loss.detach()


def show(name: str, old: list[float], new: list[float], more: str = "") -> None:
    """Print the ratio of paired measurements; the first of them warms up."""
    ratios = [a / b for a, b in zip(old, new, strict=True)][1:]
    middle = statistics.median(ratios)
    print(
        f"{name}: old / new {middle:.2f} [{min(ratios):.2f}, {max(ratios):.2f}], of"
        f" {1e3 * statistics.median(old):.0f} and {1e3 * statistics.median(new):.0f} ms{more}",
        flush=True,
    )


def sft() -> None:
    """Measure SFT steps on padded and on packed rows."""
    data, taken, losses = Demonstrations(), {False: [], True: []}, {False: [], True: []}
    models = {packed: data.model(packed) for packed in taken}
    optimizers = {p: AdamW(m.parameters(), lr=1e-3, fused=True) for p, m in models.items()}

    def whole(packed: bool, batch: Batch) -> None:
        optimizers[packed].zero_grad()
        losses[packed].append(float(step(models[packed], batch)))
        optimizers[packed].step()

    for turn in range(TURNS):
        batch = data.batch(turn)
        for packed in (False, True) if turn % 2 else (True, False):
            taken[packed].append(seconds(lambda p=packed, b=batch: whole(p, b)))
    off = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    show("sft, 0.3M", taken[False], taken[True], f"; losses differ by at most {off:.1g}")


def in_bfloat16(q: Tensor, k: Tensor, v: Tensor, scoring: Any, bias: Tensor | None) -> Tensor:
    """Return plain attention in the dtype of its inputs."""
    return nn.functional.scaled_dot_product_attention(
        q, k, v, bias, is_causal=bias is None, scale=scoring.scaling
    )


def attention() -> None:
    """Measure steps under bfloat16 autocast by the dtype of the attention."""
    data, taken = Demonstrations(), {False: [], True: [], None: []}
    low, full = data.model(True, Arithmetic(compute="bfloat16")), data.model(True)
    ours = attention_scores.attention
    for turn in range(TURNS):
        batch = data.batch(turn)
        for new in (False, True):
            packing.attention = ours if new else in_bfloat16  # type: ignore[assignment]
            taken[new].append(seconds(lambda b=batch: step(low, b)))
        packing.attention = ours
        taken[None].append(seconds(lambda b=batch: step(full, b)))
    off = find_rounding(low)
    show("attention in bfloat16 / float32, 0.3M", taken[False], taken[True])
    show("float32 / bfloat16, 0.3M", taken[None], taken[True], f"; {off:.2g} nats a token off")


def critic() -> None:
    """Measure the pass that a critic could reuse, and an update of policy and critic."""
    data = Demonstrations()
    policy = data.model(True)
    value, taken = learning(scalar_from(policy)), {"pass": [], "update": []}

    def update(batch: Batch) -> None:
        step(policy, batch)
        (completion_values(value, batch) ** 2).sum().backward()

    for turn in range(TURNS):
        batch = data.batch(turn)
        with torch.no_grad():
            taken["pass"].append(seconds(lambda b=batch: completion_values(value, b)))
        taken["update"].append(seconds(lambda b=batch: update(b)))
    show("update of policy and critic / the critic's pass, 0.3M", taken["update"], taken["pass"])


class ChunkedLogp(torch.autograd.Function):
    """Log-probabilities of tokens by a plain head, with one buffer of logits."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        """Return (M,) of states (M, d), weight (V, d) and ids (M,)."""
        norm, logp = states.new_empty(len(states)), states.new_empty(len(states))
        buffer = states.new_empty(CHUNK, len(weight))
        for at in range(0, len(states), CHUNK):
            part = slice(at, at + CHUNK)
            logits = torch.mm(states[part], weight.T, out=buffer[: len(states[part])])
            norm[part] = logits.logsumexp(-1)
            logp[part] = logits.gather(-1, ids[part, None])[:, 0] - norm[part]
        ctx.save_for_backward(states, weight, ids, norm)
        return logp

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of states and weight."""
        states, weight, ids, norm = ctx.saved_tensors
        d_states, d_weight = torch.empty_like(states), torch.zeros_like(weight)
        buffer = states.new_empty(CHUNK, len(weight))
        for at in range(0, len(states), CHUNK):
            part = slice(at, at + CHUNK)
            g = gradient[part, None]
            table = torch.mm(states[part], weight.T, out=buffer[: len(states[part])])
            table.sub_(norm[part, None]).exp_().mul_(-g).scatter_add_(-1, ids[part, None], g)
            torch.mm(table, weight, out=d_states[part])
            d_weight.addmm_(table.T, states[part])
        return d_states, d_weight, None


def head() -> None:
    """Measure the head's log-probabilities and their gradients."""
    torch.manual_seed(0)
    words, width, count = 49_152, 576, 4096
    linear = nn.Linear(width, words, bias=False)
    states, ids = torch.randn(count, width, requires_grad=True), torch.randint(words, (count,))
    weights = torch.rand(count)

    def old() -> Tensor:
        return Predictions(states, linear, 1.0, states_at_once(words)).logp(ids)

    def new() -> Tensor:
        return ChunkedLogp.apply(states, linear.weight, ids)  # type: ignore[no-any-return]

    def whole(logp: Callable[[], Tensor]) -> Tensor:
        states.grad = linear.weight.grad = None
        (logp() * weights).sum().backward()
        return states.grad.clone()  # type: ignore[union-attr]

    taken: dict[str, list[float]] = {"old": [], "new": []}
    for _ in range(3):
        for name, logp in (("new", new), ("old", old)):
            taken[name].append(seconds(lambda f=logp: whole(f)))
    off = float((whole(old) - whole(new)).abs().max())
    show("head", taken["old"], taken["new"], f"; gradients differ by {off:.1g}")
    print(f"head: peak of this process {resident('VmHWM') / 2**20:.0f} MiB")


LEVERS = {"sft": sft, "attention": attention, "critic": critic, "head": head}


def main(names: list[str]) -> None:
    """Measure levers by name, all of them by default."""
    unknown = [name for name in names if name not in LEVERS]
    if unknown:
        sys.exit(f"{Path(sys.argv[0]).name}: no lever {unknown[0]!r}. Known: {', '.join(LEVERS)}.")
    torch.set_num_threads(1)
    for name in names or LEVERS:
        LEVERS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
