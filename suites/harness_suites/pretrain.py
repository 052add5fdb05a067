"""Pretrain the embedded base model on the world's text: `python -m harness_suites.pretrain --out
FOLDER`.

The text is written on the fly: summaries that choose their facts without regard to importance,
lists of every fact and copied word lists, which teach the model to bind, sums with correct chains
of thought, and replies that miss some of their constraints. The base model therefore writes the
language of every embedded suite, without its preferences. The learning curve, the settings and the
machine go to `training.json` beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import torch
import transformers

from .world import base_model, documents, requests, sums
from .world import words as w

MIX = {
    "summary": 0.35,
    "facts": 0.2,
    "sum": 0.2,
    "reply": 0.12,
    "copy": 0.13,
}  # shares of the steps
ROWS = {
    "summary": 1,
    "facts": 1,
    "sum": 2,
    "reply": 2,
    "copy": 2,
}  # short texts fill a step with twice the rows
PROMPT_WEIGHT = 0.1  # weight of the mean over prompt tokens, which are mostly unpredictable
Example = tuple[str, str]  # prompt, completion


def write_example(rng: Random, task: str, easy: int = 0) -> Example:
    """Write one text of a task; `easy` in 1..3 makes documents of that many facts and no filler."""
    if task in ("summary", "facts"):
        document = (
            documents.write_short_document(rng, easy) if easy else documents.write_document(rng)
        )
        if task == "facts":
            return f"{document.text} {w.LIST_FACTS}", documents.fact_list(document)
        return document.prompt, documents.neutral_summary(rng, document)
    if task == "sum":
        problem = sums.write_problem(rng, easy or None)
        return problem.prompt, sums.worked_answer(rng, problem)
    if task == "reply":
        request = requests.write_request(rng)
        return request.prompt, requests.write_reply(rng, request, keep=0.85)
    span = rng.sample([*w.AGENTS, *w.VERBS, *w.OBJECTS, *w.PLACES, *w.TOPICS], rng.randint(3, 20))
    return f"{w.COPY} {' '.join(span)} {w.COPY_END}", f"{' '.join(span)} ."


def write_batch(step: int, seed: int, rows: int, steps: int) -> list[Example]:
    """Return the texts of one step, all of one task: a pure function of seed and step.

    The first 12 % are easy.
    """
    rng = Random(f"{seed}/{step}")
    easy = step < 0.12 * steps
    task = rng.choices(list(MIX), list(MIX.values()))[0]
    hardest = 2 if step < 0.05 * steps else 3
    return [
        write_example(rng, task, rng.randint(1, hardest) if easy else 0)
        for _ in range(rows * ROWS[task])
    ]


def collate(examples: list[Example], ids: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (B, T) right-padded, and weights per target (B, T - 1) that sum to 1 +
    PROMPT_WEIGHT.
    """
    rows, starts = [], []
    for prompt, completion in examples:
        head = [w.BOS, *prompt.split()]
        starts.append(len(head))
        rows.append([ids[t] for t in [*head, *completion.split(), w.EOS]])
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    position = torch.arange(1, width)
    start, length = (torch.tensor(x)[:, None] for x in (starts, [len(row) for row in rows]))
    in_answer, in_prompt = (
        ((position >= start) & (position < length)).float(),
        (position < start).float(),
    )
    return tokens, in_answer / in_answer.sum() + PROMPT_WEIGHT * in_prompt / in_prompt.sum()


def batches(
    args: argparse.Namespace, ids: dict[str, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the steps' batches in order, written ahead by worker processes."""
    write = partial(write_batch, seed=args.seed, rows=args.batch, steps=args.steps)
    with ProcessPoolExecutor(args.workers) as pool:
        for examples in pool.map(write, range(args.steps), chunksize=16):
            yield collate(examples, ids)


def schedule(step: int, steps: int) -> float:
    """Warm up over 50 steps, decay linearly over the last 40 %."""
    return min(1.0, (step + 1) / 50, max(0.02, (steps - step) / (0.4 * steps)))


@torch.no_grad()
def probe(
    model: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerFast, n: int = 256
) -> dict[str, float]:
    """Score the model on held-out texts: summary gold, sum accuracy, constraints kept; sampled at
    T=1 and greedy.
    """
    rng = Random("probe")
    docs = [documents.write_document(rng) for _ in range(n)]
    problems = [sums.write_problem(rng) for _ in range(n)]
    drawn = [requests.write_request(rng) for _ in range(n)]
    scores: dict[str, float] = {}
    for mode, sample in (("sampled", True), ("greedy", False)):
        complete = partial(_complete, model, tokenizer, sample)
        summaries = zip(docs, complete([d.prompt for d in docs]), strict=True)
        scores[f"summary_{mode}"] = statistics.mean(
            documents.read_summary(d, s).score for d, s in summaries
        )
        answers = zip(problems, complete([p.prompt for p in problems]), strict=True)
        scores[f"sum_{mode}"] = statistics.mean(
            a.split()[-2:] == [str(p.answer), "."] for p, a in answers
        )
        replies = zip(drawn, complete([r.prompt for r in drawn]), strict=True)
        scores[f"reply_{mode}"] = statistics.mean(
            requests.kept_constraints(r, a) for r, a in replies
        )
    return {name: round(value, 4) for name, value in scores.items()}


def _complete(
    model: torch.nn.Module,
    tokenizer: transformers.PreTrainedTokenizerFast,
    sample: bool,
    prompts: list[str],
) -> list[str]:
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False).to(
        model.device
    )
    out = model.generate(**batch, max_new_tokens=40, do_sample=sample, top_k=0)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def pretrain(args: argparse.Namespace) -> None:
    """Train, evaluate every `--probe` steps, and save the model and its learning curve."""
    torch.manual_seed(args.seed)
    tokenizer = base_model.build_tokenizer()
    model = base_model.build_model(len(tokenizer), args.width, args.layers).to(args.device)
    ids = tokenizer.get_vocab()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    curve, started, running = [], time.perf_counter(), 0.0
    for step, (tokens, weights) in enumerate(batches(args, ids)):
        tokens, weights = tokens.to(args.device), weights.to(args.device)
        optimizer.param_groups[0]["lr"] = args.learning_rate * schedule(step, args.steps)
        logits = model(tokens, use_cache=False).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), tokens[:, 1:], reduction="none"
        )
        loss = (nll * weights).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += 0.02 * (loss.detach() - running) if step else loss.detach()
        if (step + 1) % args.probe == 0 or step + 1 == args.steps:
            model.eval()
            point = {
                "step": step + 1,
                "seconds": round(time.perf_counter() - started, 1),
                "loss": round(float(running), 4),
            }
            curve.append(point | probe(model, tokenizer))
            save(model, tokenizer, args, curve)
            model.train()
            print(json.dumps(curve[-1]), flush=True)


def save(
    model: torch.nn.Module,
    tokenizer: transformers.PreTrainedTokenizerFast,
    args: argparse.Namespace,
    curve: list[dict],
) -> None:
    """Write weights (safetensors), tokenizer and `training.json`."""
    if not math.isfinite(curve[-1]["loss"]):
        raise SystemExit("pretraining diverged; nothing was saved")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "workers")}
    machine = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else platform.processor() or platform.machine()
    )
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    record = {
        "command": f"python -m harness_suites.pretrain {flags}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": machine,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "curve": curve,
    }
    Path(args.out, "training.json").write_text(
        json.dumps(record, indent=1) + "\n", encoding="utf-8"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the settings; the defaults made the shipped model."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded base model.")
    parser.add_argument(
        "--out", default=str(base_model.FOLDER), help="folder to write (hub format)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument(
        "--batch", type=int, default=32, help="documents per step; twice as many short texts"
    )
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=1, help="processes that write text ahead")
    parser.add_argument("--probe", type=int, default=250, help="steps between probes")
    return parser.parse_args()


if __name__ == "__main__":
    pretrain(parse_arguments())
