"""Make the base model of the suite `exact`: `python -m harness_suites.make_exact_base --out
FOLDER`.

A stock Llama with random weights. Its vocabulary is three words and the end-of-sequence token,
which also pads: there is no other special token, so every other token is an ordinary word of an
answer. Its initial weights are large, so that different prompts and beginnings of answers have
different distributions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .exact import END, WORDS


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer; a word outside the vocabulary is an error, not an unknown
    token.
    """
    core = Tokenizer(WordLevel({word: i for i, word in enumerate((END, *WORDS))}))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=END, padding_side="left"
    )


def build_model(width: int, layers: int, seed: int) -> LlamaForCausalLM:
    """Return the random Llama."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1 + len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        initializer_range=width**-0.5,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:  # larger features separate contexts earlier in training
            layer.mlp.gate_proj.weight *= 2
            layer.mlp.up_proj.weight *= 2
    return model


def main() -> None:
    """Write model, tokenizer and the command that made them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = build_model(args.width, args.layers, args.seed)
    model.save_pretrained(args.out)
    build_tokenizer().save_pretrained(args.out)
    flags = f"--width {args.width} --layers {args.layers} --seed {args.seed}"
    record = {
        "command": (
            f"python -m harness_suites.make_exact_base {flags} --out"
            " suites/harness_suites/exact_base"
        ),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    Path(args.out, "training.json").write_text(
        json.dumps(record, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
