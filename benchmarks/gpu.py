"""Real sizes on a GPU: the harness against TRL, random weights of the shapes of 0.5B and 1.5B
models, bf16 autocast.

    pip install -e . -r benchmarks/requirements.txt
    python benchmarks/gpu.py                       # the table: results/speed_gpu.md
    python benchmarks/gpu.py --size 0.5B --steps 3 --output part.md

Both sides compute in bf16 over float32 weights, on the same prompts; the completions of random
weights run to the limit. Each side of a size runs in a process of its own; wall seconds with the
device synchronised; the first step is left out. FLOPs are those that are needed - every prompt once
per turn, every token once - as counted by the harness, for both sides; the rate they are compared
with is that of a large product of matrices in the same run.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).parent
SIZES = {  # the shapes of Qwen2.5
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
VOCABULARY = 151_936
GROUP, PROMPT, COMPLETION, BATCH, PAIRS = 8, 256, 256, 64, 16
ADAM = {"learning_rate": 1e-6, "lr_schedule": "constant", "warmup_ratio": 0.0}
SIDES = ("chosen", "rejected")
MICRO_TOKENS = 8192  # of a forward pass in training: 16 rows, on both sides
WORKS = ("rollout", "grpo", "dpo")


def build(size: str, folder: Path) -> tuple[Any, Any]:
    """Return a model with random weights on the GPU, and a tokenizer of as many words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    inner = Tokenizer(
        models.WordLevel(
            {"</s>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}, unk_token="</s>"
        )
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="</s>", padding_side="left"
    )
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        **SIZES[size],
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config).float()
    model.config._name_or_path = str(folder)
    return model, tokenizer


def prompts(n: int) -> list[str]:
    """Return n prompts of PROMPT words."""
    return [
        " ".join(f"w{1 + (7919 * i + 31 * j) % (VOCABULARY - 1)}" for j in range(PROMPT))
        for i in range(n)
    ]


def pairs(n: int) -> list[dict[str, str]]:
    """Return n preference pairs, completions of a quarter of COMPLETION words to all of them."""

    def words(i: int, salt: int) -> str:
        length = COMPLETION // 4 + (i * 37 + salt * 101) % (3 * COMPLETION // 4)
        return " " + " ".join(
            f"w{1 + (i * 104729 + salt * 13 + j) % (VOCABULARY - 1)}" for j in range(length - 1)
        )

    return [
        {"prompt": p, "chosen": words(i, 1), "rejected": words(i, 2)}
        for i, p in enumerate(prompts(n))
    ]


class Clock:
    """Wall time and peak memory of steps, the device synchronised."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.start()

    def start(self) -> None:
        """Forget the peak so far."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def tick(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        import torch

        torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def read(self) -> dict[str, Any]:
        """Return the median seconds of a step without the first, and the peak in bytes."""
        import torch

        seconds = [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return {
            "seconds": statistics.median(seconds[1:]),
            "peak": torch.cuda.max_memory_allocated(),
        }


def ours(size: str, works: list[str], steps: int, engine: str) -> dict[str, Any]:
    """Return what the harness takes for each work, and the FLOPs needed."""
    import torch

    from harness.models.capabilities import enable_shared_cache, enable_sharing
    from harness.models.loading import frozen

    model, tokenizer = build(size, Path("random"))
    model.base_model.compute_dtype = torch.bfloat16
    frozen(model)
    sharing = enable_sharing(model), enable_shared_cache(model)
    found: dict[str, Any] = {"sharing": sharing}
    for work in works:
        found[work] = or_out_of_memory(_ours, work, model, tokenizer, steps, engine)
    return found


def or_out_of_memory(run: Callable[..., dict[str, Any]], *told: Any) -> dict[str, Any] | None:
    """Return the cost of a work; None, with the reason on stderr, where memory is too small."""
    import torch

    try:
        return run(*told)
    except torch.cuda.OutOfMemoryError as error:
        print(f"{told[0]}: {error}", file=sys.stderr)
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _ours(work: str, model: Any, tokenizer: Any, steps: int, engine: str) -> dict[str, Any]:
    """Return what the harness takes for a work."""
    from harness.api.registry import installed
    from harness.models.tokens import Tokens

    tokens = Tokens(tokenizer, None, COMPLETION)
    draws = installed().get("engines", engine)(tokens.ends)
    if work == "rollout":
        return _our_rollout(draws, model, tokens, steps)
    return _our_training(work, draws, model, tokens, steps)


def _asked() -> list[Any]:
    """Return the prompts of a step as the harness has them."""
    from harness.core.data import Prompt

    return [Prompt(str(i), p) for i, p in enumerate(prompts(BATCH // GROUP))]


def _our_rollout(draws: Any, model: Any, tokens: Any, steps: int) -> dict[str, Any]:
    """Return what the harness takes to sample completions."""
    import torch

    from harness.core.data import Sampling

    clock = Clock()
    batch = tokens.prompt_batch(_asked(), "cuda")
    clock.tick()
    for turn in range(steps):
        generator = torch.Generator().manual_seed(turn)
        noise = torch.rand(BATCH, COMPLETION, generator=generator).to("cuda")
        draws.generate(model, batch, GROUP, Sampling(1.0, COMPLETION), noise)
        clock.tick()
    return clock.read()


def _our_training(work: str, draws: Any, model: Any, tokens: Any, steps: int) -> dict[str, Any]:
    """Return what a method of the harness takes, and the FLOPs it needs."""
    import torch
    from accelerate import Accelerator

    from harness.core.data import Sampling
    from harness.core.meter import Meter
    from harness.core.save_schedule import SaveInterval
    from harness.training.checkpoints import Checkpoints
    from harness.training.lab import Lab, Runtime
    from harness.training.loop import Loop
    from harness.training.trainer import Trainer

    meter, clock, method = Meter(), Clock(), _our_method(work, steps)
    runtime = Runtime(
        draws, Sampling(1.0, COMPLETION), tokens.ends, 0, meter, MICRO_TOKENS, torch.device("cuda")
    )
    method_inputs = _our_inputs(model, tokens)
    trainer = Trainer(method, Accelerator(mixed_precision="no"), meter, MICRO_TOKENS)
    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(trainer, Checkpoints(Path(scratch), SaveInterval(1e9)), meter, clock.tick)
        clock.tick()
        method.train(Lab(method, method_inputs, runtime, loop))
    found = clock.read()
    del trainer, loop
    return found | {"flops": meter.total().flops / steps, "phases": meter.snapshot()}


def _our_method(work: str, steps: int) -> Any:
    """Return the method of a work with its options."""
    from harness.api.registry import installed

    options: dict[str, Any] = {"batch_size": PAIRS, "beta": 0.1}
    if work == "grpo":
        options = {"batch_size": BATCH // GROUP, "num_generations": GROUP, "beta": 0.0}
        options["reward"] = "verifier"
    return installed().get("methods", work)(**ADAM, **options, steps=steps)


def _our_inputs(model: Any, tokens: Any) -> Any:
    """Return prompts, pairs and a verifier, as a method of the harness gets them."""
    from harness.api.contracts import Verifier
    from harness.core.data import LabelledPair, Prompt
    from harness.models.initial_checkpoint import InitialCheckpoint
    from harness.training.lab import MethodInputs

    class Words(Verifier):
        name = "words"

        def verify(self, prompts, completions, golds, ended):
            return [float(hash_of(text)) for text in completions]

    labelled = [
        LabelledPair(
            Prompt(str(i), r["prompt"]),
            *(tokens.completion_ids(r["prompt"], r[k]) for k in SIDES),
            1.0,
        )
        for i, r in enumerate(pairs(PAIRS))
    ]
    start = InitialCheckpoint.of(model)
    return MethodInputs(start, tokens, prompts=_asked(), pairs=labelled, verifier=Words())


def hash_of(text: str) -> int:
    """Return a reward that depends on all of a text."""
    return sum(map(ord, text)) % 7


def peers(size: str, works: list[str], steps: int, _: str) -> dict[str, Any]:
    """Return what TRL takes for each work."""
    import torch

    found = {}
    for work in works:
        model, tokenizer = build(size, Path("random"))
        found[work] = or_out_of_memory(_peers, work, model, tokenizer, steps)
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return found


def _peers(work: str, model: Any, tokenizer: Any, steps: int) -> dict[str, Any]:
    """Return what TRL takes for a work."""
    from transformers import TrainerCallback

    if work == "rollout":
        return _peer_rollout(model, tokenizer, steps)
    clock = Clock()

    class Ticking(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()
            clock.tick()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    trainer = (_peer_grpo if work == "grpo" else _peer_dpo)(model, tokenizer, steps)
    trainer.add_callback(Ticking())
    trainer.train()
    return clock.read()


def _peer_rollout(model: Any, tokenizer: Any, steps: int) -> dict[str, Any]:
    """Return what `generate` takes as TRL calls it."""
    import torch

    clock = Clock()
    ids = tokenizer(prompts(BATCH // GROUP), return_tensors="pt")["input_ids"]
    ids = ids.repeat_interleave(GROUP, 0).cuda()
    clock.tick()
    for turn in range(steps):
        torch.manual_seed(turn)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=COMPLETION,
                pad_token_id=0,
                eos_token_id=0,
            )
        clock.tick()
    return clock.read()


def _peer_options(steps: int) -> dict[str, Any]:
    """Return the options that TRL's trainers have in common."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "bf16": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }


def _peer_grpo(model: Any, tokenizer: Any, steps: int) -> Any:
    """Return TRL's trainer of GRPO."""
    import trl
    from datasets import Dataset

    config = trl.GRPOConfig(
        **_peer_options(steps),
        per_device_train_batch_size=16,
        gradient_accumulation_steps=BATCH // 16,
        num_generations=GROUP,
        max_completion_length=COMPLETION,
        temperature=1.0,
        top_k=0,
        beta=0.0,
    )
    return trl.GRPOTrainer(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": p} for p in prompts(BATCH // GROUP)] * 8),
        reward_funcs=lambda completions, **_: [float(hash_of(c)) for c in completions],
    )


def _peer_dpo(model: Any, tokenizer: Any, steps: int) -> Any:
    """Return TRL's trainer of DPO."""
    import trl
    from datasets import Dataset

    config = trl.DPOConfig(
        **_peer_options(steps),
        beta=0.1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=PAIRS // 8,
        max_length=None,
    )
    return trl.DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs(PAIRS) * 8),
    )


def gemm() -> float:
    """Return TFLOP/s of a large bf16 product of matrices."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - begun) / 1e12


def needed(size: str, work: str, told: dict[str, Any]) -> float:
    """Return the FLOPs of a step: those the harness counted, or of a rollout what its lengths come
    to.
    """
    if "flops" in told:
        return float(told["flops"])
    shape = SIZES[size]
    hidden, layers, heads = (
        shape["hidden_size"],
        shape["num_hidden_layers"],
        shape["num_attention_heads"],
    )
    inner = 2 * hidden * hidden + 2 * hidden * hidden * shape["num_key_value_heads"] // heads
    linear = layers * (inner + 3 * hidden * shape["intermediate_size"])
    tokens, pairs = (
        BATCH // GROUP * PROMPT + BATCH * COMPLETION,
        BATCH * COMPLETION * (PROMPT + COMPLETION / 2),
    )
    return (
        2.0 * linear * tokens
        + 2.0 * hidden * VOCABULARY * BATCH * COMPLETION
        + 4.0 * layers * hidden * pairs
    )


def apart(side: str, size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a side in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        told = json.dumps([side, size, args.work or list(WORKS), args.steps, args.engine, out.name])
        done = subprocess.run(
            [sys.executable, __file__, "--one", told],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if done.returncode:
            print(f"{side} {size} failed: {done.stderr[-3000:]}", flush=True)
            return {}
        print(done.stderr[-300:] if "out of memory" in done.stderr else "", flush=True)
        found: dict[str, Any] = json.loads(Path(out.name).read_text(encoding="utf-8"))
        return found


def table(
    rows: dict[str, dict[str, dict[str, Any]]], device: str, rate: float, args: argparse.Namespace
) -> list[str]:
    """Return the lines of a Markdown table; a side that was not measured, or had no memory, is a
    dash.
    """
    lines = [
        (
            f"One {device}; a bf16 product of 8192 x 8192 matrices ran at {rate:.0f} TFLOP/s."
            f" {args.steps - 1} steps, medians of wall seconds, bf16 over float32 weights, prompts"
            f" of {PROMPT} and completions of {COMPLETION} tokens, {BATCH} completions in groups of"
            f" {GROUP}, {PAIRS} pairs; decoding with the engine `{args.engine}`. Of commit"
            f" {report.commit()}, {report.versions('torch', 'transformers', 'trl')}. Made by"
            f" `{report.command('gpu.py')}`."
        ),
        "",
        (
            "| model | work | peer s | ours s | peer / ours | completion tokens/s peer / ours | "
            "share of that rate peer / ours | peak GiB peer / ours |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, sides in rows.items():
        for work in args.work or WORKS:
            peer, own = sides.get("peers", {}).get(work), sides.get("ours", {}).get(work)
            both = [(told or {}).get("seconds") for told in (peer, own)]
            flops, drawn = needed(size, work, own) if own else None, BATCH * COMPLETION
            of_dpo = sum(1 + len(r[k].split()) for r in pairs(PAIRS) for k in SIDES)
            drawn = of_dpo if work == "dpo" else drawn

            def two(of: Callable[[float], str], both: list[Any] = both) -> str:
                return " / ".join("-" if s is None else of(s) for s in both)

            share = two(lambda s, f=flops: f"{f / s / rate / 1e12:.1%}" if f else "-")  # type: ignore[misc]
            rates = two(lambda s, d=drawn: f"{d / s:.0f}")  # type: ignore[misc]
            peaks = " / ".join(
                "-" if x is None else f"{x['peak'] / 2**30:.1f}" for x in (peer, own)
            )
            ratio = "-" if None in both else f"{both[0] / both[1]:.2f}"
            seconds = ["-" if s is None else f"{s:.3f}" for s in both]
            lines.append(
                f"| {size} | {work} | {seconds[0]} | {seconds[1]} | {ratio} | {rates} | {share} |"
                f" {peaks} |"
            )
    return lines


def arguments() -> argparse.Namespace:
    """Return the command line's arguments; a part of the table may not replace the whole one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", action="append", choices=list(SIZES), help="both if not given")
    parser.add_argument("--work", action="append", choices=WORKS, help="all if not given")
    parser.add_argument("--steps", type=int, default=5, help="the first is left out")
    parser.add_argument("--engine", default="cuda_graphs", choices=["hf", "cuda_graphs"])
    parser.add_argument(
        "--side", action="append", choices=["ours", "peers"], help="both if not given"
    )
    parser.add_argument(
        "--output", type=Path, help="results/speed_gpu.md if not given, and all is measured"
    )
    args = parser.parse_args()
    if not args.output and (args.size or args.work or args.side):
        parser.error("--size, --work and --side make a part of the table: say where to by --output")
    import torch

    if not torch.cuda.is_available():
        parser.error("there is no GPU here")
    return args


def main() -> None:
    """Compare, and write the table."""
    if sys.argv[1:2] == ["--one"]:
        side, size, works, steps, engine, out = json.loads(sys.argv[2])
        Path(out).write_text(
            json.dumps({"ours": ours, "peers": peers}[side](size, works, steps, engine)),
            encoding="utf-8",
        )
        return
    args = arguments()
    import torch

    rate, rows, failed = gemm(), {}, False
    for size in args.size or list(SIZES):
        rows[size] = {side: apart(side, size, args) for side in args.side or ("ours", "peers")}
        failed |= not all(rows[size].values())
        print(size, json.dumps(rows[size]), flush=True)
        lines = table(rows, torch.cuda.get_device_name(0), rate, args)
        if args.output:
            report.write(args.output, lines)
    if failed and not args.output:  # what is there says more than a table with holes
        print("\n".join(lines))
        raise SystemExit("a side failed: results/speed_gpu.md is left as it was")
    if not args.output:
        report.write(HERE.parent / "results" / "speed_gpu.md", lines)


if __name__ == "__main__":
    main()
